"""Where the bytes and where the time go: the base and the run side by side, module by module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from niwaki.report import drawing, units
from niwaki.report.folders import Row, number

PATTERNS = (
    ("embeddings", ("embed",)),
    ("attention", ("attention", "attn")),
    ("feed-forward", ("feed-forward", "intermediate", "ffn", "mlp", "output.dense")),
    ("head", ("head", "classifier", "pooler")),
)


@dataclass(frozen=True)
class Shares:
    """Hold the drawing of a run's parts, the numbers behind it, and how the time was found.

    Attributes:
        svg: stacked bars.
        head: titles of the table's columns.
        table: the numbers of each part, and of all together, as text.
        measured: True where the time is seconds, False where operations stand in for it.
    """

    svg: str
    head: tuple[str, ...]
    table: tuple[tuple[str, ...], ...]
    measured: bool


def shares_of(modules: Mapping[str, Sequence[Row]], name: str, base: str, run: str) -> Shares | None:
    """Return where bytes and time go in base and run, or None where that was not recorded."""
    if not modules.get("run"):
        return None
    sides = [(title, modules[key]) for title, key in ((base, "base"), (run, "run")) if modules.get(key)]
    measured = all(number(row, "seconds") is not None for _, rows in sides for row in rows)
    time = "seconds" if measured else "macs_per_token"
    totals = {key: [(title, parts(rows, key)) for title, rows in sides] for key in ("bytes", time)}
    order = list(dict.fromkeys(part for side in totals.values() for _, shares in side for part in shares))
    if not order:
        return None
    panels = [("bytes", "where the bytes go", units.size)]
    panels += [
        ("seconds", "where the time goes", units.seconds)
        if measured
        else (time, "where the work goes: multiply-accumulates for one token", units.count)
    ]
    panels = [panel for panel in panels if any(shares for _, shares in totals[panel[0]])]
    short = {"bytes": "bytes", "seconds": "time", "macs_per_token": "MACs/token"}
    head = ("part", *(f"{title}: {short[key]}" for key, _, _ in panels for title, _ in totals[key]))
    columns = [(side, write) for key, _, write in panels for _, side in totals[key]]
    table = [(part, *(write(side.get(part)) for side, write in columns)) for part in order]
    sums = ("all", *(write(sum(side.values())) for side, write in columns))
    return Shares(_draw(panels, totals, order, name), head, (*table, sums), measured)


def parts(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Add up a number by part of a transformer.

    >>> parts([{"module": "embeddings", "bytes": 9}, {"module": "layer 0 attention", "bytes": 4},
    ...        {"module": "layer 1 attention", "bytes": 5}], "bytes")
    {'embeddings': 9.0, 'attention': 9.0}
    """
    totals: dict[str, float] = {}
    for row in rows:
        part = part_of(str(row.get("module")))
        totals[part] = totals.get(part, 0.0) + (number(row, key) or 0.0)
    return {part: value for part, value in totals.items() if value}


def part_of(module: str) -> str:
    """Name the part of a transformer that a module belongs to."""
    name = module.lower()
    return next((part for part, marks in PATTERNS if any(mark in name for mark in marks)), "other")


def _draw(
    panels: Sequence[tuple[str, str, Callable[[float | None], str]]],
    totals: Mapping[str, Sequence[tuple[str, Mapping[str, float]]]],
    order: Sequence[str],
    name: str,
) -> str:
    colours = {part: drawing.PARTS[index % len(drawing.PARTS)] for index, part in enumerate(order)}
    with drawing.style():
        figure = drawing.figure_of(620, 36 + 96 * len(panels))
        for axes, (key, title, write) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True):
            _stack(axes, totals[key], colours, write)
            axes.set_title(title, fontsize=10)
        _legend(figure, colours)
        told = [f"{title}: {_told(side, write)}" for key, title, write in panels for side in totals[key]]
        return drawing.inline_svg(figure, name, "Where the bytes and the time go", "; ".join(told))


def _stack(
    axes: Any,
    sides: Sequence[tuple[str, Mapping[str, float]]],
    colours: Mapping[str, str],
    write: Callable[[float | None], str],
) -> None:
    longest = max(sum(shares.values()) for _, shares in sides)
    for place, (_, shares) in enumerate(sides):
        left = 0.0
        for part, colour in colours.items():
            value = shares.get(part, 0.0)
            if not value:
                continue
            axes.barh(place, value, left=left, height=0.66, color=colour, edgecolor=drawing.PAPER, linewidth=1)
            if value > 0.1 * longest:
                axes.text(
                    left + value / 2,
                    place,
                    write(value),
                    ha="center",
                    va="center",
                    fontsize=8.5,
                    color="#14181d",
                )
            left += value
        axes.text(left + 0.012 * longest, place, write(left), ha="left", va="center", fontsize=9, fontweight="bold")
    axes.set_yticks(range(len(sides)), [title if len(title) < 22 else f"{title[:21]}…" for title, _ in sides])
    axes.tick_params(axis="y", labelcolor=drawing.INK, length=0)
    axes.set_xlim(0, longest * 1.14)
    axes.invert_yaxis()
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.grid(False)


def _legend(figure: Any, colours: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=part) for part, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, handlelength=1, handleheight=1, columnspacing=1.4)


def _told(side: tuple[str, Mapping[str, float]], write: Callable[[float | None], str]) -> str:
    title, shares = side
    return f"{title} " + ", ".join(f"{part} {write(value)}" for part, value in shares.items())
