"""Decoders read from disk block by block: the same integers as in memory, one block in memory at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

from niwaki import parts
from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.checkpoint import JOURNAL, WEIGHTS, load
from niwaki.cli import app
from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe
from niwaki.run import STREAMED, Run, compress
from niwaki.shards import INDEX, Shards, TensorFile
from niwaki.task import Task
from niwaki.techniques.quantize import Quantize
from niwaki.testing import fresh, make_context
from niwaki.walk import Walk

Bases = Callable[..., Path]
SOLVED = Quantize(
    bits=4,
    group=16,
    symmetric=False,
    by="gptq",
    embeddings=4,
    examples=24,
    override={
        "*.v_proj": {"bits": 8, "group": "channel", "symmetric": True, "by": "nearest"},
        "*.up_proj": {"by": "awq"},
    },
)


#: AWQ that is folded into norms, values and gated units; for `down_proj`, of 64 inputs, 40 tokens are too few.
FOLDED = Quantize(bits=3, group=16, symmetric=False, by="awq", embeddings=False, examples=7, length=7)


@pytest.fixture
def task(toy_data: Callable[..., Path]) -> Task:
    return Task("language-modelling", data=str(toy_data()))


@pytest.fixture
def sharded(
    tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., Any], tmp_path: Path
) -> Callable[..., Path]:
    """Return sharded(family, tied=True): the folder of a decoder in bfloat16, in several files."""

    def save(family: str = "llama", tied: bool = True) -> Path:
        model: Any = tiny_model(family, layers=3)
        if not tied:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().roll(1, dims=0).clone())
            model.config.tie_word_embeddings = False
        folder = tmp_path / f"{family}-{tied}"
        model.bfloat16().save_pretrained(folder, max_shard_size="20KB")
        tiny_tokenizer(family).save_pretrained(folder)
        assert (folder / INDEX).is_file() and len(list(folder.glob("*.safetensors"))) > 2
        return folder

    return save


def carried_out(base: Path, step: Quantize, task: Task, out: Path, stream: bool | None) -> Run:
    return compress(base, Recipe([step]), task, out, measure=False, progress=False, stream=stream)


def logged(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("family", "tied", "step"),
    [
        ("llama", True, SOLVED),
        ("mistral", False, SOLVED),
        ("llama", True, FOLDED),
        ("qwen2", True, Quantize()),
        ("qwen2", False, Quantize(bits=3, by="hqq", embeddings=False, skip=("*.0.mlp.down_proj",))),
    ],
)
def test_streaming_gives_the_very_file(
    family: str, tied: bool, step: Quantize, sharded: Callable[..., Path], task: Task, tmp_path: Path
) -> None:
    base = sharded(family, tied)
    whole, streamed = (carried_out(base, step, task, tmp_path / f"{word}", word == "yes") for word in ("no", "yes"))
    for name in (WEIGHTS, JOURNAL, "config.json", "recipe.yaml", "base.json"):
        assert (streamed.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name
    key = "steps/00-quantize/key.json"
    assert (streamed.folder / key).read_text() == (whole.folder / key).read_text()
    said = [[event for event in logged(run) if "saw too few" in event.get("note", "")] for run in (whole, streamed)]
    assert [len(notes) for notes in said] == [3 if step is FOLDED else 0] * 2, "each once"
    model = load(streamed.folder)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied  # type: ignore[union-attr]
    assert not list(streamed.folder.rglob("*.writing")) and not list(streamed.folder.rglob("*.pt"))


def test_one_block_is_in_memory_and_nothing_is_read_twice_for_nothing(
    sharded: Callable[..., Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[list[str]] = []
    held: list[int] = []
    original = parts.OnDisk._read

    def spy(self: parts.OnDisk, model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
        held.append(sum(not tensor.is_meta for tensor in model.state_dict().values()))
        reads.append(names)
        return original(self, model, names)

    base = sharded("llama")
    first = carried_out(base, SOLVED, task, tmp_path / "out", stream=True)
    monkeypatch.setattr(parts.OnDisk, "_read", spy)
    monkeypatch.setattr(parts.OnDisk, "weights_hash", lambda self, model: "other")
    carried_out(base, SOLVED, task, tmp_path / "again", stream=True)
    homes = [{".".join(name.split(".")[:3]) for name in names} for names in reads]
    blocks = [{f"model.layers.{index}"} for index in range(3)]
    table, head = {"model.embed_tokens.weight"}, {"lm_head.weight"}
    assert homes == [table, *blocks, table, head, {"model.norm.weight"}]
    assert held == [0, 0, 0, 0, 0, 1, 0], "the head is read while its table is there"
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (first.folder / WEIGHTS).read_bytes()


def test_a_walk_sees_what_whole_passes_see(saved_base: Bases, toy_task: Task, task: Task, tmp_path: Path) -> None:
    for family in ("bert", "distilbert", "qwen2"):
        own = task if family == "qwen2" else toy_task
        context = make_context(saved_base(family), own, tmp_path / family)
        model = fresh(context)
        anatomy = anatomy_of(model)
        walk = Walk(model, context.calibration_batches(40), context.parts)
        for layer in anatomy.layers:
            walk.go_through(layer)
        with torch.inference_mode():
            passes = [model(**inputs_of(b), output_hidden_states=True) for b in context.calibration_batches(40)]
        assert len(passes) == len(walk.hidden) == 2
        for index, output in enumerate(passes):
            hidden_BTD = walk.hidden[index] if family != "qwen2" else anatomy.model.model.norm(walk.hidden[index])
            assert torch.equal(output.hidden_states[-1], hidden_BTD)


def test_a_large_model_is_streamed_unasked_and_goes_on(
    sharded: Callable[..., Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = sharded("llama"), tmp_path / "out"
    step = Quantize(preset="int4", group=16)
    monkeypatch.setattr(parts, "SHARE", 0.0)
    run = compress(base, Recipe([step]), task, out, progress=False)
    events = logged(run)
    assert STREAMED in [event.get("note") for event in events] and not (out / "measurement.json").exists()
    before = (out / WEIGHTS).stat()
    compress(base, Recipe([step]), task, out, progress=False)
    events = logged(run)
    assert sum(event["event"] == "step-begin" for event in events) == 1
    assert (out / WEIGHTS).stat().st_ino == before.st_ino
    assert run.base["parameters"] == events[-2].get("parameters", run.base["parameters"])
    with pytest.raises(NiwakiError, match="changed by niwaki before"):
        carried_out(out, step, task, tmp_path / "twice", stream=True)


def test_the_command_line(sharded: Callable[..., Path], task: Task, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text("steps:\n  - quantize: {preset: int4, group: 16}\n")
    words = ["compress", str(sharded()), "--recipe", str(recipe), "--data", task.data, "--task", task.kind, "--stream"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "out"), "--quiet"])
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "out")
    refused = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "b"), "--budget", "size=1MB"])
    assert refused.exit_code == 2 and "--stream" in refused.output


def test_what_cannot_be_streamed_is_refused(
    sharded: Callable[..., Path], saved_base: Bases, task: Task, toy_task: Task, tmp_path: Path
) -> None:
    with pytest.raises(NiwakiError, match=r"BertForSequenceClassification(.|\n)*llama, mistral, qwen2"):
        carried_out(saved_base("bert"), Quantize(), toy_task, tmp_path / "a", stream=True)
    for step in (Quantize(activations="static"), Quantize(smooth=0.5), Quantize(bits=4, allowed_drop=1)):
        with pytest.raises(NiwakiError, match="without smooth"):
            carried_out(sharded(), step, task, tmp_path / "b", stream=True)
    base = sharded()
    shard = Shards(base).files["model.layers.1.mlp.up_proj.weight"]
    tensors = load_file(shard)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, shard, metadata={"format": "pt"})
    with pytest.raises(NiwakiError, match=r"model\.layers\.1\.mlp\.up_proj has weights that are not finite"):
        carried_out(base, Quantize(preset="int4", group=16), task, tmp_path / "c", stream=True)
    assert not (tmp_path / "c" / WEIGHTS).exists()
    shard.unlink()
    with pytest.raises(NiwakiError, match=f"has no {shard.name}"):
        carried_out(base, Quantize(preset="int4", group=16), task, tmp_path / "d", stream=True)


def test_a_file_written_in_pieces(tmp_path: Path) -> None:
    """It is, byte for byte, what safetensors writes at once; and no file where one tensor is missing."""
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "scale": torch.tensor(0.5),
        "half": torch.randn(5).bfloat16(),
        "wide": torch.randn(2, 3),
        "small": torch.tensor([[-1, 2]], dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    layout = {name: tensor.to("meta") for name, tensor in tensors.items()}
    with TensorFile(tmp_path / "pieces.safetensors", layout, {"format": "pt"}) as file:
        for name in sorted(tensors, reverse=True):
            file.write(name, tensors[name])
    assert (tmp_path / "pieces.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    with pytest.raises(NiwakiError, match="lacks half"), TensorFile(tmp_path / "x.safetensors", layout) as file:
        for name in set(tensors) - {"half"}:
            file.write(name, tensors[name])
    with pytest.raises(NiwakiError, match="wide is"), TensorFile(tmp_path / "x.safetensors", layout) as file:
        file.write("wide", torch.zeros(3, 2))
    assert not (tmp_path / "x.safetensors").exists()
