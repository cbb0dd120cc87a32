"""Weights whose products fit: what processors without VNNI or AMX need of 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from niwaki.grid import REDUCED_REACH, Grid
from niwaki.measure.conditions import adds_in_16_bits, instruction_sets


def reduces(wanted: bool | None, activations: str) -> bool:
    """Say whether weights are kept in the reduced range.

    Args:
        wanted: what the user says; none: as this machine needs it.
        activations: "dynamic", "static" or "none", which has no products of bytes.
    """
    if activations == "none":
        return False
    return adds_in_16_bits(instruction_sets()) if wanted is None else wanted


def ranges_told(wanted: bool | None, activations: Collection[str], log: Callable[[dict[str, Any]], None]) -> None:
    """Log what becomes of products of bytes on a processor that adds them in 16 bits."""
    if set(activations) <= {"none"} or wanted or not adds_in_16_bits(instruction_sets()):
        return
    whole, reach = Grid().reach, REDUCED_REACH
    sums = f"2 * 255 * {whole} = {2 * 255 * whole:,} does not fit"
    done = (
        f"8-bit weights are kept within -{reach}..{reach}"
        if wanted is None
        else f"sums saturate, and reduce_range is false: with true, weights within -{reach}..{reach} do not"
    )
    kind = "this processor has neither VNNI nor AMX and adds products of bytes in pairs in 16 bits"
    slow = "products of integers may be no faster here than those of floats: compare, or write by: measured"
    log({"event": "note", "note": f"{kind}, where {sums}: {done}; {slow}"})
