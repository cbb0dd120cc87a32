"""Draw docs/images/attention.svg from `result.json`: what a token costs, by the length of its text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator

from niwaki.report import drawing

HERE = Path(__file__).parent
PICTURE = HERE.parents[1] / "docs" / "images" / "attention.svg"
COLOURS = {"exact": drawing.BASE, "window": drawing.SERIES[0], "linear": drawing.SERIES[1]}
PANELS = {"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "onnxruntime_int8": "ONNX Runtime, 8 bits"}


def draw() -> None:
    """Draw the stage `growth`: time and memory of each kind of attention against the length, in each form."""
    result = json.loads((HERE / "result.json").read_text("utf-8"))
    records = [record for record in result["records"] if record["stage"] == "growth"]
    if not records:
        return
    rows = {
        "microseconds a token": lambda record: 1e6 * record["seconds"] / record["length"],
        "peak memory, MB": lambda record: record["memory_peak_bytes"] / 1e6,
    }
    with drawing.style():
        figure = drawing.figure_of(960, 480)
        axes_RP = figure.subplots(len(rows), len(PANELS), sharex=True, sharey="row")
        for row, (label, value_of) in enumerate(rows.items()):
            for axes, (form, title) in zip(axes_RP[row], PANELS.items(), strict=True):
                lines(axes, [record for record in records if record["form"] == form], value_of)
                if row == 0:
                    axes.set_title(title)
                else:
                    axes.set_xlabel("tokens of a text")
            axes_RP[row][0].set_ylabel(label)
        figure.legend(*axes_RP[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS))
        drawing.write_picture(figure, PICTURE, "What a token costs, by the length of its text")


def lines(axes: Any, records: list[dict[str, Any]], value_of: Any) -> None:
    """Draw a line for each kind of attention, both axes logarithmic."""
    for kind, colour in COLOURS.items():
        own = [record for record in records if record["attention"] == kind]
        lengths = [record["length"] for record in own]
        axes.plot(lengths, [value_of(record) for record in own], color=colour, marker="o", markersize=4, label=kind)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])


if __name__ == "__main__":
    draw()
