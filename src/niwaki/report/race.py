"""Tell a race: what became of each parent at one budget, and which to start from."""

from __future__ import annotations

from niwaki.report import units
from niwaki.report.folders import Row, number, section
from niwaki.report.headline import interval_of
from niwaki.report.precision import Told

HEAD = (
    "parent",
    "recipe",
    "runtime",
    "size",
    "latency",
    "quality",
    "to the first",
    "95% interval",
    "p",
    "to its parent",
    "95% interval",
)
BELOW = (
    "Of each parent the mildest recipe that fits, which size and latency alone decide. All were measured in one"
    " session with their parents, on the exported files, and are paired on the same examples. The intervals tell what"
    " other rows might say, not what another training might."
)


def race_told(race: Row) -> list[Told]:
    """Return the table of a race, with its verdict; of another folder nothing."""
    if not race:
        return []
    lines = tuple(_line(entrant, entrant.get("parent") == race.get("winner")) for entrant in race["entrants"])
    title = f"Which parent to start from, at {race.get('budget')}"
    return [Told(title=title, head=HEAD, lines=lines, words=3, below=f"{race.get('verdict')} {BELOW}")]


def _line(entrant: Row, is_first: bool) -> tuple[str, ...]:
    quality, lost = section(entrant, "quality"), section(entrant, "lost")
    value, metric = number(quality, "value"), quality.get("metric")
    return (
        str(entrant.get("parent")),
        _recipe(entrant),
        str(entrant.get("runtime") or units.NONE),
        units.size(number(entrant, "size_bytes")),
        units.seconds(number(entrant, "latency_seconds")),
        units.NONE if value is None else units.quality(value, metric),
        *((units.NONE,) * 3 if is_first else (*_difference(quality), units.probability(number(quality, "p_value")))),
        *_difference(lost),
    )


def _recipe(entrant: Row) -> str:
    """Return which of its recipes fits, or what the strongest missed."""
    misses = "; ".join(map(str, entrant.get("misses") or ()))
    return misses or f"{entrant.get('recipe')} of {entrant.get('recipes')}"


def _difference(quality: Row) -> tuple[str, str]:
    metric, interval = quality.get("metric"), interval_of(quality)
    told = units.NONE if interval is None else " to ".join(units.points(end, metric) for end in interval)
    return units.points(number(quality, "difference"), metric), told
