"""Attention below the square of the length: what it costs by the clock, and what it loses, on the fine-tuned MiniLM.

    make bench CASE=attention                          everything
    python benchmarks/attention/run.py growth sst2     these stages alone, with their dates and conditions

`growth` times models whose attention was swapped and not trained: only the clock is asked. Lengths go beyond what the
base reads, so all of them, the exact one too, have its positions copied up to the longest.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from common import FINE_TUNING, data_folder, fine_tuned, records_of, run_stages, runs_folder, sentiment

from niwaki.anatomy import anatomy_of
from niwaki.artifacts import export
from niwaki.checkpoint import load, load_tokenizer, reaching, save
from niwaki.comparison import compare
from niwaki.measure.timing import time_in_turns
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.runtime import default_threads, open_worker
from niwaki.surgery import extend_positions, swap_attention
from niwaki.task import Task
from niwaki.techniques.attend import Attend
from niwaki.techniques.distill import Distill
from niwaki.train import Train

CASE = "attention"
LENGTHS = (128, 512, 1024, 2048, 4096, 8192)
ROUNDS = 5
WINDOW = {"by": "window", "window": 128, "global_tokens": 1}
KINDS: dict[str, dict[str, Any]] = {"exact": {}, "window": WINDOW, "linear": {"by": "linear"}}
RUNTIMES = ("torch", "onnxruntime")
#: Tokens of a long review that the longer models read.
LONG = 2048


def growth() -> tuple[dict[str, Any], list[Any]]:
    """Time exact, window and linear attention at each length, batch 1, in turns, in both runtimes."""
    base = fine_tuned(sentiment())
    folders = {name: swapped(base, name, settings) for name, settings in KINDS.items()}
    seconds: dict[tuple[str, str, int], float] = {}
    for runtime in RUNTIMES:
        for length in LENGTHS:
            for name, value in zip(folders, timed(list(folders.values()), runtime, length), strict=True):
                seconds[runtime, name, length] = value
    records = [
        {"runtime": runtime, "attention": name, "length": length, "seconds": value}
        for (runtime, name, length), value in seconds.items()
    ]
    return {**growth_figures(seconds), **speedup_figures(seconds)}, records


def growth_figures(seconds: dict[tuple[str, str, int], float]) -> dict[str, float]:
    """Return the time of a token at 8,192 tokens over that at 1,024, for each kind: that of the worse runtime."""
    figures = {}
    for name in ("linear", "window"):
        ratios = {one: seconds[one, name, 8192] / 8192 / (seconds[one, name, 1024] / 1024) for one in RUNTIMES}
        figures |= {f"{name}_growth_8192_over_1024_{one}": ratio for one, ratio in ratios.items()}
        figures[f"{name}_growth_8192_over_1024"] = max(ratios.values())
    return figures


def speedup_figures(seconds: dict[tuple[str, str, int], float]) -> dict[str, float]:
    """Return how many times faster than exact attention each is; in short, the faster one in ONNX Runtime."""
    figures = {}
    for length in LENGTHS:
        ratios = {
            (runtime, name): seconds[runtime, "exact", length] / seconds[runtime, name, length]
            for runtime in RUNTIMES
            for name in ("window", "linear")
        }
        figures |= {f"speedup_{length}_{name}_{runtime}": ratio for (runtime, name), ratio in ratios.items()}
        figures[f"speedup_{length}"] = max(ratios["onnxruntime", name] for name in ("window", "linear"))
    return figures


def swapped(base: Path, name: str, settings: dict[str, Any]) -> Path:
    """Save the base with positions for the longest input, its attention swapped, and its ONNX file beside it."""
    folder = longer(base, max(LENGTHS), name)
    model = load(folder)
    for layer in anatomy_of(model).layers if settings else ():
        swap_attention(model, layer=layer.index, **settings)
    save(model, folder)
    export(folder, "onnx", folder / "model.onnx", task=sentiment())
    return folder


def longer(base: Path, tokens: int, name: str) -> Path:
    """Save the base with copied positions for so many tokens."""
    model = extend_positions(load(base), tokens=tokens)
    return save(model, runs_folder(CASE) / name, reaching(load_tokenizer(base), tokens))


def timed(folders: list[Path], runtime: str, length: int) -> list[float]:
    """Return the median seconds of one input of this length in each model, in turns."""
    batch = {
        "input_ids": np.random.default_rng(0).integers(1000, 2000, (1, length)),
        "attention_mask": np.ones((1, length), np.int64),
    }
    paths = [folder if runtime == "torch" else folder / "model.onnx" for folder in folders]
    repeats = max(1, 4096 // length)
    workers = [open_worker(path, runtime, threads=default_threads()) for path in paths]
    try:
        seconds_SRI = time_in_turns(workers, [[[batch] * repeats] * ROUNDS] * len(workers), seed=0, warm=1)
    finally:
        for worker in workers:
            worker.close()
    return [float(value) for value in np.median(seconds_SRI, axis=(1, 2))]


def sst2() -> tuple[dict[str, Any], list[Any]]:
    """Make every layer linear and train it with the base as teacher: points lost on short texts."""
    task = sentiment()
    base = fine_tuned(task)
    teacher = Distill(temperature=2, logits=1, hidden=1)
    attend = Attend(by="linear", allow_slower=True)
    steps = [Train(epochs=2, learning_rate=5e-5, batch_size=64, together=(teacher, attend))]
    run = compress(base, Recipe(steps), task, runs_folder(CASE) / "linear-sst2", measure=False, progress=False)
    rows = measured(base, [run.folder], task)
    return {"linear_sst2_drop": -rows["linear-sst2"].quality.difference}, records_of(rows)


def long() -> tuple[dict[str, Any], list[Any]]:
    """Read long reviews: with a window, with exact attention, and cut at what the base reads.

    Each is trained for one epoch more on what it reads, the one with a window with the long exact model as teacher.
    """
    task = Task("text-classification", data=str(data_folder() / "imdb"))
    base = fine_tuned_on_reviews(task)
    whole = longer(base, LONG, "reviews-long")
    more = Train(epochs=1, learning_rate=3e-5, batch_size=8)
    exact = compress(whole, Recipe([more]), task, runs_folder(CASE) / "exact-long", measure=False, progress=False)
    cut = compress(base, Recipe([more]), task, runs_folder(CASE) / "cut", measure=False, progress=False)
    taught = more.model_copy(update={"together": (Distill(temperature=2, logits=1),)})
    steps = [Attend(**WINDOW, allow_slower=True), taught]
    window = compress(
        exact.folder, Recipe(steps), task, runs_folder(CASE) / "window-long", measure=False, progress=False
    )
    rows = measured(base, [one.folder for one in (exact, cut, window)], task)
    quality = {name: row.quality.value for name, row in rows.items()}
    figures = {
        "long_drop": quality["exact-long"] - quality["window-long"],
        "long_gain_over_truncation": quality["window-long"] - quality["cut"],
    }
    return figures, records_of(rows)


def fine_tuned_on_reviews(task: Task) -> Path:
    """Fine-tune MiniLM on reviews cut at 512 tokens."""
    from niwaki.demo import find_base
    from niwaki.finetune import finetune

    return finetune(find_base(), task, runs_folder(CASE) / "reviews", **FINE_TUNING).folder


def measured(base: Path, folders: list[Path], task: Task) -> dict[str, Any]:
    """Measure base and runs in one session; return the rows by name, the base's first."""
    rows = compare(base, *folders, task=task, runtimes=["onnxruntime"], quick=True, progress=False).rows
    return {row.name: row for row in rows}


STAGES = {"growth": growth, "sst2": sst2, "long": long}


if __name__ == "__main__":
    conditions = {"fine_tuning": FINE_TUNING, "lengths": list(LENGTHS), "long": LONG, "window": WINDOW}
    run_stages(CASE, STAGES, sys.argv[1:], conditions)
