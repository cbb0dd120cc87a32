"""How many units of each block stay: shares, or a budget over heads and neurons together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from niwaki.anatomy import UNITS, Layer, rows_of
from niwaki.errors import NiwakiError
from niwaki.techniques.prune.sizes import best_sizes

Sizes = dict[str, list[int]]
#: By kind, layer and size: what a block of that size costs.
Costs = Mapping[str, Sequence[Mapping[int, float]]]


def candidates(layers: Sequence[Layer], multiple_of: int) -> dict[str, list[list[int]]]:
    """Return the sizes each block may have, ascending: any number of heads, neurons in multiples, or all of them."""
    return {
        "heads": [list(range(1, layer.heads + 1)) for layer in layers],
        "neurons": [sorted({*range(multiple_of, layer.neurons, multiple_of), layer.neurons}) for layer in layers],
    }


def by_share(
    kind: str, share: float, even: bool, sizes: Sequence[Sequence[int]], errors: Sequence[Sequence[float]] | None
) -> list[int]:
    """Return how many units of one kind stay in each layer.

    Args:
        kind: "heads" or "neurons".
        share: of all units of that kind.
        even: the same share in every layer; else the errors decide.
        sizes: that each layer may have.
        errors: of each layer when 0, 1, 2, ... of its units are gone; None only asks whether it can be done.

    Raises:
        NiwakiError: the share leaves less than the smallest sizes hold, or everything.
    """
    totals = [block[-1] for block in sizes]
    if even:
        chosen = [min(block, key=lambda size: (abs(size - share * block[-1]), size)) for block in sizes]
    else:
        budget = round(share * sum(totals))
        least = sum(block[0] for block in sizes)
        if budget < least:
            raise NiwakiError(
                f"keep_{kind} is {share:g}, which leaves {budget} of {sum(totals)}",
                expected=f"at least {least} of them: {sizes[0][0]} a layer",
                fix=f"keep_{kind}: {least / sum(totals):.3g}",
                place="prune",
            )
        if errors is None:
            errors = [[0.0] * (total + 1) for total in totals]
        losses = [[error[block[-1] - size] for size in block] for block, error in zip(sizes, errors, strict=True)]
        chosen = [sizes[index][level] for index, level in enumerate(best_sizes(losses, sizes, budget))]
    if chosen == totals and share < 1.0:
        raise NiwakiError(
            f"keep_{kind} is {share:g}, which removes nothing",
            expected="a share small enough to remove one unit",
            fix="multiple_of: 1, or a smaller share",
            place="prune",
        )
    return chosen


def by_cost(
    what: str,
    share: float,
    costs: Costs,
    errors: Mapping[str, Sequence[Sequence[float]]] | None,
) -> Sizes:
    """Return how many heads and neurons stay in each layer, for a share of what all layers cost now.

    Raises:
        NiwakiError: the smallest sizes cost more.
    """
    blocks = [(kind, index) for kind in UNITS for index in range(len(costs[kind]))]
    tables = [costs[kind][index] for kind, index in blocks]
    whole = sum(table[max(table)] for table in tables)
    least = sum(min(table.values()) for table in tables)
    if least > share * whole:
        raise NiwakiError(
            f"keep {what} is {share:g}",
            expected=f"at least {least / whole:.3g}: a head and the fewest neurons in each layer cost that much",
            fix=f"keep: {{{what}: {least / whole + 0.005:.2f}}}, and drop whole layers before it",
            place="prune",
        )
    losses = [
        [errors[kind][index][max(table) - size] if errors else 0.0 for size in table]
        for (kind, index), table in zip(blocks, tables, strict=True)
    ]
    levels = best_sizes(losses, [list(table.values()) for table in tables], share * whole)
    chosen = [list(table)[level] for table, level in zip(tables, levels, strict=True)]
    layers = len(costs["heads"])
    return {"heads": chosen[:layers], "neurons": chosen[layers:]}


def macs(layers: Sequence[Layer], sizes: Mapping[str, list[list[int]]], length: int) -> Costs:
    """Return the multiply-accumulates a token of each block at each size.

    A head of width S has 4 D S in its projections and 2 T S in scores and contexts; a neuron has 2 D.
    """
    hidden = rows_of(layers[0].part("output"))
    return {
        "heads": [
            {size: float(size * layer.head_size * (4 * hidden + 2 * length)) for size in block}
            for layer, block in zip(layers, sizes["heads"], strict=True)
        ],
        "neurons": [{size: float(size * 2 * hidden) for size in block} for block in sizes["neurons"]],
    }
