"""The picture of a redundancy report: what each layer, attention, feed-forward and head is worth alone."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from niwaki.report import drawing
from niwaki.report.folders import Place

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from niwaki.measure.ablation import Ablation

#: What stands at one layer, side by side: its name, its colour, and its place beside the layer's number.
KINDS = (
    ("layer", "whole layer", drawing.SERIES[2], -0.22),
    ("attention", "its attention", drawing.SERIES[1], 0.0),
    ("feed-forward", "its feed-forward", drawing.SERIES[0], 0.22),
)


def redundancy_picture(ablation: Ablation, out: Place) -> Path:
    """Write the picture: points lost by layer, with their intervals, and below it the heads as a map.

    Args:
        ablation: what `ablate` returned.
        out: file to write, `.svg` or `.png`.

    Raises:
        NiwakiError: the ending is another one, or matplotlib is not installed.
    """
    heads = ablation.of_kind("head")
    title = f"What {Path(ablation.model).name} loses without each part"
    with drawing.style():
        figure = drawing.figure_of(720, 640 if heads else 440, padding=0.12)
        if heads:
            upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
            _draw_heads(figure, lower, ablation)
        else:
            upper = lower = figure.subplots()
        _draw_layers(upper, ablation)
        lower.set_xlabel("layer, from input to output")
        lower.set_xticks(range(ablation.num_layers))
        figure.suptitle(title, x=0.022, ha="left", fontsize=15, fontweight="bold")
        below = (
            f"{ablation.metric} of the whole model: {ablation.quality:.2f} "
            f"on {ablation.count} rows of {ablation.split}. Bars: 95% interval of the paired difference. "
            f"{ablation.verdict.sentence}"
        )
        told = "\n".join(textwrap.wrap(below, 165))
        figure.supxlabel(told, x=0.022, ha="left", fontsize=7.5, color=drawing.MUTED)
        return drawing.write_picture(figure, Path(out), title)


def _draw_layers(axes: Axes, ablation: Ablation) -> None:
    """Draw the difference in quality without each layer, its attention and its feed-forward."""
    axes.axhline(0, color=drawing.BASE, linewidth=1.0)
    for kind, label, colour, beside in KINDS:
        parts = ablation.of_kind(kind)
        places = [part.layer + beside for part in parts]
        for place, part in zip(places, parts, strict=True):
            axes.plot(2 * (place,), part.quality.interval, color=colour, alpha=0.45, linewidth=1.6)
        differences = [part.quality.difference for part in parts]
        axes.scatter(places, differences, s=30, color=colour, label=label, zorder=3, edgecolors=drawing.PAPER)
    axes.set_ylabel(f"{ablation.metric}, points gained or lost")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=len(KINDS), handletextpad=0.2, borderaxespad=0.2)


def _draw_heads(figure: Figure, axes: Axes, ablation: Ablation) -> None:
    """Draw the difference in quality without each head, one square a head."""
    heads = ablation.of_kind("head")
    grid = np.full((1 + max(part.head or 0 for part in heads), ablation.num_layers), np.nan)
    for part in heads:
        grid[part.head or 0, part.layer] = part.quality.difference
    reach = max(float(np.nanmax(np.abs(grid))), 0.1)
    edges = [np.arange(size + 1) - 0.5 for size in grid.shape[::-1]]
    squares = axes.pcolormesh(*edges, grid, cmap="RdBu", vmin=-reach, vmax=reach, edgecolors=drawing.PAPER)
    axes.invert_yaxis()  # head 0 on top
    axes.grid(visible=False)
    axes.set_ylabel("head")
    axes.set_yticks(range(len(grid)))
    figure.colorbar(squares, ax=axes, label="points", pad=0.01)
