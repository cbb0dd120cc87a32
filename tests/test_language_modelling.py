"""Language modelling: what is counted, how it is compared, and that a decoder goes the whole way."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from niwaki.anatomy import anatomy_of
from niwaki.budget import Budget
from niwaki.calibrate import predict
from niwaki.comparison import as_table, compare
from niwaki.errors import NiwakiError
from niwaki.export import export_onnx
from niwaki.measure import paired_quality
from niwaki.measure.surprise import permutation_p_value
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.runtime import OUTCOMES
from niwaki.task import Task, higher_is_better, score
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.testing import fresh, make_context
from niwaki.train import Train

Bases = Callable[..., Path]
Tokenizers = Callable[..., object]


def write_texts(folder: Path, **splits: list[str]) -> str:
    """Write splits of one column."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text"], *([text] for text in texts)])
    return str(folder)


@pytest.fixture
def task(toy_data: Callable[..., Path]) -> Task:
    """Return the toy sentences as texts; their labels are not looked at."""
    return Task("language-modelling", data=str(toy_data()))


# What is counted


def test_surprises_by_hand() -> None:
    """Of three tokens the first is given; the second has odds 3 to 1, the third 1 to 1, padding is not counted."""
    ids_BT = np.array([[0, 1, 0], [1, 1, 9]])
    mask_BT = np.array([[1, 1, 1], [1, 1, 0]])
    logits_BTV = np.zeros((2, 3, 2), dtype=np.float32)
    logits_BTV[0, 0, 1] = math.log(3)
    logits_BTV[:, 2] = 100.0  # after the last token: nothing is predicted there
    found = OUTCOMES["surprises"](logits_BTV, {"input_ids": ids_BT, "attention_mask": mask_BT})
    np.testing.assert_allclose(found, [[math.log(4 / 3) + math.log(2), 2], [math.log(2), 1]], rtol=1e-6)
    assert score("nats", found, None) == pytest.approx((math.log(4 / 3) + 2 * math.log(2)) / 3)
    assert score("perplexity", found, None) == pytest.approx((16 / 3) ** (1 / 3))
    assert not higher_is_better("nats") and not higher_is_better("perplexity") and higher_is_better("accuracy")


def test_a_long_row_is_summed_in_parts() -> None:
    generator = np.random.default_rng(0)
    logits_BTV, ids_BT = generator.normal(size=(1, 150, 7)).astype(np.float32), generator.integers(0, 7, (1, 150))
    found = OUTCOMES["surprises"](logits_BTV, {"input_ids": ids_BT, "attention_mask": np.ones_like(ids_BT)})
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits_BTV[0, :-1]), torch.from_numpy(ids_BT[0, 1:]), reduction="sum"
    )
    np.testing.assert_allclose(found, [[float(expected), 149]], rtol=1e-5)


def test_loss_and_quality_count_the_same(saved_base: Bases, task: Task, tmp_path: Path) -> None:
    """The training loss of one padded batch is the metric of its rows."""
    context = make_context(saved_base("llama"), task, tmp_path)
    rows = context.data.validation
    batch = rows.batch(range(8))
    assert batch["labels"].shape == batch["input_ids"].shape
    assert (batch["labels"] == -100).equal(batch["attention_mask"] == 0)
    with torch.inference_mode():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = float(task.loss(context.base(**inputs).logits, batch["labels"]))
    found = predict(context.base, rows.select(range(8)), batch_size=3, keep=OUTCOMES["surprises"])
    assert found.shape == (8, 2)
    assert score("nats", found, None) == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("values", [[np.nan], [np.inf]])
def test_logits_that_are_no_numbers_are_refused(values: list[float]) -> None:
    logits_BTV = np.full((1, 3, 2), values[0])
    batch = {"input_ids": np.ones((1, 3), int), "attention_mask": np.ones((1, 3), int)}
    with pytest.raises(NiwakiError, match="NaN or infinite"), np.errstate(invalid="ignore"):
        OUTCOMES["surprises"](logits_BTV, batch)


# How the data are read


def test_texts_are_rows_and_long_ones_are_cut(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    data = write_texts(tmp_path / "d", train=["the film"] * 3, validation=["the film was good", "a plot", "the film"])
    found = Task("language-modelling", data=data, max_length=4).encode(tiny_tokenizer("llama"), 64)
    assert found.validation.lengths.tolist() == [4, 3, 3]  # the start token, and as many words as fit
    assert len({int(found.validation.tokens_of(row)[0]) for row in range(3)}) == 1
    assert found.validation.labels is None and found.labels == ()
    assert any("1 of 3 validation texts (33.3%) were cut to 4 tokens" in note for note in found.notes)
    assert any("in train too" in note for note in found.notes)
    assert len(found.fingerprint) == 64
    held, chosen = found.selection(0)
    assert len(held) + len(chosen) == 3 and chosen.name == "selection"


def test_packed_texts_are_one_stream(tmp_path: Path, tiny_tokenizer: Tokenizers) -> None:
    data = write_texts(tmp_path / "d", validation=["the film was good", "a plot", "the film"])
    apart = Task("language-modelling", data=data).encode(tiny_tokenizer("llama"), 64).validation
    joined = Task("language-modelling", data=data, pack=True, max_length=4).encode(tiny_tokenizer("llama"), 64)
    assert joined.validation.lengths.tolist() == [4, 4, 3]
    assert joined.validation.tokens.tolist() == apart.tokens.tolist()
    assert not any("cut" in note for note in joined.notes)


def test_what_means_nothing_to_the_task_is_refused(tmp_path: Path, saved_base: Bases, toy_task: Task) -> None:
    data = write_texts(tmp_path / "d", validation=["the film"])
    with pytest.raises(NiwakiError, match='no parameter "label"'):
        Task("language-modelling", data=data, label="label")
    with pytest.raises(NiwakiError, match="metric"):
        Task("language-modelling", data=data, metric="accuracy")
    with pytest.raises(NiwakiError, match="which writes no text"):
        compare(saved_base("bert"), task=Task("language-modelling", data=data), progress=False)
    with pytest.raises(NiwakiError, match="language-modelling"):
        compare(saved_base("llama"), task=toy_task, progress=False)


# How two models are compared


def test_paired_surprises_by_hand() -> None:
    """Two texts of 1 and 3 tokens: tokens weigh alike, and each resample has both models' numbers of a text."""
    base, this = np.array([[1.0, 1], [3.0, 3]]), np.array([[1.5, 1], [4.5, 3]])
    found = paired_quality(base, this, None, "nats", resamples=500)
    assert (found["value"], found["difference"]) == (pytest.approx(1.5), pytest.approx(0.5))
    assert found["interval"] == (pytest.approx(0.5), pytest.approx(0.5))  # the same in every draw
    assert found["value_interval"] == (pytest.approx(1.5), pytest.approx(1.5))
    assert found["count"] == 2 and found["changed"] is None
    found = paired_quality(base, this, None, "perplexity", resamples=500)
    assert found["difference"] == pytest.approx(math.exp(1.5) - math.exp(1.0))


def test_p_value_by_enumeration() -> None:
    """Of 8 signs of three equal differences, two give so large a sum: p is about 1/4; equal models have p = 1."""
    assert permutation_p_value(np.array([1.0, 1.0, 1.0]), 20000, seed=0) == pytest.approx(0.25, abs=0.02)
    assert permutation_p_value(np.zeros(5), 100, seed=0) == 1.0
    assert permutation_p_value(np.ones(20), 999, seed=0) == pytest.approx(0.001)


def test_a_budget_counts_perplexity() -> None:
    with pytest.raises(NiwakiError, match="nats has none"):
        Budget.parse("quality=-1pt").require("nats")
    Budget.parse("quality=-1pt").require("accuracy")
    record = {"quality": {"metric": "nats", "value": 1.0 + math.log(1.05), "difference": math.log(1.05)}}
    assert not Budget.parse("quality=95%").check(record)  # 1 / 1.05 is 95.2%
    assert [miss.found for miss in Budget.parse("quality=97%").check(record)] == ["95.24%"]
    record = {"quality": {"metric": "perplexity", "value": 4.0, "difference": -1.0}}  # better than the base
    assert not Budget.parse("quality=100%").check(record)
    assert Budget.parse("quality=-1pt").check(record)


# The whole way


def test_compress_goes_the_whole_way(saved_base: Bases, task: Task, tmp_path: Path) -> None:
    recipe = Recipe.parse(
        "steps:\n  - drop: {keep_layers: 1}\n  - prune: {keep_heads: 0.5, keep_neurons: 0.5, multiple_of: 8}\n"
        "  - quantize: {}"
    )
    run = compress(saved_base("llama"), recipe, task, tmp_path / "run", progress=False)
    base, small = run.comparison.rows
    assert (base.runtime, small.runtime) == ("torch", "torch")
    assert small.size_bytes < base.size_bytes / 2 and small.parameters < base.parameters
    assert small.quality.metric == "nats" and small.quality.changed is None
    assert small.quality.value_interval[0] < small.quality.value < small.quality.value_interval[1]
    assert small.quality.value == pytest.approx(base.quality.value + small.quality.difference)
    context = make_context(run.folder, task, tmp_path / "again")
    found = predict(context.base, context.data.validation, batch_size=1, keep=OUTCOMES["surprises"])
    assert small.quality.value == pytest.approx(score("nats", found, None), rel=1e-6)
    table = as_table(run.comparison)
    assert f"{small.quality.value:.4f} nats (" in table
    card = (run.folder / "README.md").read_text()
    assert "model.generate(" in card and "text-generation" in card and "points" not in card
    parts = {row["module"] for row in json.loads((run.folder / "measurement.json").read_text())["modules"]["run"]}
    assert {"embeddings", "layer 0 attention", "layer 0 feed-forward", "head"} == parts


def test_export_is_refused_before_any_work(
    saved_base: Bases, task: Task, tmp_path: Path, tiny_model: Callable[..., torch.nn.Module]
) -> None:
    recipe = Recipe([Drop(keep_layers=1)])
    for asked in ({"export": ["onnx"]}, {"runtimes": ["onnxruntime"]}):
        with pytest.raises(NiwakiError, match="cannot be exported to onnx yet"):
            compress(saved_base("llama"), recipe, task, tmp_path / "run", progress=False, **asked)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NiwakiError, match="LlamaForCausalLM"):
        export_onnx(tiny_model("llama"), [{"input_ids": torch.ones(1, 4, dtype=torch.int64)}], tmp_path / "m.onnx")


def test_a_student_learns_from_a_living_teacher(saved_base: Bases, task: Task, tmp_path: Path) -> None:
    """The divergence from the teacher falls, and no logits are kept on disk."""
    context = make_context(saved_base("llama"), task, tmp_path)
    student = Drop(keep_layers=1, by="first").apply(fresh(context), context)
    batch = {name: value for name, value in context.train.batch(range(16)).items() if name != "labels"}

    def distance(model: torch.nn.Module) -> float:
        with torch.inference_mode():
            ours, theirs = (one.eval()(**batch).logits.log_softmax(-1) for one in (model, context.base))
        return float((theirs.exp() * (theirs - ours)).sum(-1)[batch["attention_mask"].bool()].mean())

    before = distance(student)
    train = Train(together=(Distill(temperature=1),), epochs=6, batch_size=8, learning_rate=1e-2)
    student = train.run(student, context)
    assert distance(student) < 0.8 * before
    assert not list((tmp_path / "cache").rglob("logits.npy"))
    assert student.lm_head.weight is student.model.embed_tokens.weight


def test_the_best_epoch_is_the_least_surprised_one(saved_base: Bases, task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("llama"), task, tmp_path)
    events: list[dict[str, object]] = []
    context = dataclasses.replace(context, log=events.append)
    model = Train(epochs=4, batch_size=8, learning_rate=5e-2, best=True).run(fresh(context), context)
    judged = [event["selection"] for event in events if event["event"] == "evaluate"]
    _, selection = context.data.selection(context.seed)
    assert len(set(judged)) == 4
    assert score("nats", predict(model, selection, keep=OUTCOMES["surprises"]), None) == pytest.approx(min(judged))
    assert anatomy_of(model).tied_names and model.lm_head.weight is model.model.embed_tokens.weight


def test_a_decoder_becomes_a_classifier(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    from niwaki.finetune import finetune

    finetune(saved_base("llama"), toy_task, tmp_path / "base", epochs=0.2, progress=False)
    context = make_context(tmp_path / "base", toy_task, tmp_path / "w")
    assert predict(context.base, context.data.validation).shape == (48, 2)
    assert anatomy_of(context.base).head is context.base.score and anatomy_of(context.base).language_head is None


def test_finetune_heals_a_language_model(saved_base: Bases, task: Task, tmp_path: Path) -> None:
    from niwaki.finetune import finetune

    base = saved_base("llama")
    finetune(base, task, tmp_path / "healed", epochs=2, learning_rate=5e-3, batch_size=16, progress=False)
    values = []
    for place in (base, tmp_path / "healed"):
        context = make_context(place, task, tmp_path / place.name / "w")
        values.append(score("nats", predict(context.base, context.data.validation, keep=OUTCOMES["surprises"]), None))
    assert values[1] < values[0] - 0.1
