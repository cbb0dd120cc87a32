"""A model of PyTorch with exits, as an opened artifact runs it; this module alone of the runtime's imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from niwaki.exiting import all_logits, classify
from niwaki.layers.exits import Exits
from niwaki.runtime.rule import Rule

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TorchExits:
    """Run a model with exits, rows that leave taken out."""

    model: nn.Module
    rule: Rule

    def classify(self, inputs: Mapping[str, Tensor]) -> tuple[Array, Array]:
        """Return logits (B, C), and at which exit each row left, (B,); E where it stayed to the end."""
        logits_BC, exits_B = classify(self.model, dict(inputs))
        return logits_BC.float().numpy(), exits_B.numpy()

    def every(self, inputs: Mapping[str, Tensor]) -> Array:
        """Return the logits (E + 1, B, C) of every exit and of the end: no row leaves."""
        with torch.inference_mode():
            every: Array = all_logits(self.model, dict(inputs)).float().numpy()
        return every


def rule_of(exits: Exits) -> Rule:
    """Return by what rule rows leave a model with these exits."""
    return Rule(exits.by, exits.thresholds, exits.layers)
