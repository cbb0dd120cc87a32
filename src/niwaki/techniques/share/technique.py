"""The parameters of `share`, and what they make of a model."""

# O outputs, I inputs, L layers

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import evaluating, input_products, inputs_of
from niwaki.errors import NiwakiError
from niwaki.schedules import cubic, ramp
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.share import groups as grouping
from niwaki.techniques.share.aligning import align
from niwaki.techniques.share.tightening import Shared, Tightening
from niwaki.techniques.share.weights import least_squares, low_rank, mean

ROLES = {"attention": ("query", "key", "value", "output"), "feed-forward": ("up", "gate", "down")}


class Share(Technique):
    """Let layers read the same weights: a smaller model, and no faster one.

    Layers of a group share their matrices; biases and norms stay each layer's own. Each use is computed as before, so
    time stays what it was; what gets smaller is the file, in every format, and the memory. As a step the change is made
    at once, and wants a training after it. Inside `train` a layer sees S + (1 - t) D, the shared weight and what is
    left of its own difference, t rising from 0 to 1, while distillation repairs; the gradient of S is the sum of those
    of its uses.

    Args:
        groups: which layers share. "all", "pairs" (each two neighbours), "sandwich" (all but the first and the last); a
            number of groups, that is of different layers that stay; or lists of layers, counted from 0, where layers
            not named stay as they are. 1 loses much, half of the layers less.
        by: how a number of groups is formed. "neighbours" takes runs of layers; "cyclic" every n-th layer, so that a
            run of layers is repeated; "similar" joins, again and again, the two groups whose weights are nearest, by
            the mean of |A - B|^2 / (|A|^2 + |B|^2) over their matrices.
        parts: what they share: "attention", "feed-forward" or "both". The feed-forward is two thirds of a layer.
        start: the shared weight before it learns. "mean" of the weights; "best", those of the layer that cost the least
            loss in the place of the others; "least-squares", those whose outputs are nearest to all layers' own, each
            on its own inputs.
        align: before, put neurons and heads in the order, and turn heads so, that the layers of a group are nearest to
            each other; each still computes what it did.
        rank: of a difference that each layer keeps for itself, W + U V; 0 is none. 8 to 64.
        schedule: how t rises in a train: "cubic", fast at first, or "linear".
        end: share of the training at which the layers are one, in (0, 1]; what is left repairs. 0.3 to 0.7.
        examples: training rows that "best" and "least-squares" look at. 64 to 512.

    Raises:
        NiwakiError: there are not so many layers, no two share, layers of a group have other shapes, or ranks eat up
            what is saved.

    Composes with: distill in the same train, and prune of units, which go for all layers that share them; drop and trim
        before it or after it; factor, quantize and cluster after it, which factor or pack a shared weight once.

    References:
        Lan et al. 2020, ALBERT, section 3.1. Reid et al. 2021, Subformer, section 3.1 (sandwich). Takase and Kiyono
        2023, Lessons on Parameter Sharing across Layers in Transformers (cyclic). Bae et al. 2024, Relaxed Recursive
        Transformers, sections 2.2 and 2.3 (mean, low-rank differences). Ainsworth et al. 2023, Git Re-Basin, section
        3.2 (align).

    Example:
        >>> Share(groups="pairs", rank=8).start
        'mean'
    """

    grain: ClassVar[Grain] = Grain.LAYER
    ties: ClassVar[bool] = True

    groups: Literal["all", "pairs", "sandwich"] | Annotated[int, Field(ge=1)] | tuple[tuple[int, ...], ...] = "pairs"
    by: Literal["neighbours", "cyclic", "similar"] = "neighbours"
    parts: Literal["both", "attention", "feed-forward"] = "both"
    start: Literal["mean", "best", "least-squares"] = "mean"
    align: bool = True
    rank: int = Field(0, ge=0)
    schedule: Literal["cubic", "linear"] = "cubic"
    end: float = Field(0.5, gt=0, le=1)
    examples: int = Field(128, ge=1)

    @model_validator(mode="after")
    def _sound(self) -> Share:
        if isinstance(self.groups, tuple):
            named = [index for group in self.groups for index in group]
            if len(named) != len(set(named)) or min(named, default=0) < 0:
                raise ValueError("groups are lists of layers from 0, each layer in one of them: [[0, 1], [2, 3]]")
            if not any(len(group) > 1 for group in self.groups):
                raise ValueError("no two layers stand in one of the groups, and nothing is shared: [[0, 1], [2, 3]]")
        if self.by != "neighbours" and not isinstance(self.groups, int):
            raise ValueError(f"by {self.by} forms a number of groups: leave by, or write a number as in groups: 3")
        return self

    def check(self, model: nn.Module) -> None:
        """Refuse groups of layers that are not there, or cannot share, and ranks that save nothing."""
        anatomy_of(model).refuse_repeated(self.name)
        roles = self.roles(model)
        for group in self.grouped(model):
            names = [anatomy_of(model).layers[index].name_of(role) for role in roles for index in group]
            for start in range(0, len(names), len(group)):
                self._check_shapes({name: _weight(model, name) for name in names[start : start + len(group)]})

    def _check_shapes(self, weights: dict[str, Tensor]) -> None:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        if len(set(shapes.values())) > 1:
            raise NiwakiError(
                "layers to share have other shapes: " + ", ".join(f"{name} {shape}" for name, shape in shapes.items()),
                expected="one shape in each group",
                fix="groups of layers that were cut alike, or parts that were not cut",
                place=self.name,
            )
        rows, columns = next(iter(shapes.values()))
        saved, own = (len(shapes) - 1) * rows * columns, len(shapes) * self.rank * (rows + columns)
        if own >= saved > 0:
            raise NiwakiError(
                f"rank {self.rank} of {len(shapes)} layers takes {own:,} weights, and sharing saves {saved:,}",
                expected="differences smaller than what they differ from",
                fix=f"rank: {max(0, saved // (len(shapes) * (rows + columns)) // 2)}",
                place=self.name,
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Share now."""
        self.check(model)
        for one in self.sets(model, context):
            one.put(model)
        return model

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Draw the layers together while the model trains."""
        self.check(model)
        rise = cubic if self.schedule == "cubic" else ramp
        return Tightening(model, self.sets(model, context), partial(rise, begin=0.0, end=self.end))

    def roles(self, model: nn.Module) -> list[str]:
        """Return the roles of the linears that layers share."""
        parts = ROLES if self.parts == "both" else (self.parts,)
        return [role for part in parts for role in ROLES[part] if getattr(anatomy_of(model).family, role)]

    def grouped(self, model: nn.Module) -> grouping.Groups:
        """Return the layers that share, one list a group, without those that share with none; or refuse."""
        count = anatomy_of(model).num_layers
        named = [index for group in self.groups for index in group] if isinstance(self.groups, tuple) else []
        number = self.groups if isinstance(self.groups, int) else max(named, default=0) + 1
        if number > count:
            raise NiwakiError(
                f"groups is {self.groups}", expected=f"layers of a model that has {count}", place=self.name
            )
        groups = [group for group in self._groups(model, count) if len(group) > 1]
        if not groups and self.groups != count:  # so many groups as layers are asked for: all stay
            raise NiwakiError(
                f"groups is {self.groups}, and no two layers share",
                expected=f"a group with two or more of {count} layers, of one shape",
                fix="groups: pairs, or parts that were not cut",
                place=self.name,
            )
        return groups

    def _groups(self, model: nn.Module, count: int) -> grouping.Groups:
        if isinstance(self.groups, tuple):
            return [sorted(group) for group in self.groups]
        if self.groups == "sandwich":
            return grouping.sandwich(count)
        if not isinstance(self.groups, int):
            return grouping.neighbours(count, 1 if self.groups == "all" else -(-count // 2))
        if self.by == "similar":
            layers, roles = anatomy_of(model).layers, self.roles(model)
            matrices = [[_weight(model, layer.name_of(role)) for role in roles] for layer in layers]
            return grouping.similar(grouping.weight_distances(matrices), self.groups)
        return (grouping.cyclic if self.by == "cyclic" else grouping.neighbours)(count, self.groups)

    def sets(self, model: nn.Module, context: Context) -> list[Shared]:
        """Return what takes the place of the weights: one set for each group and role."""
        layers, found = anatomy_of(model).layers, []
        groups = self.grouped(model)
        context.log({"event": "note", "note": "layers that share", "values": groups})
        if self.align:
            align(model, groups, self.roles(model))
        for group in groups:
            named = {role: tuple(layers[index].name_of(role) for index in group) for role in self.roles(model)}
            best = self._best(model, context, list(named.values())) if self.start == "best" else 0
            for names in named.values():
                weights = [_weight(model, name).detach() for name in names]
                if self.start == "least-squares":
                    rows = context.calibration_batches(self.examples)
                    products = input_products(model, names, rows)
                    weight_OI = least_squares(weights, [products[name] for name in names])
                else:
                    weight_OI = mean(weights) if self.start == "mean" else weights[best].clone()
                own = tuple(low_rank(weight - weight_OI, self.rank) for weight in weights) if self.rank else ()
                found.append(Shared(names, weight_OI, own))
        return found

    def _best(self, model: nn.Module, context: Context, named: Sequence[Sequence[str]]) -> int:
        """Return which member of a group costs the least loss where all others have its weights."""
        losses = []
        for member in range(len(named[0])):
            with _lent(model, {name: names[member] for names in named for name in names}):
                losses.append(mean_loss(model, context, self.examples))
        context.log({"event": "note", "note": f"loss with the weights of one for all of {named[0]}", "values": losses})
        return losses.index(min(losses))


def mean_loss(model: nn.Module, context: Context, examples: int) -> float:
    """Return the task's loss on training rows, mean over rows."""
    total, count = 0.0, 0
    with evaluating(model):
        for batch in context.calibration_batches(examples):
            logits = model(**inputs_of(batch)).logits
            total += float(context.task.loss(logits.float(), batch["labels"])) * len(logits)
            count += len(logits)
    return total / count


@contextlib.contextmanager
def _lent(model: nn.Module, lender: dict[str, str]) -> Iterator[None]:
    """Let linears read the weights of others while the block lasts."""
    own = {name: _weight(model, name) for name in lender}
    try:
        for name, other in lender.items():
            model.get_submodule(name)._parameters["weight"] = own[other]
        yield
    finally:
        for name, weight in own.items():
            model.get_submodule(name)._parameters["weight"] = weight


def _weight(model: nn.Module, name: str) -> nn.Parameter:
    """Return the weight (O, I) of a linear, or refuse what is none."""
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise NiwakiError(
            f"{name} is a {type(module).__name__}",
            expected="a linear that is not packed, and has no difference of its own yet",
            place=Share.name,
        )
    return module.get_parameter("weight")
