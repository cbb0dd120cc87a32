"""Share, factor and replace on the fine-tuned MiniLM and SST-2, and which parent to start from.

    make bench CASE=share-factor-replace        everything; hours on two cores
    run.py factor replace                       these stages alone, with their dates and conditions
    run.py replace --seeds 1 --train            its trainings alone, ahead of it, with this seed
    run.py --rows 48 --seeds 0 --base FOLDER    a smoke test: few rows, another pre-trained model

`result.json` holds what each stage found when it was run last; a smoke test leaves its own beside its runs. Runs
resume, so an interrupted stage goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from common import FINE_TUNING, data_folder, fine_tuned, run_stages, runs_folder, sentiment

from niwaki.anatomy import anatomy_of, label_names, longest_input
from niwaki.artifacts import artifact_of
from niwaki.checkpoint import load, load_tokenizer
from niwaki.comparison import RUNTIMES, Comparison, compare
from niwaki.demo import find_base
from niwaki.finetune import finetune
from niwaki.measure import Measurement
from niwaki.race import Race, race
from niwaki.recipe import Recipe
from niwaki.run import Run, compress
from niwaki.runtime import size_on_disk
from niwaki.task import Task
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.factor import Factor
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.replace import Replace
from niwaki.techniques.share import Share
from niwaki.train import Train

CASE = "share-factor-replace"
RUNTIME = "onnxruntime"
DISTILL = Distill(temperature=2, logits=1, hidden=1)
#: With half of the layers gone: the states inside tell more than the logits of rows that the base knows by heart.
#: Weight and rate were chosen by the divergence from the base on the validation rows, of one seed and one epoch.
INSIDE = Distill(temperature=2, logits=1, hidden=20)
EPOCHS = 1.0
#: Layers that come to be one have half of the training left in which they are.
LONGER = 1.5
#: Successors learn among predecessors first, and then all together.
TWICE = 2.0
#: The parents' budget is the latency of three layers in 8 bits, with this much room: the clock of another hour differs.
ROOM = 1.5


def trained(*others: Any, epochs: float = EPOCHS, distill: Distill = DISTILL, learning_rate: float = 1.5e-4) -> Train:
    """Some epochs with the base as the teacher, and what else travels along; the result is an average."""
    return Train(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=64,
        schedule="constant",
        average=0.998,
        dropout=0.0,
        together=(*others, distill),
    )


#: Three layers learn for longer, and more slowly, from what is inside of six.
taught_inside = partial(trained, epochs=TWICE, distill=INSIDE, learning_rate=1e-4)


def factored(by: str) -> Factor:
    """Feed-forwards and word table at half their parameters."""
    return Factor(keep=0.5, by=by, modules=("feed-forward",), embedding=0.5)


#: What is made of the base in each stage, by the name of its figures.
RECIPES: dict[str, dict[str, list[Any]]] = {
    "share-pairs": {"share-pairs": [trained(Share(groups="pairs"), epochs=LONGER)]},
    "share-all": {"share-all": [trained(Share(groups="all"), epochs=LONGER)]},
    "factor": {
        "factor-plain": [factored("svd")],
        "factor-fisher": [factored("fisher")],
        "factor-whitened": [factored("whitened")],
        "factor-half": [factored("whitened"), trained()],
        "factor-80": [Factor(keep=0.8, by="whitened")],
    },
    "replace": {
        "replace": [taught_inside(Replace(keep_layers=3, start="last", end=0.3))],
        "drop-layers": [Drop(keep_layers=3, by="uniform"), taught_inside()],
    },
}
#: What every parent of the race goes through; to keep three of three layers changes nothing.
CUT = [Drop(keep_layers=3, by="uniform"), trained(), Quantize(bits=8)]


@dataclass(frozen=True)
class Case:
    """Hold what a run of this script is about; with `rows` or `pretrained` it is a smoke test."""

    seeds: tuple[int, ...]
    rows: int | None = None
    pretrained: str | None = None

    @property
    def is_smoke(self) -> bool:
        return bool(self.rows or self.pretrained)

    @property
    def folder(self) -> Path:
        return runs_folder(f"{CASE}-smoke" if self.is_smoke else CASE)

    @cached_property
    def task(self) -> Task:
        if not self.rows:
            return sentiment()
        few = self.folder / f"data-{self.rows}"
        few.mkdir(exist_ok=True)
        for name in ("train.csv", "validation.csv"):
            with (data_folder() / "sst2" / name).open(encoding="utf-8", newline="") as file:
                head, *rows = csv.reader(file)
            with (few / name).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([head, *rows[:: max(1, len(rows) // self.rows)][: self.rows]])
        return Task("text-classification", data=str(few))

    @cached_property
    def base(self) -> Path:
        """Return the fine-tuned model; a smoke test has its own."""
        if not self.is_smoke:
            return fine_tuned(self.task)
        return finetune(self.pretrained or find_base(), self.task, self.folder / "base", **FINE_TUNING).folder

    def runs(self, stage: str, name: str) -> dict[int, Run]:
        """Return what a recipe makes, by seed; what trains nothing is made once."""
        steps = RECIPES[stage][name]
        seeds = self.seeds if any(isinstance(step, Train) for step in steps) else self.seeds[:1]
        return {
            seed: compress(
                self.base,
                Recipe(steps),
                self.task,
                self.folder / f"{name}-{seed}",
                seed=seed,
                measure=False,
                progress=False,
            )
            for seed in seeds
        }

    def measured(self, runs: Iterable[Run]) -> dict[str, Measurement]:
        """Measure base and runs in one session; return the rows by name, the base's first."""
        folders = [one.folder for one in runs]
        rows = compare(self.base, *folders, task=self.task, runtimes=[RUNTIME], progress=False).rows
        return {row.name: row for row in rows}


def made(case: Case, stage: str) -> tuple[dict[str, Any], list[Any]]:
    """Carry out the recipes of a stage with each seed, and measure all in one session."""
    runs = {name: case.runs(stage, name) for name in RECIPES[stage]}
    rows = case.measured(run for several in runs.values() for run in several.values())
    figures: dict[str, Any] = {}
    records = [next(iter(rows.values())).model_dump(mode="json")]
    for name, several in runs.items():
        word = name.replace("-", "_")
        figures[f"{word}_drop"] = mean(-rows[one.name].quality.difference for one in several.values())
        if any(isinstance(step, Train) for step in RECIPES[stage][name]):
            figures[f"{word}_minutes"] = mean(minutes(one) for one in several.values())
        ratios = {seed: bytes_ratios(case, one) for seed, one in several.items()} if "share" in stage else {}
        if ratios:
            figures[f"{word}_bytes_ratio"] = min(ratio for found in ratios.values() for ratio in found.values())
        for seed, one in several.items():
            told = {"seed": seed, "recipe": Recipe(RECIPES[stage][name]).plain()["steps"]}
            extra = {"encoder_bytes_ratio": ratios[seed]} if ratios else {}
            records.append({**told, **extra, **rows[one.name].model_dump(mode="json")})
    return figures, records


def bytes_ratios(case: Case, one: Run) -> dict[str, float]:
    """Return the bytes of the base's layers over those of the run's, in every artifact."""
    sizes = {folder: encoder_bytes(case, folder) for folder in (case.base, one.folder)}
    return {to: size / sizes[one.folder][to] for to, size in sizes[case.base].items()}


def encoder_bytes(case: Case, folder: Path) -> dict[str, int]:
    """Return the bytes on disk of a model in every artifact, less those that do not belong to its layers."""
    model, tokenizer = load(folder), load_tokenizer(folder)
    layers = {id(parameter) for parameter in anatomy_of(model).layer_list.parameters()}
    others = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in layers)
    rows = case.task.encode(tokenizer, longest_input(model, tokenizer), label_names(model)).evaluation
    sizes = {"safetensors": size_on_disk(folder, "torch")}
    for runtime, to in RUNTIMES.items():
        if to:
            path, _ = artifact_of(folder, to, rows, folder / "artifacts")
            sizes[to] = size_on_disk(path, runtime)
    return {to: size - others for to, size in sizes.items()}


def parents(case: Case) -> tuple[dict[str, Any], list[Any]]:
    """Race six layers, half of them and twice as many, fine-tuned alike, to the latency of three layers in 8 bits."""
    six = case.pretrained or find_base()
    budget = f"latency={bound(case):.3f}ms"
    named = [f"twelve={doubled(six, case.folder / 'twelve')}", f"six={six}", f"three={six}:keep_layers=3"]
    tuning = Train(**{"batch_size": 64, **FINE_TUNING})
    races = {
        seed: race(
            named,
            Recipe(CUT),
            case.task,
            budget,
            case.folder / f"race-{seed}",
            training=tuning,
            runtimes=[RUNTIME],
            seed=seed,
            progress=False,
        )
        for seed in case.seeds
    }
    how = {
        "twelve": "each layer of MiniLM twice, one after the other, then fine-tuned",
        "six": "MiniLM, fine-tuned",
        "three": "every second layer of MiniLM, then fine-tuned",
    }
    told = [{"parent": name, "made": made_of, **summary(name, races.values())} for name, made_of in how.items()]
    records = [record for seed, one in races.items() for record in of_race(case.folder / f"race-{seed}", one)]
    return {"parents": told, "parents_budget_ms": bound(case)}, records


def of_race(folder: Path, one: Race) -> list[dict[str, Any]]:
    """Return the rows of a race's session; beside a finalist stands its quality paired with that of the first."""
    if one.winner is None:
        return []
    first = {f"{entrant.parent}, compressed": entrant.quality for entrant in one.entrants if entrant.quality}
    rows = Comparison.read(folder / "measurement.json").rows
    paired = {name: {"to_first": quality.model_dump(mode="json")} for name, quality in first.items()}
    told = {"seed": one.seed, "budget": one.budget}
    return [{**told, **paired.get(row.name, {}), **row.model_dump(mode="json")} for row in rows]


def summary(name: str, races: Iterable[Race]) -> dict[str, Any]:
    """Return the means over seeds of one parent, and its interval in each race."""
    own = [next(entrant for entrant in one.entrants if entrant.parent == name) for one in races]
    fit = [entrant for entrant in own if entrant.fits]
    return {
        "reached": len(fit),
        "races": len(own),
        "parent_accuracy": mean(one.quality.value - one.lost.difference for one in fit),
        "accuracy": mean(one.quality.value for one in fit),
        "to_first": mean(one.quality.difference for one in fit),
        "to_first_intervals": "; ".join("{:+.2f}..{:+.2f}".format(*one.quality.interval) for one in fit),
        "to_parent": mean(one.lost.difference for one in fit),
        "latency_ms": mean(1e3 * one.latency_seconds for one in fit),
    }


def bound(case: Case) -> float:
    """Return the budget in milliseconds: measured once, and kept, so that all races run to the same one."""
    file = case.folder / "budget.json"
    if not file.is_file():
        steps = [step for step in CUT if not isinstance(step, Train)]
        small = compress(case.base, Recipe(steps), case.task, case.folder / "budget", measure=False, progress=False)
        seconds = case.measured([small])[small.name].latency_seconds.median
        file.write_text(json.dumps({"milliseconds": math.ceil(seconds * ROOM * 1e5) / 100}), encoding="utf-8")
    return float(json.loads(file.read_text(encoding="utf-8"))["milliseconds"])


def doubled(source: str, folder: Path) -> Path:
    """Write an encoder in which every layer stands twice, one after the other, and return its folder."""
    if not (folder / "model.safetensors").is_file():
        from copy import deepcopy

        from torch import nn
        from transformers import AutoModel

        model = AutoModel.from_pretrained(source)
        layers = model.encoder.layer
        model.encoder.layer = nn.ModuleList(deepcopy(layer) for layer in layers for _ in range(2))
        model.config.num_hidden_layers = len(model.encoder.layer)
        load_tokenizer(source).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def minutes(one: Run) -> float:
    """Return the time of all steps of a run, from its log."""
    events = [json.loads(line) for line in (one.folder / "log.jsonl").read_text("utf-8").splitlines()]
    return sum(event["seconds"] for event in events if event["event"] == "step-end") / 60


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("stages", nargs="*", help=f"of {', '.join([*RECIPES, 'parents'])}; else all")
    parser.add_argument("--rows", type=int, help="training and validation rows, for a smoke test")
    parser.add_argument("--seeds", default="0,1,2", help="of the trainings")
    parser.add_argument("--base", help="a pre-trained model in the place of MiniLM, for a smoke test")
    parser.add_argument("--train", action="store_true", help="carry out the recipes of the stages, and measure nothing")
    given = parser.parse_args(words)
    case = Case(tuple(int(seed) for seed in given.seeds.split(",")), given.rows, given.base)
    stages = {stage: partial(made, case, stage) for stage in RECIPES} | {"parents": partial(parents, case)}
    conditions = {
        "seeds": list(case.seeds),
        "fine_tuning": FINE_TUNING,
        "training": trained().model_dump(mode="json", exclude={"epochs"}),
        "training_of_replace": taught_inside().model_dump(mode="json", exclude={"epochs"}),
        "epochs": {"share": LONGER, "replace": TWICE, "all others": EPOCHS},
    }
    if given.train:
        for stage in given.stages or RECIPES:
            for name in RECIPES[stage]:
                case.runs(stage, name)
    elif case.is_smoke:
        for stage in given.stages or stages:
            figures, records = stages[stage]()
            print(json.dumps(figures, indent=2))
            (case.folder / f"{stage}.json").write_text(json.dumps({"figures": figures, "records": records}))
    else:
        run_stages(CASE, stages, given.stages, conditions)


if __name__ == "__main__":
    main(sys.argv[1:])
