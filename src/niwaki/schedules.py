"""Schedules: pure functions of progress in [0, 1]."""

from __future__ import annotations

import math


def warmup_linear(progress: float, warmup: float) -> float:
    """Rise from 0 to 1 over the first `warmup` share, then fall in a line to 0.

    >>> [warmup_linear(p, 0.5) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    if progress < warmup:
        return progress / warmup
    return max(0.0, (1.0 - progress) / (1.0 - warmup)) if warmup < 1.0 else 1.0


def warmup_constant(progress: float, warmup: float) -> float:
    """Rise from 0 to 1 over the first `warmup` share, and stay there.

    >>> [warmup_constant(p, 0.5) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.5, 1.0, 1.0]
    """
    return min(1.0, progress / warmup) if warmup else 1.0


def cubic(progress: float, begin: float, end: float) -> float:
    """Rise from 0 at `begin` to 1 at `end`, fast at first: 1 - (1 - s)^3 (Zhu and Gupta 2017, equation 1).

    >>> [cubic(p, 0.0, 0.5) for p in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.875, 1.0, 1.0]
    """
    if progress >= end:
        return 1.0
    if progress <= begin:
        return 0.0
    return float(1.0 - (1.0 - (progress - begin) / (end - begin)) ** 3)


def in_stages(progress: float, begin: float, end: float, stages: int) -> float:
    """Return the last of so many even stages between `begin` and `end` that `progress` has reached.

    >>> [in_stages(p, 0.0, 0.5, 5) for p in (0.0, 0.19, 0.2, 0.6)]
    [0.0, 0.1, 0.2, 0.5]
    """
    done = min(max((progress - begin) / (end - begin), 0.0), 1.0)
    return begin + (end - begin) * int(done * stages) / stages


def ramp(progress: float, begin: float, end: float) -> float:
    """Rise in a line from 0 at `begin` to 1 at `end`.

    >>> [ramp(p, 0.25, 0.75) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
    [0.0, 0.0, 0.5, 1.0, 1.0]
    """
    return min(1.0, max(0.0, (progress - begin) / (end - begin)))


def cosine(progress: float, begin: float, end: float) -> float:
    """Rise from 0 at `begin` to 1 at `end`, slow at both: (1 - cos(pi s)) / 2.

    >>> [round(cosine(p, 0.0, 0.5), 3) for p in (0.0, 0.125, 0.25, 0.5, 1.0)]
    [0.0, 0.146, 0.5, 1.0, 1.0]
    """
    return (1.0 - math.cos(math.pi * ramp(progress, begin, end))) / 2.0
