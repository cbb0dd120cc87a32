"""Where benchmarks find data, models and room, and how they write what they measured."""

from __future__ import annotations

import csv
import datetime
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Part of a case: its figures by name, and the records behind them.
Stage = Callable[[], tuple[dict[str, Any], list[Any]]]
#: How MiniLM is fine-tuned on SST-2.
FINE_TUNING: dict[str, Any] = {"epochs": 1.5, "learning_rate": 1e-4, "schedule": "constant", "average": 0.9975}


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


def halved(task: Any, half: int, folder: Path) -> Any:
    """Return a task with every second validation row for selection, and those between as its test split.

    The fine-tuned model has learnt the training rows, which therefore tell little of what it does with others.

    Args:
        task: whose data are a folder with train.csv and validation.csv.
        half: 0 or 1: which rows are for selection.
        folder: to write the splits into.
    """
    source, data = Path(task.data), folder / f"data-{half}"
    data.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / "train.csv", data / "train.csv")
    with (source / "validation.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    for name, first in (("validation", half), ("test", 1 - half)):
        with (data / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([head, *rows[first::2]])
    return task.model_copy(update={"data": str(data)})


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
    result = {"figures": figures, "records": records, "conditions": {"date": now(), **conditions}}
    result_file(case).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2))


def run_stages(case: str, stages: Mapping[str, Stage], names: Sequence[str], conditions: dict[str, Any]) -> None:
    """Carry out the stages of a case that are named, or all; what others have left in its result stays."""
    if unknown := sorted(set(names) - set(stages)):
        raise SystemExit(f"no stage {', '.join(unknown)}; there are {', '.join(stages)}")
    for name in names or stages:
        figures, records = stages[name]()
        file = result_file(case)
        kept = json.loads(file.read_text("utf-8")) if file.is_file() else {"figures": {}, "records": []}
        told = kept.get("conditions", {}).get("stages", {}) | {name: {"date": now(), **conditions}}
        others = [record for record in kept["records"] if record.get("stage") != name]
        records = others + [{"stage": name, **record} for record in records]
        write_result(case, kept["figures"] | figures, records, {"stages": told})


def result_file(case: str) -> Path:
    return ROOT / "benchmarks" / case / "result.json"


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
