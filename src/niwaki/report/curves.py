"""How the training went: each part of the loss, the learning rate and the throughput, from `log.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from niwaki.report import drawing, units
from niwaki.report.folders import Row, number, section
from niwaki.report.log import kept_records

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = list[tuple[float, float]]
MANY = 60
"""Points from which on a curve is drawn with its mean."""

POINTS = 160
"""Points a curve is thinned to; more than a page can show."""


@dataclass(frozen=True)
class Training:
    """Hold the log of one train step.

    Attributes:
        step: name of the step, as in the log.
        svg: the curves.
        facts: what it took and how it ended, in words.
        noisy: True where single steps are drawn behind their mean.
    """

    step: str
    svg: str
    facts: str
    noisy: bool


def trainings(log: Sequence[Row], name: str, points: int = POINTS) -> list[Training]:
    """Return each train step of a log with its curves."""
    steps = dict.fromkeys(str(record.get("step", "train")) for record in log if record.get("event") == "train")
    told = []
    for index, step in enumerate(steps):
        records = kept_records([record for record in log if str(record.get("step", "train")) == step])
        judged = [
            record for record in log if record.get("event") == "evaluate" and str(record.get("step", "train")) == step
        ]
        if len(records) > 1:
            told.append(
                Training(
                    step=step,
                    svg=_draw(records, judged, f"{name}-{index}", step, points),
                    facts=_facts(records, judged),
                    noisy=len(records) > MANY,
                )
            )
    return told


def smoothed(curve: Curve, share: float = 0.04) -> Curve:
    """Return the exponential mean of a curve over about this share of its points, unbiased at its start.

    >>> smoothed([(0, 2.0), (1, 2.0), (2, 2.0)])
    [(0, 2.0), (1, 2.0), (2, 2.0)]
    """
    keep = 1 - 1 / max(1.0, share * len(curve))
    mean = weight = 0.0
    result = []
    for x, y in curve:
        mean, weight = keep * mean + (1 - keep) * y, keep * weight + (1 - keep)
        result.append((x, mean / weight))
    return result


def thinned(curve: Curve, points: int) -> Curve:
    """Return a curve with at most this many points, each the mean of its neighbourhood.

    >>> thinned([(0, 1.0), (1, 3.0), (2, 5.0), (3, 7.0)], 2)
    [(0.5, 2.0), (2.5, 6.0)]
    """
    if len(curve) <= points:
        return curve
    edges = [round(index * len(curve) / points) for index in range(points + 1)]
    parts = [curve[low:high] for low, high in pairwise(edges) if high > low]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _draw(records: Sequence[Row], judged: Sequence[Row], name: str, step: str, points: int) -> str:
    in_epochs = all(number(record, "epoch") is not None for record in records)
    curves = _losses(records, in_epochs)
    below = [
        (title, curve)
        for title, key in (("learning rate", "learning_rate"), ("examples/s", "examples_per_second"))
        if (curve := _curve(records, (key,), in_epochs))
    ]
    chosen = [
        (x, y) for record in judged if (x := number(record, "epoch")) and (y := number(record, "selection")) is not None
    ]
    if chosen and in_epochs:
        below.insert(0, ("selection", chosen))
    with drawing.style():
        figure = drawing.figure_of(620, 230 + 62 * len(below))
        axes = figure.subplots(
            1 + len(below),
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={"height_ratios": [3.4] + [1] * len(below)},
        )[:, 0]
        _draw_losses(axes[0], curves, points)
        for index, (title, curve) in enumerate(below, start=1):
            marker = "o" if title == "selection" else ""
            axes[index].plot(
                *zip(*thinned(curve, points), strict=True),
                color=drawing.MUTED,
                linewidth=1.3,
                marker=marker,
                ms=4,
            )
            _small_axis(axes[index], title)
        axes[-1].set_xlabel("epoch" if in_epochs else "optimizer step")
        figure.align_ylabels(list(axes))
        title = f"Losses of {step}"
        return drawing.inline_svg(figure, name, title, f"{title}: {_facts(records, judged)}")


def _losses(records: Sequence[Row], in_epochs: bool) -> list[tuple[str, Curve]]:
    """Return the sum first, then its parts; a single part equals the sum and is left out."""
    names = list(dict.fromkeys(str(name) for record in records for name in section(record, "parts")))
    parts = [(units.words(part), _curve(records, ("parts", part), in_epochs)) for part in names]
    total = ("all together" if len(names) > 1 else "loss", _curve(records, ("loss",), in_epochs))
    return [(title, curve) for title, curve in [total, *(parts if len(names) > 1 else [])] if curve]


def _curve(records: Sequence[Row], keys: tuple[str, ...], in_epochs: bool) -> Curve:
    pairs = ((number(record, "epoch" if in_epochs else "optimizer_step"), number(record, *keys)) for record in records)
    return [(x, y) for x, y in pairs if x is not None and y is not None]


def _draw_losses(axes: Axes, curves: Sequence[tuple[str, Curve]], points: int) -> None:
    values = [y for _, curve in curves for _, y in curve]
    if values and min(values) > 0 and max(values) / min(values) > 30:
        axes.set_yscale("log")
        _plain_log_axis(axes)
    for index, (title, curve) in enumerate(curves):
        colour = drawing.INK if index == 0 else drawing.SERIES[(index - 1) % len(drawing.SERIES)]
        if len(curve) > MANY:
            axes.plot(*zip(*thinned(curve, points), strict=True), color=colour, alpha=0.22, linewidth=0.8)
            curve = smoothed(curve)
        # a marker in the place of a line's only point
        axes.plot(
            *zip(*thinned(curve, points), strict=True), color=colour, label=title,
            linewidth=1.9 if index == 0 else 1.4, marker="o" if len(curve) == 1 else "",
        )  # fmt: skip
    axes.set_ylabel("loss")
    if len(curves) > 1:
        where: Any = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        axes.legend(ncols=4, handlelength=1.3, columnspacing=1.4, **where)


def _plain_log_axis(axes: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _small_axis(axes: Any, title: str) -> None:
    axes.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    low, high = axes.dataLim.y0, axes.dataLim.y1
    if title != "selection":
        low = 0.0
        axes.set_ylim(0, high * 1.15)
    ends = [low, high] if high > low else [high]
    axes.set_yticks(ends, [f"{end:.2g}" if title == "learning rate" else _tick(end) for end in ends])


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _facts(records: Sequence[Row], judged: Sequence[Row]) -> str:
    last = records[-1]
    told = []
    steps, epoch, loss = number(last, "optimizer_step"), number(last, "epoch"), number(last, "loss")
    if steps is not None:
        planned = number(last, "steps")
        told.append(f"{steps:,.0f} optimizer steps" + (f" of {planned:,.0f}" if planned and planned != steps else ""))
    told += [f"{epoch:.3g} epochs"] if epoch is not None else []
    told += (
        [f"{number(last, 'examples_per_second'):,.0f} examples a second"] if number(last, "examples_per_second") else []
    )
    told += [f"loss {number(records[0], 'loss') or 0:.3g} at first, {loss:.3g} at last"] if loss is not None else []
    best = max((value for record in judged if (value := number(record, "selection")) is not None), default=None)
    told += [f"best on the selection rows {best:.2f}"] if best is not None else []
    return ", ".join(told)
