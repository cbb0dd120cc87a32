"""Tell what dropped tokens cost in quality, and how many are left in each layer, as a log of `drop-tokens` has it."""

from __future__ import annotations

from niwaki.report import units
from niwaki.report.exits import asked, thinned
from niwaki.report.folders import Row, number, section
from niwaki.report.told import Told


def told(record: Row) -> Told:
    """Return the curve as a table, from where all tokens stay to where most go."""
    metric, curve, chosen = record.get("metric"), record.get("curve", []), section(record, "chosen")
    whole = number(curve[0], "quality") if curve else None
    lines = tuple(_line(point, chosen, whole, metric) for point in thinned(curve, chosen))
    head = ("behind each layer", "", "tokens left, mean", str(metric), "difference")
    below = [
        f"{record['step']}:" if "step" in record else "",
        f"By {record.get('by')}, on {record.get('rows')} selection rows, which the levels were fitted on.",
        f"Rows of fewer than {record['from_length']} tokens keep all." if record.get("from_length") else "",
        asked(record, "tokens in all layers"),
    ]
    return Told("What dropping tokens costs", head, lines, 2, " ".join(filter(None, below)))


def _line(point: Row, chosen: Row, whole: float | None, metric: object) -> tuple[str, ...]:
    quality = number(point, "quality") or 0.0
    return (
        " · ".join(f"{100 * share:.0f}%" for share in point.get("shares", [])),
        "chosen" if point == chosen else "",
        units.percent(number(point, "mean_cost")),
        units.quality(quality, metric),
        units.points(None if whole is None else quality - whole, metric),
    )
