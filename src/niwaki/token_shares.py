"""How many tokens a model that drops some keeps in each layer, on given rows."""

# B batch, N rows, C classes, L layers

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.batching import in_row_order, length_sorted
from niwaki.calibrate import evaluating, inputs_of
from niwaki.layers.dropping import TokenDropper
from niwaki.task import Encoded


@dataclass(frozen=True)
class TokenShares:
    """Hold what a model says to rows, and how many tokens it keeps of them.

    Attributes:
        logits_NC: of the rows.
        kept_NL: tokens of each row that the feed-forward of each layer reads.
        length_N: tokens of each row, padding not counted.
    """

    logits_NC: npt.NDArray[Any]
    kept_NL: npt.NDArray[Any]
    length_N: npt.NDArray[Any]

    @property
    def by_layer(self) -> tuple[float, ...]:
        """Return of each layer which share of the rows' tokens its feed-forward reads."""
        return tuple((self.kept_NL.sum(axis=0) / self.length_N.sum()).tolist())

    @property
    def mean(self) -> float:
        """Return the mean share over layers: of all tokens in all layers, those that are there."""
        return float(np.mean(self.by_layer))


def token_shares(model: nn.Module, rows: Encoded, batch_size: int = 64) -> TokenShares:
    """Return what a model says to rows, in their order, and how many of their tokens are left in each layer.

    Args:
        model: of a known family; one that drops no tokens keeps all.
        rows: of the task.
        batch_size: rows at once, of like length.
    """
    device = next(model.parameters()).device
    batches = length_sorted(rows.lengths, batch_size)
    logits, kept = [], []
    with evaluating(model):
        for indices in batches:
            batch = {name: value.to(device) for name, value in inputs_of(rows.batch(indices)).items()}
            logits.append(model(**batch).logits.float().cpu().numpy())
            kept.append(_kept(model, batch["attention_mask"].sum(dim=1)).cpu().numpy())
    return TokenShares(in_row_order(batches, logits), in_row_order(batches, kept), np.asarray(rows.lengths))


def _kept(model: nn.Module, count_B: Tensor) -> Tensor:
    """Return how many tokens each layer kept in the last pass, (B, L), of rows with so many."""
    counts = []
    for layer in anatomy_of(model).layers:
        dropper: TokenDropper | None = getattr(layer.attention, "dropper", None)
        if dropper is not None and dropper.kept_B is not None:
            count_B = dropper.kept_B
        counts.append(count_B)
    return torch.stack(counts, dim=1)
