"""Learn what to prune while training: hard-concrete gates under a budget of parameters."""

# L layers, D hidden, H heads, N neurons

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import UNITS, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.channels import stand_channels
from niwaki.layers.gates import stand
from niwaki.layers.hard_concrete import HardConcrete
from niwaki.residual import residual_of
from niwaki.schedules import ramp
from niwaki.technique import Companion, Context
from niwaki.techniques.prune.structure import Chances, Structure, choose_structure, costs_of, count, smallest
from niwaki.techniques.prune.units import narrow

#: Share of the way from `begin` to `end` in which the target falls; in the rest of it the gates settle.
FALL = 0.8
#: Where the multiplier of the square starts, and the rate at which both climb. A distance of 0.01 from the target then
#: weighs as much as a loss that rises by 1 when all parameters go.
STIFFNESS, CLIMB = 50.0, 0.5


def check(model: nn.Module, keep: float, multiple_of: int) -> None:
    """Refuse a share that not even one head on the fewest channels is within."""
    least = smallest(costs_of(model), residual_of(model).width, multiple_of) / _parameters(model)
    if least > keep:
        raise NiwakiError(
            f"keep is parameters {keep}, which leaves no room for one attention head",
            expected=f"at least {least:.4f}: one head on the fewest hidden channels, {multiple_of}",
            fix="a larger share, or a smaller multiple_of",
            place="prune",
        )


class Learnt(Companion):
    """Learn gates on channels, modules and units until the layers hold no more than their share of parameters.

    Minimises task loss + m1 (s - t) + m2 (s - t)^2 over weights and gates, with s the expected share of parameters and
    t the target, which falls from the beginning's share to `keep`; the multipliers climb the same function.

    At `end` the likeliest units that fill the budget get gates of 1, all others 0, and the rest of the training
    recovers.
    """

    multipliers: Tensor
    is_frozen: Tensor
    hidden_mask: Tensor

    def __init__(
        self,
        model: nn.Module,
        context: Context,
        keep: float,
        multiple_of: int,
        *,
        begin: float,
        end: float,
        gate_learning_rate: float,
    ) -> None:
        super().__init__()
        self.keep, self.multiple_of, self.begin, self.end = keep, multiple_of, begin, end
        self.gate_learning_rate, self.log = gate_learning_rate, context.log
        layers = anatomy_of(model).layers
        device = next(model.parameters()).device
        self.costs = costs_of(model)
        self.whole = _parameters(model)
        width = residual_of(model).width
        self.hidden = HardConcrete(width, device)
        self.attentions = HardConcrete(len(layers), device)
        self.feed_forwards = HardConcrete(len(layers), device)
        self.heads = nn.ModuleList([HardConcrete(layer.units("heads"), device) for layer in layers])
        self.neurons = nn.ModuleList([HardConcrete(layer.neurons, device) for layer in layers])
        self.register_buffer("multipliers", torch.tensor([0.0, STIFFNESS], device=device))
        self.register_buffer("is_frozen", torch.tensor(False, device=device))
        self.register_buffer("hidden_mask", torch.ones(width, device=device))
        for index, layer in enumerate(layers):
            self.register_buffer(f"heads_mask_{index}", torch.ones(layer.units("heads"), device=device))
            self.register_buffer(f"neurons_mask_{index}", torch.ones(layer.neurons, device=device))
        self.first_share = float(self.expected_share().detach())
        self.progress, self.frozen = 0.0, False
        self.drawn: dict[str, Tensor] = {}
        self._handles = stand_channels(model, lambda module: self.value("hidden", module.training))
        for layer in layers:
            for kind in UNITS:
                self._handles.append(stand(layer, kind, self._values(f"{kind}_{layer.index}")))

    def _values(self, name: str) -> Callable[[nn.Module, Tensor], Tensor]:
        return lambda module, units: self.value(name, module.training)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the gates, which learn at their own rate and do not decay."""
        return [{"params": list(self.parameters()), "lr": self.gate_learning_rate, "weight_decay": 0.0}]

    def step(self, progress: float) -> None:
        """Draw the gates, or freeze them when it is time."""
        self.progress = progress
        if progress >= self.end:
            self.freeze()
        else:
            self.drawn = self._gates(HardConcrete.sample)

    def value(self, name: str, training: bool) -> Tensor:
        """Return the present factors: as frozen, as drawn, or, in evaluation, without chance."""
        if self.frozen:
            kind, _, layer = name.partition("_")
            return self.get_buffer(f"{kind}_mask_{layer}" if layer else f"{kind}_mask")
        if training and self.drawn:
            return self.drawn[name]
        return self._gates(HardConcrete.settled)[name]

    def _gates(self, value: Callable[[HardConcrete], Tensor]) -> dict[str, Tensor]:
        """Return the factors of channels, and of each layer's units those of their module in them."""
        attentions, feed_forwards = value(self.attentions), value(self.feed_forwards)
        gates = {"hidden": value(self.hidden)}
        for index, (heads, neurons) in enumerate(zip(self.units("heads"), self.units("neurons"), strict=True)):
            gates[f"heads_{index}"] = attentions[index] * value(heads)
            gates[f"neurons_{index}"] = feed_forwards[index] * value(neurons)
        return gates

    def units(self, kind: str) -> list[HardConcrete]:
        """Return the gates on the units of one kind, of each layer."""
        return [cast(HardConcrete, gates) for gates in (self.heads if kind == "heads" else self.neurons)]

    def expected_share(self) -> Tensor:
        """Return the expected share of the layers' parameters that is left."""
        chances = self._gates(HardConcrete.open_chance)
        layers = range(len(self.costs))
        heads = [chances[f"heads_{index}"].sum() for index in layers]
        neurons = [chances[f"neurons_{index}"].sum() for index in layers]
        return count(self.costs, chances["hidden"].sum(), heads, neurons) / self.whole

    def target(self) -> float:
        """Return the share that is asked for now."""
        settled = self.begin + FALL * (self.end - self.begin)
        return self.first_share + (self.keep - self.first_share) * ramp(self.progress, self.begin, settled)

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the distance from the target costs, and let the multipliers climb."""
        distance = self.expected_share() - self.target()
        if self.frozen:
            return {"size": 0.0 * distance}
        powers = torch.stack([distance, distance.square()])
        penalty = (self.multipliers * powers).sum()
        with torch.no_grad():
            # a new tensor: the old one is part of the graph
            self.multipliers = self.multipliers + CLIMB * powers.detach()
        return {"size": penalty}

    @torch.no_grad()
    def freeze(self) -> None:
        """Set every gate to 0 or 1, so that the share is met by the parameters that will really be there."""
        if self.frozen or bool(self.is_frozen):  # the buffer alone, when a training goes on from a checkpoint
            self.frozen, self.drawn = True, {}
            return
        chances = Chances(
            self.hidden.log_open_chance().cpu(),
            self.attentions.log_open_chance().cpu(),
            self.feed_forwards.log_open_chance().cpu(),
            [gates.log_open_chance().cpu() for gates in self.units("heads")],
            [gates.log_open_chance().cpu() for gates in self.units("neurons")],
        )
        structure = choose_structure(self.costs, chances, self.keep * self.whole, self.multiple_of)
        assert structure is not None  # `check` refused such a share
        _open(self.hidden_mask, structure.hidden)
        for index in range(len(self.costs)):
            _open(self.get_buffer(f"heads_mask_{index}"), structure.heads[index])
            _open(self.get_buffer(f"neurons_mask_{index}"), structure.neurons[index])
        self.is_frozen.fill_(True)
        self.frozen, self.drawn = True, {}
        self.log(
            {
                "event": "note",
                "note": "gates are frozen",
                "expected_share": float(self.expected_share()),
                "share": self._share_of(structure),
                "hidden": len(structure.hidden),
                "heads": [len(heads) for heads in structure.heads],
                "neurons": [len(neurons) for neurons in structure.neurons],
            }
        )

    def _share_of(self, structure: Structure) -> float:
        heads, neurons = (_numbers(units) for units in (structure.heads, structure.neurons))
        return float(count(self.costs, _numbers([structure.hidden])[0], heads, neurons)) / self.whole

    def ready(self, progress: float) -> bool:
        """Judge the model only once all that goes is gone."""
        return self.frozen

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the gates down and cut the matrices."""
        self.freeze()
        for handle in self._handles:
            handle.remove()
        layers = range(len(self.costs))
        kept = {kind: [_opened(self.get_buffer(f"{kind}_mask_{index}")) for index in layers] for kind in UNITS}
        narrow(model, {**kept, "hidden": [_opened(self.hidden_mask)]}, self.multiple_of)
        left = _parameters(model)
        self.log({"event": "note", "note": "layers are cut", "parameters": left, "share": left / self.whole})
        return model


def _numbers(units: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(len(each), dtype=torch.float64) for each in units]


def _open(mask: Tensor, units: list[int]) -> None:
    mask.zero_()
    mask[units] = 1.0


def _opened(mask: Tensor) -> list[int]:
    units: list[int] = mask.nonzero().flatten().tolist()
    return units


def _parameters(model: nn.Module) -> int:
    """Return the number of parameters in the layers."""
    return sum(parameter.numel() for parameter in anatomy_of(model).layer_list.parameters())
