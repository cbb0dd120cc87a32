"""`compress` from end to end on a tiny model: the folder, the artifact, and what survives a kill."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from niwaki.checkpoint import load, weights_hash
from niwaki.errors import NiwakiError
from niwaki.finetune import finetune
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.task import Task
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.prune import Prune, latency
from niwaki.techniques.quantize import Quantize
from niwaki.train import Train

Bases = Callable[..., Path]

RECIPE = Recipe(
    [
        Drop(keep_layers=2, by="uniform"),
        Train(
            together=(Distill(hidden=1.0), Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8)),
            epochs=3,
            batch_size=8,
            learning_rate=1e-3,
            checkpoint_seconds=0.05,
        ),
        Quantize(),
    ]
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIWAKI_CACHE", str(tmp_path / "cache"))


def log_of(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_family(saved_base: Bases, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of targets makes a run each, from one calibration; steps before it are carried out once."""
    table = {"heads": {1: 1.0, 4: 4.0}, "neurons": {16: 1.0, 64: 4.0}}
    monkeypatch.setattr(latency, "timed", lambda *arguments: table)  # no test hangs on what the clock says
    base = saved_base("bert", layers=3)
    keep = {"latency": [0.9, 0.7], "runtime": "torch", "length": 12}
    prune = Prune(by="second-order", keep=keep, multiple_of=16, examples=32)  # type: ignore[arg-type]
    recipe = Recipe([Drop(keep_layers=2, by="uniform"), prune])
    assert Recipe.parse(recipe.dump()) == recipe
    out = tmp_path / "small"
    run = compress(base, recipe, toy_task, out, measure=False, progress=False, export=())
    assert [member.name for member in run.members] == ["latency-0.9", "latency-0.7"]
    assert run.recipe == recipe
    for share, member in zip((0.9, 0.7), run.members, strict=True):
        (only,) = member.members
        assert only == member and member.recipe == recipe.family()[member.name]
        step = member.recipe.steps[1]
        assert isinstance(step, Prune) and step.keep is not None and step.keep.latency == share
        assert weights_hash(member.load()) == weights_hash(load(member.folder))
    first, second = (log_of(member.folder) for member in run.members)
    assert "00-drop was done before" in str(second) and "00-drop was done before" not in str(first)
    calibrations = [event["file"] for log in (first, second) for event in log if event["event"] == "calibration"]
    assert len(calibrations) == 2 and len(set(calibrations)) == 1
    with pytest.raises(NiwakiError, match="family of 2 runs"):
        run.load()
    again = compress(base, recipe, toy_task, out, measure=False, progress=False, export=())
    assert "01-prune was done before" in str(log_of(again.members[1].folder))
    with pytest.raises(NiwakiError, match="holds other files"):
        compress(base, Recipe([Quantize()]), toy_task, out, measure=False, progress=False)


def test_the_whole_job(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    base = saved_base(family, layers=3)
    before = weights_hash(load(base))
    run = compress(base, RECIPE, toy_task, tmp_path / "small", measure=False, progress=False)
    names = {path.name for path in run.folder.iterdir()}
    assert {"recipe.yaml", "base.json", "journal.jsonl", "model.safetensors", "config.json", "log.jsonl"} <= names
    assert (run.folder / "artifacts" / "model.onnx").is_file()
    assert run.recipe.steps == RECIPE.steps
    assert weights_hash(load(base)) == before == run.base["sha256"]
    assert run.base["data"]["rows"] == {"train": 96, "validation": 48, "test": None}
    assert not list(run.folder.rglob("*.writing")) and not list(run.folder.rglob("*.unfinished"))
    size = (run.folder / "model.safetensors").stat().st_size
    assert size < (base / "model.safetensors").stat().st_size / 2
    steps = [event["step"] for event in log_of(run.folder) if event["event"] == "step-end"]
    assert steps == ["00-drop", "01-train", "02-quantize"]


def test_a_second_time_nothing_is_done_again(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    base, out = saved_base("bert", layers=3), tmp_path / "small"
    first = weights_hash(compress(base, RECIPE, toy_task, out, export=(), measure=False, progress=False).load())
    lines = len(log_of(out))
    assert weights_hash(compress(base, RECIPE, toy_task, out, export=(), measure=False, progress=False).load()) == first
    assert {str(event["note"]) for event in log_of(out)[lines:]} == {
        "00-drop was done before", "01-train was done before", "02-quantize was done before",
    }  # fmt: skip
    other = Recipe([*RECIPE.steps[:2], Quantize(embeddings=False)])
    assert weights_hash(compress(base, other, toy_task, out, export=(), measure=False, progress=False).load()) != first
    assert [event["step"] for event in log_of(out)[lines:] if event["event"] == "step-end"] == ["02-quantize"]


def test_the_result_is_measured_beside_its_base(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """One call gives the model, the ONNX file, the comparison and the card; a second call measures nothing again."""
    base, out = saved_base("bert", layers=3), tmp_path / "small"
    recipe = Recipe([Drop(keep_layers=2, by="first"), Quantize()])
    run = compress(base, recipe, toy_task, out, runtimes=["onnxruntime"], progress=False)
    before, after = run.comparison.rows
    assert (before.name, after.name) == (base.name, "small")
    assert after.size_bytes == (out / "artifacts" / "model.onnx").stat().st_size < before.size_bytes
    assert after.quality.count == 48 and after.parity.agreement > 0.9
    assert "small" in (out / "README.md").read_text()
    assert not (base / "artifacts").exists()
    stamps = [(out / name).stat().st_mtime_ns for name in ("measurement.json", "artifacts/model.onnx")]
    compress(base, recipe, toy_task, out, runtimes=["onnxruntime"], progress=False)
    assert [(out / name).stat().st_mtime_ns for name in ("measurement.json", "artifacts/model.onnx")] == stamps


def test_killed_three_times_it_ends_with_the_same_weights(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """`kill -9` at random moments, then the same command: the weights it would have had."""
    base = saved_base("bert", layers=3)
    whole = compress(base, RECIPE, toy_task, tmp_path / "whole", progress=False, measure=False, export=())
    (tmp_path / "recipe.yaml").write_text(RECIPE.dump())
    code = (
        "from niwaki.run import compress; from niwaki.task import Task; import sys, torch; torch.set_num_threads(1);"
        "base, recipe, data, out = sys.argv[1:];"
        "compress(base, recipe, Task('text-classification', data=data), out, progress=False, measure=False, export=())"
    )
    out = tmp_path / "killed"
    command = [sys.executable, "-c", code, str(base), str(tmp_path / "recipe.yaml"), str(toy_task.data), str(out)]
    environment = {**os.environ, "NIWAKI_CACHE": str(tmp_path / "other-cache")}
    chance = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, env=environment)
        begun = len(log_of(out)) if (out / "log.jsonl").is_file() else 0
        while process.poll() is None and not ((out / "log.jsonl").is_file() and len(log_of(out)) > begun + 1):
            time.sleep(0.01)  # the imports are over, and steps are being done
        time.sleep(chance.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, env=environment, check=True)
    assert weights_hash(load(out)) == weights_hash(whole.load())


def test_finetune_writes_a_plain_folder(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    pretrained = tmp_path / "pretrained"
    backbone = load(saved_base(family)).base_model
    backbone.save_pretrained(pretrained)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (pretrained / file).write_bytes((saved_base(family) / file).read_bytes())
    with pytest.raises(NiwakiError, match="no fine-tuned classification head"):
        compress(pretrained, RECIPE, toy_task, tmp_path / "early", progress=False)
    run = finetune(pretrained, toy_task, tmp_path / "base", epochs=1, batch_size=16, progress=False)
    finetune(pretrained, toy_task, tmp_path / "base", epochs=1, batch_size=16, progress=False)  # nothing is done again
    again = finetune(pretrained, toy_task, tmp_path / "again", epochs=1, batch_size=16, progress=False)
    model = AutoModelForSequenceClassification.from_pretrained(run.folder)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert weights_hash(model) == weights_hash(load(run.folder)) == weights_hash(load(again.folder))


def test_bad_input_leaves_nothing(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    base = saved_base("bert", layers=3)
    out = tmp_path / "out"
    for recipe, words in (
        (Recipe([Drop(keep_layers=4)]), "keep_layers is 4"),
        (Recipe([Train(together=(Distill(),)), Drop(keep_layers=9)]), "a model that has 3"),
    ):
        with pytest.raises(NiwakiError, match=words):
            compress(base, recipe, toy_task, out, progress=False)
        assert not out.exists()
    with pytest.raises(NiwakiError, match="no model could be loaded"):
        compress(tmp_path / "nowhere", RECIPE, toy_task, out, progress=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(NiwakiError, match="holds other files"):
        compress(base, RECIPE, toy_task, tmp_path / "mine", progress=False)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_caller_s_model_is_untouched(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    model = load(saved_base("bert", layers=3)).train()
    before = weights_hash(model)
    compress(model, RECIPE, toy_task, tmp_path / "small", progress=False, measure=False, export=())
    assert weights_hash(model) == before
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())
    assert torch.is_grad_enabled()
