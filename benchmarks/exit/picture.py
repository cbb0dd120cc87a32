"""Draw docs/images/exit.svg from `result.json`: what leaving early saves by the clock, and what it loses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from niwaki.report import drawing

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "images" / "exit.svg"


def draw() -> None:
    """Draw each mean cost of the stage `curve`: points lost against how much faster a text is on average."""
    records = json.loads((HERE / "result.json").read_text("utf-8"))["records"]
    whole, *others = [record for record in records if record["stage"] == "curve"] or [None]
    if not others:
        return
    marks = [mark(whole, record) for record in others]
    with drawing.style():
        figure = drawing.figure_of(620, 300)
        axes = figure.subplots()
        axes.plot([x for x, _, _ in marks], [y for _, y, _ in marks], color=drawing.SERIES[0], marker="o")
        above = {"textcoords": "offset points", "ha": "center", "rotation": 60, "fontsize": 9}
        for x, y, early in marks:
            axes.annotate(f"{early:.0%}", (x, y), (0, 6), **above)
        axes.axvline(1, color=drawing.BASE, linestyle="--", linewidth=1)
        axes.annotate("break-even", (1, 1), (5, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
                      va="top", fontsize=9, color=drawing.MUTED)  # fmt: skip
        axes.set_xlabel("times faster on average, batch 1, than the same model without exits")
        axes.set_ylabel("points of accuracy lost")
        axes.set_title("down and to the right is better; at each mark, how many texts leave early", fontsize=9)
        drawing.write_picture(figure, PICTURE, "What leaving early saves and loses on SST-2")


def mark(whole: dict[str, Any], record: dict[str, Any]) -> tuple[float, float, float]:
    """Return how many times faster a text is on average, the points lost, and the share of texts that leave early."""
    faster = whole["latency_seconds"]["mean"] / record["latency_seconds"]["mean"]
    return faster, -record["quality"]["difference"], 1 - record["exits"]["exits"][-1]["share"]


if __name__ == "__main__":
    draw()
