"""Tell where rows left the models with exits, and how right those were about them."""

from __future__ import annotations

from collections.abc import Sequence

from niwaki.report import units
from niwaki.report.folders import Row, number, section
from niwaki.report.headline import runtime_of
from niwaki.report.told import Told

HEAD = ("exit", "threshold", "rows", "quality", "base on these rows")


def exits_told(rows: Sequence[Row]) -> list[Told]:
    """Return a table for each record of a model with exits."""
    return [_told(row) for row in rows if section(row, "exits")]


def _told(row: Row) -> Told:
    exits, metric = section(row, "exits"), section(row, "quality").get("metric")
    lines = tuple(
        (
            "the end" if (layer := number(exit, "layer")) is None else f"after layer {layer:.0f}",
            _threshold(number(exit, "threshold")),
            units.percent(number(exit, "share")),
            *(
                units.NONE if value is None else units.quality(value, metric)
                for value in (number(exit, "value"), number(exit, "base_value"))
            ),
        )
        for exit in exits.get("exits", [])
    )
    below = (
        f"Of {number(row, 'quality', 'count') or 0:,.0f} rows, by {exits.get('by')}. Latency is the mean over rows, as"
        f" it depends on where a row leaves; one call in a hundred took more than"
        f" {units.seconds(number(row, 'latency_seconds', 'p99'))}."
    )
    return Told(f"Where rows left {row['name']} in {runtime_of(row)}", HEAD, lines, 1, below)


def _threshold(value: float | None) -> str:
    """Write a threshold; the end has none.

    >>> _threshold(0.9), _threshold(1000.0)
    ('0.900', 'never')
    """
    from niwaki.exit_rule import NEVER

    if value is None:
        return units.NONE
    return "never" if value >= NEVER else units.figures(value)
