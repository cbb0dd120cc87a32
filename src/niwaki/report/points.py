"""Points of a plot of quality: one a model and runtime, with its intervals, its colour and its shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from niwaki.report import drawing, units
from niwaki.report.folders import Row, RunFolder, latency, number, section, size_of
from niwaki.report.headline import interval_of, runtime_of


@dataclass(frozen=True)
class Point:
    """Hold one mark: its place, the ends of its bars, and what is written beside it."""

    name: str
    x: float
    y: float
    across: tuple[float, float] | None
    upright: tuple[float, float] | None
    label: str
    tip: str
    colour: str
    marker: str
    area: float = 46.0


@dataclass(frozen=True)
class Measure:
    """Say which number of a record a plot has on its horizontal axis, and how it is written."""

    title: str
    read: Callable[[Row], float | None]
    ends: tuple[tuple[str, ...], ...]
    write: Callable[[float | None], str]


LATENCY = Measure(
    "median latency at batch 1", latency, (("latency_seconds", "p10"), ("latency_seconds", "p90")), units.seconds
)
MEAN_LATENCY = replace(LATENCY, title="mean latency at batch 1")
SIZE = Measure("size on disk", size_of, (), units.size)


def latency_of(runs: Sequence[RunFolder]) -> Measure:
    """Return how the latencies of runs are told: as means where rows of one may leave early, else as medians."""
    early = any(number(row, "latency_seconds", "mean") is not None for run in runs for row in run.rows)
    return MEAN_LATENCY if early else LATENCY


def points_of(
    runs: Sequence[RunFolder], measure: Measure, label: Callable[[Row], str], bubbles: bool = False
) -> list[Point]:
    """Return a point for each record that has both numbers; equal records stand once."""
    rows = distinct_rows(runs)
    largest = max((number(row, "size_bytes") or 0 for row, _ in rows), default=0)
    names = list(dict.fromkeys(str(row["name"]) for row, is_base in rows if not is_base))
    markers = markers_of(rows)
    points = []
    for row, is_base in rows:
        x, y = measure.read(row), number(row, "quality", "value")
        if x is None or y is None or x <= 0:
            continue
        ends = [number(row, *keys) for keys in measure.ends]
        across = (ends[0], ends[1]) if len(ends) == 2 and ends[0] and ends[1] else None
        colour = drawing.BASE if is_base else drawing.SERIES[names.index(str(row["name"])) % len(drawing.SERIES)]
        area = 60 + 1300 * (number(row, "size_bytes") or 0) / largest if bubbles and largest else 46.0
        tip = _tip(row, measure)
        marker = "o" if bubbles else markers[str(row.get("runtime"))]
        points.append(Point(str(row["name"]), x, y, across, _upright(row, y), label(row), tip, colour, marker, area))
    return points


def metric_of(runs: Sequence[RunFolder]) -> str:
    """Return the name of the metric that the first measured record has."""
    named = (section(row, "quality").get("metric") for run in runs for row in run.rows)
    return str(next((metric for metric in named if metric), "quality"))


def distinct_rows(runs: Sequence[RunFolder]) -> list[tuple[Row, bool]]:
    """Return every different record with whether it is a base's."""
    rows: list[tuple[Row, bool]] = []
    for run in runs:
        marked = ((row, row["name"] == run.base) for row in run.rows)
        rows += [one for one in marked if one not in rows]
    return rows


def markers_of(rows: Sequence[tuple[Row, bool]]) -> dict[str, str]:
    """Give each runtime a shape, the known ones always the same."""
    runtimes = list(dict.fromkeys(str(row.get("runtime")) for row, _ in rows))
    others = [runtime for runtime in runtimes if runtime not in drawing.MARKERS]
    return drawing.MARKERS | {
        runtime: drawing.OTHER_MARKERS[index % len(drawing.OTHER_MARKERS)] for index, runtime in enumerate(others)
    }


def _upright(row: Row, value: float) -> tuple[float, float] | None:
    """Return the 95% interval of the difference, laid around the base's value."""
    interval, difference = interval_of(section(row, "quality")), number(row, "quality", "difference")
    if interval is None or difference is None or interval[0] == interval[1]:
        return None
    return value - difference + interval[0], value - difference + interval[1]


def _tip(row: Row, measure: Measure) -> str:
    quality = section(row, "quality")
    interval = interval_of(quality)
    spread = (
        f" (95% interval of the difference {' to '.join(units.points(end, quality.get('metric')) for end in interval)})"
        if interval
        else ""
    )
    metric = quality.get("metric")
    value = units.quality(number(quality, "value") or 0.0, metric)
    return (
        f"{row['name']} in {runtime_of(row)}: {measure.write(measure.read(row))}, {metric or 'quality'} {value}{spread}"
    )


def clipped(name: str, length: int = 28) -> str:
    """Shorten a name that would not fit."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
