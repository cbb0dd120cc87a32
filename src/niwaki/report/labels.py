"""Put labels beside marks so that they cover little: one after the other takes its best free place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from niwaki.report import drawing
from niwaki.report.points import Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]
NEAR_PLACES = 12
"""The first places of a label, so near its mark that no line need lead there."""


def place_labels(axes: Axes, points: Sequence[Point], labelled: Sequence[int]) -> None:
    """Write each label where it covers least, with a line to its mark where that is far."""
    frame = axes.get_window_extent()
    inside: Box = (frame.x0, frame.y0, frame.x1, frame.y1)
    taken = [box for point in points for box in _mark_boxes(axes, point)]
    for point in sorted((points[index] for index in labelled), key=lambda point: -point.y):
        x, y = axes.transData.transform((point.x, point.y))
        text = axes.annotate(
            point.label, (point.x, point.y), xytext=(0, 0), textcoords="offset points", fontsize=8.5,
            color=drawing.INK, zorder=4, linespacing=1.25,
        )  # fmt: skip
        extent = text.get_window_extent()
        places = list(_places(extent.width, extent.height, point.area**0.5 / 2 + 4))
        boxes = [(x + left, y + low, x + left + extent.width, y + low + extent.height) for left, low in places]
        costs = [_cost(box, taken, inside) + 2.0 * index for index, box in enumerate(boxes)]
        chosen = costs.index(min(costs))
        text.set_position(places[chosen])
        taken.append(boxes[chosen])
        if chosen >= NEAR_PLACES:
            _lead(axes, point, boxes[chosen])


def spokesmen(axes: Axes, points: Sequence[Point], near: float = 80) -> list[int]:
    """Return the points to label: of those that bear one name and lie close together, the middle one."""
    places = [axes.transData.transform((point.x, point.y)) for point in points]
    clusters: list[list[int]] = []
    for index in sorted(range(len(points)), key=lambda index: places[index][0]):
        for cluster in clusters:
            last = cluster[-1]
            distance = abs(places[index] - places[last]).max()
            if points[last].label == points[index].label and distance < near:
                cluster.append(index)
                break
        else:
            clusters.append([index])
    return [cluster[(len(cluster) - 1) // 2] for cluster in clusters]


def _lead(axes: Axes, point: Point, box: Box) -> None:
    """Draw a thin line from a mark to the nearest place of its label's edge."""
    x, y = axes.transData.transform((point.x, point.y))
    end = (min(max(x, box[0]), box[2]), min(max(y, box[1]), box[3]))
    away = point.area**0.5 / 2 / max(1.0, math.dist((x, y), end))
    start = (x + away * (end[0] - x), y + away * (end[1] - y))
    ends = axes.transData.inverted().transform([start, end])
    axes.plot(ends[:, 0], ends[:, 1], color=drawing.MUTED, linewidth=0.6, zorder=2.5)


def _places(width: float, height: float, gap: float) -> Iterable[tuple[float, float]]:
    """Yield offsets of a label's lower left corner from its mark, the best-liked first."""
    for distance in (gap, gap + 7, gap + 18, gap + 32, gap + 50):
        yield distance, distance * 0.35
        yield distance, -height - distance * 0.35
        yield -width - distance, distance * 0.35
        yield -width - distance, -height - distance * 0.35
        yield -width / 2, distance
        yield -width / 2, -height - distance


def _mark_boxes(axes: Axes, point: Point) -> list[Box]:
    """Return the boxes, in pixels, of a mark and its bars."""
    x, y = axes.transData.transform((point.x, point.y))
    half = point.area**0.5 / 2
    boxes = [(x - half, y - half, x + half, y + half)]
    if point.across:
        left, right = (axes.transData.transform((end, point.y))[0] for end in point.across)
        boxes.append((left, y - 3, right, y + 3))
    if point.upright:
        low, high = (axes.transData.transform((point.x, end))[1] for end in point.upright)
        boxes.append((x - 3, low, x + 3, high))
    return boxes


def _cost(box: Box, taken: Sequence[Box], inside: Box) -> float:
    """Return the area a label would cover, and four times what would lie outside of the frame."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return sum(_common(box, other) for other in taken) + 4 * (area - _common(box, inside))


def _common(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
