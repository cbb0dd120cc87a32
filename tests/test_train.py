"""The one loop: every row once an epoch, the same seed the same weights, an interruption harmless."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from niwaki.calibrate import predict
from niwaki.checkpoint import load, weights_hash
from niwaki.dropout import dropout_of
from niwaki.errors import NiwakiError
from niwaki.task import Task, score
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.techniques.prune import Prune
from niwaki.testing import fresh, make_context
from niwaki.train import Train, length_bucketed

Bases = Callable[..., Path]
RunUntil = Callable[[Train, Context, int], None]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=400), st.integers(1, 40), st.integers(0, 5))
def test_every_row_stands_in_one_batch(lengths: list[int], batch_size: int, epoch: int) -> None:
    batches = length_bucketed(np.array(lengths), batch_size, seed=1, epoch=epoch, buckets=3)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(lengths)))
    assert all(len(batch) <= batch_size for batch in batches)
    assert len(batches) == -(-len(lengths) // batch_size)


def test_buckets_save_padding_and_epochs_differ() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, 4096)
    batches = length_bucketed(lengths, 32, seed=0, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    assert padded < 1.1 * lengths.sum()
    again, other = length_bucketed(lengths, 32, seed=0, epoch=0), length_bucketed(lengths, 32, seed=0, epoch=1)
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))
    assert not np.array_equal(np.concatenate(batches), np.concatenate(other))


def test_a_tiny_model_learns(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    rows = context.train
    model = Train(epochs=25, batch_size=16, learning_rate=3e-3).run(fresh(context), context)
    assert score("accuracy", predict(model, rows).argmax(-1), rows.labels) > 90


@pytest.mark.parametrize(("step", "average"), [(1, 0.0), (7, 0.9), (11, 0.9)])
def test_an_interrupted_training_ends_with_the_same_weights(
    step: int, average: float, saved_base: Bases, toy_task: Task, tmp_path: Path, run_until: RunUntil
) -> None:
    together = (Distill(hidden=1.0), Prune(keep_neurons=0.5, multiple_of=8))
    train = Train(
        together=together, epochs=2, batch_size=16, learning_rate=1e-3, checkpoint_seconds=1e-9, average=average
    )
    context = make_context(saved_base("bert", layers=3), toy_task, tmp_path)
    whole = weights_hash(train.run(fresh(context), _at(context, tmp_path / "whole")))

    interrupted = _at(context, tmp_path / "interrupted")
    run_until(train, interrupted, step)
    notes: list[dict[str, Any]] = []
    resumed = train.run(fresh(context), replace(interrupted, log=notes.append))
    assert f"went on from step {step} of 12" in json.dumps(notes)
    assert weights_hash(resumed) == whole


def test_the_average_of_the_weights_is_the_result(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Four steps: the one update counts 9 parts of 11 (decay 2 / 11 in the beginning), what was before the rest."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    steps = Train(epochs=4 * 8 / len(context.train), batch_size=8, learning_rate=1e-3)
    name, before = next(iter(context.base.named_parameters()))
    last = steps.run(fresh(context), _at(context, tmp_path / "last")).get_parameter(name)
    averaged = steps.model_copy(update={"average": 0.999})
    result = averaged.run(fresh(context), _at(context, tmp_path / "averaged")).get_parameter(name)
    assert (last - before).abs().max() > 1e-4
    torch.testing.assert_close(result, before * 2 / 11 + last * 9 / 11)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_best_keeps_the_best_epoch(average: float, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base("bert"), toy_task, tmp_path), log=events.append)
    model = Train(epochs=6, batch_size=8, learning_rate=1e-2, best=True, average=average).run(fresh(context), context)
    _, selection = context.data.selection(context.seed)
    judged = [event["selection"] for event in events if event["event"] == "evaluate"]
    assert len(judged) == 6
    assert score("accuracy", predict(model, selection).argmax(-1), selection.labels) == max(judged)


@pytest.mark.parametrize("schedule", ["linear", "constant"])
def test_the_rate_falls_or_stays(schedule: Any, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Six steps after half of warm-up: the last is done at 5/6 of the way, so that 2 of 6 parts of a line are left."""
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base("bert"), toy_task, tmp_path), log=events.append)
    train = Train(epochs=1, batch_size=16, learning_rate=1e-3, warmup=0.5, schedule=schedule)
    train.run(fresh(context), context)
    (last,) = [event for event in events if event["event"] == "train" and event["optimizer_step"] == 6]
    assert last["learning_rate"] == pytest.approx(1e-3 * (1 / 3 if schedule == "linear" else 1))


def test_each_training_has_its_own_precision(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Two in one process: only the one in bf16 rounds what it computes; weights are floats in both."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    before = {name: value.clone() for name, value in context.base.state_dict().items()}
    found = {}
    for precision in ("bf16", "fp32"):
        train = Train(epochs=0.2, batch_size=16, learning_rate=1e-3, precision=precision)
        found[precision] = train.run(fresh(context), _at(context, tmp_path / precision))
        assert all(value.dtype == before[name].dtype for name, value in found[precision].state_dict().items())
    assert weights_hash(found["bf16"]) != weights_hash(found["fp32"])


@pytest.mark.parametrize("family", ["bert", "distilbert", "albert", "llama"])
def test_dropout_is_set_everywhere_and_put_back(family: str, saved_base: Bases) -> None:
    model = load(saved_base(family))
    before = _dropouts(model)
    with dropout_of(model, 0.25):
        assert _dropouts(model) == [0.25] * len(before)
    assert before and _dropouts(model) == before


def test_a_training_without_dropout_sees_none(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context, seen = make_context(saved_base("bert"), toy_task, tmp_path), set()
    model = fresh(context)
    dropout = next(module for module in model.modules() if isinstance(module, nn.Dropout))
    dropout.register_forward_hook(lambda module, inputs, output: seen.add(torch.equal(inputs[0], output)))
    Train(epochs=0.2, batch_size=16, dropout=0.0).run(model, context)
    assert seen == {True} and dropout.p > 0


def _dropouts(model: nn.Module) -> list[float]:
    modules = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    return modules + [
        module.attention_dropout for module in model.modules() if type(module).__name__ == "LlamaAttention"
    ]


def test_a_lost_training_says_so(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = fresh(context)
    next(model.parameters()).data.fill_(float("nan"))
    with pytest.raises(NiwakiError, match="not a number at step 1"):
        Train(epochs=1).run(model, context)


def test_the_log_tells_the_loss_by_part(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base("bert"), toy_task, tmp_path), log=events.append)
    Train(together=(Distill(labels=0.5, relations=1.0),), epochs=1, batch_size=32).run(fresh(context), context)
    last = [event for event in events if event["event"] == "train"][-1]
    assert last["optimizer_step"] == last["steps"] == 3
    assert set(last["parts"]) == {"task", "distillation.logits", "distillation.relations"}
    assert last["loss"] == pytest.approx(sum(last["parts"].values()), rel=1e-5)


def _at(context: Context, workspace: Path) -> Context:
    workspace.mkdir()
    return replace(context, workspace=workspace)
