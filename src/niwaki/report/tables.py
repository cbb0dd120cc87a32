"""Lay out measurement records and conditions as cells of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from niwaki.report import units
from niwaki.report.folders import Row, RunFolder, latency, number, section
from niwaki.report.headline import first_ratio, interval_of, loss_of, peer_of, ratio, runtime_of, significant

COLUMNS = (
    ("model", "name of the model"),
    ("runtime", "what executes it"),
    ("size", "bytes of all files the runtime needs, tokenizer apart"),
    ("smaller", "the base's size in the same runtime, divided by this one"),
    (
        "latency",
        "median time of one text at batch 1; the mean, where rows of a model measured together may leave early",
    ),
    ("faster", "the base's latency in the same runtime, divided by this one"),
    (
        "vs first",
        "how many times faster than the base in the runtime it was measured in first, round by round",
    ),
    ("quality", "the task's metric"),
    ("difference", "points against the base, on the same examples; of a language model nats, or perplexity"),
    ("95% interval", "of the difference"),
    ("p", "McNemar's exact test against the base"),
    ("changed", "share of predictions that differ from the base's"),
    ("p10 – p90", "a tenth of the calls was faster than the first, a tenth slower than the second"),
    ("p99", "one call in a hundred was slower"),
    ("texts/s", "throughput at batch 32"),
    ("floats", "precision of what is computed in floating point; 8-bit parts apart"),
    ("memory", "highest resident memory of a process that runs the model"),
    ("parameters", "numbers the model has learnt"),
    ("MACs/token", "multiply-accumulates for one token"),
    ("parity", "share of examples in which the exported file answers as the model it was made from"),
)
QUICK, BUSY = 3, 0.7
WORDS = 2
"""The first columns hold words, the others numbers."""


@dataclass(frozen=True)
class Line:
    """Hold the cells of one record, in the order of `COLUMNS`."""

    cells: tuple[str, ...]
    is_base: bool
    is_loss: bool


@dataclass(frozen=True)
class Group:
    """Hold the records that were measured together; only these may be compared by the clock."""

    title: str
    lines: tuple[Line, ...]


def comparison(runs: Sequence[RunFolder]) -> list[Group]:
    """Return one group of lines a session, the base's first.

    Runs that share their base's very records were measured in one session and stand together; equal records
    stand once.
    """
    sessions: list[tuple[str, tuple[Row, ...], list[Row], list[str]]] = []
    for run in runs:
        own = run.of(run.base)
        session = next((known for known in sessions if known[:2] == (run.base, own) and own), None)
        if session is None:
            session = (run.base, own, [], [])
            sessions.append(session)
        session[2].extend(row for row in run.rows if row not in session[2])
        session[3].append(run.name)
    return [Group(units.listed(names), tuple(lines(rows, base))) for base, _, rows, names in sessions]


def lines(rows: Sequence[Row], base: str) -> list[Line]:
    """Return a measurement's lines, the base's first and otherwise in the order they were measured."""
    ordered = sorted(rows, key=lambda row: row["name"] != base)
    return [_line(rows, base, row) for row in ordered]


def heads(runs: Sequence[RunFolder]) -> list[tuple[str, str]]:
    """Return (title, explanation) of each column; the first runtime is named where it is the same."""
    firsts = {runtime_of(run.of(run.base)[0]) for run in runs if run.of(run.base)}
    first = firsts.pop() if len(firsts) == 1 else "first"
    return [(f"vs {first}" if title == "vs first" else title, told) for title, told in COLUMNS]


def columns_in_use(groups: Sequence[Group]) -> list[int]:
    """Return the columns in which at least one line has something to say."""
    cells = [line.cells for group in groups for line in group.lines]
    return [index for index in range(len(COLUMNS)) if any(line[index] != units.NONE for line in cells)]


def _line(rows: Sequence[Row], base: str, row: Row) -> Line:
    peer = peer_of(rows, base, row) or {}
    quality = section(row, "quality")
    interval = interval_of(quality)
    is_base = row["name"] == base
    low, high = number(row, "latency_seconds", "p10"), number(row, "latency_seconds", "p90")
    value, difference, metric = number(quality, "value"), number(quality, "difference"), quality.get("metric")
    cells = (
        str(row["name"]),
        runtime_of(row),
        units.size(number(row, "size_bytes")),
        units.times(ratio(number(peer, "size_bytes"), number(row, "size_bytes"))),
        units.seconds(latency(row)),
        units.times(ratio(latency(peer), latency(row))),
        units.times(first_ratio(rows, base, row)),
        units.NONE if value is None else units.quality(value, metric),
        units.NONE if is_base and not difference else units.points(difference, metric),
        units.NONE if interval is None or is_base else " to ".join(units.points(end, metric) for end in interval),
        units.NONE if is_base else units.probability(number(quality, "p_value")),
        units.NONE if is_base else units.percent(number(quality, "changed")),
        units.NONE if low is None or high is None else _range(units.seconds(low), units.seconds(high)),
        units.seconds(number(row, "latency_seconds", "p99")),
        units.count(number(row, "throughput_per_second")),
        str(section(row, "conditions").get("precision") or units.NONE),
        units.size(number(row, "memory_peak_bytes")),
        units.count(number(row, "parameters")),
        units.count(number(row, "macs_per_token")),
        units.percent(number(row, "parity", "agreement")),
    )
    return Line(cells, is_base, bool(significant(quality)) and loss_of(quality, difference or 0) > 0)


def conditions(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return (what, value) of all conditions; where records differ, every value is named.

    >>> conditions([{"conditions": {"threads": 1, "versions": {"a": "2"}}}, {"conditions": {"threads": 2}}])
    [('threads', '1 / 2'), ('versions', 'a 2')]
    """
    gathered: dict[str, list[Any]] = {}
    for row in rows:
        for key, value in section(row, "conditions").items():
            if value is not None and value not in gathered.setdefault(key, []):
                gathered[key].append(value)
    return [_condition(key, values) for key, values in gathered.items() if values]


def _condition(key: str, values: list[Any]) -> tuple[str, str]:
    if not key.endswith("_bytes"):
        return units.words(key), _together(values)
    sizes = dict.fromkeys(units.size(end) for end in (min(values), max(values)))
    return units.words(key.removesuffix("_bytes")), " to ".join(sizes)


def small_print(rows: Sequence[Row]) -> str:
    """Return the conditions without which a latency means nothing, in one line."""
    found = [section(row, "conditions") for row in rows]

    def told(key: str) -> str:
        return _together(list({str(value): value for record in found if (value := record.get(key))}.values()))

    device = f"{told('device')} ({sets})" if (sets := told("instruction_sets")) else told("device")
    threads, length = told("threads"), number(section(found[0], "lengths") if found else {}, "mean")
    versions = {
        name: text for record in found for name, text in section(record, "versions").items() if name != "python"
    }
    dates = dict.fromkeys(str(record["date"])[:10] for record in found if record.get("date"))
    parts = [
        device,
        f"{threads} thread{'' if threads == '1' else 's'}" if threads else "",
        "batch 1",
        f"{length:.0f} tokens on average" if length else "",
        ", ".join(f"{name} {text}" for name, text in versions.items()),
        " / ".join(dates),
    ]
    return " · ".join(part for part in parts if part)


def notes(groups: Sequence[Group], runs: Sequence[RunFolder]) -> list[str]:
    """Return what a reader must know before believing the table."""
    rows = [row for run in runs for row in run.rows]
    told = []
    if len(groups) > 1:
        told.append(
            "What stands under one head was measured in one session, base and runs in turn. Between sessions"
            " compare ratios and differences; milliseconds differ for other reasons too."
        )
    noisy = dict.fromkeys(f"{row['name']} in {runtime_of(row)}" for row in rows if _wavers(row))
    if noisy:
        which = units.listed(list(noisy)) if len(noisy) <= 3 else f"{len(noisy)} of {len(rows)} rows"
        told.append(f"The clock was unsteady for {which}: from round to round the ratio to the base wavered.")
    few = min((count for row in rows if (count := number(row, "conditions", "rounds"))), default=QUICK + 1)
    if few <= QUICK:
        told.append(f"A quick measurement, of {few:.0f} rounds: the error of the latencies is wide.")
    load = max((load for row in rows if (load := number(row, "conditions", "load_average"))), default=0.0)
    if load > BUSY:
        told.append(f"The machine had other work as the measurement began (load average {load:.1f}).")
    return told


def _wavers(row: Row) -> bool:
    low, high = number(row, "latency_ratio", "p10"), number(row, "latency_ratio", "p90")
    return bool(low and high and high / low > 1.5)


def _range(low: str, high: str) -> str:
    """Join two numbers with their unit, named once where it is the same.

    >>> _range("1.20 ms", "1.50 ms"), _range("0.900 s", "1 min 2 s")
    ('1.20 – 1.50 ms', '0.900 s – 1 min 2 s')
    """
    number, _, unit = low.partition(" ")
    return f"{number} – {high}" if unit and high.partition(" ")[2] == unit else f"{low} – {high}"


def _together(values: Sequence[Any]) -> str:
    if all(isinstance(value, Mapping) for value in values):
        merged: dict[str, list[Any]] = {}
        for value in values:
            for key, item in value.items():
                if item is not None and item not in merged.setdefault(str(key), []):
                    merged[str(key)].append(item)
        return " · ".join(f"{units.words(key)} {_together(items)}" for key, items in merged.items() if items)
    return " / ".join(_one(value) for value in values)


def _one(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return units.figures(value)
    if isinstance(value, Mapping):
        return _together([value])
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
