"""Choose a point of a curve of quality and cost: the cheapest within a limit on the loss, or the best within a cost."""

# N rows, C classes

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from niwaki.limit import Limit

Array = npt.NDArray[Any]
#: A mean of thirds is rounded otherwise than a third.
SLACK = 1e-9


class Labelled(Protocol):
    """Hold the rows that points are from."""

    @property
    def labels_N(self) -> Array:
        """Return class ids."""

    @property
    def metric(self) -> str:
        """Return the task's metric, in percent."""

    @property
    def classes(self) -> int:
        """Return C."""


class Point(Protocol):
    """Say what one setting gives."""

    @property
    def quality(self) -> float:
        """Return the metric."""

    @property
    def mean_cost(self) -> float:
        """Return what a row costs in the mean, as a share of what it costs without the technique."""

    @property
    def predictions_N(self) -> Array:
        """Return class ids."""


Any_Point = TypeVar("Any_Point", bound=Point)


def within_drop(rows: Labelled, points: Sequence[Any_Point], limit: Limit, seed: int) -> Any_Point:
    """Return the point of least cost that is within the limit against the first, the most careful one.

    With a confidence the upper bound of the drop must be within the limit, point after point from the most careful one,
    and the first that is not ends the search: so that looking at many points does not weaken the bound (Angelopoulos et
    al. 2022, Learn then Test: fixed sequence testing).

    Args:
        rows: that the points are from.
        points: the most careful first.
        limit: in percentage points, from 0.
        seed: of the bootstrap.
    """
    if limit.confidence is None:
        whole = points[0].quality
        good = (point for point in points if whole - point.quality <= limit.allowed)
        return min(good, key=lambda point: point.mean_cost)
    chosen = points[0]
    for point in points[1:]:
        bound = bound_of(rows, points[0], point, limit, seed)
        if bound is None or bound > limit.allowed:
            break
        chosen = point
    return chosen


def bound_of(rows: Labelled, whole: Point, point: Point, limit: Limit, seed: int) -> float | None:
    """Return what a point loses at most against the whole model, in percentage points, where a confidence is asked."""
    answers = whole.predictions_N, point.predictions_N, rows.labels_N
    return limit.bound(*answers, rows.metric, num_classes=rows.classes, seed=seed)


def first_within_cost(points: Sequence[Any_Point], wanted: float) -> Any_Point | None:
    """Return the first, the most careful point whose mean cost is no more than is wanted; None where there is none."""
    return next((point for point in points if point.mean_cost <= wanted + SLACK), None)
