"""The main job on real input: fine-tune MiniLM on SST-2, compress it with `encoder-cpu`, compare with base and peers.

    make bench CASE=sst2-minilm

The commands a user would type are the same:

    niwaki finetune MINILM --data sst2 --out base --epochs 3 --seed 1
    niwaki compress base --data sst2 --recipe encoder-cpu --out small
    niwaki compare base small --data sst2
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import peers
from common import FINE_TUNING, data_folder, fine_tuned, runs_folder, shown, write_result

from niwaki.anatomy import label_names, longest_input
from niwaki.artifacts import artifact_of
from niwaki.checkpoint import load, load_tokenizer
from niwaki.measure import Measurement, Subject, count_macs_per_token, count_parameters, measure_subjects
from niwaki.run import compress
from niwaki.runtime import default_threads
from niwaki.task import Encoded, Task

CASE = "sst2-minilm"
EXPORTS = ("onnx", "openvino")
#: A peer counts as the best form of the base only while it keeps the base's quality, within this many points.
PEER_MAY_LOSE = 1.0


def main() -> None:
    folder = runs_folder(CASE)
    task = Task("text-classification", data=str(data_folder() / "sst2"))
    base = fine_tuned(task)
    small = compress(base, "encoder-cpu", task, folder / "small", export=EXPORTS).folder
    rows = measured(base, small, task, folder / "peers")
    figures, records = summarize(rows, minutes(small))
    conditions = {
        "recipe": (small / "recipe.yaml").read_text(),
        "data": shown(data_folder() / "sst2"),
        "fine_tuning": FINE_TUNING,
    }
    write_result(CASE, figures, records, conditions)


def measured(base: Path, small: Path, task: Task, folder: Path) -> list[Measurement]:
    """Measure base, run and peers in one session, interleaved."""
    model, tokenizer = load(base), load_tokenizer(base)
    data = task.encode(tokenizer, longest_input(model, tokenizer), label_names(model))
    subjects = [Subject(name="base", runtime="torch", path=base, **counted(base, data.evaluation))]
    subjects += peer_subjects(base, data.train, folder, counted(base, data.evaluation))
    for to, runtime in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        path, parity = artifact_of(small, to, data.evaluation, small / "artifacts")
        subjects.append(
            Subject(name="small", runtime=runtime, path=path, parity=parity, **counted(small, data.evaluation))
        )
    return measure_subjects(subjects, data.evaluation, task.metric, threads=default_threads(), rounds=12)


def counted(folder: Path, rows: Encoded) -> dict[str, Any]:
    model = load(folder)
    return {"parameters": count_parameters(model), "macs_per_token": count_macs_per_token(model, rows)}


def peer_subjects(base: Path, train: Encoded | None, folder: Path, counts: dict[str, Any]) -> list[Subject]:
    """Make every form of the base that ONNX Runtime and OpenVINO offer."""
    assert train is not None
    model = load(base)
    rows = np.random.default_rng(0).permutation(len(train))[:300]
    batch = train.batch(rows[:4])
    calibration = [{name: train.batch([row])[name].numpy() for name in peers.INPUTS} for row in rows]
    fp32 = folder / "base-fp32.onnx"
    dynamic, static = folder / "base-dynamic-int8.onnx", folder / "base-static-int8.onnx"
    ir, int8_ir = folder / "openvino" / "base.xml", folder / "openvino" / "base-int8.xml"
    peers.made_once(fp32, lambda: peers.plain_onnx(model, batch, fp32))
    peers.made_once(dynamic, lambda: peers.onnx_dynamic_int8(fp32, dynamic))
    peers.made_once(static, lambda: peers.onnx_static_int8(fp32, calibration, static))
    peers.made_once(ir, lambda: peers.save_openvino(peers.plain_openvino(model, batch), ir))
    peers.made_once(
        int8_ir,
        lambda: peers.save_openvino(peers.openvino_int8(peers.plain_openvino(model, batch), calibration), int8_ir),
    )
    return [
        Subject(name="onnxruntime fp32", runtime="onnxruntime", path=fp32, **counts),
        Subject(name="onnxruntime dynamic int8", runtime="onnxruntime", path=dynamic, **counts),
        Subject(name="onnxruntime static int8", runtime="onnxruntime", path=static, **counts),
        Subject(name="openvino own precision", runtime="openvino", path=ir, **counts),
        Subject(name="openvino int8 (nncf)", runtime="openvino", path=int8_ir, **counts),
    ]


def minutes(small: Path) -> float:
    """Return the time of all steps of the compression, from its log."""
    events = [json.loads(line) for line in (small / "log.jsonl").read_text().splitlines()]
    return sum(event["seconds"] for event in events if event["event"] == "step-end") / 60


def summarize(rows: list[Measurement], compress_minutes: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the figures and the rows they come from."""
    base = rows[0]
    fp32 = next(row for row in rows if row.name == "onnxruntime fp32")
    small = min((row for row in rows if row.name == "small"), key=lambda row: row.latency_seconds.median)
    forms = [row for row in rows[1:] if row.name not in {"small", "onnxruntime fp32"}]
    fit = [row for row in forms if row.quality.difference >= -PEER_MAY_LOSE]
    peer = min(fit, key=lambda row: row.latency_seconds.median)
    figures = {
        "base_accuracy": base.quality.value,
        "accuracy_drop_points": -small.quality.difference,
        "size_ratio": fp32.size_bytes / small.size_bytes,
        "latency_ratio_torch_fp32": base.latency_seconds.median / small.latency_seconds.median,
        "latency_ratio_best_peer": peer.latency_seconds.median / small.latency_seconds.median,
        "best_peer": peer.name,
        "small_runtime": small.runtime,
        "compress_minutes": compress_minutes,
    }
    records = [row.model_dump(mode="json") for row in rows]
    return figures, records


if __name__ == "__main__":
    main()
