"""Fit the thresholds of exits: what each of many thresholds would give, from one pass over rows, and which to take."""

# E exits, N rows, C classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError
from niwaki.exit_rule import NEVER, By, leaving, sureness
from niwaki.task import score
from niwaki.trade_off import SLACK, first_within_cost

Array = npt.NDArray[Any]
#: Most thresholds that are tried, evenly spread over the rows.
MOST = 100


@dataclass(frozen=True)
class Rows:
    """Hold what the heads say to rows whose classes are known.

    Attributes:
        logits_ENC: of each exit and, last, of the model's own head: (E + 1, N, C).
        labels_N: class ids.
        costs_E: (E + 1,) the share of the layers that have run where a row leaves; the last is 1.
        metric: of the task, in percent.
    """

    logits_ENC: Array
    labels_N: Array
    costs_E: Array
    metric: str

    @property
    def classes(self) -> int:
        """Return C."""
        return int(self.logits_ENC.shape[2])

    def quality(self, predictions_N: Array) -> float:
        """Return the metric of predictions."""
        return score(self.metric, predictions_N, self.labels_N, self.classes)

    def alone(self) -> list[float]:
        """Return the metric of each head where all rows leave there, the model's own last."""
        return [self.quality(logits_NC.argmax(axis=1)) for logits_NC in self.logits_ENC]


@dataclass(frozen=True)
class Point:
    """Say what one threshold, the same at every exit, gives.

    Attributes:
        threshold: at which rows leave.
        quality: the metric, each row with the head it leaves at.
        mean_cost: mean share of the layers that rows run through, embeddings and heads apart.
        shares: of the rows, that leave at each exit, and, last, that go to the end.
        predictions_N: class ids.
    """

    threshold: float
    quality: float
    mean_cost: float
    shares: tuple[float, ...]
    predictions_N: Array

    def told(self) -> dict[str, Any]:
        """Return the point as a log keeps it."""
        told = {"threshold": self.threshold, "quality": self.quality, "mean_cost": self.mean_cost}
        return {**told, "shares": list(self.shares)}


def curve_of(rows: Rows, by: By) -> list[Point]:
    """Return what thresholds give, the most careful first: where no row leaves, and at last all at the first exit.

    >>> logits = np.array([[[0.0, 9], [1, 0]], [[0, 1], [0, 1]]])  # an exit that is right and sure once, and once wrong
    >>> points = curve_of(Rows(logits, np.array([1, 1]), np.array([0.5, 1.0]), "accuracy"), "probability")
    >>> [(point.quality, point.mean_cost, point.shares) for point in points]
    [(100.0, 1.0, (0.0, 1.0)), (100.0, 0.75, (0.5, 0.5)), (50.0, 0.5, (1.0, 0.0))]
    """
    return [_point(rows, by, threshold) for threshold in candidates(by, sureness(by, rows.logits_ENC[:-1]))]


def _point(rows: Rows, by: By, threshold: float) -> Point:
    exits, count = len(rows.costs_E) - 1, len(rows.labels_N)
    at_N = leaving(by, np.full(exits, threshold), rows.logits_ENC[:-1])
    predictions_N = rows.logits_ENC[at_N, np.arange(count)].argmax(axis=1)
    shares_E = np.bincount(at_N, minlength=exits + 1) / count
    mean_cost = float(rows.costs_E[at_N].mean())
    return Point(threshold, rows.quality(predictions_N), mean_cost, tuple(shares_E.tolist()), predictions_N)


def candidates(by: By, sureness_EN: Array) -> list[float]:
    """Return thresholds to try, falling: one that no row reaches first, and one that all reach last.

    They lie in the middle between what two rows have, where the rounding of sums moves none across.

    >>> candidates("probability", np.array([[0.5, 0.75, 1.0]]))
    [1000.0, 0.875, 0.625, 0.0]
    >>> candidates("patience", np.ones((2, 1)))
    [1000.0, 2.0, 1.0]
    """
    if by == "patience":
        return [NEVER, *(float(count) for count in range(len(sureness_EN), 0, -1))]
    known = np.unique(sureness_EN)[::-1]
    middles = (known[1:] + known[:-1]) / 2
    if len(middles) > MOST:
        ranks = np.sort(sureness_EN, axis=None)[::-1]
        ends = ranks[np.linspace(0, len(ranks) - 1, MOST + 1).round().astype(int)]
        middles = np.unique((ends[1:] + ends[:-1]) / 2)[::-1]
    return [NEVER, *middles.tolist(), 0.0]


def within_cost(points: Sequence[Point], wanted: float) -> Point:
    """Return the most careful point whose mean cost is no more than is wanted.

    Raises:
        NiwakiError: even with all rows leaving at the first exit it costs more.
    """
    check_cost(wanted, points[-1].mean_cost)
    return first_within_cost(points, wanted) or points[-1]


def check_cost(wanted: float, least: float) -> None:
    """Refuse a mean cost below the one of the first exit."""
    if wanted + SLACK < least:
        raise NiwakiError(
            f"mean_cost is {wanted:g}, and the first exit stands after {least:.3g} of the layers",
            expected=f"a share of the layers in [{least:.3g}, 1]",
            fix=f"mean_cost: {(1 + least) / 2:.2g}, or an earlier exit",
            place="exit",
        )
