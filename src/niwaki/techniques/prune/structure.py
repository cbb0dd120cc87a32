"""How many parameters layers hold with these units left, and which units to keep for a number of parameters."""

# L layers, D hidden, H heads, N neurons

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from niwaki.anatomy import UNITS, Layer, anatomy_of, rows_of

READERS = {"heads": ("query", "key", "value"), "neurons": ("up", "gate")}


@dataclass(frozen=True)
class Costs:
    """Count the parameters of one layer, a unit and a channel at a time.

    Attributes:
        unit: for "heads" and "neurons", the parameters of one unit on each hidden channel.
        bias: for "heads" and "neurons", those of one unit whatever the channels: its biases.
        channel: parameters of one channel whatever the units: norms, and biases of what writes to it.
    """

    unit: dict[str, int]
    bias: dict[str, int]
    channel: int


@dataclass(frozen=True)
class Structure:
    """Say which units are left: hidden channels, and in each layer heads and neurons."""

    hidden: list[int]
    heads: list[list[int]]
    neurons: list[list[int]]


def costs_of(model: nn.Module) -> list[Costs]:
    """Count the parameters of each layer."""
    return [_costs(layer) for layer in anatomy_of(model).layers]


def count(costs: Sequence[Costs], hidden: Tensor, heads: Sequence[Tensor], neurons: Sequence[Tensor]) -> Tensor:
    """Return the number of parameters of all layers for numbers of units, or the expected one for their chances.

    Args:
        costs: of each layer.
        hidden: number of channels, or their expected number.
        heads: of each layer, their number, or the expected one.
        neurons: the same of neurons.
    """
    per_layer = [
        (cost.unit["heads"] * hidden + cost.bias["heads"]) * heads[index]
        + (cost.unit["neurons"] * hidden + cost.bias["neurons"]) * neurons[index]
        + cost.channel * hidden
        for index, cost in enumerate(costs)
    ]
    return torch.stack(per_layer).sum()


def smallest(costs: Sequence[Costs], width: int, multiple_of: int) -> int:
    """Return the parameters of the smallest structure: one head, on the fewest channels."""
    fewest = min(width, multiple_of)
    head = min(cost.unit["heads"] * fewest + cost.bias["heads"] for cost in costs if cost.unit["heads"])
    return head + sum(cost.channel for cost in costs) * fewest


@dataclass(frozen=True)
class Chances:
    """Hold the log of the chance to be open.

    Attributes:
        hidden: of channels, (D).
        attentions, feed_forwards: of the modules of each layer, (L).
        heads, neurons: of each layer's units, given that their module is open.
    """

    hidden: Tensor
    attentions: Tensor
    feed_forwards: Tensor
    heads: list[Tensor]
    neurons: list[Tensor]

    def modules(self, kind: str) -> Tensor:
        """Return the chances of the modules that hold units of a kind."""
        return self.attentions if kind == "heads" else self.feed_forwards

    def units(self, kind: str) -> list[Tensor]:
        """Return the chances of the units of a kind."""
        return self.heads if kind == "heads" else self.neurons


def choose_structure(costs: Sequence[Costs], chances: Chances, budget: float, multiple_of: int) -> Structure | None:
    """Choose the units that stay: the likeliest, as many as `budget` parameters hold, and never more.

    The number of channels is the expected one, rounded to a multiple; heads and blocks of neurons then fill the budget
    in the order of their chance. Modules that are likelier closed than open stay closed, but for one head: tokens have
    to see each other somewhere.

    Returns:
        The structure, or None where not even one head on the fewest channels is within the budget.
    """
    total = len(chances.hidden)
    expected = float(chances.hidden.exp().sum())
    width = min(total, max(multiple_of, round(expected / multiple_of) * multiple_of))
    while width > 0:
        filled = _fill(costs, chances, budget, multiple_of, width)
        if filled is not None:
            hidden = chances.hidden.argsort(descending=True, stable=True)[:width].sort().values.tolist()
            return Structure(hidden, filled["heads"], filled["neurons"])
        if width <= multiple_of:
            break
        width = max(multiple_of, (math.ceil(width / multiple_of) - 1) * multiple_of)
    return None


@dataclass(frozen=True)
class _Block:
    """Hold units of one layer that stay or go together."""

    chance: float
    kind: str
    layer: int
    units: list[int]


def _fill(
    costs: Sequence[Costs], chances: Chances, budget: float, multiple_of: int, width: int
) -> dict[str, list[list[int]]] | None:
    """Return the units that fill the budget at this width, or None where no head does."""
    kept: dict[str, list[list[int]]] = {kind: [[] for _ in costs] for kind in UNITS}
    left = budget - sum(cost.channel for cost in costs) * width
    heads = list(_blocks(chances, "heads", 1))
    if not heads:  # there were none before
        return None
    blocks = sorted([*heads, *_blocks(chances, "neurons", multiple_of)], key=lambda block: -block.chance)
    first = max(heads, key=lambda block: block.chance)
    full: set[tuple[str, int]] = set()
    for block in [first, *(block for block in blocks if block is not first)]:
        cost, place = costs[block.layer], (block.kind, block.layer)
        price = len(block.units) * (cost.unit[block.kind] * width + cost.bias[block.kind])
        is_open = block is first or float(chances.modules(block.kind)[block.layer]) >= math.log(0.5)
        if is_open and price <= left and place not in full:
            left -= price
            kept[block.kind][block.layer] += block.units
        elif block is first:
            return None
        else:
            full.add(place)  # a smaller block after a missing one would leave an odd number
    return {kind: [sorted(units) for units in layers] for kind, layers in kept.items()}


def _blocks(chances: Chances, kind: str, size: int) -> Iterator[_Block]:
    """Yield the units of a kind in blocks, the likeliest of a layer together; a rest that fills no block comes last."""
    for layer, units in enumerate(chances.units(kind)):
        order = units.argsort(descending=True, stable=True).tolist()
        for start in range(0, len(order), size):
            block = order[start : start + size]
            chance = float(units[block].mean() + chances.modules(kind)[layer])
            yield _Block(chance, kind, layer, block)


def _costs(layer: Layer) -> Costs:
    unit, bias = {}, {}
    per_channel = 0
    for kind, number in (("heads", layer.units("heads")), ("neurons", layer.neurons)):
        readers = [layer.part(role) for role in READERS[kind] if getattr(layer.family, role, "")]
        writer = layer.reader(kind)
        rows = sum(rows_of(reader) for reader in readers)
        biases = sum(rows_of(reader) for reader in readers if reader.bias is not None)
        columns = writer.weight.shape[1]
        unit[kind] = (rows + columns) // max(1, number)
        bias[kind] = biases // max(1, number)
        per_channel += writer.bias is not None
    for role in ("attention_norm", "output_norm"):
        per_channel += sum(1 for _ in layer.part(role).parameters())
    return Costs(unit, bias, per_channel)
