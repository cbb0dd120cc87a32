"""A model and its companions as one module with one loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.task import Task
from niwaki.technique import Companion


class Joint(nn.Module):
    """Hold a model and its companions, so that wrappers and compilers see one module with one loss."""

    def __init__(self, model: nn.Module, companions: Sequence[Companion], task: Task) -> None:
        super().__init__()
        self.model = model
        self.companions = nn.ModuleList(companions)
        self.task = task
        self.names = [type(companion).__name__.lower() for companion in companions]

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of all losses and each part of it, without its graph."""
        arguments: dict[str, Any] = {}
        weight = 1.0
        for companion in self.companions:
            assert isinstance(companion, Companion)
            arguments |= companion.forward_arguments()
            weight *= companion.task_weight()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in batch}
        output = self.model(**inputs, **arguments)
        losses: dict[str, Tensor] = {}
        if weight > 0:
            losses["task"] = weight * self.task.loss(output.logits.float(), batch["labels"])
        for name, companion in zip(self.names, self.companions, strict=True):
            assert isinstance(companion, Companion)
            losses |= {f"{name}.{part}": value for part, value in companion.loss(output, batch).items()}
        total = torch.stack(list(losses.values())).sum()
        return total, {name: value.detach() for name, value in losses.items()}
