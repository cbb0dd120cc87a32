"""Quality against latency and against size, as drawings for a page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from niwaki.report import drawing
from niwaki.report.folders import Row, RunFolder
from niwaki.report.headline import runtime_of
from niwaki.report.labels import place_labels, spokesmen
from niwaki.report.points import Measure, Point, clipped, distinct_rows, markers_of, metric_of, points_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def quality_plot(runs: Sequence[RunFolder], measure: Measure, name: str) -> str:
    """Return the plot as inline SVG, or an empty string where nothing can be drawn."""
    points = points_of(runs, measure, label=_short_label)
    if not points:
        return ""
    with drawing.style():
        figure = drawing.figure_of(350, 320)
        axes = figure.subplots()
        draw_points(axes, points, measure, metric_of(runs))
        _runtime_legend(figure, runs)
        figure.draw_without_rendering()  # settles the layout, so that points have a place in pixels
        place_labels(axes, points, spokesmen(axes, points))
        tips = {f"point-{index}": point.tip for index, point in enumerate(points)}
        title = f"{metric_of(runs).capitalize()} against {measure.title}"
        return drawing.inline_svg(figure, name, title, "; ".join(point.tip for point in points), tips)


def draw_points(axes: Axes, points: Sequence[Point], measure: Measure, metric: str) -> None:
    """Draw marks with their bars, and scale the axes to hold them all."""
    xs = [x for point in points for x in (point.x, *(point.across or ()))]
    if max(xs) / min(xs) > 4:
        axes.set_xscale("log")
    for index, point in enumerate(points):
        for ends in (
            point.across and (point.across, 2 * (point.y,)),
            point.upright and (2 * (point.x,), point.upright),
        ):
            if ends:
                axes.plot(*ends, color=point.colour, alpha=0.45, linewidth=1.2, zorder=2)
        bubble = point.area > 46
        mark = axes.scatter(
            [point.x], [point.y], s=point.area, marker=point.marker, color=point.colour, zorder=3,
            alpha=0.75 if bubble else 1, edgecolors=drawing.PAPER, linewidths=1.0,
        )  # fmt: skip
        mark.set_gid(f"point-{index}")
    _scale(axes, points, measure)
    axes.set_xlabel(measure.title)
    axes.set_ylabel(metric)
    axes.set_title("↖ up and left is better", fontsize=9)


def _scale(axes: Axes, points: Sequence[Point], measure: Measure) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    xs = [x for point in points for x in (point.x, *(point.across or ()))]
    ys = [y for point in points for y in (point.y, *(point.upright or ()))]
    room = max(max(ys) - min(ys), 0.5) * 0.14
    axes.set_ylim(min(ys) - room, max(ys) + room)
    if axes.get_xscale() == "log":
        axes.set_xlim(min(xs) / 1.5, max(xs) * 1.7)
        wide = max(xs) / min(xs) > 60
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, max(xs) * 1.25)
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(measure.write(value))))


def _short(text: str) -> str:
    """Drop the zeros that say nothing on an axis.

    >>> _short("0.500 ms"), _short("5.00 ms"), _short("100 MB")
    ('0.5 ms', '5 ms', '100 MB')
    """
    return re.sub(r"\.0+(?= )|(\.\d*[1-9])0+(?= )", r"\1", text)


def _runtime_legend(figure: Any, runs: Sequence[RunFolder]) -> None:
    from matplotlib.lines import Line2D

    rows = distinct_rows(runs)
    markers = markers_of(rows)
    shown = dict.fromkeys(str(row.get("runtime")) for row, _ in rows)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=markers[runtime],
            color=drawing.MUTED,
            label=runtime_of({"runtime": runtime}),
        )
        for runtime in shown
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), handletextpad=0.2)


def _short_label(row: Row) -> str:
    return clipped(str(row["name"]))
