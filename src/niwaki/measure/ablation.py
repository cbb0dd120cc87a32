"""The redundancy report: what a model is worth without each of its parts, each removed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from niwaki.measure.ends import Verdict, ends_against_middle, verdict
from niwaki.measure.quality import Integers
from niwaki.measure.records import Quality, _Record
from niwaki.plain_table import plain_table

LEARNT = "These rows are from the train split: a model that learnt from them knows them."


class PartRecord(_Record):
    """Hold what a model is worth without one part.

    Attributes:
        kind: "layer", "attention" (all heads of a layer), "feed-forward" or "head".
        layer: index of the layer it is, or is in, from 0.
        head: index of a head in its layer, from 0; None for the other kinds.
        quality: without the part, paired with the whole model on the same examples.
        loss: of the task, without the part.
        loss_difference: this minus the whole model's.
    """

    kind: Literal["layer", "attention", "feed-forward", "head"]
    layer: int
    head: int | None = None
    quality: Quality
    loss: float
    loss_difference: float


class Ablation(_Record):
    """Hold the redundancy report of a model.

    Attributes:
        model: where it was loaded from.
        metric, split, count, seed: what quality is counted by, and on which rows.
        quality, loss: of the whole model.
        parts: from input to output.
        verdict: whether first and last layers matter more than the middle here.
    """

    model: str
    metric: str
    split: str
    count: int
    seed: int
    quality: float
    loss: float
    parts: tuple[PartRecord, ...]
    verdict: Verdict

    @property
    def num_layers(self) -> int:
        """Return the number of layers."""
        return 1 + max(part.layer for part in self.parts)

    def of_kind(self, kind: str) -> list[PartRecord]:
        """Return the parts of one kind, from input to output."""
        return [part for part in self.parts if part.kind == kind]

    def to_json(self) -> str:
        """Return the record as JSON."""
        return self.model_dump_json(indent=2)

    def __str__(self) -> str:
        return as_table(self)


def judge_layers(
    parts: Sequence[PartRecord],
    predictions: Sequence[Integers],
    labels: Integers,
    metric: str,
    num_classes: int,
    seed: int = 0,
) -> Verdict:
    """Judge which layers matter, from their records and from what the model says without each, from input to output."""
    layers = [part for part in parts if part.kind == "layer"]
    if len(layers) < 3:
        return Verdict(
            finding="none", sentence=f"Of {len(layers)} layers none is in the middle: nothing to show or refute."
        )
    first, last = ends_against_middle(np.stack(predictions), labels, metric, num_classes, seed=seed)
    return verdict(first, last, [part.quality.interval for part in layers[1:-1]], len(labels))


def as_table(ablation: Ablation) -> str:
    """Return the report as plain text: layers, heads, and the verdict."""
    lines = [
        f"{ablation.model}: {ablation.metric} {ablation.quality:.2f}, loss {ablation.loss:.4f} "
        f"on {ablation.count} rows of {ablation.split}.",
        *([LEARNT] if ablation.split == "selection" else []),
        "Each part is removed alone: difference in points (95%), and in loss.",
        "",
        *_layer_lines(ablation),
    ]
    if ablation.of_kind("head"):
        lines += ["", "One head alone: difference in points; * where the interval leaves out 0.", ""]
        lines += _head_lines(ablation)
    return "\n".join([*lines, "", ablation.verdict.sentence])


def _layer_lines(ablation: Ablation) -> list[str]:
    titles = ["layer"]
    for title in ("whole layer", "its attention", "its feed-forward"):
        titles += [title, "loss"]
    kinds = [ablation.of_kind(kind) for kind in ("layer", "attention", "feed-forward")]
    rows = [[str(row[0].layer), *(cell for part in row for cell in _cells(part))] for row in zip(*kinds, strict=True)]
    return plain_table(titles, rows)


def _cells(part: PartRecord) -> tuple[str, str]:
    low, high = part.quality.interval
    return f"{part.quality.difference:+.2f} ({low:+.2f}..{high:+.2f})", f"{part.loss_difference:+.4f}"


def _head_lines(ablation: Ablation) -> list[str]:
    heads = ablation.of_kind("head")
    rows = []
    for layer in range(ablation.num_layers):
        here = [part.quality for part in heads if part.layer == layer]
        stars = ["*" if low > 0 or high < 0 else " " for low, high in (quality.interval for quality in here)]
        cells = [f"{quality.difference:+.2f}{star}" for quality, star in zip(here, stars, strict=True)]
        rows.append([str(layer), *cells])
    widest = max(map(len, rows)) - 1
    return plain_table(["layer", *map(str, range(widest))], rows)
