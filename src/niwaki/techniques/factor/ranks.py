"""How many ranks each matrix keeps: the same share of each, or one budget over all."""

# K rank of the whole

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from niwaki.errors import NiwakiError

#: By the name of a matrix: the rank it keeps, or None where it stays dense.
Ranks = dict[str, int | None]


@dataclass(frozen=True)
class Shape:
    """Hold the numbers of rows and columns of a matrix."""

    rows: int
    columns: int

    @property
    def parameters(self) -> int:
        """Return the numbers that the whole matrix holds."""
        return self.rows * self.columns

    def of_rank(self, rank: int | None) -> int:
        """Return the numbers that a pair of this rank holds, or the whole matrix."""
        return self.parameters if rank is None else rank * (self.rows + self.columns)

    @property
    def break_even(self) -> float:
        """Return the rank at which a pair holds as much as the whole matrix: m n / (m + n).

        >>> Shape(384, 384).break_even
        192.0
        """
        return self.parameters / (self.rows + self.columns)

    def paying(self, rank: int) -> int | None:
        """Return the rank where a pair of it is smaller than the whole matrix, else None."""
        return rank if rank < self.break_even else None

    def at_share(self, keep: float, multiple_of: int) -> int | None:
        """Return the rank of this share of the parameters, rounded down to a multiple; None where none pays.

        It is one multiple at least, and then more than the share.

        >>> Shape(384, 1536).at_share(0.5, multiple_of=8), Shape(384, 384).at_share(0.1, multiple_of=64)
        (152, 64)
        """
        return self.paying(max(1, int(keep * self.break_even) // multiple_of) * multiple_of)


def same_share(shapes: Mapping[str, Shape], keep: float, multiple_of: int) -> Ranks:
    """Return the rank of each matrix for this share of its parameters."""
    return {name: shape.at_share(keep, multiple_of) for name, shape in shapes.items()}


def same_rank(shapes: Mapping[str, Shape], rank: int) -> Ranks:
    """Return the same rank for each matrix, where it pays."""
    return {name: shape.paying(rank) for name, shape in shapes.items()}


def check_pays(shapes: Mapping[str, Shape], ranks: Ranks) -> None:
    """Refuse ranks that leave every matrix dense."""
    if any(rank is not None for rank in ranks.values()):
        return
    limits = {(shape.rows, shape.columns): shape.break_even for shape in shapes.values()}
    told = ", ".join(f"{limit:.4g} for {rows} x {columns}" for (rows, columns), limit in limits.items())
    raise NiwakiError(
        "factor finds no matrix that gets smaller",
        expected=f"a rank below m n / (m + n), where two factors hold as much as the whole: {told}",
        fix=f"rank: {max(1, int(max(limits.values())) // 2)}, or keep: 0.5 with multiple_of: 1",
        place="factor",
    )


@dataclass(frozen=True)
class Option:
    """Hold one of the forms that a matrix may take, with what it holds and what it costs."""

    parameters: int
    cost: float
    rank: int | None


def options_of(shape: Shape, costs_K: Sequence[float] | Tensor, multiple_of: int) -> list[Option]:
    """Return the forms of a matrix, the smallest first, without those that lie above a line between two others.

    Args:
        shape: of the matrix.
        costs_K: (K + 1,), what 0, 1, ..., K ranks cost.
        multiple_of: of the ranks.
    """
    ranks = [rank for rank in range(multiple_of, int(shape.break_even) + 1, multiple_of) if shape.paying(rank)]
    forms = [Option(shape.of_rank(rank), float(costs_K[rank]), rank) for rank in ranks]
    forms.append(Option(shape.parameters, 0.0, None))
    hull = forms[:1]
    while hull[-1] is not forms[-1]:
        here = hull[-1]
        later = [one for one in forms if one.parameters > here.parameters]
        hull.append(max(later, key=lambda one: ((here.cost - one.cost) / (one.parameters - here.parameters), one.cost)))
    return hull


def least_cost(options: Mapping[str, list[Option]], keep: float) -> Ranks:
    """Return for each matrix the form such that all together hold this share of the parameters and cost least.

    From the smallest forms on, the parameters that save most go in first: what Lagrange's multiplier would choose, but
    for the last step that no longer fits.

    Raises:
        NiwakiError: the smallest forms hold more.
    """
    whole = sum(forms[-1].parameters for forms in options.values())
    least = sum(forms[0].parameters for forms in options.values())
    if least > keep * whole:
        raise NiwakiError(
            f"keep is {keep:g}",
            expected=f"at least {least / whole:.3g}: the smallest ranks hold that much",
            fix=f"keep: {least / whole + 0.005:.2f}, or a smaller multiple_of",
            place="factor",
        )
    steps = [
        ((here.cost - there.cost) / (there.parameters - here.parameters), name, level)
        for name, forms in options.items()
        for level, (here, there) in enumerate(pairwise(forms), start=1)
    ]
    levels, left = dict.fromkeys(options, 0), keep * whole - least
    for _, name, level in sorted(steps, key=lambda step: (-step[0], step[2], step[1])):
        price = options[name][level].parameters - options[name][level - 1].parameters
        if levels[name] == level - 1 and price <= left:
            levels[name], left = level, left - price
    return {name: forms[levels[name]].rank for name, forms in options.items()}
