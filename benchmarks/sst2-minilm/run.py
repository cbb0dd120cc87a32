"""The main job on real input: fine-tune MiniLM on SST-2, compress it with `encoder-cpu`, compare with base and peers.

    make bench CASE=sst2-minilm

The commands a user would type are the same:

    niwaki finetune MINILM --data sst2 --out base --epochs 1.5 --learning-rate 1e-4 --schedule constant --average 0.9975
    niwaki compress base --data sst2 --recipe encoder-cpu --out small
    niwaki compare base small --data sst2
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import FINE_TUNING, ROOT, data_folder, fine_tuned, runs_folder, shown, write_result
from peers import beside_peers

from niwaki.measure import Measurement
from niwaki.report.picture import picture
from niwaki.run import compress
from niwaki.task import Task

CASE = "sst2-minilm"
EXPORTS = ("onnx", "openvino")
#: A peer counts as the best form of the base only while it keeps the base's quality, within this many points.
PEER_MAY_LOSE = 1.0


def main() -> None:
    folder = runs_folder(CASE)
    task = Task("text-classification", data=str(data_folder() / "sst2"))
    base = fine_tuned(task)
    small = compress(base, "encoder-cpu", task, folder / "small", export=EXPORTS).folder
    rows = beside_peers(base, {"small": small}, task)
    figures, records = summarize(rows, minutes(small))
    conditions = {
        "recipe": (small / "recipe.yaml").read_text(),
        "data": shown(data_folder() / "sst2"),
        "fine_tuning": FINE_TUNING,
    }
    write_result(CASE, figures, records, conditions)
    draw(records)


def draw(records: list[dict[str, Any]]) -> None:
    """Draw the rows for the front page: picture and table are of one session."""
    with tempfile.TemporaryDirectory() as folder:
        comparison = Path(folder) / "comparison.json"
        comparison.write_text(json.dumps({"base": records[0]["name"], "rows": records}), encoding="utf-8")
        picture(comparison, ROOT / "docs" / "images" / "sst2.svg")


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
