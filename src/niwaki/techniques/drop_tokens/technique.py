"""The parameters of `drop-tokens`, and what they make of a model."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.bar import progress_bar
from niwaki.errors import NiwakiError
from niwaki.layers.dropping import By
from niwaki.limit import Limit
from niwaki.surgery import drop_tokens, require_droppable
from niwaki.surgery.dropping import levels_of, stand_droppers
from niwaki.task import Encoded
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.drop_tokens.fitting import (
    FEW,
    Labels,
    Point,
    Schedule,
    curve_of,
    least_share,
    rising,
    share_for,
)
from niwaki.techniques.drop_tokens.training import Fading, Narrowing
from niwaki.trade_off import bound_of, first_within_cost, within_drop

#: Points that may be lost where nothing else is said.
USUAL_DROP = 1.0


class DropTokens(Technique):
    """Let go of the tokens of a text to which little attention is paid, so that later layers compute fewer.

    The score of a token in a layer is the attention that it receives, the mean over heads and tokens:
    s_i = 1 / (H n) sum_h sum_j A_hji. Behind the attention of each layer but the last, tokens go whose score is below
    the layer's threshold; or the share of them with the highest scores stays. The first token, which the head reads,
    always stays. What is left moves together, and the batch is as long as its longest row: from there on feed-forwards
    and attentions are smaller. A row gets what it would get alone.

    Where the levels lie is not guessed but fitted: the selection rows are asked at some twenty strengths, and the
    cheapest within `allowed_drop` is taken, or the most careful within `keep`. As a step of its own it does that at
    once, without training: thresholds rise in a line over the layers, shares are the same in all. Inside `train` the
    model learns to do without: thresholds are learnt with a soft mask sigmoid((s - threshold) / T) on what layers put
    out and a penalty on its mean, until `end`; then they are held, and tokens below are not seen. Shares fall to what
    `keep` asks for until `end`.

    It pays for long texts alone: of 25 tokens few can go, and a layer of 25 takes hardly longer than one of 15. Layers
    that drop compute their attention in full, with a weight for every pair of tokens.

    Args:
        by: "threshold", which drops more of a text that says little; or "share", which costs the same for all texts of
            one length.
        keep: the share of all tokens in all layers that is to be left in the mean, in (0, 1]; 0.3 to 0.8.
        allowed_drop: points of the task's metric that may be lost on the selection rows, against the same model with
            all tokens. As a step, 1 where neither this nor `keep` is given; in train, thresholds stay as learnt then.
        confidence: with which the drop is to be within `allowed_drop` on new rows like these, in (0.5, 1). In train it
            wants `allowed_drop` beside it.
        from_length: a row with fewer tokens in front of a layer keeps all of them there; 0 to 128.
        end: inside `train`: progress at which the soft mask becomes a hard one, and shares have fallen. 0.2 to 0.6.
        penalty: inside `train`, by threshold: weight of the mean of the mask in the loss. 0.01 to 0.2.
        temperature: of the soft mask, T as a share of the mean score 1 / n. 0.01 to 0.1.
        threshold_rate: learning rate of thresholds, in units of the mean score. 1e-3 to 1e-1.

    Raises:
        NiwakiError: the model's head reads other tokens than the first, it repeats its layers, has exits, or attends
            otherwise than by a softmax; no selection row has `from_length` tokens, or their first tokens alone are more
            than `keep`; as a step, no token may go within the limit, or too few do for `keep`.

    Composes with: distill of logits, prune, replace, share, factor and quantize in the same train; drop before it;
        anything else before it but exit and attend. After the last fit no step may follow, for it would be the fit of
        another model.

    References:
        Kim et al. 2022, Learned Token Pruning for Transformers, section 3 (scores, thresholds, soft mask). Goyal et al.
        2020, PoWER-BERT (how many tokens each layer keeps). Kim and Cho 2021, Length-Adaptive Transformer, LengthDrop
        (one share for all layers).

    Example:
        >>> DropTokens(keep=0.5).by, DropTokens().limit.allowed
        ('threshold', 1.0)
    """

    name: ClassVar[str] = "drop-tokens"
    grain: ClassVar[Grain] = Grain.NONE
    fits: ClassVar[bool] = True
    drops_tokens: ClassVar[bool] = True

    by: By = "threshold"
    keep: float | None = Field(None, gt=0, le=1)
    allowed_drop: float | None = Field(None, ge=0, le=100)
    confidence: float | None = Field(None, gt=0.5, lt=1)
    from_length: int = Field(0, ge=0)
    end: float = Field(0.5, gt=0, le=1)
    penalty: float = Field(0.1, ge=0)
    temperature: float = Field(0.05, gt=0)
    threshold_rate: float = Field(1e-2, gt=0, le=1)

    @model_validator(mode="after")
    def _one_limit(self) -> DropTokens:
        if self.keep is not None and self.allowed_drop is not None:
            raise ValueError("allowed_drop and keep are both given, expected one of them: the other follows")
        if self.keep is not None and self.confidence is not None:
            raise ValueError("confidence is that of allowed_drop, and keep is given: leave one of them")
        return self

    @property
    def limit(self) -> Limit:
        """Return how much may be lost."""
        return Limit(USUAL_DROP if self.allowed_drop is None else self.allowed_drop, self.confidence)

    def check(self, model: nn.Module) -> None:
        """Refuse a model whose layers must all see every token."""
        require_droppable(model)

    def check_accompany(self) -> None:
        """Refuse a training that would not know how many tokens to learn for, or what a confidence is of."""
        if self.by == "share" and self.keep is None:
            raise NiwakiError(
                "drop-tokens by share inside train without keep",
                expected="the share of all tokens in all layers to learn for",
                fix="keep: 0.5, or by: threshold, which is learnt",
                place=self.name,
            )
        if self.confidence is not None and self.allowed_drop is None:
            raise NiwakiError(
                f"confidence is {self.confidence:g} inside train without allowed_drop: thresholds stay as learnt",
                expected="the drop that it is to be the confidence of",
                fix=f"allowed_drop: {USUAL_DROP:g} beside it",
                place=self.name,
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Fit levels to the model as it is now: those it has, made stronger or weaker, or new ones."""
        self.check(model)
        had = levels_of(model, "threshold")
        shape = had if any(had) else rising(anatomy_of(model).num_layers)
        chosen = self.fit(model, context, Schedule(self.by, tuple(shape), self.from_length))
        if chosen.strength == 0 and self.keep is None:
            raise NiwakiError(
                f"drop-tokens found no level within allowed_drop {self.limit.allowed:g} at which a token goes",
                expected="a limit that the loss of a few tokens can hold",
                fix=f"allowed_drop: {max(0.1, 2 * self.limit.allowed):.2g}, or drop-tokens inside train",
                place=self.name,
            )
        if self._misses(chosen):
            raise self._too_many(chosen.mean_cost)
        return model

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Let the thresholds be learnt, or the shares fall, while all learns."""
        self.check_accompany()
        self.check(model)
        self._rows(context)  # refused before the hours are spent
        layers = anatomy_of(model).num_layers
        if self.by == "share":
            assert self.keep is not None
            share = share_for(self.keep, layers)

            def settle(trained: nn.Module) -> nn.Module:
                schedule = Schedule("share", (1.0,) * (layers - 1), self.from_length)
                self.fit(trained, context, schedule, 1.0 - share)
                return trained

            stand_droppers(model, "share", [share] * (layers - 1), self.from_length)
            return Narrowing(model, share, self.end, settle)
        mean = 1.0 / float(np.mean(context.train.lengths))
        stand_droppers(model, "threshold", [mean * one for one in rising(layers)], self.from_length)

        def fit(trained: nn.Module) -> nn.Module:
            shape = tuple(levels_of(trained, "threshold"))
            own = None if self.keep is not None or self.allowed_drop is not None else 1.0
            if any(shape):
                self.fit(trained, context, Schedule("threshold", shape, self.from_length), own)
            else:
                drop_tokens(trained, by="threshold", levels=list(shape), from_length=self.from_length)
                context.log({"event": "note", "note": "within the penalty no token goes: all thresholds are 0"})
            return trained

        return Fading(
            model,
            unit=mean,
            temperature=self.temperature * mean,
            penalty=self.penalty,
            rate=self.threshold_rate,
            end=self.end,
            finish=fit,
        )

    def fit(self, model: nn.Module, context: Context, schedule: Schedule, own: float | None = None) -> Point:
        """Give a model its levels, log the whole curve, and return the point that was taken.

        Args:
            model: with all that is in it finished.
            context: with selection rows.
            schedule: what a strength means.
            own: the strength to take, where it is known; None chooses it by `keep` or `allowed_drop`.
        """
        rows = self._rows(context)
        also = [] if own is None else [own]
        if own is None and self.keep is not None and schedule.by == "share":
            also = [1.0 - share_for(self.keep, len(schedule.shape) + 1)]
        few = min(FEW, self.keep or FEW)
        with progress_bar("drop-tokens: levels", context.progress) as advance:
            labels, points = curve_of(model, schedule, rows, context.task.metric, also, few, advance)
        chosen = next((point for point in points if point.strength == own), None)
        if chosen is None:
            chosen = self._choose(labels, points, context)
        drop_tokens(model, by=schedule.by, levels=chosen.levels, from_length=schedule.from_length)
        self._tell(labels, points, chosen, context, own)
        return chosen

    def _rows(self, context: Context) -> Encoded:
        """Return the selection rows, or refuse those of which no token can go, or fewer than are to."""
        _, rows = context.data.selection(context.seed)
        longest = int(rows.lengths.max(initial=0))
        if longest < max(2, self.from_length):
            raise NiwakiError(
                f"from_length is {self.from_length}, and the longest of {len(rows)} selection rows has {longest} "
                "tokens: none is dropped",
                expected="texts as long as those that will come",
                fix=f"from_length: {longest // 2}, or longer texts",
                place=self.name,
            )
        least = least_share(rows.lengths, self.from_length)
        if self.keep is not None and self.keep < least:
            raise self._too_many(least)
        return rows

    def _choose(self, labels: Labels, points: list[Point], context: Context) -> Point:
        """Return the point within the limit; where none is within `keep`, the one of fewest tokens."""
        if self.keep is None:
            return within_drop(labels, points, self.limit, context.seed)
        return first_within_cost(points, self.keep) or points[-1]

    def _misses(self, point: Point) -> bool:
        return self.keep is not None and first_within_cost([point], self.keep) is None

    def _too_many(self, least: float) -> NiwakiError:
        return NiwakiError(
            f"keep is {self.keep:g}, and {least:.3g} of the tokens in all layers are left where most are dropped",
            expected=f"a share in [{least:.3g}, 1], or longer texts",
            fix=f"keep: {(1 + least) / 2:.2g}",
            place=self.name,
        )

    def _tell(self, labels: Labels, points: list[Point], chosen: Point, context: Context, own: float | None) -> None:
        """Log the curve and which point was taken."""
        asked: dict[str, Any] = {"wanted": self.keep}
        if self.keep is None and own is None:
            asked = {**self.limit.told(), "bound": bound_of(labels, points[0], chosen, self.limit, context.seed)}
        context.log(
            {
                "event": "tokens",
                "by": self.by,
                "metric": labels.metric,
                "rows": len(labels.labels_N),
                "from_length": self.from_length,
                **asked,
                "chosen": chosen.told(),
                "curve": [point.told() for point in points],
            }
        )
        if self._misses(chosen):
            left = f"{chosen.mean_cost:.3g} of the tokens in all layers are left"
            context.log({"event": "note", "note": f"keep is {self.keep:g}, and {left}"})
        if chosen.mean_cost == 1.0:
            context.log({"event": "note", "note": "within the limit no token is dropped"})
