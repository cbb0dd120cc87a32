"""Early exits: losses by hand in each way of training, thresholds within what was asked, refits of what is packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.checkpoint import load, save
from niwaki.errors import NiwakiError
from niwaki.exit_rule import NEVER, leaving
from niwaki.exiting import all_logits, all_logits_of, classify
from niwaki.limit import Limit
from niwaki.recipe import Recipe
from niwaki.report.exits import pictures
from niwaki.report.precision import told_of
from niwaki.run import compress
from niwaki.surgery import add_exit
from niwaki.task import Dataset, Task
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.exit import Exit
from niwaki.techniques.exit.fitting import Rows, candidates, curve_of, within_cost
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.replace import Replace
from niwaki.techniques.share import Share
from niwaki.testing import fresh, make_context, short_train
from niwaki.trade_off import within_drop
from niwaki.train import Train

Bases = Callable[..., Path]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert", layers=4), toy_task, tmp_path)


def logging(context: Context, events: list[dict[str, Any]]) -> Context:
    """Return the context with a log in a list."""
    return replace(context, log=events.append)


# Training


@pytest.mark.parametrize("family", ["bert", "albert"])
@pytest.mark.parametrize("way", ["joint", "frozen", "self-distillation"])
def test_losses_by_hand(family: str, way: Any, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family, layers=4), toy_task, tmp_path)
    model = fresh(context)
    companion = Exit(after=(0, 2), training=way, width=8).accompany(model, context)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = context.train.batch(range(6))
    for _ in range(2):  # a family that repeats its layer counts its runs anew at each pass
        output = model.train()(**inputs_of(batch))
        losses = companion.loss(output, batch)
    said_EBC = all_logits(model.eval(), batch)
    wanted = []
    for layer, logits_BC in zip((0, 2), said_EBC[:2], strict=True):
        if way == "self-distillation":
            student, teacher = logits_BC.log_softmax(-1), said_EBC[2].log_softmax(-1)
            wanted.append((student.exp() * (student - teacher)).sum(-1).mean())
        else:
            weight = (layer + 1) / 4 if way == "joint" else 1.0
            wanted.append(weight * functional.cross_entropy(logits_BC, batch["labels"]))
    assert list(losses) == ["layer-0", "layer-2"]
    torch.testing.assert_close(torch.stack(list(losses.values())), torch.stack(wanted), atol=1e-5, rtol=1e-5)
    assert companion.task_weight() == (1.0 if way == "joint" else 0.0)


@pytest.mark.parametrize("way", ["frozen", "self-distillation"])
def test_a_held_model_is_what_it_was_and_its_heads_learn(way: Any, context: Context) -> None:
    begun = fresh(context)
    torch.manual_seed(context.seed)
    add_exit(begun, layer=1)
    model = short_train((Exit(after=(1,), training=way, allowed_drop=100),), context).run(fresh(context), context)
    before, after = begun.state_dict(), model.state_dict()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) != name.startswith("exits"), name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_all_heads_learn_the_task(context: Context) -> None:
    def losses(model: Any) -> list[float]:
        labels = torch.from_numpy(context.train.labels)
        said_ENC = torch.from_numpy(all_logits_of(model, context.train))
        return [float(functional.cross_entropy(logits_NC, labels)) for logits_NC in said_ENC]

    begun = fresh(context)
    torch.manual_seed(context.seed)
    for layer in (0, 2):
        add_exit(begun, layer=layer)
    events: list[dict[str, Any]] = []
    train = Train(together=(Exit(after=(0, 2), allowed_drop=0),), epochs=8, batch_size=16, learning_rate=1e-3)
    model = train.run(fresh(context), logging(context, events))
    assert all(after < before for before, after in zip(losses(begun), losses(model), strict=True))
    told = [event for event in events if event["event"] == "train"][-1]["parts"]
    assert set(told) == {"task", "exiting.layer-0", "exiting.layer-2"}


def test_rows_that_thresholds_are_fitted_on_are_not_trained_on(context: Context) -> None:
    seen: list[Any] = []

    class Watching(Exit):
        name = "exit"

        def accompany(self, model: Any, context: Context) -> Any:
            seen.append(context.data)
            return super().accompany(model, context)

    short_train((Watching(after=1, allowed_drop=100),), context).run(fresh(context), context)
    whole, data = context.data, seen[0]
    assert isinstance(data, Dataset) and data.train is not None and data.held is not None and whole.train is not None
    assert len(data.train) + len(data.held) == len(whole.train)
    texts = {data.train.tokens_of(row).tobytes() for row in range(len(data.train))}
    held = {data.held.tokens_of(row).tobytes() for row in range(len(data.held))}
    every = [whole.train.tokens_of(row).tobytes() for row in range(len(whole.train))]
    assert {text for text in held if every.count(text) == 1}.isdisjoint(texts)
    # a fit in a later step looks at the same rows
    assert data.selection(context.seed)[1].fingerprint == whole.selection(context.seed)[1].fingerprint


def test_exits_that_are_there_learn_on(context: Context) -> None:
    model = short_train((Exit(after=(1,), allowed_drop=100),), context).run(fresh(context), context)
    head = model.exits.heads["1"]
    again = short_train((Exit(after=(0, 1), allowed_drop=100),), context).run(model, context)
    assert again.exits.layers == (0, 1) and again.exits.heads["1"] is head
    more = short_train((Exit(allowed_drop=100),), context).run(again, context)  # where no more are asked for, none come
    assert more.exits.layers == (0, 1) and more.exits.heads["1"] is head
    add_exit(model := fresh(context), layer=2)
    assert short_train((Exit(allowed_drop=100),), context).run(model, context).exits.layers == (2,)


# Thresholds


def rows_of(seed: int, exits: int, count: int = 60, classes: int = 3) -> Rows:
    """Return random answers, later heads surer of what is right."""
    chance = np.random.default_rng(seed)
    labels = chance.integers(classes, size=count)
    logits = chance.normal(size=(exits + 1, count, classes))
    logits[:, np.arange(count), labels] += np.linspace(0.5, 3, exits + 1)[:, None]
    return Rows(logits, labels, np.arange(1, exits + 2) / (exits + 1), "accuracy")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.sampled_from(["entropy", "probability", "patience"]))
def test_a_curve_says_what_its_thresholds_do(seed: int, exits: int, by: Any) -> None:
    rows = rows_of(seed, exits)
    points = curve_of(rows, by)
    for point in points:
        at = leaving(by, np.full(exits, point.threshold), rows.logits_ENC[:-1])
        said = rows.logits_ENC[at, np.arange(60)].argmax(-1)
        assert point.quality == pytest.approx(100 * (said == rows.labels_N).mean())
        assert point.mean_cost == pytest.approx(rows.costs_E[at].mean())
        assert point.shares == pytest.approx([np.mean(at == place) for place in range(exits + 1)])
    costs = [point.mean_cost for point in points]
    assert costs == sorted(costs, reverse=True) and costs[0] == 1 and costs[-1] == pytest.approx(1 / (exits + 1))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 20), st.sampled_from(["entropy", "probability", "patience"]))
def test_the_cheapest_within_the_limit_is_taken(seed: int, allowed: float, by: Any) -> None:
    rows = rows_of(seed, 2)
    points = curve_of(rows, by)
    chosen = within_drop(rows, points, Limit(allowed, None), seed=0)
    good = [point for point in points if points[0].quality - point.quality <= allowed]
    assert chosen.mean_cost == min(point.mean_cost for point in good)
    sure = within_drop(rows, points, Limit(allowed, 0.9), seed=0)
    assert sure.mean_cost >= chosen.mean_cost


def test_with_confidence_the_search_ends_at_the_first_that_fails() -> None:
    # 1000 rows; of the surest 100 none becomes wrong, of the next 100 twenty do, and of those after them none
    labels, last = np.zeros(1000, int), np.zeros((1000, 2)) + [1.0, 0.0]
    early = np.stack([np.linspace(4, 1, 1000), np.zeros(1000)], axis=1)
    early[100:120] = early[100:120, ::-1]
    rows = Rows(np.stack([early, last]), labels, np.array([0.5, 1.0]), "accuracy")
    points = curve_of(rows, "probability")
    taken = within_drop(rows, points, Limit(1.0, 0.95), seed=0)
    assert 0.1 <= taken.shares[0] < 0.115 and taken.quality >= 99.0
    assert within_drop(rows, points, Limit(2.0, None), seed=0).shares == (1.0, 0.0)
    assert within_drop(rows, points, Limit(2.0, 0.95), seed=0).shares[0] < 0.12  # 2 points lost, but it may be 2.8
    assert within_drop(rows, points, Limit(3.0, 0.95), seed=0).shares == (1.0, 0.0)


def test_the_most_careful_within_a_cost_is_taken() -> None:
    rows = rows_of(0, 3)
    points = curve_of(rows, "entropy")
    chosen = within_cost(points, 0.6)
    assert chosen.mean_cost <= 0.6 < points[points.index(chosen) - 1].mean_cost
    assert within_cost(points, 1.0).threshold == NEVER
    with pytest.raises(NiwakiError, match=r"mean_cost is 0.2, and the first exit stands after 0.25 of the layers"):
        within_cost(points, 0.2)


def test_many_rows_have_few_thresholds() -> None:
    found = candidates("probability", np.random.default_rng(0).uniform(0.5, 1, size=(2, 5000)))
    assert found[0] == NEVER and found[-1] == 0.0 and len(found) <= 102 and found == sorted(found, reverse=True)
    shares = [np.mean(found[place + 1] < 0.75) for place in range(len(found) - 1)]
    assert 0.4 < np.mean(shares) < 0.6


# The report


def test_a_curve_is_told_and_drawn() -> None:
    points = [
        {"threshold": threshold, "quality": quality, "mean_cost": cost, "shares": [1.5 - 1.5 * cost, 1.5 * cost - 0.5]}
        for threshold, quality, cost in ((NEVER, 91.0, 1.0), (0.9, 91.5, 0.8), (0.5, 90.0, 0.6), (0.0, 80.0, 1 / 3))
    ]
    record = {"event": "exits", "step": "03-exit", "by": "entropy", "metric": "accuracy", "rows": 200, "layers": [1]}
    record |= {"alone": [80.0, 91.0], "allowed": 1.0, "confidence": None, "chosen": points[2], "curve": points}
    (table,) = told_of([record])
    assert table.lines[0] == ("–", "", "100%", "0.0%", "91.00", "0.00")
    assert table.lines[2] == ("0.500", "chosen", "60.0%", "60.0%", "90.00", "−1.00")
    assert (
        "after layer 1 80.00, at the last 91.00" in table.below and "1.00 points at most on these rows" in table.below
    )
    (table,) = told_of([{**record, "confidence": 0.95, "bound": 0.87}])
    assert "with 95.0% confidence; the bound is 0.870" in table.below
    (table,) = told_of([{**record, "allowed": None, "wanted": 0.6}])
    assert "Asked for: 60.0% of the layers" in table.below
    ((step, svg),) = pictures([record, record], "run-0-exits")
    assert step == "03-exit" and ">chosen<" in svg and "accuracy 90.00 with 60.0% of the layers chosen" in svg


# As steps


def test_thresholds_are_fitted_anew_to_what_is_packed(context: Context, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    train = Train(together=(Exit(after=(0, 2), mean_cost=0.7),), epochs=20, batch_size=16, learning_rate=3e-3)
    model = train.run(fresh(context), logging(context, events))
    before = model.exits.thresholds
    model = Quantize(preset="int4", group=16).apply(model, context)
    assert model.exits.thresholds == before
    asked = Exit(by="entropy", allowed_drop=30)
    model = asked.apply(model, logging(context, events))
    assert model.exits.by == "entropy" and model.exits.thresholds != before and len(set(model.exits.thresholds)) == 1
    first, second = (event for event in events if event["event"] == "exits")
    assert first["wanted"] == 0.7 and first["chosen"]["mean_cost"] <= 0.7 and first["layers"] == [0, 2]
    assert second["allowed"] == 30 and second["chosen"] in second["curve"]
    assert json.loads(json.dumps(second)) == second
    # what the log says is what the model does
    rows = context.data.selection(context.seed)[1]
    logits_NC, exit_N = classify(model, rows.batch(range(len(rows))))
    quality = 100 * float((logits_NC.argmax(-1).numpy() == rows.labels).mean())
    assert quality == pytest.approx(second["chosen"]["quality"])
    assert [float((exit_N == place).float().mean()) for place in range(3)] == pytest.approx(second["chosen"]["shares"])
    assert second["alone"][-1] - quality <= 30
    again = load(save(model, tmp_path / "run"))
    assert again.exits.thresholds == model.exits.thresholds


def test_a_model_without_exits_is_refused(context: Context) -> None:
    with pytest.raises(NiwakiError, match=r"exit: the model has no exits\n.*\n.*together: \[exit"):
        Exit().apply(fresh(context), context)


def test_a_limit_within_which_no_text_leaves(context: Context) -> None:
    model = fresh(context)
    add_exit(model, layer=0)
    wrong = context.data.selection(context.seed)[1].labels
    assert wrong is not None
    head = model.exits.heads["0"]
    with torch.no_grad():  # all at the first exit are told the class that the model never says
        said = all_logits_of(model, context.data.selection(context.seed)[1])[-1].argmax(-1)
        head.classifier.weight.zero_()
    labels = said.copy()
    head.classifier.bias.data = torch.tensor([9.0, 0.0] if (labels == 1).mean() > 0.5 else [0.0, 9.0])
    data = replace(context.data, held=replace(context.data.selection(context.seed)[1], labels=labels))
    with pytest.raises(NiwakiError, match="no threshold within allowed_drop 0.5 at which a text leaves"):
        Exit(allowed_drop=0.5).apply(model, replace(context, data=data))
    with pytest.raises(NiwakiError, match=r"(?s)within mean_cost 1 at which a text leaves.*mean_cost: 0\.9"):
        Exit(mean_cost=1).apply(model, replace(context, data=data))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"after": 0}, "after is a number of exits from 1"),
        ({"after": (2, 1)}, "ascending"),
        ({"mean_cost": 0.5, "allowed_drop": 1.0}, "allowed_drop and mean_cost are both given"),
        ({"mean_cost": 0.5, "confidence": 0.9}, "confidence is that of allowed_drop"),
        ({"by": "sureness"}, "one of entropy, probability, patience"),
        ({"confidence": 0.5}, "above 0.5"),
    ],
)
def test_parameters_that_make_no_sense(given: dict[str, Any], message: str) -> None:
    with pytest.raises(NiwakiError, match=message):
        Exit(**given)


def test_models_that_cannot_have_them(context: Context, tiny_model: Callable[..., torch.nn.Module]) -> None:
    with pytest.raises(NiwakiError, match=r"after is 4\n.*at most 3 exits, after layers in 0\.\.2"):
        Exit(after=4).check(context.base)
    with pytest.raises(NiwakiError, match=r"after is \(1, 3\)"):
        Exit(after=(1, 3)).check(context.base)
    with pytest.raises(NiwakiError, match="more than one layer"):
        Exit(after=1).check(tiny_model("bert", layers=1))
    with pytest.raises(NiwakiError, match="no head that reads the first token"):
        Exit(after=1).check(tiny_model("llama", layers=4))


def test_a_cost_below_the_first_exit_is_refused_before_training(context: Context) -> None:
    with pytest.raises(NiwakiError, match="mean_cost is 0.25, and the first exit stands after 0.5 of the layers"):
        Exit(after=(1,), mean_cost=0.25).accompany(fresh(context), context)


@pytest.mark.parametrize("way", ["frozen", "self-distillation"])
@pytest.mark.parametrize("other", [Replace(keep_layers=2), Distill(), Prune(keep_heads=0.5), Share()], ids=repr)
def test_what_learns_does_not_stand_beside_exits_that_hold_the_model(way: Any, other: Any) -> None:
    wrong = rf"steps\[0\].together: {other.name} needs the model to learn, and exit holds its weights"
    with pytest.raises(NiwakiError, match=rf"{wrong}\n.*\n.*training: joint, or exit in a train of its own"):
        Recipe([Train(together=(other, Exit(training=way)))])
    Recipe([Train(together=(other, Exit()))])
    Recipe([Train(together=(other,)), Train(together=(Exit(training=way),))])


def test_heads_learn_on_what_is_packed_as_it_is(context: Context) -> None:
    together = (Exit(after=1, training="frozen", mean_cost=0.8), Quantize())
    Recipe([Train(together=together)])
    begun = fresh(context)
    model = short_train(together, context).run(fresh(context), context)
    added = torch.nn.ModuleDict({"exits": model.exits})
    del model.exits
    packed, heads = Quantize().apply(begun, context), added.state_dict()
    assert all(torch.equal(value, packed.state_dict()[name]) for name, value in model.state_dict().items())
    torch.manual_seed(context.seed)
    add_exit(begun, layer=1)
    assert all(not torch.equal(value, heads[f"exits.{name}"]) for name, value in begun.exits.state_dict().items())


def test_dynamic_ranges_are_fitted_row_by_row(context: Context) -> None:
    """As the chain at batch 1 has them: of other rows a row's range knows nothing."""
    add_exit(model := fresh(context), layer=1)
    model = Quantize().apply(model, context)
    rows = context.data.selection(context.seed)[1]
    alone = [all_logits(model, rows.batch([row])) for row in range(len(rows))]
    assert np.array_equal(all_logits_of(model, rows), torch.cat(alone, dim=1).detach().numpy())


def test_no_step_may_follow_the_last_fit() -> None:
    exits = Train(together=(Exit(),))
    Recipe([exits, Quantize(), Exit()])
    Recipe([Train(together=(Exit(), Quantize()))])
    with pytest.raises(NiwakiError, match=r"(?s)quantize changes the model that steps\[0\] \(train \(exit\)\).*- exit"):
        Recipe([exits, Quantize()])
    with pytest.raises(NiwakiError, match=r"steps\[1\]: train changes the model"):
        Recipe([exits, Train()])


# With others


@pytest.mark.parametrize(
    "others",
    [
        (Replace(keep_layers=2, coin="example"),),
        (Distill(), Prune(keep_hidden=0.5, multiple_of=8)),
        (Share(), Quantize()),
        (Prune(by="hard-concrete", keep={"parameters": 0.5}, multiple_of=8),),
    ],
    ids=lambda others: "-".join(one.name for one in others),
)
def test_what_is_cut_meanwhile_keeps_its_exits(others: tuple[Any, ...], context: Context, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    exit_first = (Exit(after=1, mean_cost=0.8), *others)
    model = short_train(exit_first, context).run(fresh(context), logging(context, events))
    depth = anatomy_of(model).depth
    assert model.exits.layers == Exit(after=1).spread(depth)
    # fitted when the others had finished: to the model as it is
    rows = context.data.selection(context.seed)[1]
    said = all_logits_of(model, rows)
    at = leaving(model.exits.by, np.array(model.exits.thresholds), said[:-1])
    told = next(event for event in events if event["event"] == "exits")["chosen"]
    assert [float((at == place).mean()) for place in range(2)] == pytest.approx(told["shares"])
    assert told["mean_cost"] <= 0.8
    again = load(save(model, tmp_path / "run"))
    assert np.array_equal(all_logits_of(again, rows), said)


def test_one_layer_that_runs_again_and_again_has_exits(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("albert", layers=6), toy_task, tmp_path)
    model = short_train((Exit(mean_cost=0.9), Quantize()), context).run(fresh(context), context)
    model = Exit(by="probability", mean_cost=0.8).apply(model, context)
    assert model.exits.layers == (1, 3)  # after the second and the fourth of six runs
    batch = context.data.evaluation.batch([0])
    logits_BC, exit_B = classify(model, batch)
    again = load(save(model, tmp_path / "run"))
    assert torch.equal(classify(again, batch)[0], logits_BC) and torch.equal(classify(again, batch)[1], exit_B)
    assert torch.equal(logits_BC[0], all_logits(model, batch)[int(exit_B[0]), 0])


def test_steps_of_a_recipe(saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path) -> None:
    task = Task("text-classification", data=str(toy_data(test=32)))
    recipe = Recipe(
        [
            Drop(keep_layers=3, by="first"),
            Train(together=(Distill(), Exit(after=1)), epochs=0.5, batch_size=16),
            Quantize(),
            Exit(by="patience", mean_cost=2 / 3),
        ]
    )
    base = saved_base("bert", layers=4)
    run = compress(base, recipe, task, tmp_path / "run", export=[], measure=False, progress=False)
    model = load(run.folder)
    assert model.exits.layers == (1,)  # after two of three layers
    assert model.exits.by == "patience" and model.exits.thresholds == (1.0,)
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    fits = [record for record in log if record.get("event") == "exits"]
    assert [record["step"] for record in fits] == ["01-train", "03-exit"] and fits[0]["rows"] == 48
    anew = Recipe([*recipe.steps[:-1], Exit(by="probability", mean_cost=0.9)])
    run = compress(base, anew, task, tmp_path / "run", export=[], measure=False, progress=False)
    assert load(run.folder).exits.by == "probability"  # the same weights, and another model
