"""Early exits: small heads after chosen layers, and what they go by when they let a row leave."""

# B batch, T tokens, D hidden, W width of a head, C classes

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.exit_rule import NEVER, By


class ExitHead(nn.Module):
    """Tell the classes from the first token's state after some layer: logits = U tanh(W h + b) + c.

    The form is that of the usual head of an encoder, but narrow and with numbers of its own. A pooling linear as wide
    as the model, times the number of exits, would be a good part of a small model's file; a single linear says too
    little where the layers below are held and cannot learn to put the answer into the first token.

    Args:
        hidden: D.
        width: W, the units between.
        classes: C.
    """

    def __init__(self, hidden: int, width: int, classes: int) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden, width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        logits_BC: Tensor = self.classifier(torch.tanh(self.dense(hidden_BTD[:, 0])))
        return logits_BC


class Exits(nn.Module):
    """Hold the heads of a model's exits, and the rule of `niwaki.exit_rule` with a threshold for each.

    It stands in a model as `exits`, and does nothing by itself: the model's own forward is what it was, and
    `niwaki.exiting` runs it with exits.

    Attributes:
        heads: one a layer, keyed by how many layers stand before that layer ("0": after the first).
        by: what is compared with the thresholds.
        thresholds: one an exit, the earliest first; at `NEVER` no row leaves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleDict()
        self.by: By = "probability"
        self.thresholds: tuple[float, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        """Return after which layers there is an exit, counted from 0, ascending."""
        return tuple(int(layer) for layer in self.heads)

    def put(self, heads: dict[int, nn.Module], thresholds: dict[int, float]) -> None:
        """Have these heads, by layer, and no others; one without a threshold lets no row leave."""
        in_order = sorted(heads)
        self.heads = nn.ModuleDict({str(layer): heads[layer] for layer in in_order})
        self.thresholds = tuple(thresholds.get(layer, NEVER) for layer in in_order)


def exits_of(model: nn.Module) -> Exits | None:
    """Return a model's exits, or None where it has none."""
    exits = getattr(model, "exits", None)
    return exits if isinstance(exits, Exits) else None
