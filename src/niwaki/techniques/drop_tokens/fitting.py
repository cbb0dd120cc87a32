"""Fit the levels at which layers drop tokens: what each of many strengths gives on rows, one pass for each."""

# N rows, C classes, L layers

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import watched
from niwaki.errors import NiwakiError
from niwaki.layers.dropping import By, TokenDropper, dropping
from niwaki.surgery.dropping import stand_droppers
from niwaki.task import Encoded, score
from niwaki.token_shares import TokenShares, token_shares

Array = npt.NDArray[Any]
#: Strengths that are tried: so many shares, or quantiles of the scores.
MOST = 20
#: The strengths of thresholds are doubled beyond the highest score until so few tokens are left, or so often.
FEW, DOUBLINGS = 0.15, 6
#: A threshold that all tokens reach, to see their scores.
LEAST = 1e-30


@dataclass(frozen=True)
class Schedule:
    """Say at which level each layer drops tokens, for each strength.

    Attributes:
        by: "threshold" or "share".
        shape: of thresholds, what the strength is multiplied by in each layer but the last; not looked at in shares,
            where each of these layers keeps the share 1 - strength of what it is given.
        from_length: a row of fewer tokens keeps all.
    """

    by: By
    shape: tuple[float, ...]
    from_length: int = 0

    def levels(self, strength: float) -> list[float]:
        """Return the level of each layer but the last.

        >>> Schedule("threshold", (0.25, 0.5)).levels(0.5), Schedule("share", (1.0, 1.0)).levels(0.25)
        ([0.125, 0.25], [0.75, 0.75])
        """
        if self.by == "share":
            return [1.0 - strength] * len(self.shape)
        return [min(1.0, strength * factor) for factor in self.shape]


def rising(layers: int) -> tuple[float, ...]:
    """Return the thresholds that rise in a line over the layers to 1 in the last, which drops nothing itself.

    Source: Kim et al. 2022, Learned Token Pruning for Transformers, whose thresholds begin so.

    >>> rising(4)
    (0.25, 0.5, 0.75)
    """
    return tuple((layer + 1) / layers for layer in range(layers - 1))


def mean_share(share: float, layers: int) -> float:
    """Return of all tokens in all layers those that are there, where each layer but the last keeps a share of its own.

    >>> mean_share(0.5, 3)  # a half, a quarter, and the last as many
    0.3333333333333333
    """
    powers = [share**count for count in range(1, layers)]
    return (sum(powers) + powers[-1]) / layers


def share_for(mean: float, layers: int) -> float:
    """Return the share that each layer keeps where the mean over layers is this.

    >>> round(mean_share(share_for(0.4, 6), 6), 6)
    0.4
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_share(middle, layers) < mean else (low, middle)
    return high


def least_share(lengths_N: Array, from_length: int = 0) -> float:
    """Return of all tokens in all layers those left where all go that may: a row's first stays, and a short row.

    >>> least_share(np.array([10, 2, 4]), from_length=3)
    0.25
    """
    return float(np.where(lengths_N < from_length, lengths_N, 1).sum() / lengths_N.sum())


@dataclass(frozen=True)
class Labels:
    """Hold the rows' labels, and how predictions are judged by them."""

    labels_N: Array
    metric: str
    classes: int

    def quality(self, predictions_N: Array) -> float:
        """Return the metric of predictions."""
        return score(self.metric, predictions_N, self.labels_N, self.classes)


@dataclass(frozen=True)
class Point:
    """Say what one strength gives.

    Attributes:
        strength: from 0, at which all tokens stay.
        levels: of the layers but the last.
        quality: the metric.
        mean_cost: the share of all tokens in all layers that are there.
        shares: of the rows' tokens, those that each layer keeps.
        predictions_N: class ids.
    """

    strength: float
    levels: list[float]
    quality: float
    mean_cost: float
    shares: tuple[float, ...]
    predictions_N: Array

    def told(self) -> dict[str, Any]:
        """Return the point as a log keeps it."""
        names = ("strength", "levels", "quality", "mean_cost")
        return {**{name: getattr(self, name) for name in names}, "shares": list(self.shares)}


def curve_of(
    model: nn.Module,
    schedule: Schedule,
    rows: Encoded,
    metric: str,
    also: Sequence[float] = (),
    few: float = FEW,
    advance: Callable[[float], None] = lambda share: None,
) -> tuple[Labels, list[Point]]:
    """Return the rows' labels, and what strengths give, the most careful first: the one at which no token goes.

    Args:
        model: is left with droppers whose levels mean nothing.
        schedule: what a strength means.
        rows: on which it is asked.
        metric: of the task.
        also: strengths to be tried in any case.
        few: mean share of tokens at which no stronger threshold is tried.
        advance: called after each pass with its share of those that are sure to be made.
    """
    tried = candidates(model, schedule, rows)
    strengths = sorted({0.0, *tried, *also})
    count, labels, points = len(strengths), None, []
    while strengths:
        strength = strengths.pop(0)
        said = _asked(model, schedule, strength, rows)
        labels = labels or Labels(np.asarray(rows.labels), metric, said.logits_NC.shape[1])
        predictions_N = said.logits_NC.argmax(axis=1)
        point = Point(
            strength, schedule.levels(strength), labels.quality(predictions_N), said.mean, said.by_layer, predictions_N
        )
        points.append(point)
        advance(1.0 / count)
        doubled = round(np.log2(strength / tried[-1])) if strength else 0
        if not strengths and schedule.by == "threshold" and said.mean > few and doubled < DOUBLINGS:
            strengths.append(2.0 * strength)
    assert labels is not None
    return labels, points


def _asked(model: nn.Module, schedule: Schedule, strength: float, rows: Encoded) -> TokenShares:
    stand_droppers(model, schedule.by, schedule.levels(strength), schedule.from_length)
    return token_shares(model, rows)


def candidates(model: nn.Module, schedule: Schedule, rows: Encoded) -> list[float]:
    """Return strengths above 0 to try, rising: by share those that give even means, by threshold quantiles of scores.

    The scores are those of a pass in which all tokens stay. Where tokens go, those that are left have higher ones.
    """
    even = np.linspace(1.0, 0.0, MOST + 1)[1:-1].tolist()
    if schedule.by == "share":
        return [1.0 - share_for(mean, len(schedule.shape) + 1) for mean in even]
    seen = _scores(model, schedule, rows)
    # a threshold of 0 drops nothing, and between equal scores lies no other
    return sorted({one for one in np.quantile(seen, [1.0 - mean for mean in even]).tolist() if one > 0})


def _scores(model: nn.Module, schedule: Schedule, rows: Encoded) -> Array:
    """Return the strength at which each token would go in each layer, if none had gone before."""
    stand_droppers(model, "threshold", [LEAST if factor else 0.0 for factor in schedule.shape], schedule.from_length)
    layers = anatomy_of(model).layers[:-1]
    droppers = {str(layer.index): layer.attention.dropper for layer in layers if hasattr(layer.attention, "dropper")}
    if not droppers:
        raise NiwakiError(
            "no layer before the last attends",
            expected="a layer with heads, whose attention tells tokens apart",
            place="drop-tokens",
        )
    found: list[Array] = []

    def see(name: str, scores_BT: Tensor, stays_BT: Tensor) -> None:
        there_BT = stays_BT.clone()
        there_BT[:, 0] = False  # stays in any case
        found.append((scores_BT[there_BT] / schedule.shape[int(name)]).float().cpu().numpy())

    watching: dict[str, nn.Module] = {name: one for name, one in droppers.items() if isinstance(one, TokenDropper)}
    with watched(watching, see), dropping(model, "masked"):
        token_shares(model, rows)
    return np.concatenate(found)
