"""The parameters of `exit`, and what they make of a model."""

# E exits, N rows, C classes

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.bar import progress_bar
from niwaki.errors import NiwakiError
from niwaki.exit_rule import NEVER, By
from niwaki.exiting import all_logits_of, require_exits
from niwaki.layers.exits import exits_of
from niwaki.limit import Limit
from niwaki.surgery import add_exit, set_thresholds
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.exit.fitting import Point, Rows, check_cost, curve_of, within_cost
from niwaki.techniques.exit.training import Exiting, Way
from niwaki.trade_off import bound_of, within_drop

#: Points that may be lost where nothing else is said.
USUAL_DROP = 1.0
#: Layers from which on there are two exits where nothing else is said.
FEW = 4


class Exit(Technique):
    """Let a text leave at a head in the middle of the model, when that head is sure enough.

    Inside `train` small heads, logits = U tanh(W h + b) + c of the first token's state h, are put after some layers and
    learn. A text leaves at the first of them that is sure: how sure is told by the entropy of its classes, by the
    highest probability, or by how many heads in a row agree. What is left of a batch is computed on, without those that
    left; each text gets what it would get alone.

    How sure is sure enough is not guessed but fitted: one pass over the selection rows tells, for many thresholds, what
    quality and what mean cost they give, and the cheapest within `allowed_drop` is taken, or the most careful within
    `mean_cost`. At the end of a train that is done with all its other techniques finished; as a step of its own it is
    done anew, for a model that has exits: after `quantize`, say, which moves what heads say.

    Args:
        after: how many exits, spread evenly over the depth; or after which layers: indices from 0, ascending, without
            the last one. A family that repeats one layer counts its runs. Those that the model has stay; by default
            there are no others beside them, and where it has none 2, or 1 in fewer than 4 layers.
        by: what is compared with the threshold. "entropy", 1 less the entropy over that of equal probabilities;
            "probability", the highest one; "patience", the number of heads in a row that agree, which wants many exits.
        training: "joint" trains the model and its heads on the labels, a head's loss weighing as much as its depth is
            of the whole; "frozen" holds the model and trains the heads on the labels; "self-distillation" holds it and
            trains them on what the last head says, without labels.
        width: units of a head. 16 to 256.
        allowed_drop: points of the task's metric that may be lost on the selection rows, against the last head for all;
            1 where neither this nor `mean_cost` is given. 0.2 to 1.
        mean_cost: the mean share of the layers that a text is to run through, in (0, 1], in place of a limit on the
            drop; embeddings and heads are not counted.
        confidence: with which the drop is to be within `allowed_drop` on new rows like these, in (0.5, 1); what is
            lost by no row at hand may be lost by others, so a limit near 0 wants many. By default the drop is what was
            counted on the rows, which flatters: the cheapest point within the limit is as a rule one that was lucky.

    Raises:
        NiwakiError: the model has no head that reads the first token, or not so many layers; as a step: it has no
            exits, or no text may leave within the limit.

    Composes with: distill, prune, replace, share, factor and quantize in the same train, and where the model is held
        quantize alone, for the others need it to learn; drop before it; anything else before it. After the last fit no
        step may follow, for it would be the fit of another model.

    References:
        Xin et al. 2020, DeeBERT, sections 3.1 and 3.2 (frozen, entropy). Zhou et al. 2020, BERT Loses Patience
        (joint, patience). Liu et al. 2020, FastBERT (self-distillation, normalised entropy). Schuster et al. 2022,
        Confident Adaptive Language Modeling (confidence).

    Example:
        >>> Exit(after=(1, 3), allowed_drop=0.5).spread(6)
        (1, 3)
    """

    grain: ClassVar[Grain] = Grain.NONE
    fits: ClassVar[bool] = True

    after: int | tuple[int, ...] | None = None
    by: By = "entropy"
    training: Way = "joint"
    width: int = Field(64, ge=1)
    allowed_drop: float | None = Field(None, ge=0, le=100)
    mean_cost: float | None = Field(None, gt=0, le=1)
    confidence: float | None = Field(None, gt=0.5, lt=1)

    @field_validator("after")
    @classmethod
    def _at_least_one(cls, value: int | tuple[int, ...] | None) -> int | tuple[int, ...] | None:
        if value is None:
            return value
        layers = value if isinstance(value, tuple) else (value - 1,)
        if not layers or list(layers) != sorted(set(layers)) or layers[0] < 0:
            raise ValueError("after is a number of exits from 1, or a list of layers from 0, ascending")
        return value

    @model_validator(mode="after")
    def _one_limit(self) -> Exit:
        if self.mean_cost is not None and self.allowed_drop is not None:
            raise ValueError("allowed_drop and mean_cost are both given, expected one of them: the other follows")
        if self.mean_cost is not None and self.confidence is not None:
            raise ValueError("confidence is that of allowed_drop, and mean_cost is given: leave one of them")
        return self

    def spread(self, depth: int) -> tuple[int, ...]:
        """Return after which layers exits stand.

        Args:
            depth: number of layers that a text runs through.

        >>> Exit().spread(6), Exit().spread(12), Exit().spread(2), Exit(after=3).spread(4)
        ((1, 3), (3, 7), (0,), (0, 1, 2))
        """
        layers = (2 if depth >= FEW else 1) if self.after is None else self.after
        if isinstance(layers, int):
            layers = tuple(round((place + 1) * depth / (layers + 1)) - 1 for place in range(layers))
        if layers[-1] >= depth - 1 or len(layers) >= depth:
            most = depth - 1
            raise NiwakiError(
                f"after is {self.after}" if most else "an exit in a model of one layer",
                expected=f"at most {most} exits, after layers in 0..{most - 1}, of a model that has {depth} layers"
                if most
                else "a model with more than one layer",
                fix=(f"after: {most}" if isinstance(self.after, int) else f"after: [{most - 1}]") if most else "",
                place=self.name,
            )
        return layers

    @property
    def without_holding(self) -> str:
        """Return what is to be written where the model is held while its heads learn."""
        return "" if self.training == "joint" else "training: joint"

    @property
    def without_dropping(self) -> str:
        """Return what is to be written: it runs the model in parts that each read the whole text."""
        return "exit or drop-tokens, not both"

    def check(self, model: nn.Module) -> None:
        """Refuse a model that has no head on the first token, or too few layers."""
        anatomy = anatomy_of(model)
        if not anatomy.family.first_token or anatomy.head is None:
            raise NiwakiError(
                f"a {type(model).__name__} has no head that reads the first token",
                expected="an encoder with a classification head",
                place=self.name,
            )
        if exits_of(model) is None:
            self.spread(anatomy.depth)

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Add the exits that are not there, and let all learn."""
        self.check(model)
        there, depth = exits_of(model), anatomy_of(model).depth
        standing = () if there is None else there.layers
        for layer in self.spread(depth) if self.after is not None or not standing else ():
            if layer not in standing:
                add_exit(model, layer=layer, width=self.width)
        if self.mean_cost is not None:  # told before the hours are spent
            check_cost(self.mean_cost, (require_exits(model).layers[0] + 1) / depth)

        def fit(trained: nn.Module) -> nn.Module:
            self.fit(trained, context)
            return trained

        return Exiting(model, self.training, context.task.loss, fit)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Fit the thresholds of exits that are there to the model as it is now."""
        try:
            require_exits(model)
        except NiwakiError as error:
            raise error.at(self.name) from None
        chosen = self.fit(model, context)
        if chosen.threshold == NEVER:
            if self.mean_cost is not None:
                asked, fix = f"mean_cost {self.mean_cost:g}", f"mean_cost: {0.9 * self.mean_cost:.2g}"
            else:
                asked = f"allowed_drop {self.limit.allowed:g}"
                fix = f"allowed_drop: {max(0.1, 2 * self.limit.allowed):.2g}, or exits after later layers"
            raise NiwakiError(
                f"exit found no threshold within {asked} at which a text leaves",
                expected="a limit that one exit can hold and that lets a text leave",
                fix=fix,
            )
        return model

    @property
    def limit(self) -> Limit:
        """Return how much may be lost."""
        return Limit(USUAL_DROP if self.allowed_drop is None else self.allowed_drop, self.confidence)

    def fit(self, model: nn.Module, context: Context) -> Point:
        """Give a model's exits their thresholds, log the whole curve, and return the point that was taken."""
        exits, (_, rows) = require_exits(model), context.data.selection(context.seed)
        depth = anatomy_of(model).depth
        costs_E = np.array([*(layer + 1 for layer in exits.layers), depth]) / depth
        with progress_bar("exit: what each says", context.progress) as advance:
            logits_ENC = all_logits_of(model, rows, advance)
        said = Rows(logits_ENC, np.asarray(rows.labels), costs_E, context.task.metric)
        points = curve_of(said, self.by)
        if self.mean_cost is not None:
            chosen = within_cost(points, self.mean_cost)
        else:
            chosen = within_drop(said, points, self.limit, context.seed)
        set_thresholds(model, by=self.by, thresholds=[chosen.threshold] * len(exits.layers))
        self._tell(said, points, chosen, context, list(exits.layers))
        return chosen

    def _tell(self, rows: Rows, points: list[Point], chosen: Point, context: Context, layers: list[int]) -> None:
        """Log the curve, what each head is worth alone, and which point was taken."""
        asked: dict[str, Any] = {"wanted": self.mean_cost}
        if self.mean_cost is None:
            asked = {**self.limit.told(), "bound": bound_of(rows, points[0], chosen, self.limit, context.seed)}
        context.log(
            {
                "event": "exits",
                "by": self.by,
                "metric": rows.metric,
                "rows": len(rows.labels_N),
                "layers": layers,
                "alone": rows.alone(),
                **asked,
                "chosen": chosen.told(),
                "curve": [point.told() for point in points],
            }
        )
        if chosen.threshold == NEVER:
            context.log({"event": "note", "note": "within the limit no text leaves before the last layer"})
