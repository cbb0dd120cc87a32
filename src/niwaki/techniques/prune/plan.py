"""How many units of each block stay: shares, or a budget over heads and neurons together."""

# L layers, H sizes of an attention, N sizes of a feed-forward

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from torch import nn

from niwaki.anatomy import UNITS, Layer, anatomy_of, rows_of
from niwaki.errors import NiwakiError
from niwaki.layers.gates import even_level
from niwaki.techniques.prune.sizes import best_sizes
from niwaki.techniques.prune.structure import costs_of

Sizes = dict[str, list[int]]
#: By kind and layer, what the loss grows by when 0, 1, 2, ... units are gone.
Errors = Mapping[str, Sequence[Sequence[float]]]
#: By kind, layer and size: what a block of that size costs.
Costs = Mapping[str, Sequence[Mapping[int, float]]]


def candidates(layers: Sequence[Layer], multiple_of: int) -> dict[str, list[list[int]]]:
    """Return the sizes each block may have, ascending: any number of heads, neurons in multiples, none, or all of them.

    Heads that share their keys and values count as one.
    """
    return {
        "heads": [list(range(layer.units("heads") + 1)) for layer in layers],
        "neurons": [sorted({*range(0, layer.neurons, multiple_of), layer.neurons}) for layer in layers],
    }


def by_share(
    kind: str, share: float, even: bool, sizes: Sequence[Sequence[int]], errors: Sequence[Sequence[float]] | None
) -> list[int]:
    """Return how many units of one kind stay in each layer; at least one in one of them.

    Args:
        kind: "heads" or "neurons".
        share: of all units of that kind.
        even: the same number in every layer; else the errors decide.
        sizes: that each layer may have, from 0 on.
        errors: of each layer when 0, 1, 2, ... of its units are gone; None only asks whether it can be done.

    Raises:
        NiwakiError: the share leaves less than the smallest size holds, or everything.
    """
    totals = [block[-1] for block in sizes]
    if even:
        level = even_level(totals, share)
        chosen = [min(block[1:], key=lambda size: (abs(size - level), size), default=0) for block in sizes]
    else:
        budget = round(share * sum(totals))
        least = min((block[1] for block in sizes if block[-1]), default=0)
        if budget < least:
            raise NiwakiError(
                f"keep_{kind} is {share:g}, which leaves {budget} of {sum(totals)}",
                expected=f"at least {least} of them, in one layer",
                fix=f"keep_{kind}: {least / sum(totals):.3g}",
                place="prune",
            )
        if errors is None:
            errors = [[float(gone) for gone in range(total + 1)] for total in totals]
        losses = [[error[block[-1] - size] for size in block] for block, error in zip(sizes, errors, strict=True)]
        levels = best_sizes(losses, sizes, budget, some=range(len(sizes)))
        chosen = [sizes[index][level] for index, level in enumerate(levels)]
    if chosen == totals and share < 1.0:
        raise NiwakiError(
            f"keep_{kind} is {share:g}, which removes nothing",
            expected="a share small enough to remove one unit",
            fix="multiple_of: 1, or a smaller share",
            place="prune",
        )
    return chosen


def by_cost(what: str, share: float, even: bool, costs: Costs, errors: Errors | None) -> Sizes:
    """Return how many heads and neurons stay in each layer, for a share of what all layers cost now.

    A whole attention or feed-forward may go, but for one head somewhere: tokens have to see each other. With `even` all
    layers keep the same, and none of them loses a block.

    Raises:
        NiwakiError: the smallest sizes cost more.
    """
    layers = len(costs["heads"])
    tables = [table for kind in UNITS for table in costs[kind]]
    whole = sum(table[max(table)] for table in tables)
    known = [error for kind in UNITS for error in errors[kind]] if errors else [[0.0] * (max(t) + 1) for t in tables]
    losses = [[error[max(table) - size] for size in table] for table, error in zip(tables, known, strict=True)]
    least = _least_even(costs) if even else _least(costs)
    if least > share * whole:
        smallest = "a head and the fewest neurons in each layer" if even else "one attention head in the whole model"
        raise NiwakiError(
            f"keep {what} is {share:g}",
            expected=f"at least {least / whole:.3g}: {smallest} cost that much",
            fix=f"keep: {{{what}: {least / whole + 0.005:.2f}}}",
            place="prune",
        )
    if even:
        return _evenly(tables, losses, layers, share * whole)
    levels = best_sizes(losses, [list(table.values()) for table in tables], share * whole, some=range(layers))
    chosen = [list(table)[level] for table, level in zip(tables, levels, strict=True)]
    return {"heads": chosen[:layers], "neurons": chosen[layers:]}


def _least(costs: Costs) -> float:
    """Return what no block costs, but for the cheapest head."""
    none = sum(min(table.values()) for kind in UNITS for table in costs[kind])
    heads = [sorted(table.values()) for table in costs["heads"] if max(table)]
    return none + min((first[1] - first[0] for first in heads), default=0.0)


def _least_even(costs: Costs) -> float:
    """Return what the smallest block that is one costs in every layer."""
    return sum(min(cost for size, cost in table.items() if size or not max(table)) for k in UNITS for table in costs[k])


def _evenly(
    tables: Sequence[Mapping[int, float]], losses: Sequence[Sequence[float]], layers: int, budget: float
) -> Sizes:
    """Return the numbers of heads and of neurons, the same in every layer, of least error within the budget."""
    found: list[dict[int, tuple[float, float]]] = []
    for start in (0, layers):
        blocks = range(start, start + layers)
        error_of = [dict(zip(tables[block], losses[block], strict=True)) for block in blocks]
        common = sorted(set.intersection(*(set(tables[block]) for block in blocks)) - {0})
        found.append(
            {
                size: (sum(error[size] for error in error_of), sum(tables[block][size] for block in blocks))
                for size in common
            }
        )
    within = [
        (first[0] + second[0], -heads, -neurons)
        for (heads, first), (neurons, second) in product(found[0].items(), found[1].items())
        if first[1] + second[1] <= budget * (1 + 1e-9)
    ]
    if not within:
        raise NiwakiError(
            "even is true, but no number of heads and neurons is one that every layer can have",
            expected="layers that are alike",
            fix="even: false",
            place="prune",
        )
    _, heads, neurons = min(within)
    return {"heads": [-heads] * layers, "neurons": [-neurons] * layers}


def macs(model: nn.Module, sizes: Mapping[str, list[list[int]]], length: int) -> Costs:
    """Return the multiply-accumulates a token of each block at each size.

    Each unit costs the weights it has; a head of width S has 2 T S more in scores and contexts.
    """
    layers, weights = anatomy_of(model).layers, costs_of(model)
    hidden = rows_of(layers[0].part("output"))

    def of_unit(kind: str, layer: Layer) -> int:
        seen = 2 * length * layer.unit_width("heads") if kind == "heads" else 0
        return weights[layer.index].unit[kind] * hidden + seen

    return {
        kind: [
            {size: float(size * of_unit(kind, layer)) for size in block}
            for layer, block in zip(layers, sizes[kind], strict=True)
        ]
        for kind in UNITS
    }
