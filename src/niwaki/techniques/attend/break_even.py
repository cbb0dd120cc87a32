"""From which length on another attention is faster than the exact one, by the clock of this machine."""

# B batch, T tokens, D = heads times their width

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.layers.kinds import Kind, build

SHORTEST, LONGEST = 32, 8192
ENOUGH_SECONDS, LEAST_REPEATS, MOST_REPEATS = 0.02, 3, 15


@dataclass(frozen=True)
class Times:
    """Hold the seconds of one layer's attention, exact and of another kind, at some lengths.

    Attributes:
        lengths: ascending numbers of tokens.
        exact, other: seconds at these lengths.
    """

    lengths: tuple[int, ...]
    exact: tuple[float, ...]
    other: tuple[float, ...]

    @property
    def break_even(self) -> float:
        """Return the length from which on the other is faster; infinity where it never is.

        Between two lengths the logarithm of the ratio is taken for a line.

        >>> Times((64, 128, 256), exact=(1, 2, 8), other=(2, 2, 4)).break_even
        128.0
        >>> Times((64, 256), exact=(1, 16), other=(4, 4)).break_even
        128.0
        >>> Times((64, 128), exact=(1, 2), other=(3, 3)).break_even
        inf
        """
        gains = [math.log(exact / other) for exact, other in zip(self.exact, self.other, strict=True)]
        if gains[-1] <= 0:
            return math.inf
        last = max((place for place, gain in enumerate(gains) if gain <= 0), default=-1)
        if last < 0:
            return float(self.lengths[0])
        low, high = math.log(self.lengths[last]), math.log(self.lengths[last + 1])
        share = -gains[last] / (gains[last + 1] - gains[last])
        return round(math.exp(low + share * (high - low)), 6)

    def speedup(self, lengths: Sequence[int] | np.ndarray) -> float:
        """Return how many times faster the other is on inputs of these lengths, all of them together.

        >>> Times((64, 128), exact=(1.0, 3.0), other=(2.0, 2.0)).speedup([64, 128, 128])
        1.1666666666666667
        """
        seconds = [
            np.exp(np.interp(np.log(lengths), np.log(self.lengths), np.log(one))) for one in (self.exact, self.other)
        ]
        return float(seconds[0].sum() / seconds[1].sum())


@lru_cache(maxsize=64)
def times_of(
    by: Kind, heads: int, head_size: int, key_value_heads: int, longest: int, settings: tuple[tuple[str, Any], ...]
) -> Times:
    """Time one layer's attention at lengths that double, up to `longest`, at batch 1 in PyTorch.

    Up to its window an attention is the exact one, and takes as long by definition.
    """
    mechanism = build(by, heads, head_size, key_value_heads, **dict(settings)).eval()
    lengths = lengths_up_to(longest)
    exact, other = [], []
    with torch.inference_mode():
        for length in lengths:
            inputs = _inputs(length, heads * head_size, key_value_heads * head_size)
            real_BT = torch.ones(1, length, dtype=torch.bool)
            calls = [partial(one, *inputs, real_BT, head_size**-0.5) for one in (mechanism.exact, mechanism)]
            seconds = _seconds(calls[:1] if length <= dict(settings).get("window", 0) else calls)
            exact.append(seconds[0])
            other.append(seconds[-1])
    return Times(lengths, tuple(exact), tuple(other))


def lengths_up_to(longest: int) -> tuple[int, ...]:
    """Return lengths that double, the last one being the longest.

    >>> lengths_up_to(200)
    (32, 64, 128, 200)
    """
    lengths = [SHORTEST << power for power in range(20) if SHORTEST << power < longest]
    return (*lengths, longest)


def _inputs(length: int, width: int, shared: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries (1, T, width), and keys and values (1, T, shared)."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, length, one, generator=generator) for one in (width, shared, shared))
    return query, key, value


def _seconds(calls: Sequence[Callable[[], Tensor]]) -> list[float]:
    """Return the least time of each of a few calls in turns after a first one: what else runs here only adds."""
    for call in calls:
        call()
    rounds: list[list[float]] = []
    while len(rounds) < LEAST_REPEATS or (len(rounds) < MOST_REPEATS and np.sum(rounds) < ENOUGH_SECONDS):
        rounds.append([])
        for call in calls:
            begin = time.perf_counter()
            call()
            rounds[-1].append(time.perf_counter() - begin)
    return [min(one) for one in zip(*rounds, strict=True)]
