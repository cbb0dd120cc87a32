"""Where benchmarks find data, models and room, and how they write what they measured."""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: How MiniLM is fine-tuned on SST-2.
FINE_TUNING: dict[str, Any] = {"epochs": 3, "seed": 1}


def data_folder() -> Path:
    return Path(os.environ.get("NIWAKI_DATA", ROOT.parent / "shared" / "data"))


def models_folder() -> Path:
    return Path(os.environ.get("NIWAKI_MODELS", ROOT.parent / "shared" / "models"))


def runs_folder(case: str) -> Path:
    folder = Path(os.environ.get("NIWAKI_RUNS", ROOT / "runs" / "bench")) / case
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fine_tuned(task: Any) -> Path:
    """Fine-tune MiniLM on SST-2, once for all cases; return its folder."""
    from niwaki.demo import find_base
    from niwaki.finetune import finetune

    return finetune(find_base(), task, runs_folder("sst2-minilm") / "base", **FINE_TUNING).folder


def sentiment() -> Any:
    from niwaki.task import Task

    return Task("text-classification", data=str(data_folder() / "sst2"))


def stories() -> Any:
    from niwaki.task import Task

    return Task("language-modelling", data=str(data_folder() / "tinystories"))


def records_of(rows: dict[str, Any]) -> list[Any]:
    """Return measurements as JSON."""
    return [row.model_dump(mode="json") for row in rows.values()]


def shown(path: Path) -> str:
    """Name a path without the machine it lies on."""
    for name, root in (("data", data_folder()), ("runs", runs_folder(".").parent)):
        if path.is_relative_to(root):
            return f"{name}/{path.relative_to(root)}"
    return path.name


def write_result(case: str, figures: dict[str, Any], records: Any, conditions: dict[str, Any]) -> None:
    """Write `benchmarks/CASE/result.json` and print the figures."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result = {"figures": figures, "records": records, "conditions": {"date": date, **conditions}}
    path = ROOT / "benchmarks" / case / "result.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def write_stage(case: str, name: str, figures: dict[str, Any], records: list[dict[str, Any]]) -> None:
    """Put the figures and records of one stage into `benchmarks/CASE/result.json`, in place of its former ones."""
    path = ROOT / "benchmarks" / case / "result.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    kept = [record for record in before.get("records", []) if record.get("stage") != name]
    records = [*kept, *({"stage": name, **record} for record in records)]
    write_result(case, before.get("figures", {}) | figures, records, before.get("conditions", {}))
