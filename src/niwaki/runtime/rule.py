"""By what rule rows leave an artifact with exits: checked when it is read, applied exit by exit when it runs."""

# B batch, C classes, E exits

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError
from niwaki.exit_rule import By, sureness

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Rule:
    """Say when a row leaves.

    Attributes:
        by: what tells how sure the heads are: "entropy", "probability" or "patience" (`niwaki.exit_rule.sureness`).
        thresholds: of each exit, the earliest first; a row leaves where it is as sure as that.
        layers: the index of the layer that each exit stands behind.
    """

    by: By
    thresholds: tuple[float, ...]
    layers: tuple[int, ...]

    @classmethod
    def read(cls, record: Mapping[str, Any], place: str) -> Rule:
        """Return the rule that an artifact tells of.

        Args:
            record: with `by`, `thresholds` and `layers`; whatever else it holds is not looked at.
            place: the file it comes from, for the message.

        Raises:
            NiwakiError: a rule that is not known, or other than one threshold an exit.
        """
        told: list[Any] = [record.get(name) for name in ("by", "layers", "thresholds")]
        by, layers, thresholds = told
        if by not in get_args(By):
            raise NiwakiError(f"by is {by!r}", expected=f"one of {', '.join(get_args(By))}", place=place)
        if not isinstance(layers, list) or not all(type(layer) is int for layer in layers) or not layers:
            raise NiwakiError(
                f"layers is {layers!r}", expected="a list of the layers that have an exit behind them", place=place
            )
        known = isinstance(thresholds, list) and all(type(one) in (int, float) for one in thresholds)
        if not known or len(thresholds) != len(layers):
            raise NiwakiError(
                f"thresholds is {thresholds!r}", expected=f"a list of {len(layers)} numbers, one an exit", place=place
            )
        return cls(by, tuple(map(float, thresholds)), tuple(layers))

    def record(self) -> dict[str, Any]:
        """Return what `read` reads."""
        return {"by": self.by, "thresholds": list(self.thresholds), "layers": list(self.layers)}

    def leaves(self, logits: Sequence[Array]) -> npt.NDArray[np.bool_]:
        """Return (B,), which rows leave at the last of these exits.

        Args:
            logits: (B, C) of the first exits up to this one, of the rows that are still here.
        """
        seen = logits if self.by == "patience" else logits[-1:]
        return np.asarray(sureness(self.by, np.stack(seen))[-1] >= self.thresholds[len(logits) - 1])


class Exits(Protocol):
    """An opened model whose rows may leave early."""

    @property
    def rule(self) -> Rule:
        """Return by what rule they leave."""

    def classify(self, inputs: Mapping[str, Any]) -> tuple[Array, Array]:
        """Return logits (B, C), and at which exit each row left, (B,); E where it stayed to the end."""

    def every(self, inputs: Mapping[str, Any]) -> Array:
        """Return the logits (E + 1, B, C) of every exit and of the end: no row leaves."""
