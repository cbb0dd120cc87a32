"""What calibration rows say of a model before it is packed, and what is done where they say too little."""

# I inputs

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from niwaki.calibrate import Batches, Sizes, input_ranges, input_sizes
from niwaki.errors import NiwakiError
from niwaki.technique import Context
from niwaki.techniques.quantize.smoothing import smooth

Changes = dict[str, bool | int | str]

#: Methods that look at how inputs go together: with fewer tokens than inputs they see directions that are not there.
SECOND_ORDER = ("gptq", "awq")
#: Tokens from which on the largest number seen is taken for the largest there is.
LEAST_TOKENS = 32


@dataclass(frozen=True)
class Wanted:
    """Say what is wanted of one linear: how its integers are found, and what becomes of its inputs."""

    by: str
    activations: str
    smooths: bool

    @property
    def looks(self) -> bool:
        """Say whether calibration rows are needed for it."""
        return self.by in SECOND_ORDER or self.activations == "static" or self.smooths


@dataclass(frozen=True)
class Calibration:
    """Hold what was found on calibration rows, by linear.

    Attributes:
        changes: parameters that are others than wanted, where a linear saw too few tokens.
        ranges: (low, high) of static activations.
        factors: what columns are multiplied by, and inputs divided by in front of the product, (I,).
    """

    changes: Mapping[str, Changes] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    factors: Mapping[str, Tensor] = field(default_factory=dict)


def calibrate(
    model: nn.Module,
    context: Context,
    wanted: Mapping[str, Wanted],
    packed: Collection[str],
    rows: Callable[[], Batches],
    strength: float,
    keep_range: float,
) -> Calibration:
    """Look at calibration rows, smooth, and find static ranges; what saw too little falls back, and the log says so.

    Args:
        model: is smoothed where a part of it takes the factors, and stays the same function.
        context: whose log is written.
        wanted: by dotted name of a linear.
        packed: the linears that smoothing may change.
        rows: gives batches from the first one on.
        strength: of smoothing, in (0, 1].
        keep_range: share of the values inside a static range.

    Raises:
        NiwakiError: there is nothing to look at.
    """
    looking = [name for name, one in wanted.items() if one.looks]
    if not looking:
        return Calibration()
    check_rows(context)
    sizes = input_sizes(model, looking, rows())
    changes = {name: found for name in looking if (found := fallbacks(wanted[name], sizes[name]))}
    for name, found in changes.items():
        say(context, name, sizes[name], found)
    smoothed = [name for name in looking if wanted[name].smooths and "smooth" not in changes.get(name, {})]
    factors = smooth(model, smoothed, packed, sizes, strength)
    static = [
        name for name in looking if changes.get(name, {}).get("activations", wanted[name].activations) == "static"
    ]
    divisors = {name: 1.0 / factors_I for name, factors_I in factors.items()}
    ranges = input_ranges(model, static, rows(), keep_range, divisors) if static else {}
    return Calibration(changes, ranges, factors)


def check_rows(context: Context) -> None:
    """Refuse to calibrate on nothing.

    Raises:
        NiwakiError: there are no training rows, or one that has no tokens.
    """
    rows = context.train
    empty = (rows.lengths == 0).nonzero()[0]
    if not len(rows) or len(empty):
        raise NiwakiError(
            f"row {empty[0] + 1} of the train split has no tokens" if len(empty) else "the train split has no rows",
            expected="texts to calibrate on",
            fix="a method that looks at none: by: mean-square, activations: dynamic, smooth: 0",
            place="quantize",
        )


def fallbacks(wanted: Wanted, seen: Sizes) -> Changes:
    """Return what is done differently with a linear that saw too few tokens, as parameters.

    A second-order method wants as many tokens as the linear has inputs, else it is round-to-nearest; a static range
    and smoothing want `LEAST_TOKENS`, else the range is taken at run time and inputs stay as they are.

    >>> fallbacks(Wanted("gptq", "static", False), Sizes(40, Tensor(64)))
    {'by': 'nearest'}
    """
    changes: Changes = {}
    if wanted.by in SECOND_ORDER and seen.tokens < len(seen.largest_I):
        changes["by"] = "nearest"
    if wanted.activations == "static" and seen.tokens < LEAST_TOKENS:
        changes["activations"] = "dynamic"
    if wanted.smooths and seen.tokens < LEAST_TOKENS:
        changes["smooth"] = 0
    return changes


def say(context: Context, name: str, seen: Sizes, changes: Changes) -> None:
    """Log what is done differently."""
    note = f"{name} saw too few tokens in calibration"
    context.log({"event": "note", "note": note, "tokens": seen.tokens, "inputs": len(seen.largest_I), **changes})
