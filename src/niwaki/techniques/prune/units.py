"""Prune units: importances decide, all at once or little by little, and surgery narrows the matrices."""

# H heads, N neurons, S width of a head, D hidden

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.errors import NiwakiError
from niwaki.layers.channels import ChannelGates
from niwaki.layers.gates import Gates, Masks, choose
from niwaki.residual import residual_of
from niwaki.schedules import cubic
from niwaki.surgery import narrow_heads, narrow_hidden, narrow_neurons
from niwaki.technique import Companion, Context
from niwaki.techniques.prune import hidden

#: How much of the past a moving average of importances keeps, a step.
MEMORY = 0.98


def at_once(
    model: nn.Module,
    context: Context,
    by: str,
    shares: Mapping[str, float],
    even: bool,
    multiple_of: int,
    examples: int,
) -> nn.Module:
    """Remove the least important units now.

    Args:
        model: of a known family.
        context: with training rows, where the importance needs them.
        by: "first-order", "fisher", "activation", "magnitude" or "random".
        shares: what stays of each kind of unit.
        even: the same number in every layer.
        multiple_of: neurons in a layer, and hidden channels, are rounded to a multiple.
        examples: training rows to look at.
    """
    importances = {kind: importances_of(model, kind, by, context, examples) for kind in shares}
    return narrow(model, chosen(importances, shares, 1.0, even, multiple_of), multiple_of)


def importances_of(model: nn.Module, kind: str, by: str, context: Context, examples: int) -> list[Tensor]:
    """Return the importance of each unit of one kind, a tensor a layer; of the hidden channels, one tensor."""
    if by in ("magnitude", "random"):
        return standing(model, kind, by, context.seed)
    gates = gates_on(model, kind, by)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        for batch in context.calibration_batches(examples, batch_size=8):
            loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
            loss.backward()
    finally:
        gates.take_down()
        for parameter in trained:
            parameter.requires_grad_(True)
    return gates.importances()


def gates_on(model: nn.Module, kind: str, by: str, memory: float = 0.0) -> Masks:
    """Stand gates on the units of one kind."""
    return ChannelGates(model, by, memory) if kind == "hidden" else Gates(model, kind, by, memory)


def standing(model: nn.Module, kind: str, by: str, seed: int) -> list[Tensor]:
    """Return importances that need no batch: by "magnitude", or by "random"."""
    if kind == "hidden":
        return [hidden.magnitude(model) if by == "magnitude" else hidden.random(model, seed)]
    if by == "magnitude":
        return [magnitude(layer, kind) for layer in anatomy_of(model).layers]
    return random(model, kind, seed)


def magnitude(layer: Layer, kind: str) -> Tensor:
    """Return the norm of the weights that read each unit: columns of the output or the down projection.

    Source: Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, for single weights.
    """
    weight = cast(Tensor, layer.part("output" if kind == "heads" else "down").weight).detach()
    squares = weight.float().square().sum(dim=0).unflatten(0, (-1, layer.unit_width(kind)))
    return cast(Tensor, squares.sum(dim=1).sqrt())


def random(model: nn.Module, kind: str, seed: int) -> list[Tensor]:
    """Return importances that mean nothing: the control."""
    generator = torch.Generator().manual_seed(seed)
    layers = anatomy_of(model).layers
    return [torch.rand(layer.units(kind), generator=generator) for layer in layers]


def chosen(
    importances: Mapping[str, list[Tensor]], shares: Mapping[str, float], done: float, even: bool, multiple_of: int
) -> dict[str, list[list[int]]]:
    """Return the units of each kind that stay when the share `done` of the pruning is done."""
    return {
        kind: choose(values, 1.0 - (1.0 - shares[kind]) * done, even, 1 if kind == "heads" else multiple_of)
        for kind, values in importances.items()
    }


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
    if not changed:
        raise NiwakiError(
            "prune found nothing to remove",
            expected="shares small enough to remove one unit",
            fix=f"multiple_of: 1 (it is {multiple_of}), or smaller shares",
        )
    return model


class Gradual(Companion):
    """Close gates along the cubic schedule while the model trains, and cut the matrices at the end."""

    def __init__(
        self,
        model: nn.Module,
        context: Context,
        by: str,
        shares: Mapping[str, float],
        even: bool,
        multiple_of: int,
        *,
        begin: float,
        end: float,
    ) -> None:
        super().__init__()
        self.by, self.shares, self.even, self.multiple_of = by, shares, even, multiple_of
        self.begin, self.end, self.seed = begin, end, context.seed
        self.model = [model]  # in a list: the model is not part of its companion
        self.kinds = nn.ModuleDict({kind: gates_on(model, kind, by, MEMORY) for kind in shares})
        self.done = 0.0

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return none: gates are not learnt."""
        return []

    def step(self, progress: float) -> None:
        """Close what the schedule asks for; what is closed stays closed."""
        done = cubic(progress, self.begin, self.end)
        for gates in self.kinds.values():
            assert isinstance(gates, Masks)
            gates.forget_gradients()
        if done > self.done:
            for kind, kept in self.chosen(done).items():
                self.gates(kind).close(kept)
        self.done = done

    def gates(self, kind: str) -> Masks:
        """Return the gates of one kind."""
        gates = self.kinds[kind]
        assert isinstance(gates, Masks)
        return gates

    def chosen(self, done: float) -> dict[str, list[list[int]]]:
        """Return the units that stay now; what was closed before has no importance."""
        values = {kind: self.gates(kind).closed_last(self.importances(kind)) for kind in self.shares}
        return chosen(values, self.shares, done, self.even, self.multiple_of)

    def importances(self, kind: str) -> list[Tensor]:
        """Return the present importances."""
        if self.by in ("magnitude", "random"):
            return standing(self.model[0], kind, self.by, self.seed)
        return self.gates(kind).importances()

    def ready(self, progress: float) -> bool:
        """Judge the model only once all that goes is gone."""
        return progress >= self.end

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the gates down and cut the matrices."""
        if not self.shares:
            return model
        kept = self.chosen(1.0)
        for kind in self.shares:
            self.gates(kind).take_down()
        return narrow(model, kept, self.multiple_of)
