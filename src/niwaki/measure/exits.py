"""Where rows leave a model with exits, and how right it is about those that leave at each.

A text that is read in windows leaves in parts: at each exit the share of its windows that leave there.
"""

# B batch, N rows, E exits, X exits and the end

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from niwaki.measure.asking import Tick, ask_in_batches
from niwaki.measure.records import ExitRecord, ExitsRecord
from niwaki.runtime import OUTCOMES, Worker
from niwaki.runtime.artifact import Array, Batch
from niwaki.runtime.outcomes import pooled
from niwaki.runtime.rule import Rule
from niwaki.task.metrics import score

if TYPE_CHECKING:
    from niwaki.task import Encoded

Integers = npt.NDArray[np.integer[Any]]


def route(
    worker: Worker, rule: Rule, rows: Encoded, chosen: Integers, tick: Tick = lambda what: None
) -> tuple[Array, Array]:
    """Return the predicted class of each chosen row, (N,), and which share of it left where, (N, X)."""
    whole_XX = np.eye(len(rule.layers) + 1)

    def ask(batches: Sequence[Batch]) -> list[Array]:
        found = zip(batches, worker.classify(batches), strict=True)
        return [
            np.column_stack([OUTCOMES["classes"](logits_BC, batch), pooled(whole_XX[exits_B], batch, np.mean)])
            for batch, (logits_BC, exits_B) in found
        ]

    answers = ask_in_batches(worker, rows, chosen, ask, tick)
    return answers[:, 0].astype(np.int64), answers[:, 1:]


def left_at(
    rule: Rule | None,
    left_NX: Array | None,
    predictions_N: Integers,
    base_predictions_N: Integers,
    labels_N: Integers | None,
    metric: str,
) -> ExitsRecord | None:
    """Return where rows left, and the metric of model and base on those that left at each exit; None without exits.

    Args:
        rule: by which they leave.
        left_NX: which share of each row left at each exit, and went to the end: of a single row all of it, at one.
        predictions_N: of the model, class ids.
        base_predictions_N: of the base, for the same rows.
        labels_N: class ids.
        metric: "accuracy", "f1" or "mcc".
    """
    if rule is None or left_NX is None or labels_N is None:
        return None
    classes = max(2, 1 + int(max(ids.max() for ids in (predictions_N, base_predictions_N, labels_N))))
    records = []
    ends = (*zip(rule.layers, rule.thresholds, strict=True), (None, None))
    for exit, (layer, threshold) in enumerate(ends):
        here_N = left_NX[:, exit] > 0
        some = bool(here_N.any())
        value, base_value = (
            score(metric, ids[here_N], labels_N[here_N], classes) if some else None
            for ids in (predictions_N, base_predictions_N)
        )
        records.append(
            ExitRecord(
                layer=layer,
                threshold=threshold,
                share=float(left_NX[:, exit].mean()),
                count=int(here_N.sum()),
                value=value,
                base_value=base_value,
            )
        )
    return ExitsRecord(by=rule.by, exits=tuple(records))
