"""`ablate`: remove each part of a model alone, and report what the task loses: the redundancy report."""

# N rows, C classes

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from niwaki.anatomy import label_names, longest_input
from niwaki.bar import progress_bar
from niwaki.checkpoint import load, load_tokenizer
from niwaki.errors import NiwakiError, closest
from niwaki.measure.ablation import Ablation, PartRecord, judge_layers
from niwaki.measure.quality import paired_quality
from niwaki.measure.records import Quality
from niwaki.removal import Part, parts_of, predict_without
from niwaki.report.drawing import check_picture
from niwaki.report.redundancy import redundancy_picture
from niwaki.task import outcome_of, score

if TYPE_CHECKING:
    from niwaki.task import Dataset, Encoded, Task

SPLITS = ("selection", "evaluation")


def ablate(
    model: str | Path | Any,
    task: Task,
    *,
    examples: int = 512,
    heads: bool = True,
    split: str = "selection",
    out: str | Path | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Ablation:
    """Report what a model loses without each layer, attention, feed-forward and head, each removed alone.

    It shows or refutes, on this model, that first and last layers matter and middle ones are redundant. Nothing is
    trained and nothing is changed: a part is absent for one pass over the rows, in PyTorch.

    Args:
        model: a run folder, a model folder or a hub id.
        task: the task and its data.
        examples: rows to look at, with the classes in proportion; four times as many halve the intervals.
        heads: also remove each single head; most of the time goes into these.
        split: "selection" (the rows that choices may be made by), or "evaluation" (the rows that numbers are reported
            on, for a verdict on rows the model has not seen: do not choose by it what to remove).
        out: a picture to write, `.svg` or `.png`.
        threads: of PyTorch.
        seed: of the choice of rows and of the bootstrap.
        progress: draw a progress bar, with the time that is left.

    Returns:
        The report: printed, a table and a verdict; `to_json()` has it all.

    Raises:
        NiwakiError: the split is unknown or not there, `examples` is below 2, or the picture cannot be written.
    """
    _check(examples, split, task)
    if out is not None:
        check_picture(Path(out))
    if threads is not None:
        torch.set_num_threads(threads)
    module, tokenizer = load(str(model)), load_tokenizer(str(model))
    data = task.encode(tokenizer, longest_input(module, tokenizer, task.max_length), label_names(module))
    rows = _rows_of(data, split, seed).sample(examples, seed)
    with progress_bar("without each part", progress) as advance:
        whole, without = predict_without(module, rows, parts_of(module, heads), advance=advance)
    records = [_record(part, logits, whole, rows, task, seed) for part, logits in without.items()]
    assert rows.labels is not None
    layers = [logits.argmax(-1) for part, logits in without.items() if part.kind == "layer"]
    ablation = Ablation(
        model=str(model),
        metric=task.metric,
        split=rows.name,
        count=len(rows),
        seed=seed,
        quality=score(task.metric, whole.argmax(-1), rows.labels, whole.shape[-1]),
        loss=_loss(task, whole, rows),
        parts=tuple(records),
        verdict=judge_layers(records, layers, rows.labels, task.metric, whole.shape[-1], seed),
    )
    if out is not None:
        redundancy_picture(ablation, out)
    return ablation


def _check(examples: int, split: str, task: Task) -> None:
    """Refuse what cannot be done before any work."""
    if outcome_of(task.metric) != "classes":
        raise NiwakiError(f"ablate on {task.kind}", expected="a task that tells classes", fix="text-classification")
    if examples < 2:
        raise NiwakiError(f"examples is {examples}", expected="2 rows or more", fix="examples=512")
    if split not in SPLITS:
        raise NiwakiError(f'there is no split "{split}"', expected=" or ".join(SPLITS), fix=closest(split, SPLITS))


def _rows_of(data: Dataset, split: str, seed: int) -> Encoded:
    """Return the rows of the split."""
    if split == "evaluation":
        if data.evaluation.windows is not None:
            raise NiwakiError(
                "ablate on texts that are read in windows", expected="texts that are cut", fix='long="truncate"'
            )
        return data.evaluation
    if data.train is None:
        raise NiwakiError(
            "the data have no train split to take selection rows from",
            expected="a train split, or the rows that numbers are reported on",
            fix="--split evaluation",
        )
    return data.selection(seed)[1]


def _record(
    part: Part, logits_NC: np.ndarray, whole_NC: np.ndarray, rows: Encoded, task: Task, seed: int
) -> PartRecord:
    """Judge the model without a part beside the whole, on the same rows."""
    quality = paired_quality(
        whole_NC.argmax(-1),
        logits_NC.argmax(-1),
        rows.labels,
        task.metric,
        num_classes=whole_NC.shape[-1],
        seed=seed,
    )
    loss = _loss(task, logits_NC, rows)
    return PartRecord(
        kind=part.kind,
        layer=part.layer,
        head=part.head,
        quality=Quality(split=rows.name, **quality),
        loss=loss,
        loss_difference=loss - _loss(task, whole_NC, rows),
    )


def _loss(task: Task, logits_NC: np.ndarray, rows: Encoded) -> float:
    return float(task.loss(torch.from_numpy(logits_NC), torch.from_numpy(rows.labels)))
