"""`replace` tosses coins between the whole model and the small one, and leaves the small one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import evaluating, inputs_of
from niwaki.checkpoint import weights_hash
from niwaki.errors import NiwakiError
from niwaki.layers.either import coins
from niwaki.surgery import is_plain, journal_of, keep_layers, narrow_neurons
from niwaki.swapping import Curriculum
from niwaki.task import Task
from niwaki.technique import Context, Grain
from niwaki.techniques.distill import Distill, Distillation
from niwaki.techniques.factor import Factor
from niwaki.techniques.prune import Prune
from niwaki.techniques.replace import Replace
from niwaki.techniques.replace.companion import Replacing
from niwaki.techniques.replace.successors import differences
from niwaki.testing import fresh, logits, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]
RunUntil = Callable[[Train, Context, int], None]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    """A base of four layers."""
    return make_context(saved_base("bert", layers=4), toy_task, tmp_path)


def still(model: nn.Module) -> nn.Module:
    """Take the dropout out, so that training and evaluation compute the same."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def answers(model: nn.Module, context: Context, *, training: bool) -> Tensor:
    """Return the logits of some rows, as in training or in evaluation."""
    batch = context.data.evaluation.batch(range(8))
    batch.pop("labels")
    with torch.no_grad():
        found: Tensor = model.train(training)(**batch).logits
    return found


# Who answers


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "llama", "qwen2"])
def test_coins_decide_between_the_whole_model_and_the_small_one(
    family: str, saved_base: Bases, toy_task: Task, toy_data: Callable[..., Path], tmp_path: Path
) -> None:
    decoder = family in ("llama", "qwen2")
    task = Task("language-modelling", data=str(toy_data(tmp_path / "texts"))) if decoder else toy_task
    context = make_context(saved_base(family, layers=4), task, tmp_path)
    whole = answers(fresh(context), context, training=False)
    small = answers(keep_layers(fresh(context), layers=[0, 2]), context, training=False)
    for probability, expected in ((0.0, whole), (1.0, small)):
        model = still(fresh(context))
        technique = Replace(keep_layers=2, probability=probability, schedule="constant", end=0.5)
        companion = technique.accompany(model, context)
        companion.step(0.0)
        torch.testing.assert_close(answers(model, context, training=True), expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(answers(model, context, training=False), small)  # judged is what ships
        companion.step(0.5)
        torch.testing.assert_close(answers(model, context, training=True), small, rtol=1e-4, atol=1e-4)
        assert torch.equal(answers(companion.finish(model), context, training=False), small)
    assert (whole - small).abs().max() > 1e-2 and is_plain(model)


def test_each_example_has_its_coin(context: Context) -> None:
    """Of one place, each row is what it is by the whole or by the small model, whatever the rows beside it are."""
    whole = answers(fresh(context), context, training=False)
    small = answers(keep_layers(fresh(context), layers=[0, 1, 2]), context, training=False)
    model = still(fresh(context))
    technique = Replace(keep_layers=((0,), (1,), (2, 3)), coin="example", schedule="constant", end=1.0)
    companion = technique.accompany(model, context)
    seen = []
    for progress in (0.0, 0.25):
        companion.step(progress)
        fell_B = coins(8, 0.5, seed=context.seed, progress=progress, place=0)
        expected = torch.where(fell_B[:, None], small, whole)
        torch.testing.assert_close(answers(model, context, training=True), expected, rtol=1e-4, atol=1e-4)
        seen.append(fell_B)
    assert not torch.equal(*seen) and all(0 < int(fell_B.sum()) < 8 for fell_B in seen)


def test_a_coin_for_the_batch_is_one_coin(context: Context) -> None:
    model = still(fresh(context))
    companion = Replace(keep_layers=3, schedule="constant").accompany(model, context)
    pure = [answers(fresh(context), context, training=False)]
    pure.append(answers(model, context, training=False))
    assert isinstance(companion, Replacing) and len(companion.eithers) == 1  # of 4 layers in 3 runs, one is of two
    fell = []
    for step in range(8):
        companion.step(step / 32)
        found = answers(model, context, training=True)
        fell.append(bool(coins(1, 0.5, seed=context.seed, progress=step / 32, place=0)))
        torch.testing.assert_close(found, pure[fell[-1]], rtol=1e-4, atol=1e-4)
    assert set(fell) == {False, True}


@pytest.mark.parametrize(
    ("schedule", "values"),
    [
        ("constant", [0.2, 0.2, 0.2, 1.0, 1.0]),
        ("linear", [0.2, 0.4, 0.6, 1.0, 1.0]),
        ("cosine", [0.2, 0.2 + 0.8 * 0.5 * (1 - 0.5**0.5), 0.6, 1.0, 1.0]),  # cos(pi / 4) is the root of one half
    ],
)
def test_the_probability_rises_by_schedule(schedule: Any, values: list[float]) -> None:
    curriculum = Curriculum(schedule, probability=0.2, end=0.8)
    assert [curriculum.probability_at(p) for p in (0.0, 0.2, 0.4, 0.8, 1.0)] == pytest.approx(values)


def test_coins_differ_by_place_moment_and_seed() -> None:
    tossed = [
        coins(64, 0.5, seed=seed, progress=progress, place=place)
        for seed, progress, place in ((0, 0.1, 0), (1, 0.1, 0), (0, 0.1 + 1e-12, 0), (0, 0.1, 1))
    ]
    assert all(not torch.equal(tossed[0], other) for other in tossed[1:])
    assert (
        not coins(64, 0.0, seed=0, progress=0.0, place=0).any() and coins(64, 1.0, seed=0, progress=0.0, place=0).all()
    )


# Who learns


def state(model: nn.Module, layers: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """Return copies of a model's weights: all, or those of some layers."""
    chosen = [anatomy_of(model).layers[index].path + "." for index in layers or ()]
    return {
        name: tensor.clone()
        for name, tensor in model.state_dict().items()
        if layers is None or any(name.startswith(path) for path in chosen)
    }


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("end", "hold", "is_held"),
    [(0.4, "until-end", False), (0.4, "always", True), (1.0, "always", True), (1.0, "never", False)],
)
def test_the_rest_is_held_to_the_last_bit(end: float, hold: Any, is_held: bool, context: Context) -> None:
    """Layers 0 and 3, embeddings and head are no successors; neither decay nor momentum reaches them while held."""
    technique = Replace(keep_layers=((0,), (1, 2), (3,)), end=end, hold=hold, probability=0.7)
    begun = keep_layers(fresh(context), layers=[0, 1, 3])
    train = Train(together=(technique,), epochs=1, batch_size=16, learning_rate=1e-2, weight_decay=0.5)
    model = train.run(fresh(context), context)
    before, after = state(begun), state(model)
    successor = state(model, (1,))
    rest = [name for name in after if name not in successor]
    assert all(not torch.equal(after[name], before[name]) for name in successor if name.endswith("weight"))
    same = [torch.equal(after[name], before[name]) for name in rest if name.endswith("weight")]
    assert all(same) if is_held else not any(same)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_others_add_is_not_held(context: Context) -> None:
    """The factors of the word table come after it, and learn from the first step on; the head does not."""
    model = fresh(context)
    replacing = Replace(keep_layers=2).accompany(model, context)
    there = {id(parameter) for parameter in model.parameters()}
    Factor(modules=(), embedding=4).accompany(model, context)
    replacing.step(0.0)
    added = [parameter for parameter in model.parameters() if id(parameter) not in there]
    assert added and all(parameter.requires_grad for parameter in added)
    assert not any(parameter.requires_grad for parameter in model.classifier.parameters())


def test_predecessors_never_learn(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[nn.Module, ...]] = []
    original = Replacing.finish

    def finish(self: Replacing, model: nn.Module) -> nn.Module:
        kept.extend(tuple(either.predecessor) for either in self.eithers)
        return original(self, model)

    monkeypatch.setattr(Replacing, "finish", finish)
    Train(together=(Replace(keep_layers=2),), epochs=1, batch_size=16, learning_rate=1e-2).run(fresh(context), context)
    base = list(anatomy_of(context.base).layer_list)
    assert [len(run) for run in kept] == [2, 2]
    for layer, copied in zip(base, [layer for run in kept for layer in run], strict=True):
        assert equal(dict(layer.state_dict()), dict(copied.state_dict()))


@pytest.mark.parametrize(("hold", "ends"), [("until-end", True), ("always", False)])
def test_at_the_last_step_successors_answer_alone(hold: Any, ends: bool, context: Context) -> None:
    companion = Replace(keep_layers=2, end=1.0, hold=hold).accompany(fresh(context), context)
    assert isinstance(companion, Replacing)
    assert companion.holds(0.99) and companion.holds(1.0) != ends
    assert companion.curriculum.probability_at(1.0) == 1.0


def test_where_no_coin_falls_for_a_successor_nothing_learns(context: Context) -> None:
    """And there is no error for the want of gradients."""
    model = fresh(context)
    companion = Replace(keep_layers=2, probability=0, schedule="constant", end=1.0).accompany(model, context)
    companion.step(0.5)
    batch = context.train.batch(np.arange(4))
    model.train()(**inputs_of(batch)).logits.sum().backward()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("step", [2, 5])
def test_an_interrupted_training_tosses_the_same_coins(
    step: int, context: Context, tmp_path: Path, run_until: RunUntil
) -> None:
    """Once while the rest is held, once after its release (at half of 6 steps)."""
    together = (Replace(keep_layers=2, coin="example", end=0.5),)
    train = Train(together=together, epochs=1, batch_size=16, learning_rate=1e-3, checkpoint_seconds=1e-9)
    (tmp_path / "whole").mkdir()
    whole = train.run(fresh(context), replace(context, workspace=tmp_path / "whole"))
    run_until(train, context, step)
    assert weights_hash(train.run(fresh(context), context)) == weights_hash(whole)


# What stands


def idle(model: nn.Module, index: int) -> None:
    """Let a layer give back what it gets: it adds nothing, and normalises what is normal already."""
    below, layer = anatomy_of(model).layers[index - 1 : index + 1]
    for role in ("output", "down"):
        for parameter in layer.part(role).parameters():
            nn.init.zeros_(parameter)
    for norm in (below.part("output_norm"), layer.part("attention_norm"), layer.part("output_norm")):
        nn.init.ones_(norm.weight)
        nn.init.zeros_(norm.bias)


@pytest.mark.parametrize(
    ("start", "layers"), [("first", [0, 2]), ("last", [1, 3]), ("lowest", [0, 1]), ("mean", [0, 2]), ("best", [0, 3])]
)
def test_what_a_successor_starts_as(start: Any, layers: list[int], context: Context) -> None:
    """Layers 1 and 2 do nothing, so 0 and 3 do the work of their runs alone."""
    model = fresh(context)
    idle(model, 1)
    idle(model, 2)
    base = copy.deepcopy(model)
    Replace(keep_layers=2, start=start, examples=16).accompany(model, context)
    assert journal_of(model)[-1] == {"edit": "keep_layers", "layers": layers}
    ours, theirs = anatomy_of(model).layer_list, anatomy_of(base).layer_list
    for place, index in enumerate(layers):
        expected = theirs[index].state_dict()
        if start == "mean":
            pair = theirs[2 * place].state_dict(), theirs[2 * place + 1].state_dict()
            expected = {name: (pair[0][name] + pair[1][name]) / 2 for name in expected}
        for name, tensor in ours[place].state_dict().items():
            torch.testing.assert_close(tensor, expected[name])
    if start == "best":
        assert (answers(model, context, training=False) - answers(base, context, training=False)).abs().max() < 1e-4


def test_differences_are_those_of_the_logits(context: Context) -> None:
    (batch,) = context.calibration_batches(8)
    found = differences(context.base, [[0], [1, 2, 3]], [batch])
    with evaluating(fresh(context)):
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        whole = context.base(**inputs).logits
        small = keep_layers(fresh(context), layers=[0, 2]).eval()(**inputs).logits
    assert found[0] == [0.0] and len(found[1]) == 3
    assert found[1][1] == pytest.approx(float((small - whole).square().mean()), rel=1e-4)


def test_neurons_that_add_nothing_go(context: Context) -> None:
    """Half of the neurons have no weight below them: without those the model answers as before."""
    base = context.base
    silent = [torch.randperm(64, generator=torch.Generator().manual_seed(index))[:32] for index in range(4)]
    with torch.no_grad():
        for layer, neurons in zip(anatomy_of(base).layers, silent, strict=True):
            layer.part("down").weight[:, neurons] = 0.0
    before = logits(base, context)
    model = fresh(context)
    technique = Replace(keep_neurons=0.5, multiple_of=8, examples=16, hold="never")
    companion = technique.accompany(model, context)
    for record, neurons in zip(journal_of(model)[1:], silent, strict=True):
        assert record["edit"] == "narrow_neurons"
        assert record["neurons"] == sorted(set(range(64)) - set(neurons.tolist()))
    assert technique.cuts == Grain.UNIT and isinstance(companion, Replacing) and len(companion.eithers) == 4
    assert (logits(companion.finish(model), context) - before).abs().max() < 1e-4


def test_one_narrow_layer_for_a_run(context: Context) -> None:
    technique = Replace(keep_layers=2, keep_neurons=0.25, multiple_of=8, examples=16)
    model = short_train([technique], context).run(fresh(context), context)
    assert technique.cuts == Grain.LAYER and is_plain(model)
    assert [layer.neurons for layer in anatomy_of(model).layers] == [16, 16]


# Beside others


@pytest.mark.parametrize("first", [True, False])
def test_distill_matches_the_ends_of_runs(first: bool, context: Context) -> None:
    """While the whole model answers it is its own teacher: the student layers that are watched are the ends of runs."""
    events: list[dict[str, Any]] = []
    context = replace(context, log=events.append)
    pair = (Distill(hidden=1.0, relations=0.5), Replace(keep_layers=2, probability=0, schedule="constant", end=1.0))
    train = Train(together=pair if first else pair[::-1], epochs=0.6, learning_rate=1e-12, precision="fp32")
    model = still(fresh(context))
    train.run(model, context)
    parts, *_ = [event["parts"] for event in events if event["event"] == "train"]
    assert parts["distillation.hidden"] < 1e-5 and abs(parts["distillation.logits"]) < 1e-5
    assert parts["distillation.relations"] > 1e-3  # of the successor's own queries, keys and values


def test_distill_sees_a_model_of_few_layers(context: Context) -> None:
    model = fresh(context)
    Replace(keep_layers=2).accompany(model, context)
    watching = Distill(hidden=1.0).accompany(model, context)
    assert isinstance(watching, Distillation) and watching.pairs == [(1, 2), (2, 4)]


def test_all_three_together(context: Context) -> None:
    """As the front page writes it, on the best epoch."""
    together = (Distill(hidden=1.0), Replace(keep_layers=3), Prune(keep_neurons=0.5, multiple_of=8))
    train = Train(together=together, epochs=1, batch_size=32, learning_rate=1e-3, best=True)
    model = train.run(fresh(context), context)
    assert anatomy_of(model).num_layers == 3
    assert sum(layer.neurons for layer in anatomy_of(model).layers) <= 3 * 32 + 24


# Refusals


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "at least one of them"),
        ({"keep_layers": 0}, "number of layers from 1"),
        ({"keep_layers": ((0,), (2,))}, "in order"),
        ({"keep_layers": ((1,), (0,))}, "in order"),
        ({"keep_layers": ((0,), ())}, "in order"),
        ({"keep_layers": ()}, "in order"),
    ],
)
def test_runs_that_are_none(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(NiwakiError, match=message):
        Replace(**parameters)


def test_what_a_model_cannot_give(context: Context) -> None:
    for keep in (5, ((0,), (1,)), ((0, 1, 2, 3, 4),)):
        with pytest.raises(NiwakiError, match="a model that has 4"):
            Replace(keep_layers=keep).check(context.base)
    with pytest.raises(NiwakiError, match="nothing to replace"):
        Replace(keep_neurons=0.9, multiple_of=64, examples=8).accompany(fresh(context), context)
    uneven = narrow_neurons(fresh(context), layer=1, neurons=[0, 1])
    with pytest.raises(NiwakiError, match="different shapes"):
        Replace(keep_layers=1, start="mean").check(uneven)
    mixed = fresh(context)
    mixed.config.layer_types = ["full_attention", "sliding_attention"] * 2
    with pytest.raises(NiwakiError, match="several ways"):
        Replace(keep_layers=2).check(mixed)
