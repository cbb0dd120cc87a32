"""How finalists stand after the session in which they were measured beside their parents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from niwaki.budget import Budget
from niwaki.measure import Measurement, Session


def standings(session: Session, bounds: Budget, finalists: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return what the record of each entrant holds of the session, those that fit first, and the best quality ahead.

    Args:
        session: in which finalists and parents were measured.
        bounds: the budget.
        finalists: by parent's name, the name that its finalist was measured under.
    """
    rows = session.records
    places = {parent: _place(rows, name, bounds) for parent, name in finalists.items()}
    ranked = sorted(places, key=lambda parent: _rank(rows[places[parent]], bounds))
    return {parent: _found(session, bounds, parent, places[parent], places[ranked[0]]) for parent in ranked}


def _place(rows: list[Measurement], name: str, bounds: Budget) -> int:
    """Return the row that a model is judged by: of the runtime in which it misses least, and then is fastest."""
    own = [index for index, row in enumerate(rows) if row.name == name]
    return min(own, key=lambda index: (len(bounds.check(rows[index])), _latency(rows[index]) or 0.0))


def _rank(row: Measurement, bounds: Budget) -> tuple[bool, float, float]:
    assert row.quality is not None
    worse = -1.0 if row.quality.higher_is_better else 1.0
    return bool(bounds.check(row)), worse * row.quality.value, _latency(row) or 0.0


def _found(session: Session, bounds: Budget, parent: str, place: int, first: int) -> dict[str, Any]:
    """Return the fields of one entrant, paired with the first and with its own parent in the same runtime."""
    rows = session.records
    row, whole = rows[place], [index for index, one in enumerate(rows) if one.name == parent]
    beside = next(index for index in whole if rows[index].runtime == row.runtime)
    return {
        "misses": tuple(map(str, bounds.check(row))),
        "runtime": row.runtime,
        "size_bytes": row.size_bytes,
        "latency_seconds": _latency(row),
        "memory_peak_bytes": row.memory_peak_bytes,
        "quality": session.paired(first, place),
        "lost": session.paired(beside, place),
        "parent_size_bytes": rows[beside].size_bytes,
        "parent_latency_seconds": _latency(rows[beside]),
        "parent_fits": any(not bounds.check(rows[index]) for index in whole),
    }


def _latency(row: Measurement) -> float | None:
    return row.latency_seconds.median if row.latency_seconds else None
