"""Pruning in sentiment analysis: every granularity and method on the fine-tuned MiniLM and SST-2, by the clock.

    make bench CASE=pruning-sentiment                       everything; many hours on two cores
    python benchmarks/pruning-sentiment/run.py post trim    these stages alone, with their dates and conditions
    python benchmarks/pruning-sentiment/run.py train learnt-60 1
                                                            one training of a stage, ahead of it, with this seed

`result.json` holds what each stage found when it was run last. Runs resume, so an interrupted stage goes on where it
stopped.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from common import FINE_TUNING, fine_tuned, models_folder, records_of, run_stages, runs_folder, sentiment, stories

from niwaki.artifacts import export
from niwaki.checkpoint import WEIGHTS, load
from niwaki.comparison import compare
from niwaki.measure import Measurement
from niwaki.measure.timing import time_in_turns
from niwaki.recipe import Recipe
from niwaki.run import Run, compress
from niwaki.runtime import default_threads, open_worker, size_on_disk
from niwaki.task import Task
from niwaki.techniques.distill import Distill
from niwaki.techniques.prune import Prune
from niwaki.techniques.trim import Trim
from niwaki.train import Train

CASE = "pruning-sentiment"
SEEDS = (0, 1, 2)
LENGTH, ROUNDS, REPEATS = 128, 12, 8
SHARES = (0.75, 0.5, 0.25)
ONE_SHOT = ("random", "magnitude", "first-order", "mask-search", "second-order")
DISTILL = Distill(temperature=2, logits=1, hidden=1)
NEAREST = Distill(temperature=2, logits=1, hidden=1, hidden_layers="nearest")
#: Of the long trainings, whose result is a moving average of the weights.
RATE: dict[str, Any] = {"learning_rate": 1.5e-4, "batch_size": 64, "schedule": "constant", "dropout": 0.0}


def gates(gone: int) -> Train:
    prune = Prune(by="hard-concrete", keep={"parameters": 1 - gone / 100}, end=0.85, gate_learning_rate=0.1)
    return Train(epochs=1.5, together=(NEAREST, prune), **RATE)


def masks(gone: int, by: str, epochs: float, end: float, learning_rate: float) -> Train:
    prune = Prune(by=by, keep_weights=1 - gone / 100, end=end)
    return Train(epochs=epochs, together=(DISTILL, prune), average=0.998, **RATE | {"learning_rate": learning_rate})


#: The long trainings, each done with every seed.
TRAININGS: dict[str, list[Train]] = {
    "sparse-50": [masks(50, "magnitude", 1, end=0.6, learning_rate=1e-4)],
    "sparse-90": [masks(90, "first-order", 1, end=0.5, learning_rate=1.5e-4)],
    "learnt-60": [gates(60), Train(epochs=1.5, together=(NEAREST,), average=0.998, **RATE)],
    "learnt-90": [gates(90), Train(epochs=3, together=(NEAREST,), average=0.998, **RATE)],
}

#: The training of "sparse-90" by the criterion that looks at weights alone: the control.
BY_MAGNITUDE = [masks(90, "magnitude", 1, end=0.5, learning_rate=1.5e-4)]

OfModel = Callable[[Path, Task], tuple[dict[str, Any], list[Any]]]


def main(names: list[str]) -> None:
    if names[:1] == ["train"]:
        trained(fine_tuned(sentiment()), sentiment(), names[1], int(names[2]))
        return
    stages = {name: functools.partial(carried_out, name) for name in STAGES}
    run_stages(CASE, stages, names, {"seeds": list(SEEDS), "fine_tuning": FINE_TUNING})


def carried_out(name: str) -> tuple[dict[str, Any], list[Any]]:
    task = stories() if name == "stories" else sentiment()
    return STAGES[name](models_folder() / "stories260k" if name == "stories" else fine_tuned(task), task)


def post(base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """Half of heads and neurons gone without training; the better of the two methods is reported under the bar."""
    runs = {by: run(base, task, f"post-{by}", [at_once(by, examples=2048)]) for by in ("mask-search", "second-order")}
    rows = measured(base, runs.values(), task)
    drops = {by: drop(rows[one.name]) for by, one in runs.items()}
    best = min(drops, key=lambda by: drops[by])
    figures = {
        "posttraining_half_drop": drops[best],
        "posttraining_half_speedup": speedup(base, runs[best]),
        "posttraining_half_by": best,
        **{f"posttraining_half_minutes_{by}": minutes(one) for by, one in runs.items()},
    }
    return figures, records_of(rows)


def family(base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """A family of latencies from one calibration: what was asked for, and what the clock says."""
    step = Prune(by="second-order", keep={"latency": SHARES, "length": LENGTH}, examples=2048)
    whole = compress(base, Recipe([step]), task, runs_folder(CASE) / "latency", measure=False, progress=False)
    rows = measured(base, whole.members, task)
    figures: dict[str, Any] = {}
    for share, member in zip(SHARES, whole.members, strict=True):
        figures[f"latency_{share:g}_reached"] = 1 / speedup(base, member)
        figures[f"latency_{share:g}_drop"] = drop(rows[member.name])
    return {**figures, "latency_minutes": sum(map(minutes, whole.members))}, records_of(rows)


def curves(base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """Quality against what is kept, of heads and neurons at once without training."""
    runs = [run(base, task, f"{by}-{share:g}", [at_once(by, share)]) for by in ONE_SHOT for share in SHARES]
    return {}, records_of(measured(base, runs, task))


def retrained(base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """The same at half, half an epoch of distillation after the cut; and that half with the cut inside it."""
    after = Train(epochs=0.5, together=(DISTILL,), average=0.995, **RATE)
    runs = [run(base, task, f"{by}-0.5-retrained", [at_once(by), after]) for by in ONE_SHOT]
    for by in ("movement", "first-order"):
        inside = Prune(by=by, keep_heads=0.5, keep_neurons=0.5, end=0.6)
        runs.append(run(base, task, f"{by}-0.5-inside", [after.model_copy(update={"together": (DISTILL, inside)})]))
    return {}, records_of(measured(base, runs, task))


def learnt(gone: int, base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """Hard-concrete gates with distillation, then the cut model with its teacher alone, faster; three seeds."""
    runs = [trained(base, task, f"learnt-{gone}", seed) for seed in SEEDS]
    rows = measured(base, runs, task)
    figures = {f"learnt_{gone}_drop": float(np.mean([drop(rows[one.name]) for one in runs]))}
    if gone == 90:
        figures["learnt_90_speedup"] = float(np.mean([speedup(base, one) for one in runs]))
    return figures, records_of(rows)


def sparse(gone: int, base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """Weights of the layers gone in training with distillation, three seeds; of a tenth left, one by magnitude too."""
    runs = [trained(base, task, f"sparse-{gone}", seed) for seed in SEEDS]
    others = [run(base, task, "sparse-90-magnitude", BY_MAGNITUDE)] if gone == 90 else []
    rows = measured(base, [*runs, *others], task)
    figures = {
        f"sparse_{gone}_drop": float(np.mean([drop(rows[one.name]) for one in runs])),
        f"sparse_{gone}_bytes_ratio": float(np.mean([matrices_ratio(one) for one in runs])),
    }
    if others:
        figures["sparse_90_magnitude_drop"] = drop(rows[others[0].name])
    stored = {one.name: size_on_disk(one.folder, "torch") for one in [*runs, *others]}
    records = records_of(rows)  # whose artifacts hold the zeros as well
    return figures, [{**record, "stored_bytes": stored.get(record["name"], record["size_bytes"])} for record in records]


def trim(base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """The vocabulary of the training texts alone."""
    one = run(base, task, "trim", [Trim()])
    rows = measured(base, [one], task)
    kept = load(one.folder).config.vocab_size / load(base).config.vocab_size
    return {"trim_embedding_kept": kept, "trim_drop": drop(rows[one.name])}, records_of(rows)


def of_stories(base: Path, task: Task) -> tuple[dict[str, Any], list[Any]]:
    """Half the weights of a decoder gone at once: nats per token above the whole model's."""
    runs = {
        by: run(base, task, f"stories-{by}", [Prune(keep_weights=0.5, even=True, by=by, examples=512)])
        for by in ("magnitude", "wanda", "sparsegpt")
    }
    rows = measured(base, runs.values(), task, runtime="torch")
    return {f"nats_{by}": rows[one.name].quality.value for by, one in runs.items()} | {
        "nats_base": next(iter(rows.values())).quality.value
    }, records_of(rows)


STAGES: dict[str, OfModel] = {
    "trim": trim,
    "stories": of_stories,
    "post": post,
    "family": family,
    "curves": curves,
    "retrained": retrained,
    "sparse-50": functools.partial(sparse, 50),
    "sparse-90": functools.partial(sparse, 90),
    "learnt-60": functools.partial(learnt, 60),
    "learnt-90": functools.partial(learnt, 90),
}


def at_once(by: str, share: float = 0.5, examples: int = 512) -> Prune:
    return Prune(by=by, keep_heads=share, keep_neurons=share, examples=examples)


def run(base: Path, task: Task, name: str, steps: list[Any], seed: int = 0) -> Run:
    return compress(base, Recipe(steps), task, runs_folder(CASE) / name, seed=seed, measure=False, progress=False)


def trained(base: Path, task: Task, name: str, seed: int) -> Run:
    """Carry out one of the long trainings."""
    return run(base, task, f"{name}-{seed}", TRAININGS[name], seed)


def measured(base: Path, runs: Iterable[Run], task: Task, runtime: str = "onnxruntime") -> dict[str, Measurement]:
    """Measure base and runs in one session; return the rows by name, the base's first."""
    rows = compare(base, *(one.folder for one in runs), task=task, runtimes=[runtime], progress=False).rows
    return {row.name: row for row in rows}


def drop(row: Measurement) -> float:
    """Return the points that the run loses."""
    assert row.quality is not None
    return -row.quality.difference


def speedup(base: Path, small: Run) -> float:
    """Return how many times faster the run is in ONNX Runtime on inputs of 128 tokens, batch 1, interleaved."""
    whole = runs_folder(CASE) / "base.onnx"
    paths = [whole if whole.is_file() else export(base, "onnx", whole, task=sentiment())]
    paths.append(small.folder / "artifacts" / "model.onnx")
    batch = {
        "input_ids": np.random.default_rng(0).integers(1000, 2000, (1, LENGTH)),
        "attention_mask": np.ones((1, LENGTH), np.int64),
    }
    workers = [open_worker(path, "onnxruntime", threads=default_threads()) for path in paths]
    try:
        seconds_SRI = time_in_turns(workers, [[[batch] * REPEATS] * ROUNDS] * 2, seed=0)
    finally:
        for worker in workers:
            worker.close()
    base_R, small_R = np.median(seconds_SRI, axis=2)
    return float(np.median(base_R / small_R))


def minutes(one: Run) -> float:
    """Return the time of all steps of a run, from its log."""
    events = [json.loads(line) for line in (one.folder / "log.jsonl").read_text("utf-8").splitlines()]
    return sum(event["seconds"] for event in events if event["event"] == "step-end") / 60


def matrices_ratio(one: Run) -> float:
    """Return dense bytes over stored bytes of the matrices that were pruned."""
    from safetensors import safe_open

    edits = [json.loads(line) for line in (one.folder / "journal.jsonl").read_text("utf-8").splitlines()]
    names = [f"{edit['module']}.weight" for edit in edits if edit["edit"] == "sparsify_linear"]
    whole = load(one.folder).state_dict()
    dense = sum(whole[name].nbytes for name in names)
    with safe_open(one.folder / WEIGHTS, framework="pt") as file:
        parts = {part for name in names for part in (name, f"{name}.bitmap")} & set(file.keys())
        return dense / sum(file.get_tensor(part).nbytes for part in parts)


if __name__ == "__main__":
    main(sys.argv[1:])
