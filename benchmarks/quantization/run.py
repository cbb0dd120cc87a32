"""Quantization by the figures: int8 that is faster, 4 bits that are smaller, and what each method loses below.

    make bench CASE=quantization                      everything
    python benchmarks/quantization/run.py encoder     these stages alone, with their dates and conditions

The encoder is MiniLM, fine-tuned on SST-2. On the decoder, stories260k, weights alone are rounded after training:
embeddings and head stay in floats; groups of 32 inputs, of 43 where the width is 172.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import rounding_speed
import streaming
from common import (
    FINE_TUNING,
    fine_tuned,
    halved,
    models_folder,
    records_of,
    run_stages,
    runs_folder,
    sentiment,
    stories,
)
from peers import beside_peers

from niwaki.anatomy import label_names, longest_input
from niwaki.checkpoint import load, load_tokenizer
from niwaki.comparison import compare
from niwaki.measure import Measurement
from niwaki.measure.timing import pad_rows, time_in_turns
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.runtime import default_threads, open_worker
from niwaki.techniques.distill import Distill
from niwaki.techniques.quantize import Quantize
from niwaki.train import Train

CASE = "quantization"
METHODS = {"rtn": "nearest", "mse": "mean-square", "hqq": "hqq", "awq": "awq", "gptq": "gptq"}
SETTINGS: dict[str, Any] = {
    "symmetric": False,
    "group": 32,
    "override": {"*.down_proj": {"group": 43}},
    "embeddings": False,
    "skip": ("lm_head",),
    "examples": 128,
}
BATCH, BATCHES, ROUNDS = 32, 8, 20
DISTILL = Distill(temperature=2, logits=1, hidden=1)
INT4: dict[str, Any] = {"bits": 4, "group": 64, "symmetric": False, "by": "mean-square", "embeddings": 4}
#: The model starts as its teacher, but for the rounding; dropout would only drive them apart.
TRAINING: dict[str, Any] = {"batch_size": 64, "schedule": "constant", "average": 0.998, "dropout": 0.0}
#: What is made of the encoder, by the name of its figures.
RECIPES: dict[str, list[Any]] = {
    "dynamic": [Quantize(preset="int8")],
    "static": [Quantize(preset="int8-static")],
    "qat": [Train(epochs=1, learning_rate=1e-4, together=(DISTILL, Quantize(preset="int8")), **TRAINING)],
    "int4": [Train(epochs=1, learning_rate=1e-4, together=(DISTILL, Quantize(**INT4)), **TRAINING)],
}
MIXED = Quantize(by="measured", allowed_drop=0.3, confidence=0.9)


def encoder() -> tuple[dict[str, Any], list[Any]]:
    """Make every form of the encoder and measure all of them beside what the runtimes make of it themselves."""
    task = sentiment()
    base = fine_tuned(task)
    runs = {
        name: compress(base, Recipe(steps), task, runs_folder(CASE) / name, measure=False, progress=False).folder
        for name, steps in RECIPES.items()
    }
    rows = beside_peers(base, runs, task)
    return figures_of(rows), [row.model_dump(mode="json") for row in rows]


def figures_of(rows: list[Measurement]) -> dict[str, Any]:
    """Return the figures of the encoder's forms, each in the runtime that is fastest with it."""
    peers = {row.name: row for row in rows if row.name not in RECIPES}
    best = {name: fastest([row for row in rows if row.name == name]) for name in RECIPES}
    fp32, nncf = peers["onnxruntime fp32"], peers["openvino int8 (nncf)"]
    dynamic = next(row for row in rows if row.name == "dynamic" and row.runtime == "onnxruntime")
    smallest = min((row for row in rows if row.name == "int4"), key=lambda row: row.size_bytes)
    return {
        **{f"{name}_drop": -row.quality.difference for name, row in best.items()},
        **{f"{name}_runtime": row.runtime for name, row in best.items()},
        "dynamic_drop": -dynamic.quality.difference,
        "dynamic_runtime": dynamic.runtime,
        "dynamic_size_ratio": fp32.size_bytes / dynamic.size_bytes,
        "dynamic_speed_vs_ort": latency(peers["onnxruntime dynamic int8"]) / latency(dynamic),
        "static_speed_vs_nncf_b1": latency(nncf) / latency(best["static"]),
        "int4_size_ratio": fp32.size_bytes / smallest.size_bytes,
        "int4_drop": -smallest.quality.difference,
        "int4_runtime": smallest.runtime,
    }


def mixed() -> tuple[dict[str, Any], list[Any]]:
    """Keep modules in more bits until a loss of more than 0.3 is unlikely, in the fastest form; see what is lost.

    That is found on every second validation row and counted on the rows between, and the other way round. Figures are
    means of the two.
    """
    base, found, records = fine_tuned(sentiment()), [], []
    for half in (0, 1):
        task, out = halved(sentiment(), half, runs_folder(CASE)), runs_folder(CASE) / f"mixed-{half}"
        run = compress(base, Recipe([MIXED]), task, out, measure=False, progress=False)
        rows = compare(base, run.folder, task=task, runtimes=["onnxruntime", "openvino"], progress=False).rows
        whole = fastest([row for row in rows if row.name == base.name])
        small = next(row for row in rows if row.name == run.name and row.runtime == chosen_runtime(run.folder))
        found.append({"mixed_drop": -small.quality.difference, "mixed_speedup": latency(whole) / latency(small)})
        records += [{"half": half, **row.model_dump(mode="json")} for row in rows]
    return {name: float(np.mean([figures[name] for figures in found])) for name in found[0]}, records


def chosen_runtime(folder: Path) -> str:
    """Return the runtime that a run with `by: measured` was made for."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    forms = [event["forms"] for event in events if event["event"] == "forms"][-1]
    return next(form["runtime"] for form in forms if form["chosen"])


def batches() -> tuple[dict[str, Any], list[Any]]:
    """Time static int8 in batches of 32 beside NNCF's, in turns on the same rows; after `encoder`, which makes them."""
    made, peer = runs_folder(CASE) / "static" / "artifacts", runs_folder("peers") / "openvino" / "base-int8.xml"
    model = load(fine_tuned(sentiment()))
    tokenizer = load_tokenizer(fine_tuned(sentiment()))
    rows = sentiment().encode(tokenizer, longest_input(model, tokenizer), label_names(model)).evaluation
    batches_I = [pad_rows(rows, range(first, first + BATCH)) for first in range(0, BATCH * BATCHES, BATCH)]
    paths = {"nncf": peer, "openvino": made / "openvino" / "model.xml", "onnxruntime": made / "model.onnx"}
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(open_worker(path, "openvino" if name == "nncf" else name, threads=default_threads()))
            for name, path in paths.items()
        ]
        seconds_SR = time_in_turns(workers, [[batches_I] * ROUNDS] * len(workers), seed=0).sum(axis=2)
    ratios = {name: float(np.median(seconds_SR[0] / own_R)) for name, own_R in zip(paths, seconds_SR, strict=True)}
    best = max(("openvino", "onnxruntime"), key=lambda name: ratios[name])
    figures = {"static_speed_vs_nncf_b32": ratios[best], "static_b32_runtime": best}
    return figures, [{"batch": BATCH, "rounds": ROUNDS, "threads": default_threads(), "as_fast_as_nncf": ratios}]


def fastest(rows: list[Measurement]) -> Measurement:
    return min(rows, key=latency)


def latency(row: Measurement) -> float:
    return row.latency_seconds.median


def low_bits() -> tuple[dict[str, Any], list[Any]]:
    """Round the decoder to 4, 3 and 2 bits by each method: nats per token."""
    base, task = models_folder() / "stories260k", stories()
    runs = {}
    for bits in (4, 3, 2):
        for word, by in METHODS.items():
            step, folder = Quantize(bits=bits, by=by, **SETTINGS), runs_folder(CASE) / f"stories-{word}{bits}"
            runs[f"{word}{bits}"] = compress(base, Recipe([step]), task, folder, measure=False, progress=False)
    folders = [one.folder for one in runs.values()]
    rows = {
        row.name: row for row in compare(base, *folders, task=task, runtimes=["torch"], quick=True, progress=False).rows
    }
    figures = {"nats_base": next(iter(rows.values())).quality.value}
    figures |= {f"nats_{name}": rows[one.folder.name].quality.value for name, one in runs.items()}
    return figures, records_of(rows)


STAGES = {
    "encoder": encoder,
    "mixed": mixed,
    "batches": batches,
    "low-bits": low_bits,
    "streaming": streaming.stage,
    "rounding-speed": rounding_speed.stage,
}


if __name__ == "__main__":
    run_stages(CASE, STAGES, sys.argv[1:], {"fine_tuning": FINE_TUNING, "low_bits": SETTINGS})
