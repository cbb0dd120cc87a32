"""Tell what texts that leave early cost in quality, and save in layers, as a log of `exit` has it.

The picture of a curve is the same where tokens are dropped.
"""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.report import drawing, units
from niwaki.report.folders import Row, number, section
from niwaki.report.told import Told

MOST = 10
"""Points of the curve that are told one by one, beside the one that was chosen."""
DRAWN = {
    "exits": ("What leaving early costs", "layers run, mean, %", "layers"),
    "tokens": ("What dropping tokens costs", "tokens left in the layers, mean, %", "tokens"),
}
"""Title of the picture, its axis, and what is counted, by event."""


def told(record: Row) -> Told:
    """Return the curve as a table, from where no text leaves to where all do at the first exit."""
    metric, curve, chosen = record.get("metric"), record.get("curve", []), section(record, "chosen")
    whole = number(curve[0], "quality") if curve else None
    lines = tuple(_line(point, chosen, whole, metric) for point in thinned(curve, chosen))
    head = ("threshold", "", "layers run", "leave early", str(metric), "difference")
    alone = [units.quality(value, metric) for value in record.get("alone", [])]
    names = [f"after layer {layer}" for layer in record.get("layers", [])]
    below = [
        f"{record['step']}:" if "step" in record else "",
        f"By {record.get('by')}, on {record.get('rows')} selection rows, which the thresholds were fitted on.",
        f"All texts at one head: {units.listed([' '.join(pair) for pair in zip(names, alone, strict=False)])},"
        f" at the last {alone[-1]}."
        if alone
        else "",
        asked(record, "layers"),
    ]
    return Told("What leaving early costs", head, lines, 2, " ".join(filter(None, below)))


def pictures(log: Sequence[Row], name: str) -> list[tuple[str, str]]:
    """Return (step, SVG) of each curve in a log; a step that was taken up again counts as it ended.

    Args:
        log: events.
        name: what ids begin with.
    """
    kinds = {"exits": "exit", "tokens": "drop-tokens"}
    last = {
        (record["event"], str(record.get("step", kinds[record["event"]]))): record
        for record in log
        if record.get("event") in kinds
    }
    return [(step, _draw(record, f"{name}-{index}")) for index, ((_, step), record) in enumerate(last.items())]


def _draw(record: Row, name: str) -> str:
    """Draw the quality over the share of the layers that run, or tokens that stay, and where it was decided to be."""
    title, axis, noun = DRAWN[str(record.get("event"))]
    metric, chosen = str(record.get("metric")), section(record, "chosen")
    pairs = [(100 * (number(one, "mean_cost") or 0.0), number(one, "quality") or 0.0) for one in record["curve"]]
    at = 100 * (number(chosen, "mean_cost") or 0.0), number(chosen, "quality") or 0.0
    with drawing.style():
        figure = drawing.figure_of(620, 230)
        axes = figure.subplots()
        axes.plot(*zip(*pairs, strict=True), color=drawing.SERIES[0], linewidth=1.6, marker="o", markersize=2.5)
        axes.plot(*at, color=drawing.INK, marker="o", markersize=9, markerfacecolor="none", linestyle="none")
        axes.annotate("chosen", at, (8, -12), textcoords="offset points", fontsize=9)
        axes.set_xlabel(axis)
        axes.set_ylabel(metric)
        said = f"{metric} {at[1]:.2f} with {at[0]:.1f}% of the {noun} chosen, {pairs[0][1]:.2f} with all"
        return drawing.inline_svg(figure, name, title, said)


def thinned(curve: Sequence[Row], chosen: Row) -> list[Row]:
    """Return a few points of a curve, evenly spread over the layers that run, and the one that was chosen.

    >>> points = [{"threshold": 1 - cost, "mean_cost": cost} for cost in (1.0, 0.9, 0.89, 0.5)]
    >>> [point["mean_cost"] for point in thinned(points, points[2])]
    [1.0, 0.9, 0.89, 0.5]
    >>> len(thinned([{"mean_cost": 1 - step / 99} for step in range(100)], {}))
    11
    """
    kept: list[Row] = []
    for point in curve:
        last = number(kept[-1], "mean_cost") if kept else None
        cost = number(point, "mean_cost") or 0.0
        far = last is None or last - cost >= _span(curve) / MOST - 1e-9
        if far or point == chosen or point is curve[-1]:
            kept.append(point)
    return kept


def _span(curve: Sequence[Row]) -> float:
    costs = [number(point, "mean_cost") or 0.0 for point in curve]
    return max(costs) - min(costs)


def _line(point: Row, chosen: Row, whole: float | None, metric: object) -> tuple[str, ...]:
    quality, shares = number(point, "quality") or 0.0, point.get("shares") or [1.0]
    early, threshold = 1 - shares[-1], number(point, "threshold") or 0.0
    return (
        "–" if not early else units.figures(threshold),
        "chosen" if point == chosen else "",
        units.percent(number(point, "mean_cost")),
        units.percent(early),
        units.quality(quality, metric),
        units.points(None if whole is None else quality - whole, metric),
    )


def asked(record: Row, noun: str) -> str:
    """Write what levels were fitted to, and nothing where they were not."""
    metric = record.get("metric")
    if (wanted := number(record, "wanted")) is not None:
        return f"Asked for: {units.percent(wanted)} of the {noun}, on average."
    if "allowed" not in record:
        return ""
    allowed = f"{units.quality(number(record, 'allowed') or 0.0, metric)} {units.unit(metric)}"
    if (bound := number(record, "bound")) is not None:
        sure = units.percent(number(record, "confidence"))
        return f"Asked for: a loss of {allowed} at most, with {sure} confidence; the bound is {units.figures(bound)}."
    return f"Asked for: a loss of {allowed} at most on these rows, as counted; on others it can be more."
