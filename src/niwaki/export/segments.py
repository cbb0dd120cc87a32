"""A classifier with exits, rewritten for export and cut behind each exit.

Each segment is a graph of its own: the first runs from token ids to its exit, each other one from the hidden states of
all tokens that the one before it hands on; the last ends in the model's own head, for which the first token is enough.
"""

# B batch, T tokens, D hidden, C classes, E exits

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.export.prepare import LeanClassifier, is_known, through
from niwaki.layers.codebook import in_floats
from niwaki.layers.exits import Exits
from niwaki.runtime.torch_exits import rule_of


class Segment(nn.Module):
    """Run some layers of a classifier, and the head behind them.

    Args:
        layers: lean ones, in their order.
        head: from hidden states (B, Q, D) to logits (B, C).
        embeddings: before the layers of the first segment; the others take hidden states.
        hands_on: give the hidden states too, for the next segment.
    """

    def __init__(
        self, layers: Iterable[nn.Module], head: nn.Module, embeddings: nn.Module | None, hands_on: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = cast("Callable[[Tensor], Tensor]", head)
        self.embeddings = embeddings
        self.hands_on = hands_on

    def forward(
        self, inputs: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return logits (B, C), and hidden states (B, T, D) where they are handed on.

        Args:
            inputs: token ids (B, T) of the first segment, hidden states (B, T, D) of the others.
            attention_mask: int64, (B, T).
            token_type_ids: int64, (B, T), of the first segment.
        """
        hidden_BTD = inputs if self.embeddings is None else self.embeddings(inputs, token_type_ids)
        hidden_BQD = through(self.layers, hidden_BTD, attention_mask)
        logits_BC = self.head(hidden_BQD)
        return (logits_BC, hidden_BQD) if self.hands_on else logits_BC


class Segments(nn.Module):
    """Hold the segments of a classifier with exits; called, give the logits of every exit and of the end.

    Args:
        model: with `exits`, in eval mode; it is not changed, and its modules are shared with the result.
        token_types: whether the artifact takes token types; else they are all 0.

    Raises:
        NiwakiError: a part of the model is none of those that the rewriting knows.
    """

    def __init__(self, model: nn.Module, token_types: bool) -> None:
        super().__init__()
        model = in_floats(model)
        if not is_known(model):
            raise NiwakiError(
                f"a {type(model).__name__} with exits cannot be cut into segments",
                expected="a classifier of the families bert, roberta, electra, distilbert or albert",
                fix="the PyTorch runtime, which opens the run folder itself",
            )
        anatomy = anatomy_of(model)
        whole = LeanClassifier(anatomy, token_types)
        exits = cast(Exits, model.exits)
        self.rule = rule_of(exits)
        ends = [0, *(layer + 1 for layer in self.rule.layers), anatomy.depth]
        heads: list[Any] = [*exits.heads.values(), whole.head]
        self.segments = nn.ModuleList(
            Segment(whole.layers[start:stop], head, None if start else whole.embeddings, stop < anatomy.depth)
            for (start, stop), head in zip(pairwise(ends), heads, strict=True)
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """Return logits (B, E + 1, C), the earliest exit first."""
        *first, last = self.segments
        inputs, found = input_ids, []
        for segment in first:
            logits_BC, inputs = segment(inputs, attention_mask, token_type_ids)
            found.append(logits_BC)
        return torch.stack([*found, last(inputs, attention_mask)], dim=1)
