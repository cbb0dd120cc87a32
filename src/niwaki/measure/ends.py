"""Do the first and the last layer matter more than the middle? The claim, tested on one model's own numbers."""

# N examples, K kinds of example, R resamples, L layers

from __future__ import annotations

from typing import Literal

import numpy as np

from niwaki.measure.quality import Integers, metric_of_draws
from niwaki.measure.records import _Record


class Contrast(_Record):
    """Say how much more it costs to remove one layer than to remove one of the middle, on average.

    Attributes:
        layer: index of the layer.
        difference: in points; above 0, the layer matters more than the middle.
        interval: of the difference, 95%, bootstrap over examples, in points.
    """

    layer: int
    difference: float
    interval: tuple[float, float]

    @property
    def side(self) -> int:
        """Return 1 where the whole interval is above 0, -1 where it is below, and 0 where it holds 0."""
        low, high = self.interval
        return int(low > 0) - int(high < 0)

    def __str__(self) -> str:
        words = "more" if self.difference >= 0 else "less"
        low, high = self.interval
        told = "" if self.side else ": too close to tell"
        return (
            f"removing layer {self.layer} costs {abs(self.difference):.2f} points {words} than removing a middle layer "
            f"does on average (95%: {low:+.2f}..{high:+.2f}{told})"
        )


class Verdict(_Record):
    """Judge the claim that first and last layers matter and middle ones are redundant.

    Attributes:
        finding: "shown" when both ends cost more to remove than the middle does, with their whole intervals; "refuted"
            when one of them costs less, with its whole interval; else "open". "none" of a model without a middle.
        first, last: each end against the middle.
        middle: number of layers between the ends.
        redundant: how many of those can each be removed alone without a loss that the rows can measure.
        sentence: all of this in words.
    """

    finding: Literal["shown", "refuted", "open", "none"]
    first: Contrast | None = None
    last: Contrast | None = None
    middle: int = 0
    redundant: int = 0
    sentence: str


def ends_against_middle(
    predictions_LN: Integers,
    labels_N: Integers,
    metric: str,
    num_classes: int,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[Contrast, Contrast]:
    """Contrast the first and the last of three or more layers with the mean of those between.

    Row l of `predictions_LN` is what the model says without layer l. Examples are drawn with replacement, each with its
    label and all of its predictions, so that what the models share cancels.
    """
    table_NM = np.concatenate([predictions_LN, labels_N[None]]).T
    kinds_KM, counts_K = np.unique(table_NM, axis=0, return_counts=True)
    draws_RK = np.random.default_rng(seed).multinomial(len(labels_N), counts_K / len(labels_N), size=resamples)
    draws_RK = np.concatenate([counts_K[None], draws_RK])  # the first "draw" is the examples themselves
    layers_LK, labels_K = kinds_KM[:, :-1].T, kinds_KM[:, -1]
    scores_LR = np.stack([metric_of_draws(metric, draws_RK, each_K, labels_K, num_classes) for each_K in layers_LK])
    middle_R = scores_LR[1:-1].mean(axis=0)
    first, last = (_contrast(layer, middle_R - scores_LR[layer]) for layer in (0, len(scores_LR) - 1))
    return first, last


def verdict(first: Contrast, last: Contrast, middle: list[tuple[float, float]], count: int) -> Verdict:
    """Put the finding into words.

    Args:
        first: layer against the middle.
        last: layer against the middle.
        middle: for each layer between them, the interval of the difference in quality without it; a loss is measurable
            where the whole interval is below 0.
        count: number of rows.
    """
    sides = (first.side, last.side)
    finding: Literal["shown", "refuted", "open"]
    finding = "refuted" if -1 in sides else "shown" if sides == (1, 1) else "open"
    words = {"shown": "show", "refuted": "refute", "open": "neither show nor refute"}[finding]
    redundant = [low for low, high in middle if high >= 0]
    most = max((-low for low in redundant), default=0.0)
    may = f"; by their intervals it may still be up to {most:.2f} points" if most > 0 else ""
    sentence = (
        f"These {count} rows {words} that the first and the last layer matter more than the middle: "
        f"{first}, and {last}. "
        f"Of the {len(middle)} layers in the middle, {len(redundant)} can each be removed alone without a loss that "
        f"these rows can measure{may}."
    )
    return Verdict(
        finding=finding, first=first, last=last, middle=len(middle), redundant=len(redundant), sentence=sentence
    )


def _contrast(layer: int, differences_R: np.ndarray) -> Contrast:
    """Return the difference of the examples themselves, and the interval over the draws."""
    low, high = np.percentile(differences_R[1:], [2.5, 97.5])
    return Contrast(layer=layer, difference=float(differences_R[0]), interval=(float(low), float(high)))
