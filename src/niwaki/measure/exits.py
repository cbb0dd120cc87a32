"""Where rows leave a model with exits, and how right it is about those that leave at each."""

# N rows, E exits

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki.measure.asking import Tick, ask_in_batches
from niwaki.measure.records import ExitRecord, ExitsRecord
from niwaki.runtime import OUTCOMES, Worker
from niwaki.runtime.artifact import Array, Batch
from niwaki.runtime.rule import Rule
from niwaki.task.metrics import score

if TYPE_CHECKING:
    from niwaki.task import Encoded

Integers = npt.NDArray[np.integer[Any]]


def route(worker: Worker, rows: Encoded, chosen: Integers, tick: Tick = lambda what: None) -> Array:
    """Return (N, 2), the predicted class of each chosen row, and at which exit it left; E for the end."""

    def ask(batches: Sequence[Batch]) -> list[Array]:
        found = zip(batches, worker.classify(batches), strict=True)
        return [np.stack([OUTCOMES["classes"](logits, batch), exits], axis=1) for batch, (logits, exits) in found]

    return ask_in_batches(worker, rows, chosen, ask, tick)


def left_at(
    rule: Rule | None,
    exits_N: Integers | None,
    predictions_N: Integers,
    base_predictions_N: Integers,
    labels_N: Integers | None,
    metric: str,
) -> ExitsRecord | None:
    """Return where rows left, and the metric of model and base on those that left at each exit; None without exits.

    Args:
        rule: by which they leave.
        exits_N: at which each row left.
        predictions_N: of the model, class ids.
        base_predictions_N: of the base, for the same rows.
        labels_N: class ids.
        metric: "accuracy", "f1" or "mcc".
    """
    if rule is None or exits_N is None or labels_N is None:
        return None
    classes = max(2, 1 + int(max(ids.max() for ids in (predictions_N, base_predictions_N, labels_N))))
    records = []
    ends = (*zip(rule.layers, rule.thresholds, strict=True), (None, None))
    for exit, (layer, threshold) in enumerate(ends):
        here_N = exits_N == exit
        some = bool(here_N.any())
        value, base_value = (
            score(metric, ids[here_N], labels_N[here_N], classes) if some else None
            for ids in (predictions_N, base_predictions_N)
        )
        records.append(
            ExitRecord(
                layer=layer,
                threshold=threshold,
                share=float(here_N.mean()),
                count=int(here_N.sum()),
                value=value,
                base_value=base_value,
            )
        )
    return ExitsRecord(by=rule.by, exits=tuple(records))
