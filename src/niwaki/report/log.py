"""Read a log of events: how long the steps took, what was noted, what of a training counts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from niwaki.report import units
from niwaki.report.folders import Row, number

HEAD = ("time", "step", "event", "note")
"""What every note has."""


def durations(log: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (step, time it took) of each step that ended; of a resumed one, all its parts together.

    >>> durations([{"event": "step-begin", "step": "01-train", "time": 5.0},
    ...            {"event": "step-end", "step": "01-train", "time": 7.5}])
    [('01-train', '2.50 s')]
    """
    begun: dict[str, float] = {}
    took: dict[str, float] = {}
    last: tuple[str, float] | None = None
    for record in log:
        time, step = number(record, "time"), str(record.get("step", ""))
        if time is None or not step:
            continue
        if record.get("event") == "step-begin":
            if step not in begun:
                took[step] = 0.0  # an earlier step of the same name is another recipe's
            elif last and last[0] == step:  # it was interrupted after its last record
                took[step] += max(0.0, last[1] - begun[step])
            begun[step] = time
        elif record.get("event") == "step-end" and step in begun:
            took[step] += time - begun.pop(step)
        last = (step, time)
    return [(step, units.seconds(value)) for step, value in took.items() if step not in begun]


def notes_of(log: Sequence[Row]) -> list[str]:
    """Return the notes of a log, each once, with the numbers they came with.

    >>> notes_of([{"event": "note", "note": "influence", "values": [0.25, 0.5]}])
    ['influence: values 0.25, 0.5']
    """
    told = []
    for record in log:
        if record.get("event") == "note":
            numbers = [f"{units.words(key)} {_plain(value)}" for key, value in record.items() if key not in HEAD]
            told.append(": ".join([str(record.get("note", "")), *([", ".join(numbers)] if numbers else [])]))
    return list(dict.fromkeys(told))


def factored(log: Sequence[Row]) -> list[str]:
    """Tell of each matrix that was to become two factors what rank it kept and what that lost, a layer in a sentence.

    >>> factored([{"event": "factor", "matrices": [
    ...     {"module": "layer.0.query", "rank": 96, "break_even": 192.0, "lost": 0.125},
    ...     {"module": "layer.0.key", "rank": None, "break_even": 192.0, "lost": 0.0}]}])
    ['layer 0, query: rank 96 (pays below 192), 12.5% lost; key: stays whole']
    """
    layers: dict[str, dict[str, str]] = {}
    for record in log:
        for one in record.get("matrices", []) if record.get("event") == "factor" else []:
            name, rank = str(one.get("module", "")), one.get("rank")
            inside = re.search(r"\.(\d+)\.(.+)$", name)
            kept = f"rank {rank} (pays below {one.get('break_even', 0):.4g}), {one.get('lost', 0):.1%} lost"
            layers.setdefault(f"layer {inside[1]}, " if inside else "", {})[inside[2] if inside else name] = (
                "stays whole" if rank is None else kept
            )
    return [
        f"{layer}{'; '.join(f'{name}: {told}' for name, told in matrices.items())}"
        for layer, matrices in layers.items()
    ]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def kept_records(records: Sequence[Row]) -> list[Row]:
    """Return the train records in order; where a training went back, what follows counts."""
    kept: list[tuple[float, Row]] = []
    for record in records:
        step = number(record, "optimizer_step")
        if record.get("event") == "train" and step is not None:
            while kept and kept[-1][0] >= step:
                kept.pop()
            kept.append((step, record))
    return [record for _, record in kept]
