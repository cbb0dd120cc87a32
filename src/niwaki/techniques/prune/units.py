"""Prune units: importances decide, all at once or little by little, and surgery narrows the matrices."""

# H heads, N neurons, S width of a head, D hidden

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.calibrate import frozen, inputs_of
from niwaki.errors import NiwakiError
from niwaki.layers.channels import ChannelGates, PooledGates
from niwaki.layers.gates import Gates, Masks, choose, even_counts
from niwaki.residual import residual_of
from niwaki.surgery import layers_together, narrow_heads, narrow_hidden, narrow_neurons, narrow_pooler
from niwaki.technique import Context
from niwaki.techniques.prune import hidden, told
from niwaki.techniques.prune.scheduled import Scheduled

#: How much of the past a moving average of importances keeps, a step.
MEMORY = 0.98
#: Measures that need no batch.
STANDING = ("magnitude", "random")


@dataclass(frozen=True)
class Shares:
    """Say how many units of each kind stay.

    Attributes:
        of: the share that stays, by kind: "heads", "neurons", "hidden", "pooled" (outputs of the pooling linear).
        even: the same number in every layer; else the model's most important units, wherever they are.
        multiple_of: neurons of a layer, and hidden channels, are rounded to a multiple.
        together: by kind, the layers that share their units, and lose the same ones.
    """

    of: Mapping[str, float]
    even: bool = False
    multiple_of: int = 1
    together: Mapping[str, list[list[int]]] = field(default_factory=dict)

    def on(self, model: nn.Module) -> Shares:
        """Return the shares for a model: of equal layers, the pooling linear is to be as narrow as the channels."""
        together = {kind: layers_together(model, kind) for kind in self.of if kind not in hidden.WHOLE}
        shares = replace(self, together=together)
        if not self.even or "hidden" not in self.of:
            return shares
        pooled = hidden.pooled_share(model, self.of["hidden"])
        return replace(shares, of={**self.of, "pooled": pooled}) if pooled < 1.0 else shares

    def chosen(self, importances: Mapping[str, list[Tensor]], done: float = 1.0) -> dict[str, list[list[int]]]:
        """Return the units of each kind that stay when the share `done` of the pruning is done."""
        return {
            kind: for_all(
                self.together.get(kind, []),
                values,
                keep=1.0 - (1.0 - self.of[kind]) * done,
                even=self.even,
                multiple_of=1 if kind == "heads" else self.multiple_of,
            )
            for kind, values in importances.items()
        }


def for_all(
    together: list[list[int]], importances: list[Tensor], keep: float, even: bool, multiple_of: int
) -> list[list[int]]:
    """Choose the units that stay in each layer; layers that share them keep the same, by the sum of what they say.

    >>> for_all([[0, 2], [1]], [torch.tensor(one) for one in ([3.0, 1.0], [9.0, 8.0], [0.0, 5.0])], 0.75, False, 1)
    [[1], [0, 1], [1]]
    """
    groups = together or [[index] for index in range(len(importances))]
    summed = [torch.stack([importances[index] for index in group]).sum(dim=0) for group in groups]
    place = {index: number for number, group in enumerate(groups) for index in group}
    chosen = choose(summed, keep, even, multiple_of)
    return [chosen[place[index]] for index in range(len(importances))]


def check(model: nn.Module, shares: Shares) -> None:
    """Refuse shares that leave layers unequal which are to be equal, or that cannot remove a single unit."""
    layers = anatomy_of(model).layers
    removes = False
    for kind, share in shares.of.items():
        if kind in hidden.WHOLE:
            totals = [residual_of(model).width]
        else:
            totals = [layer.units(kind) for layer in layers]
        multiple_of = 1 if kind == "heads" else shares.multiple_of
        counts = even_counts(totals, share, multiple_of)
        if shares.even and len(set(counts)) > 1:
            raise NiwakiError(
                f"even is true and keep_{kind} is {share:g}, but the layers have {', '.join(map(str, totals))} {kind}",
                expected=f"a share that the smallest layer has: equal layers of {min(totals)} or fewer",
                fix=f"keep_{kind}: {math.floor(1000 * min(totals) * len(totals) / sum(totals)) / 1000}",
                place="prune",
            )
        # at most all of what goes is in one layer: where even that is rounded away, nothing goes
        gone = sum(totals) - round(share * sum(totals))
        fewest = [even_counts([total], max(0, total - gone) / max(1, total), multiple_of)[0] for total in totals]
        removes = removes or (counts if shares.even else fewest) != totals
    if shares.of and not removes:
        raise _nothing(shares.multiple_of)


def at_once(model: nn.Module, context: Context, by: str, shares: Shares, examples: int) -> nn.Module:
    """Remove the least important units now.

    Args:
        model: of a known family.
        context: with training rows, where the importance needs them.
        by: "first-order", "fisher", "activation", "magnitude" or "random".
        shares: what stays.
        examples: training rows to look at.
    """
    shares, before = shares.on(model), told.counts_of(model)
    importances = {kind: importances_of(model, kind, by, context, examples) for kind in shares.of}
    narrow(model, shares.chosen(importances), shares.multiple_of)
    told.tell(context.log, model, before, even=shares.even, multiple_of=shares.multiple_of)
    return model


def importances_of(model: nn.Module, kind: str, by: str, context: Context, examples: int) -> list[Tensor]:
    """Return the importance of each unit of one kind, a tensor a layer; of the hidden channels, one tensor."""
    if by in STANDING:
        return standing(model, kind, by, context.seed)
    gates = gates_on(model, kind, by)
    try:
        with frozen(model):
            for batch in context.calibration_batches(examples, batch_size=8):
                loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
                loss.backward()
    finally:
        gates.take_down()
    return gates.importances()


def gates_on(model: nn.Module, kind: str, by: str, memory: float = 0.0) -> Masks:
    """Stand gates on the units of one kind."""
    if kind in hidden.WHOLE:
        return (ChannelGates if kind == "hidden" else PooledGates)(model, by, memory)
    return Gates(model, kind, by, memory)


def standing(model: nn.Module, kind: str, by: str, seed: int) -> list[Tensor]:
    """Return importances that need no batch: by "magnitude", or by "random"."""
    if kind in hidden.WHOLE:
        return [hidden.standing(model, kind, by, seed)]
    if by == "magnitude":
        return [magnitude(layer, kind) for layer in anatomy_of(model).layers]
    return random(model, kind, seed)


def magnitude(layer: Layer, kind: str) -> Tensor:
    """Return the norm of the weights that read each unit: columns of the output or the down projection.

    Source: Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, for single weights.
    """
    weight = layer.reader(kind).weight.detach()
    squares = weight.float().square().sum(dim=0).unflatten(0, (-1, layer.unit_width(kind)))
    return cast(Tensor, squares.sum(dim=1).sqrt())


def random(model: nn.Module, kind: str, seed: int) -> list[Tensor]:
    """Return importances that mean nothing: the control."""
    generator = torch.Generator().manual_seed(seed)
    layers = anatomy_of(model).layers
    return [torch.rand(layer.units(kind), generator=generator) for layer in layers]


def narrow(model: nn.Module, kept: Mapping[str, list[list[int]]], multiple_of: int = 1) -> nn.Module:
    """Cut the matrices down to the units that stay."""
    changed = False
    for layer in anatomy_of(model).layers:
        groups = kept["heads"][layer.index] if "heads" in kept else range(layer.key_value_heads)
        neurons = kept["neurons"][layer.index] if "neurons" in kept else range(layer.neurons)
        if len(groups) < layer.key_value_heads:
            narrow_heads(model, layer=layer.index, heads=layer.heads_of(list(groups)))
            changed = True
        if len(neurons) < layer.neurons:
            narrow_neurons(model, layer=layer.index, neurons=list(neurons))
            changed = True
    if "hidden" in kept and len(kept["hidden"][0]) < residual_of(model).width:
        narrow_hidden(model, channels=kept["hidden"][0])
        changed = True
    if "pooled" in kept:
        narrow_pooler(model, outputs=kept["pooled"][0])
    if not changed:
        raise _nothing(multiple_of)
    return model


def _nothing(multiple_of: int) -> NiwakiError:
    return NiwakiError(
        "prune found nothing to remove",
        expected="shares small enough to remove one unit",
        fix=f"multiple_of: 1 (it is {multiple_of}), or smaller shares",
    )


class Gradual(Scheduled):
    """Close gates along the cubic schedule while the model trains, and cut the matrices at the end."""

    def __init__(
        self, model: nn.Module, context: Context, by: str, shares: Shares, *, begin: float, end: float
    ) -> None:
        super().__init__(begin=begin, end=end)
        self.by, self.shares, self.seed, self.log = by, shares.on(model), context.seed, context.log
        self.before = told.counts_of(model)
        self.model = [model]  # in a list: the model is not part of its companion
        self.kinds = nn.ModuleDict({kind: self.gates_on(model, kind) for kind in self.shares.of})

    def gates_on(self, model: nn.Module, kind: str) -> Masks:
        """Stand gates on the units of one kind."""
        return gates_on(model, kind, self.by, MEMORY)

    def gates(self, kind: str) -> Masks:
        """Return the gates of one kind."""
        return cast(Masks, self.kinds[kind])

    def step(self, progress: float) -> None:
        """Close what the schedule asks for; what is closed stays closed."""
        for kind in self.kinds:
            self.gates(kind).forget_gradients()
        super().step(progress)

    def take(self, done: float) -> None:
        """Close the gates of the units that are least important now."""
        importances = {kind: self.importances(kind) for kind in self.kinds}
        for kind, kept in self.shares.chosen(importances, done).items():
            self.gates(kind).close(kept)

    def importances(self, kind: str) -> list[Tensor]:
        """Return the present importances; what was closed before has none."""
        gates = self.gates(kind)
        if self.by in STANDING:
            return gates.closed_last(standing(self.model[0], kind, self.by, self.seed))
        return gates.importances()

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the gates down and cut the matrices to the units whose gates are open."""
        if not self.kinds:
            return model
        self.step(1.0)
        for kind in self.kinds:
            self.gates(kind).take_down()
        narrow(model, {kind: self.gates(kind).open_units() for kind in self.kinds}, self.shares.multiple_of)
        told.tell(self.log, model, self.before, even=self.shares.even, multiple_of=self.shares.multiple_of)
        return model
