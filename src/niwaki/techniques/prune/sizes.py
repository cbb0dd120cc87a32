"""Choose how much of each block stays: least error within a budget, by dynamic programming."""

# M blocks, K sizes of a block, B budget

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from niwaki.errors import NiwakiError

#: Steps a budget of real numbers is divided into; a cost is rounded up to them, so that the budget always holds.
STEPS = 20_000


def best_sizes(
    errors: Sequence[Sequence[float]],
    costs: Sequence[Sequence[float]],
    budget: float,
    what: str = "budget",
    some: Iterable[int] = (),
) -> list[int]:
    """Return for each block the index of its size: least sum of errors, sum of costs within the budget.

    Exact for costs that are whole multiples of something; others are rounded up to 1/20000 of the budget. The budget is
    one number for all blocks together, and is the same for every choice that is looked at.

    Args:
        errors: of each size of each block.
        costs: of the same sizes, 0 or more.
        budget: 0 or more.
        what: names the budget in the message.
        some: blocks of which at least one is not to have its first size.

    Raises:
        NiwakiError: even the cheapest sizes cost more.

    Source: the dynamic program of Frantar and Alistarh 2022, SPDY: Accurate Pruning with Speedup Guarantees, section 3.

    >>> best_sizes([[9, 1, 0], [5, 3, 0]], [[1, 2, 3], [1, 2, 3]], budget=4)
    [1, 1]
    >>> best_sizes([[0, 0], [1, 0]], [[0, 2], [0, 3]], budget=2, some=[0, 1])
    [1, 0]
    """
    chosen = _best(errors, costs, budget, what)
    some = list(some)
    if not some or any(chosen[block] for block in some):
        return chosen
    found = []
    for block in some:  # one of them has more: each in turn, and the best of all
        rest = [list(each) for each in costs]
        spent = sum(min(each) for each in rest) - min(rest[block])
        if len(rest[block]) > 1 and spent + min(rest[block][1:]) <= budget * (1 + 1e-9):
            more = [each[1:] if index == block else each for index, each in enumerate(errors)]
            rest[block] = rest[block][1:]
            sizes = _best(more, rest, budget, what)
            sizes[block] += 1
            found.append((sum(each[size] for each, size in zip(errors, sizes, strict=True)), sizes))
    if not found:
        raise NiwakiError(f"{what} is {budget:.6g}", expected="more: not one unit costs as little", place="prune")
    return min(found)[1]


def _best(errors: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float, what: str) -> list[int]:
    """Return the same, with any block at any size."""
    least = sum(min(cost) for cost in costs)
    if least > budget * (1 + 1e-9):
        raise NiwakiError(
            f"{what} is {budget:.6g}", expected=f"at least {least:.6g}, which the smallest sizes cost", place="prune"
        )
    # what the smallest sizes cost is spent already; the rest of the costs compete for the rest of the budget
    units, limit = _whole([[cost - min(block) for cost in block] for block in costs], budget - least)
    reached_B = np.zeros(limit + 1)
    choices: list[np.ndarray] = []
    for error, unit in zip(errors, units, strict=True):
        total_KB = np.full((len(error), limit + 1), np.inf)
        for size, (loss, cost) in enumerate(zip(error, unit, strict=True)):
            if cost <= limit:
                total_KB[size, cost:] = reached_B[: limit + 1 - cost] + loss
        choices.append(total_KB.argmin(axis=0))
        reached_B = total_KB.min(axis=0)
    chosen: list[int] = []
    left = limit
    for choice_B, unit in zip(reversed(choices), reversed(units), strict=True):
        chosen.append(int(choice_B[left]))
        left -= unit[chosen[-1]]
    return chosen[::-1]


def _whole(costs: Sequence[Sequence[float]], budget: float) -> tuple[list[list[int]], int]:
    """Return costs and budget in whole units: the costs' common divisor where there is one, else steps, rounded up."""
    flat = [cost for block in costs for cost in block]
    if all(float(cost).is_integer() for cost in flat):
        divisor = math.gcd(*(int(cost) for cost in flat)) or 1
        if (budget + 1e-9) // divisor <= STEPS:
            return [[int(cost) // divisor for cost in block] for block in costs], int((budget + 1e-9) // divisor)
    unit = max(budget, 1e-12) / STEPS
    return [[math.ceil(cost / unit - 1e-9) for cost in block] for block in costs], STEPS
