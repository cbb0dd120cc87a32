"""The one picture of a result: quality against latency, bubbles by size, conditions in small print."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from niwaki.errors import NiwakiError
from niwaki.report import drawing, units
from niwaki.report.folders import Place, Row, RunFolder, latency, number, read_runs
from niwaki.report.headline import Headline, headlines, runtime_of
from niwaki.report.labels import place_labels
from niwaki.report.points import Point, clipped, distinct_rows, latency_of, metric_of, points_of
from niwaki.report.scatter import draw_points
from niwaki.report.tables import small_print

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_LABELS = 8


def picture(folders: Place | Sequence[Place], out: Place) -> Path:
    """Write the one picture of a result: quality against latency, bubbles by size, conditions below.

    Args:
        folders: run folders, folders of runs, or a comparison's JSON file.
        out: file to write, `.svg` or `.png`.

    Raises:
        NiwakiError: nothing measured is there, or the ending is another one.
    """
    runs = read_runs([folders] if isinstance(folders, str | os.PathLike) else folders)
    measure = latency_of(runs)
    points = points_of(runs, measure, label=_long_label, bubbles=True)
    if not points:
        raise NiwakiError("no record has both a latency and a quality", expected="runs measured on their task")
    said = [line for run in runs for line in headlines(run)]
    title = _picture_title(said)
    labelled = list(range(len(points))) if len(points) <= MOST_LABELS else _fastest(points)
    with drawing.style():
        figure = drawing.figure_of(720, 440, padding=0.14)
        axes = figure.subplots()
        draw_points(axes, points, measure, metric_of(runs))
        axes.set_title("")
        _name_legend(axes, runs, points)
        figure.suptitle(title, x=0.022, ha="left", fontsize=15, fontweight="bold")
        told = " Named: each model's fastest." if len(labelled) < len(points) else ""
        conditions = small_print([row for run in runs for row in run.rows])
        below = f"Bubble area: bytes on disk. {_bars(points)}{told}\n{conditions}"
        figure.supxlabel(_wrapped(below, 150), x=0.022, ha="left", fontsize=7.5, color=drawing.MUTED)
        figure.draw_without_rendering()
        place_labels(axes, points, labelled)
        return drawing.write_picture(figure, Path(out), title)


def _picture_title(said: Sequence[Headline]) -> str:
    if len(said) != 1:
        return "Quality against latency"
    changes = [
        f"{change} in {said[0].runtime}" if "latency" in what else change for what, _, _, change in said[0].tiles
    ]
    return f"{clipped(said[0].name)}: {', '.join(change for change in changes if change)}"


def _fastest(points: Sequence[Point]) -> list[int]:
    """Return the fastest point of each name."""
    best: dict[str, int] = {}
    for index, point in enumerate(points):
        if point.name not in best or point.x < points[best[point.name]].x:
            best[point.name] = index
    return list(best.values())


def _name_legend(axes: Axes, runs: Sequence[RunFolder], points: Sequence[Point]) -> None:
    """Name each colour above the frame, with the bytes of its bubbles."""
    from matplotlib.lines import Line2D

    sizes: dict[str, list[float]] = {}
    for row, _ in distinct_rows(runs):
        sizes.setdefault(str(row["name"]), []).append(number(row, "size_bytes") or 0)
    handles = []
    for name, colour in dict.fromkeys((point.name, point.colour) for point in points):
        ends = dict.fromkeys(units.size(end) for end in (min(sizes[name]), max(sizes[name])) if end)
        label = ", ".join([clipped(name, 40), *([" – ".join(ends)] if ends else [])])
        handles.append(Line2D([], [], linestyle="", marker="o", markersize=8, color=colour, label=label))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        handletextpad=0.2,
        borderaxespad=0.4,
    )


def _long_label(row: Row) -> str:
    return f"{runtime_of(row)}\n{units.seconds(latency(row))}"


def _bars(points: Sequence[Point]) -> str:
    told = ["95% interval of the difference with the base (upright)"] if any(point.upright for point in points) else []
    told += ["p10 to p90 (across)"] if any(point.across for point in points) else []
    return f"Bars: {' and '.join(told)}." if told else ""


def _wrapped(text: str, width: int) -> str:
    return "\n".join(line for part in text.splitlines() for line in textwrap.wrap(part, width))
