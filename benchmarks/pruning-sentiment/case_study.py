"""Tell the case study from `result.json`: what each way of pruning loses, by share kept, by the clock and by bytes.

python benchmarks/pruning-sentiment/case_study.py      draw docs/images/pruning-sentiment.svg, and write the table of
                                                       docs/how-to/pruning-in-sentiment-analysis.md
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from niwaki.report import drawing

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "how-to" / "pruning-in-sentiment-analysis.md"
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->\n"
STAGES = ("curves", "retrained", "sparse-50", "sparse-90", "learnt-60", "learnt-90")
#: By a run's name: its line in the picture. Names end in the share kept and how it was trained, or in gone and seed.
ONE_SHOT = re.compile(r"(?P<by>[a-z-]+)-(?P<share>0\.\d+)(?:-(?P<how>retrained|inside))?")
SEEDED = re.compile(r"(?P<by>sparse|learnt)-(?P<gone>\d+)-(\d|(?P<other>[a-z]+))")
COLOURS = {
    "random": "#757f8d",
    "magnitude": "#c98a00",
    "first-order": "#3d9fd6",
    "mask-search": "#aa4499",
    "second-order": "#0072b2",
    "movement": "#009e73",
    "learnt": "#d55e00",
    "sparse": "#882255",
    "sparse, magnitude": "#e0b13c",
}


#: What a run's name says of its training, in words.
HOW = {None: "none", "retrained": "after", "inside": "meanwhile"}


class Mark(NamedTuple):
    """One model, or the mean of the same with several seeds.

    Attributes:
        by: the method.
        kept: share of what is pruned that stays.
        training: "none", or "after" the cut, or "meanwhile".
        lost: points of accuracy below the base.
        megabytes: of the model's folder for sparse weights, which are stored so there; else of the artifact.
        ratio: latency at batch 1 over the base's.
        least, most: of the points lost, where there are several seeds.
        seeds: number of models.
    """

    by: str
    kept: float
    training: str
    lost: float
    megabytes: float
    ratio: float
    least: float
    most: float
    seeds: int


def main() -> None:
    result = json.loads((Path(__file__).parent / "result.json").read_text("utf-8"))
    marks = marks_of(result["records"])
    panels = (
        ("share kept (heads and neurons, or weights)", lambda mark: mark.kept),
        ("latency at batch 1 / the base's", lambda mark: mark.ratio),
        ("bytes on disk, MB", lambda mark: mark.megabytes),
    )
    with drawing.style():
        figure = drawing.figure_of(900, 380)
        axes_P = figure.subplots(1, len(panels), sharey=True)
        for axes, (label, x_of) in zip(axes_P, panels, strict=True):
            draw(axes, marks, x_of)
            axes.set_xlabel(label)
        axes_P[0].set_ylabel("points of accuracy lost")
        axes_P[0].set_title("down is better; filled: trained in or after the cut", fontsize=9)
        figure.legend(*axes_P[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)
        drawing.write_picture(
            figure, ROOT / "docs" / "images" / "pruning-sentiment.svg", "What pruning loses on SST-2, by what it saves"
        )
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table(marks) + END + rest.partition(END)[2], "utf-8")


def marks_of(records: list[dict[str, Any]]) -> list[Mark]:
    """Return the marks of all pruned encoders; seeds of one training are one mark."""
    found = defaultdict(dict)
    for record in records:
        if record.get("stage") in STAGES and (key := key_of(record["name"])):
            found[key][record["name"]] = record
    marks = []
    for key, group in found.items():
        rows = np.array([numbers(each) for each in group.values()])
        lost_S = rows[:, 0]
        marks.append(Mark(*key, *map(float, rows.mean(axis=0)), float(lost_S.min()), float(lost_S.max()), len(rows)))
    return marks


def key_of(name: str) -> tuple[str, float, str] | None:
    """Return method, share kept, and when it was trained, of a run's name; nothing for the base.

    >>> key_of("second-order-0.5"), key_of("movement-0.5-inside"), key_of("sparse-90-2")
    (('second-order', 0.5, 'none'), ('movement', 0.5, 'meanwhile'), ('sparse', 0.1, 'meanwhile'))
    >>> key_of("sparse-90-magnitude"), key_of("base")
    (('sparse, magnitude', 0.1, 'meanwhile'), None)
    """
    if match := SEEDED.fullmatch(name):
        by = f"{match['by']}, {match['other']}" if match["other"] else match["by"]
        return by, round(1 - int(match["gone"]) / 100, 2), HOW["inside"]
    if match := ONE_SHOT.fullmatch(name):
        return match["by"], float(match["share"]), HOW[match["how"]]
    return None


def table(marks: list[Mark]) -> str:
    """Return the marks as a table in Markdown, by share kept and points lost."""
    lines = ["| method | kept | training | points lost | MB | latency / base |", "|---|---|---|---|---|---|"]
    for mark in sorted(marks, key=lambda mark: (-mark.kept, mark.lost)):
        spread = f" ({mark.least:z.2f} to {mark.most:z.2f})" if mark.seeds > 1 else ""
        cells = (mark.by, f"{mark.kept:.0%}", mark.training, f"{mark.lost:z.2f}{spread}")
        lines.append(f"| {' | '.join(cells)} | {mark.megabytes:.1f} | {mark.ratio:.2f} |")
    return "\n".join(lines) + "\n"


def numbers(record: dict[str, Any]) -> tuple[float, float, float]:
    """Return points lost, megabytes, and latency over the base's."""
    ratio = record["latency_ratio"]["median"]
    return -record["quality"]["difference"], record.get("stored_bytes", record["size_bytes"]) / 1e6, 1 / ratio


def draw(axes: Any, marks: list[Mark], x_of: Any) -> None:
    """Draw every mark, and a line through those of a method that were not trained."""
    for by, colour in COLOURS.items():
        mine = sorted((mark for mark in marks if mark.by == by), key=x_of)
        alone = [mark for mark in mine if mark.training == "none"]
        if alone:
            axes.plot([x_of(mark) for mark in alone], [mark.lost for mark in alone], "-", color=colour, alpha=0.5)
        for mark in mine:
            axes.scatter(
                x_of(mark),
                mark.lost,
                marker="s" if by.startswith("sparse") else "o",
                edgecolors=colour,
                linewidths=1.4,
                s=34,
                zorder=3,
                facecolors=drawing.PAPER if mark.training == "none" else colour,
            )
        if mine:
            axes.plot([], [], "o", color=colour, label=by)
    axes.axhline(0, color=drawing.BASE, linewidth=1)
    axes.set_yscale("symlog", linthresh=2)
    axes.set_yticks([0, 1, 2, 5, 10, 20, 40], ["0", "1", "2", "5", "10", "20", "40"])


if __name__ == "__main__":
    main()
