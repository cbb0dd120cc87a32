"""How much of the task's metric a packed model may lose, and with what confidence."""

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

    def lost(
        self,
        whole_N: Outcomes,
        this_N: Outcomes,
        labels_N: npt.NDArray[np.integer[Any]] | None,
        metric: str,
        *,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Return the paired quality, with `drop`: points lost; and `bound`: at most, where a confidence is asked for.

        Args:
            whole_N: outcomes of the model in floats, as `niwaki.measure.paired_quality` takes them.
            this_N: of the packed one.
            labels_N: class ids, where the metric looks at them.
            metric: of the task.
            num_classes: of the task.
            seed: of the bootstrap.

        >>> labels = np.ones(100, int)
        >>> worse = np.where(np.arange(100) < 4, 0, 1)
        >>> [Limit(5.0, confidence).lost(labels, worse, labels, "accuracy")["bound"] for confidence in (None, 0.9)]
        [None, 7.0]
        """

        def compared(level: float) -> dict[str, Any]:
            return paired_quality(
                whole_N,
                this_N,
                labels_N,
                metric,
                num_classes=num_classes,
                resamples=RESAMPLES,
                seed=seed,
                level=level,
            )

        sign = -1.0 if higher_is_better(metric) else 1.0
        quality = compared(0.95)
        bound = None
        if self.confidence is not None:
            bound = max(sign * end for end in compared(2 * self.confidence - 1)["interval"])
        return {**quality, "drop": sign * quality["difference"], "bound": bound}

    def holds(self, told: Mapping[str, Any]) -> bool:
        """Say whether a `bound`, or where there is none a `drop`, is known and within the limit."""
        counts = told["drop"] if told["bound"] is None else told["bound"]
        return counts is not None and counts <= self.allowed
