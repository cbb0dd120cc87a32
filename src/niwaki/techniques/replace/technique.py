"""The parameters of `replace`, and how predecessors and successors come to stand."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.either import frozen_copies, is_successor
from niwaki.surgery import refuse_tied, ties_of
from niwaki.swapping import Coin, Curriculum, Pair, Schedule
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.replace.companion import Hold, Replacing
from niwaki.techniques.replace.successors import (
    Runs,
    check_alike,
    differences,
    even_runs,
    fewer_neurons,
    one_layer_each,
)


class Replace(Technique):
    """Replace runs of layers by one layer each, or layers by narrower ones, while the rest of the model is still there.

    The model is cut at once, and what was cut stands beside it as long as it trains. At each step a coin decides for
    each place i who answers there, the small successor s_i or the frozen predecessor p_i that it is to replace: h_i+1 =
    r_i s_i(h_i) + (1 - r_i) p_i(h_i), with r_i of Bernoulli(p). So a successor learns its part among modules that know
    theirs, from the task's loss alone, or beside `distill` from a teacher as well. The probability p rises to 1 at
    `end`; from there on the small model is by itself, and is fine-tuned for the rest of the training. In evaluation it
    is always by itself.

    Args:
        keep_layers: how many layers stay, each for a run of neighbours, in runs as even as can be; or the runs, lists
            of indices from 0 that hold every layer once, in order: [[0], [1, 2], [3, 4, 5]].
        keep_neurons: share of each layer's feed-forward neurons that stays, in (0, 1]: those that add most to what it
            puts out.
        start: what the successor of a run is at first. "first" or "last" layer of the run; the "mean" of its weights;
            the "best", the one that changes the model's output least when it alone does the run's work; or "lowest",
            which takes the lowest layers of the model for all runs, as the paper does.
        coin: one for the "batch", which runs fewer layers, or one for each "example", which smooths the gradient.
        probability: p at the beginning, in [0, 1]. 0.3 to 0.5.
        schedule: how p rises from there to 1 at `end`: "linear", "cosine", or "constant" until it jumps.
        end: progress of the training, in (0, 1], from which on p is 1. 0.5 to 0.8.
        hold: when all weights but the successors' are held as they are (embeddings, head, layers not replaced; not what
            other techniques add to the model): "until-end", "always" or "never".
        multiple_of: the number of neurons is rounded to a multiple; int8 kernels want 32 or 64.
        examples: training rows to look at, for `keep_neurons` and for `start` "best". 64 to 512.

    Raises:
        NiwakiError: the runs are not those of the model, or keep_neurons removes none.

    Composes with: distill (its `hidden_layers` "uniform" matches the ends of even runs); prune of units or weights, and
        cluster, in the same train; quantize after it.

    References:
        Xu et al. 2020, BERT-of-Theseus: Compressing BERT by Progressive Module Replacing, sections 3.1 (replacing), 3.2
        (fine-tuning of the successor) and 3.3 (curriculum).

    Example:
        >>> Replace(keep_layers=3).schedule
        'linear'
    """

    grain: ClassVar[Grain] = Grain.LAYER

    keep_layers: int | tuple[tuple[int, ...], ...] | None = None
    keep_neurons: float = Field(1.0, gt=0, le=1)
    start: Literal["first", "last", "mean", "best", "lowest"] = "first"
    coin: Coin = "batch"
    probability: float = Field(0.5, ge=0, le=1)
    schedule: Schedule = "linear"
    end: float = Field(0.6, gt=0, le=1)
    hold: Hold = "until-end"
    multiple_of: int = Field(32, ge=1)
    examples: int = Field(256, ge=1)

    @field_validator("keep_layers")
    @classmethod
    def _runs(cls, value: int | tuple[tuple[int, ...], ...] | None) -> int | tuple[tuple[int, ...], ...] | None:
        if isinstance(value, tuple):
            layers = [layer for run in value for layer in run]
            good = bool(layers) and all(value) and layers == list(range(len(layers)))
        else:
            good = value is None or value >= 1
        if not good:
            raise ValueError(
                "keep_layers is a number of layers from 1, or runs of indices that hold every layer once, in order, "
                "such as [[0], [1, 2]]"
            )
        return value

    @model_validator(mode="after")
    def _something_to_replace(self) -> Replace:
        if self.keep_layers is None and self.keep_neurons == 1.0:
            raise ValueError("neither keep_layers nor keep_neurons is given, expected at least one of them")
        return self

    @property
    def cuts(self) -> Grain:
        """Return LAYER where runs of layers are replaced, else UNIT."""
        return Grain.UNIT if self.keep_layers is None else Grain.LAYER

    def cuts_tied(self, *, meanwhile: bool = False, in_train: bool = False) -> bool:
        """Say whether layers are taken as they are; their neurons, and means of them, are made one by one."""
        return not meanwhile and self.keep_neurons == 1.0 and self.start != "mean"

    def check(self, model: nn.Module) -> None:
        """Refuse runs that are not those of this model, and layers that cannot stand for each other."""
        anatomy_of(model).refuse_repeated(self.name, "prune: {keep_neurons: 0.5}")
        if not self.cuts_tied():
            for tie in ties_of(model):
                refuse_tied(model, tie, self.name, "replace before share, or keep_layers alone")
        count, asked = anatomy_of(model).num_layers, self.keep_layers
        if isinstance(asked, int) and asked > count:
            raise self._not_there(str(asked), count)
        runs = self.runs_of(model)
        if sum(len(run) for run in runs) != count:
            raise self._not_there(str(runs), count)
        kinds = set(getattr(model.config, "layer_types", None) or ())
        if len(runs) < count and len(kinds) > 1:
            raise NiwakiError(
                f"layers attend in several ways: {', '.join(sorted(kinds))}",
                expected="layers of one kind, which can stand for each other",
                fix="drop, and a train after it",
                place=self.name,
            )
        if self.start == "mean":
            check_alike(model, runs)

    def _not_there(self, asked: str, count: int) -> NiwakiError:
        return NiwakiError(f"keep_layers is {asked}", expected=f"layers of a model that has {count}", place=self.name)

    def runs_of(self, model: nn.Module) -> Runs:
        """Return the runs that one layer each is to stand for; all of one layer where no layer goes."""
        count = anatomy_of(model).num_layers
        if isinstance(self.keep_layers, tuple):
            return [list(run) for run in self.keep_layers]
        return even_runs(count, self.keep_layers or count)

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Cut the model, and let what was cut stand beside it."""
        self.check(model)
        if any(is_successor(layer) for layer in anatomy_of(model).layer_list):
            raise NiwakiError(
                "two replace in one train",
                expected="one, which takes keep_layers and keep_neurons together",
                place=self.name,
            )
        runs = self.runs_of(model)
        whole = [frozen_copies(anatomy_of(model).layer_list[index] for index in run) for run in runs]
        members = self.members(model, runs, context)
        context.log({"event": "note", "note": "runs, and the layer each starts as", "runs": runs, "layers": members})
        one_layer_each(model, runs, members, mean=self.start == "mean")
        is_replaced = [run != [member] for run, member in zip(runs, members, strict=True)]
        if self.keep_neurons < 1.0:
            batches = context.calibration_batches(self.examples)
            narrowed = fewer_neurons(model, self.keep_neurons, self.multiple_of, batches)
            is_replaced = [one or other for one, other in zip(is_replaced, narrowed, strict=True)]
            self._check_replaced(is_replaced)
        pairs = [
            Pair(layer, predecessor)
            for layer, predecessor, chosen in zip(anatomy_of(model).layer_list, whole, is_replaced, strict=True)
            if chosen
        ]
        curriculum = Curriculum(self.schedule, self.probability, self.end)
        return Replacing(model, pairs, curriculum, hold=self.hold, coin=self.coin, seed=context.seed)

    def _check_replaced(self, is_replaced: list[bool]) -> None:
        if not any(is_replaced):
            raise NiwakiError(
                "replace found nothing to replace",
                expected="a share small enough to remove one unit",
                fix=f"multiple_of: 1 (it is {self.multiple_of}), or a smaller keep_neurons",
            )

    def members(self, model: nn.Module, runs: Runs, context: Context) -> list[int]:
        """Return the layer that each successor starts as."""
        if self.start == "lowest":
            return list(range(len(runs)))
        if self.start == "last":
            return [run[-1] for run in runs]
        if self.start != "best" or len(runs) == anatomy_of(model).num_layers:
            return [run[0] for run in runs]
        found = differences(model, runs, context.calibration_batches(self.examples))
        context.log({"event": "note", "note": "difference of each layer in place of its run", "values": found})
        return [run[each.index(min(each))] for run, each in zip(runs, found, strict=True)]
