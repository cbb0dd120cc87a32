"""How much of the task's metric a model may lose by what is done to it, and with what confidence."""

# N rows

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.measure.quality import paired_quality
from niwaki.task.metrics import higher_is_better

RESAMPLES = 2000
Outcomes = npt.NDArray[Any]
Labels = npt.NDArray[np.integer[Any]] | None


@dataclass(frozen=True)
class Limit:
    """Say how much may be lost.

    Attributes:
        allowed: points of the metric; of a language model nats, or perplexity.
        confidence: with which new rows like those that are looked at lose no more, in (0.5, 1): the upper end of a
            one-sided interval is what counts then. None: what these rows lose.
    """

    allowed: float
    confidence: float | None = None

    def told(self) -> dict[str, Any]:
        """Return the limit as a log keeps it."""
        return {"allowed": self.allowed, "confidence": self.confidence}

    def bound(
        self,
        whole_N: Outcomes,
        this_N: Outcomes,
        labels_N: Labels,
        metric: str,
        *,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> float | None:
        """Return how many points are lost at most, with the confidence; None where none is asked for.

        Args:
            whole_N: outcomes of the model that is compared with, as `niwaki.measure.paired_quality` takes them.
            this_N: of the one that loses.
            labels_N: class ids, where the metric looks at them.
            metric: of the task.
            num_classes: of the task.
            seed: of the bootstrap.

        >>> labels = np.ones(100, int)
        >>> Limit(5.0, 0.9).bound(labels, np.where(np.arange(100) < 4, 0, 1), labels, "accuracy")
        7.0
        """
        if self.confidence is None:
            return None
        settings: dict[str, Any] = {"num_classes": num_classes, "resamples": RESAMPLES, "seed": seed}
        quality = paired_quality(whole_N, this_N, labels_N, metric, level=2 * self.confidence - 1, **settings)
        return max(loss_of(metric, end) for end in quality["interval"])

    def lost(
        self,
        whole_N: Outcomes,
        this_N: Outcomes,
        labels_N: Labels,
        metric: str,
        *,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Return the paired quality, with `drop`, the points lost, and the `bound`; arguments are those of `bound`."""
        settings: dict[str, Any] = {"num_classes": num_classes, "seed": seed}
        quality = paired_quality(whole_N, this_N, labels_N, metric, resamples=RESAMPLES, **settings)
        bound = self.bound(whole_N, this_N, labels_N, metric, **settings)
        return {**quality, "drop": loss_of(metric, quality["difference"]), "bound": bound}

    def holds(self, told: Mapping[str, Any]) -> bool:
        """Say whether a `bound`, or where there is none a `drop`, is known and within the limit."""
        counts = told["drop"] if told["bound"] is None else told["bound"]
        return counts is not None and counts <= self.allowed


def loss_of(metric: str, difference: float) -> float:
    """Return a difference of a metric as what is lost by it.

    >>> loss_of("accuracy", -0.5), loss_of("nats", 0.5)
    (0.5, 0.5)
    """
    return -difference if higher_is_better(metric) else difference
