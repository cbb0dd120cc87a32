"""Early exit by the clock: the same model with and without its exits, in one runtime, on the rows as they come.

    make bench CASE=exit                        everything
    python benchmarks/exit/run.py floats        this stage alone, with its date and conditions
    python benchmarks/exit/picture.py           the picture alone, of what was measured last

MiniLM, fine-tuned on SST-2, learns on with two exits, and with itself as it was for a teacher. It has learnt all
training rows, and is surer of them than of others; so thresholds are fitted, for a drop of half a point with a
confidence of 0.9, on every second validation row, and measured on the rows between, and the other way round. Figures
are means of the two. `int8` quantizes the trained model first. `curve` measures the same model with thresholds fitted
to several mean costs, and docs/images/exit.svg is drawn of it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from common import FINE_TUNING, fine_tuned, halved, run_stages, runs_folder, sentiment
from picture import draw

from niwaki.anatomy import label_names, longest_input
from niwaki.artifacts import artifact_of, examples_of
from niwaki.checkpoint import load, load_tokenizer
from niwaki.export import export_onnx
from niwaki.measure import Measurement, Subject, measure_subjects
from niwaki.measure.asking import BATCH
from niwaki.measure.timing import pad_rows
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.runtime import default_threads, open_worker
from niwaki.task import Encoded, Task
from niwaki.techniques.distill import Distill
from niwaki.techniques.exit import Exit
from niwaki.techniques.quantize import Quantize
from niwaki.train import Train

CASE = "exit"
RUNTIME = "onnxruntime"
EXIT = Exit(after=(1, 3), by="entropy", training="joint", allowed_drop=0.5)
TRAINED = Train(
    epochs=1,
    learning_rate=1e-4,
    batch_size=64,
    schedule="constant",
    average=0.998,
    dropout=0.0,
    together=(Distill(temperature=2, logits=1, hidden=1), EXIT),
)
#: Mean shares of the layers that texts run through, the first one so high that hardly any leaves.
COSTS = (0.98, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35)
FITTED = Exit(by=EXIT.by, allowed_drop=EXIT.allowed_drop, confidence=0.9)


def floats() -> tuple[dict[str, Any], list[Any]]:
    """Train the fine-tuned model with exits, fit its thresholds and measure it."""
    return folded("exit", [FITTED])


def int8() -> tuple[dict[str, Any], list[Any]]:
    """Quantize the trained model, fit its thresholds and measure it."""
    return folded("exit_int8", [Quantize(preset="int8"), FITTED])


def folded(prefix: str, steps: list[Any]) -> tuple[dict[str, Any], list[Any]]:
    """Carry out the steps on the trained model and measure it, fitted on one half and then on the other."""
    base = fine_tuned(sentiment())
    trained = trained_with_exits()
    found, records = [], []
    for half in (0, 1):
        task = halved(sentiment(), half, runs_folder(CASE))
        figures, rows = judged(made(trained, steps, task, f"{prefix}-{half}"), base, task)
        found.append(figures)
        records += [{"half": half, **row} for row in rows]
    means = {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}
    return named(prefix, means), records


def curve() -> tuple[dict[str, Any], list[Any]]:
    """Fit the trained model to several mean costs on one half, and measure all on the other, in one session."""
    task = halved(sentiment(), 0, runs_folder(CASE))
    trained = trained_with_exits()
    folders = {
        cost: made(trained, [Exit(by=EXIT.by, mean_cost=cost)], task, f"curve-{round(100 * cost)}") for cost in COSTS
    }
    rows = rows_of(trained, task)
    subjects = [Subject(name="without exits", runtime=RUNTIME, path=without_exits(trained, rows))]
    for cost, folder in folders.items():
        chain, parity = artifact_of(folder, "onnx", rows, folder / "artifacts")
        subjects.append(Subject(name=f"mean cost {cost:g}", runtime=RUNTIME, path=chain, parity=parity))
    measured = measure_subjects(
        subjects, rows, task.metric, base=0, threads=default_threads(), quick=False, progress=False
    )
    whole, *others = measured
    figures = {
        f"exit_curve_{round(100 * cost)}_{word}": value
        for cost, early in zip(COSTS, others, strict=True)
        for word, value in (
            ("mean_latency_ratio", whole.latency_seconds.mean / early.latency_seconds.mean),
            ("drop", -early.quality.difference),
        )
    }
    return figures, [record.model_dump(mode="json") for record in measured]


def trained_with_exits() -> Path:
    """Return the fine-tuned model that has learnt on with exits."""
    return made(fine_tuned(sentiment()), [TRAINED], sentiment(), "floats")


def named(prefix: str, figures: dict[str, Any]) -> dict[str, Any]:
    return {f"{prefix}_{name}": value for name, value in figures.items()}


def made(source: Path, steps: list[Any], task: Task, name: str) -> Path:
    """Carry out a recipe, or find it carried out; return the run's folder."""
    return compress(
        source, Recipe(steps), task, runs_folder(CASE) / name, export=(), measure=False, progress=False
    ).folder


def judged(folder: Path, base: Path, task: Task, quick: bool = False) -> tuple[dict[str, Any], list[Any]]:
    """Export with and without exits, measure both beside the base, and compare batches with single rows.

    Args:
        folder: a run with exits.
        base: the fine-tuned model it was made from.
        task: what that was fine-tuned on.
        quick: measure in fewer rounds.
    """
    rows = rows_of(folder, task)
    chain, parity = artifact_of(folder, "onnx", rows, folder / "artifacts")
    subjects = [
        Subject(name="without exits", runtime=RUNTIME, path=without_exits(folder, rows)),
        Subject(name="with exits", runtime=RUNTIME, path=chain, parity=parity),
        Subject(name="base", runtime=RUNTIME, path=artifact_of(base, "onnx", rows, runs_folder(CASE) / "base")[0]),
    ]
    measured = measure_subjects(
        subjects, rows, task.metric, base=0, threads=default_threads(), quick=quick, progress=False
    )
    other_class, other_exit = batched_against_single(chain, rows)
    figures = {**figures_of(*measured), "batched_disagreements": other_class, "batched_other_exits": other_exit}
    return figures, [record.model_dump(mode="json") for record in measured]


def figures_of(whole: Measurement, early: Measurement, base: Measurement) -> dict[str, Any]:
    """Return the figures of a model, measured without and with its exits; `base` is what it was trained from."""
    return {
        "mean_latency_ratio": whole.latency_seconds.mean / early.latency_seconds.mean,
        "p99_latency_ratio": whole.latency_seconds.p99 / early.latency_seconds.p99,
        "mean_latency_ratio_to_base": base.latency_seconds.mean / early.latency_seconds.mean,
        "drop": -early.quality.difference,
        "drop_from_base": base.quality.value - early.quality.value,
        "batch_throughput_ratio": early.throughput_per_second / whole.throughput_per_second,
        "left_early": 1 - early.exits.exits[-1].share,
    }


def rows_of(folder: Path, task: Task) -> Encoded:
    """Return the validation rows as the model of a folder reads them."""
    model, tokenizer = load(folder), load_tokenizer(folder)
    return task.encode(tokenizer, longest_input(model, tokenizer, task.max_length), label_names(model)).evaluation


def without_exits(folder: Path, rows: Encoded) -> Path:
    """Export the same model as if it had no exits; return its file."""
    model, path = load(folder), folder / "without-exits.onnx"
    del model.exits
    export_onnx(model, examples_of(model, rows), path)
    return path


def batched_against_single(chain: Path, rows: Encoded) -> tuple[int, int]:
    """Return how many of all rows have another class, and another exit, in a batch of 32 than alone.

    Batches are cut from the rows as they come, so that lengths are mixed: both padding and rows that leave play a part.
    """
    with open_worker(chain, RUNTIME, threads=default_threads()) as worker:
        alone_N2, batched_N2 = (
            np.concatenate(
                [
                    np.stack([logits_BC.argmax(axis=1), exits_B], axis=1)
                    for logits_BC, exits_B in worker.classify(
                        [pad_rows(rows, range(at, min(at + size, len(rows)))) for at in range(0, len(rows), size)]
                    )
                ]
            )
            for size in (1, BATCH)
        )
    other_class, other_exit = (alone_N2 != batched_N2).sum(axis=0)
    return int(other_class), int(other_exit)


STAGES = {"floats": floats, "int8": int8, "curve": curve}


if __name__ == "__main__":
    told = {"fine_tuning": FINE_TUNING, "exit": EXIT.model_dump(mode="json"), "fitted": FITTED.model_dump(mode="json")}
    run_stages(CASE, STAGES, sys.argv[1:], told)
    draw()
