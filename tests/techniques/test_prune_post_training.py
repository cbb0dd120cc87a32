"""Pruning after training: exact removal, exact plans, and readouts that lose nothing where nothing need be lost."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.measure import count_macs_per_token
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.prune import Prune, latency
from niwaki.techniques.prune.mask_search import rearranged
from niwaki.techniques.prune.plan import by_cost
from niwaki.techniques.prune.readout import Moments
from niwaki.techniques.prune.rebuild import rebuild
from niwaki.techniques.prune.removal import inverse_hessian, removal_order, without
from niwaki.techniques.prune.sensitivity import gate_fisher, output_fisher
from niwaki.techniques.prune.sizes import best_sizes
from niwaki.testing import check_technique, fresh, logits, make_context

Bases = Callable[..., Path]
BY = ("mask-search", "second-order")


def problem(inputs: int = 12, outputs: int = 5, rows: int = 40) -> tuple[Tensor, Tensor]:
    """Return inputs (rows, I) that depend on each other, and weights (O, I)."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(inputs, inputs, generator=generator, dtype=torch.float64)
    x = torch.randn(rows, inputs, generator=generator, dtype=torch.float64) @ mix
    return x, torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)


def refitted(x: Tensor, weight: Tensor, kept: list[int]) -> tuple[Tensor, float]:
    """Return by brute force the best weights on some inputs, and the squared error that is left."""
    wanted = x @ weight.T
    best = torch.linalg.lstsq(x[:, kept], wanted).solution
    return best.T, float((x[:, kept] @ best - wanted).square().sum())


def test_removal_of_columns_is_least_squares() -> None:
    x, weight = problem()
    gone, stay = torch.tensor([3, 7]), torch.tensor([0, 1, 2, 4, 5, 6, 8, 9, 10, 11])
    updated, inverse = without(weight, inverse_hessian(x.T @ x, 0.0), gone, stay)
    best, _ = refitted(x, weight, stay.tolist())
    torch.testing.assert_close(updated, best, rtol=1e-6, atol=1e-8)
    fresh_inverse = torch.linalg.inv(x[:, stay].T @ x[:, stay])
    torch.testing.assert_close(inverse, fresh_inverse, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [1, 3])
def test_removal_takes_the_cheapest_and_its_errors_are_true(width: int) -> None:
    x, weight = problem()
    order, errors = removal_order(weight, x.T @ x, width, 0.0)
    units = 12 // width
    assert sorted(order) == list(range(units)) and len(errors) == units + 1

    def columns(kept: list[int]) -> list[int]:
        return [unit * width + place for unit in kept for place in range(width)]

    left = list(range(units))
    for number, unit in enumerate(order[:-1]):
        every = {one: refitted(x, weight, columns([u for u in left if u != one]))[1] for one in left}
        assert unit == min(every, key=every.__getitem__)
        assert errors[number + 1] == pytest.approx(every[unit], rel=1e-6)
        left.remove(unit)
    assert errors[-1] == pytest.approx(float((x @ weight.T).square().sum()))


def test_removal_in_groups_has_true_errors_and_does_not_lose_both_twins() -> None:
    x, weight = problem()
    x[:, 5] = x[:, 2] + 1e-3 * x[:, 0]
    order, errors = removal_order(weight, x.T @ x, 1, 0.0, at_once=4)
    kept = sorted(set(range(12)) - set(order[:4]))
    assert errors[4] == pytest.approx(refitted(x, weight, kept)[1], rel=1e-4)
    assert {2, 5} & set(kept)
    half, _ = removal_order(weight, x.T @ x, 1, 0.0, at_once=4, stay=6)
    assert half == order[:6] or len(half) == 6


tables = st.lists(
    st.lists(st.tuples(st.floats(0, 9), st.integers(0, 9)), min_size=1, max_size=4), min_size=1, max_size=4
)


@settings(max_examples=60)
@given(tables, st.integers(0, 30), st.booleans())
def test_plan_is_the_best_there_is(blocks: list[list[tuple[float, int]]], budget: int, whole: bool) -> None:
    """The dynamic program against every combination; rounded costs keep to the budget too."""
    scale = 1.0 if whole else 0.3137
    errors = [[error for error, _ in block] for block in blocks]
    costs = [[cost * scale for _, cost in block] for block in blocks]
    least = sum(min(block) for block in costs)
    if least > budget * scale:
        with pytest.raises(NiwakiError, match="at least"):
            best_sizes(errors, costs, budget * scale)
        return
    chosen = best_sizes(errors, costs, budget * scale)
    spent = sum(cost[size] for cost, size in zip(costs, chosen, strict=True))
    reached = sum(error[size] for error, size in zip(errors, chosen, strict=True))
    assert spent <= budget * scale + 1e-9
    possible = [
        sum(error[size] for error, size in zip(errors, sizes, strict=True))
        for sizes in itertools.product(*(range(len(block)) for block in blocks))
        # rounding up may cost the last ten-thousandth of the budget
        if sum(cost[size] for cost, size in zip(costs, sizes, strict=True)) <= budget * scale * (1 if whole else 0.999)
    ]
    assert not possible or reached <= min(possible) + 1e-9


def test_the_budget_is_the_same_for_every_choice() -> None:
    """Ten blocks may spend the budget to its end: what one spends is not taken from the others twice."""
    errors, costs = [[4.0, 0.0]] * 10, [[1, 2]] * 10
    assert sorted(best_sizes(errors, costs, 15)) == [0] * 5 + [1] * 5
    assert sorted(best_sizes(errors, [[0.1, 0.2]] * 10, 1.5)) == [0] * 5 + [1] * 5


def test_swaps_see_units_that_replace_each_other() -> None:
    """Units 0 and 1 do the same: alone each is cheap, together they are dear; a better pair goes."""
    gradients = torch.tensor([[1.0, 1.0, 0.0, 3.0], [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.5, 0.0]])
    fisher = gradients.T @ gradients
    kept = rearranged(fisher, stay=2)
    cost = {pair: float(fisher[list(pair)][:, list(pair)].sum()) for pair in itertools.combinations(range(4), 2)}
    gone = tuple(sorted(set(range(4)) - set(kept)))
    assert cost[gone] == min(cost.values())
    assert rearranged(fisher, stay=4) == [0, 1, 2, 3]


def test_readout_of_survivors_gives_back_what_is_a_combination_of_them() -> None:
    x, weight = problem(inputs=6, rows=60)
    x = torch.cat([x, x[:, :2] @ torch.tensor([[2.0], [-1.0]], dtype=torch.float64) + 3.0], dim=1).float()
    linear = nn.Linear(7, 4)
    wanted = linear(x).detach()
    moments = Moments(7, 4)
    moments.see(x[:25], wanted[:25])
    moments.see(x[25:], wanted[25:])
    kept = torch.arange(6)
    new_weight, new_bias = moments.readout(linear, kept, ridge=1e-9)
    torch.testing.assert_close(x[:, :6] @ new_weight.T + new_bias, wanted, atol=1e-3, rtol=1e-3)


def test_readout_without_a_bias_is_least_squares_without_one() -> None:
    x, weight = problem(inputs=4, outputs=2, rows=30)
    x, linear = x.float() + 2.0, nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        linear.weight.copy_(weight)
    moments = Moments(4, 2, bias=False)
    moments.see(x, linear(x).detach())
    kept, none = torch.tensor([0, 2]), torch.tensor([], dtype=torch.int64)
    new_weight, bias = moments.readout(linear, kept, ridge=1e-12)
    assert bias is None
    best = torch.linalg.lstsq(x[:, kept], linear(x).detach()).solution
    torch.testing.assert_close(new_weight, best.T, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(moments.hessian, (x.T @ x).double(), atol=1e-3, rtol=1e-5)
    assert moments.readout(linear, none, ridge=1e-4)[0].shape == (2, 0)


def test_one_head_stays_and_even_layers_are_alike() -> None:
    """Sizes by hand: 0, 1 or 2 heads cost 0, 3 and 4; 0 or 8 neurons cost 0 and 2. The whole is 12."""
    costs = {"heads": [{0: 0.0, 1: 3.0, 2: 4.0}] * 2, "neurons": [{0: 0.0, 8: 2.0}] * 2}
    neurons = [[float(gone) for gone in range(9)], [2.0 * gone for gone in range(9)]]
    errors = {"heads": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.5]], "neurons": neurons}
    # heads of layer 1 matter once none is left, and those of layer 0 never
    assert by_cost("macs", 0.6, False, costs, errors) == {"heads": [0, 1], "neurons": [8, 8]}
    errors["heads"][1][2] = 0.0
    kept = by_cost("macs", 0.26, False, costs, errors)
    assert sorted(kept["heads"]) == [0, 1] and kept["neurons"] == [0, 0]
    with pytest.raises(NiwakiError, match="one attention head"):
        by_cost("macs", 0.24, False, costs, errors)
    assert by_cost("macs", 0.9, True, costs, errors) == {"heads": [1, 1], "neurons": [8, 8]}
    with pytest.raises(NiwakiError, match="at least 0.833: a head and the fewest neurons in each layer"):
        by_cost("macs", 0.8, True, costs, errors)


def test_readout_stays_where_tokens_tell_nothing_and_never_explodes() -> None:
    linear = nn.Linear(3, 2)
    silent = Moments(3, 2)
    weight, bias = silent.readout(linear, torch.arange(2), ridge=1e-3)
    assert torch.equal(weight, linear.weight[:, :2]) and torch.equal(bias, linear.bias)
    x = torch.tensor([[1.0, 1.0 + 1e-6, 0.0], [2.0, 2.0, 0.0]])
    noisy = Moments(3, 2)
    noisy.see(x, torch.tensor([[1e4, -1e4], [-1e4, 1e4]]))
    weight, _ = noisy.readout(linear, torch.arange(2), ridge=1e-12)
    assert float(weight.abs().max()) <= 10 * float(linear.weight.detach().abs().max())


def test_fisher_is_of_single_examples(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """The trace by gates is the sum over examples of squared gradients, each taken alone."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context).double()
    found = gate_fisher(model, context, examples=5)
    reader = anatomy_of(model).layers[0].part("down")
    expected = torch.zeros(64, dtype=torch.float64)
    rows = list(context.calibration_batches(5, batch_size=1))
    for batch in rows:
        labels = batch.pop("labels")
        gate = torch.ones(64, dtype=torch.float64, requires_grad=True)
        handle = reader.register_forward_pre_hook(lambda module, inputs, gate=gate: (inputs[0] * gate,))
        toy_task.loss(model(**batch).logits, labels).backward()
        handle.remove()
        assert gate.grad is not None
        expected += gate.grad.square()
    torch.testing.assert_close(found["neurons"][0].diagonal().double(), expected, rtol=1e-4, atol=1e-9)
    assert len(rows) == 5 and not reader._forward_pre_hooks
    assert all(parameter.requires_grad for parameter in model.parameters())
    outputs = output_fisher(model, context, examples=5)
    assert outputs["heads"][0].shape == (32, 32) and float(outputs["neurons"][1].trace()) > 0


@pytest.mark.parametrize("by", BY)
def test_units_that_can_be_replaced_go_without_loss(
    by: str, family: str, saved_base: Bases, toy_task: Task, tmp_path: Path
) -> None:
    """Every neuron has a twin with other outgoing weights: half of them go, and the outputs stay."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    with torch.no_grad():
        for layer in anatomy_of(model).layers:
            up = layer.part("up")
            up.weight[32:], up.bias[32:] = up.weight[:32].clone(), up.bias[:32].clone()  # type: ignore[index,operator,union-attr]
    before = logits(model, context)
    chosen = Prune(by=by, keep_neurons=0.5, even=True, multiple_of=8, examples=96)
    model = chosen.apply(model, context)
    assert [layer.neurons for layer in anatomy_of(model).layers] == [32, 32]
    difference = float((logits(model, context) - before).abs().max())
    assert difference < (0.05 if by == "second-order" else 2.0) * float(before.std())


@pytest.mark.parametrize("decoder", ["llama", "qwen2"])
def test_neurons_of_a_gated_feed_forward_that_can_be_replaced_go_without_loss(
    decoder: str, saved_base: Bases, toy_data: Bases, tmp_path: Path
) -> None:
    """The same with norms first and without biases; the readouts of whole groups of heads are fitted beside them."""
    context = make_context(saved_base(decoder), Task("language-modelling", data=str(toy_data())), tmp_path)
    model = fresh(context)
    with torch.no_grad():
        for layer in anatomy_of(model).layers:
            for role in ("up", "gate"):
                weight = layer.part(role).weight
                weight[32:] = weight[:32].clone()  # type: ignore[index,operator]
    before = logits(model, context)
    chosen = Prune(by="second-order", keep_neurons=0.5, even=True, multiple_of=8, examples=96)
    model = chosen.apply(model, context)
    assert [layer.neurons for layer in anatomy_of(model).layers] == [32, 32]
    assert float((logits(model, context) - before).abs().max()) < 0.05 * float(before.std())


@pytest.mark.parametrize("base", ["bert", "llama"])
@pytest.mark.parametrize("by", BY)
def test_a_whole_attention_and_a_whole_feed_forward_go(
    by: str, base: str, saved_base: Bases, toy_task: Task, toy_data: Bases, tmp_path: Path
) -> None:
    """The attention of layer 0 and the feed-forward of layer 1 add one number: they go, and the outputs stay."""
    task = toy_task if base == "bert" else Task("language-modelling", data=str(toy_data()))
    context = make_context(saved_base(base), task, tmp_path)
    model = fresh(context)
    first, second = anatomy_of(model).layers
    with torch.no_grad():
        first.reader("heads").weight.zero_()
        second.reader("neurons").weight.zero_()
    before = logits(model, context)
    model = Prune(by=by, keep={"macs": 0.6}, multiple_of=8, examples=64).apply(model, context)
    first, second = anatomy_of(model).layers
    assert (first.heads, second.neurons) == (0, 0) and second.heads and first.neurons
    assert float((logits(model, context) - before).abs().max()) < 0.02 * float(before.std())


def test_later_layers_make_up_for_what_earlier_ones_lost(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Half of the neurons of layer 0 go; the readouts fitted anew lose less than the cut alone."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    rows = list(context.calibration_batches(96))
    before = logits(context.base, context)

    def distance(ridge: float) -> float:
        def choose(layer: Any, kind: str, moments: Moments) -> list[int]:
            count = layer.heads if kind == "heads" else layer.neurons
            return list(range(32 if kind == "neurons" and layer.index == 0 else count))

        model = fresh(context).requires_grad_(False)
        return float((logits(rebuild(model, rows, choose, ridge), context) - before).norm())

    assert distance(1e-3) < 0.7 * distance(1e9)


@pytest.mark.parametrize("by", BY)
def test_shares_of_the_whole_model(by: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert", layers=3), toy_task, tmp_path)
    prune = Prune(by=by, keep_heads=0.5, keep_neurons=0.5, multiple_of=8, examples=48)
    layers = anatomy_of(prune.apply(fresh(context), context)).layers
    assert sum(layer.heads for layer in layers) == 6 and sum(layer.neurons for layer in layers) == 96
    assert all(layer.neurons % 8 == 0 for layer in layers)


def test_macs_are_met(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert", layers=3), toy_task, tmp_path)
    before = count_macs_per_token(context.base, context.data.train or context.data.evaluation)
    model = Prune(by="mask-search", keep={"macs": 0.6}, multiple_of=8, examples=48).apply(fresh(context), context)
    after = count_macs_per_token(model, context.data.train or context.data.evaluation)
    assert 0.5 < after / before <= 0.62  # the head and the pooler stay


@pytest.mark.parametrize("runtime", ["torch", "onnxruntime"])
def test_latency_plan_follows_the_table(
    runtime: str, saved_base: Bases, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neurons cost nothing by this table, heads a second each: heads go, neurons stay."""
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base("bert"), toy_task, tmp_path), log=events.append)
    table = {"heads": {0: 0.0, 4: 4.0}, "neurons": {0: 0.0, 64: 0.0}}
    monkeypatch.setattr(latency, "timed", lambda *arguments: table)
    prune = Prune(by="second-order", keep={"latency": 0.5, "runtime": runtime}, multiple_of=16, examples=48)
    layers = anatomy_of(prune.apply(fresh(context), context)).layers
    assert [layer.neurons for layer in layers] == [64, 64] and sum(layer.heads for layer in layers) == 4
    (sizes,) = [event for event in events if "heads_kept" in event]
    assert sum(sizes["heads"]) == 4 and sizes["heads_kept"] == 0.5 and "neurons" not in sizes


def seconds(model: nn.Module, context: Context, sizes: dict[str, list[list[int]]], *conditions: Any) -> latency.Table:
    """Tell how long a block takes without a clock: what any block takes, and as much again for each eighth of it."""
    most = {kind: max(map(max, blocks)) for kind, blocks in sizes.items()}
    return {kind: {size: bool(size) * (1.0 + 8.0 * size / most[kind]) for size in sizes[kind][0]} for kind in most}


def test_the_contract_holds_for_latency(
    saved_base: Bases, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "timed", seconds)
    prune = Prune(by="second-order", keep={"latency": 0.5}, multiple_of=8, examples=32)
    check_technique(prune, base=saved_base("bert"), task=toy_task, folder=tmp_path)


@pytest.mark.parametrize("by", BY)
def test_a_family_keeps_to_each_of_its_latencies(
    by: str, saved_base: Bases, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One calibration, and by the table each model takes its share of the time and hardly less."""
    monkeypatch.setattr(latency, "timed", seconds)
    context = make_context(saved_base("bert", layers=3), toy_task, tmp_path)
    family = Prune(by=by, keep={"latency": [0.75, 0.4]}, multiple_of=8, examples=32).family()
    assert list(family) == ["latency-0.75", "latency-0.4"]
    for share, member in zip((0.75, 0.4), family.values(), strict=True):
        layers = anatomy_of(member.apply(fresh(context), context)).layers
        units = [8 * layer.heads / 4 for layer in layers] + [8 * layer.neurons / 64 for layer in layers]
        taken = sum(1.0 + eighths for eighths in units if eighths) / (6 * 9.0)
        assert share - 3 / 54 <= taken <= share
    assert len(list((context.cache / "prune").glob("*.safetensors"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("bits", [32, 8])
def test_latency_table_is_measured_once(
    bits: int, saved_base: Bases, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "COPIES", 1)  # exports of one layer, not of three
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    sizes = {"heads": [[0, 4]] * 2, "neurons": [[0, 16, 64]] * 2}
    before = torch.random.get_rng_state()
    costs = latency.latency_costs(context.base, context, sizes, 8, "onnxruntime", bits)
    assert torch.equal(torch.random.get_rng_state(), before)
    files = list((context.cache / "latency").glob("*.json"))
    assert len(files) == 2
    assert json.loads(files[0].read_text())["conditions"]["length"] == 8
    for kind in ("heads", "neurons"):
        for block in costs[kind]:
            assert list(block) == sizes[kind][0] and 0 <= block[min(block)] <= block[max(block)]
    assert latency.latency_costs(context.base, context, sizes, 8, "onnxruntime", bits) == costs


def test_without_the_runtime_the_table_is_torchs(
    saved_base: Bases, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base("bert"), toy_task, tmp_path), log=events.append)
    monkeypatch.setattr(latency, "installed", lambda: ("torch",))
    latency.latency_costs(
        context.base, context, {"heads": [[1, 4]] * 2, "neurons": [[16, 64]] * 2}, 8, "onnxruntime", 32
    )
    assert any("PyTorch" in str(event.get("note")) for event in events)
    assert [event["runtime"] for event in events if event["event"] == "latency-table"] == ["torch"]


def test_one_calibration_serves_every_size(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context: Context = make_context(saved_base("bert"), toy_task, tmp_path)
    for share in (0.75, 0.5):
        Prune(by="second-order", keep_neurons=share, multiple_of=8, examples=48).apply(fresh(context), context)
    assert len(list((context.cache / "prune").glob("*.safetensors"))) == 1


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"keep_heads": 0.05}, "at least 1 of them"),
        ({"keep_neurons": 0.1, "multiple_of": 16}, "at least 16 of them"),
        ({"keep_neurons": 0.99, "multiple_of": 64, "even": True}, "nothing to remove"),
        ({"keep_neurons": 0.999}, "removes nothing"),
        ({"keep": {"macs": 0.01}, "multiple_of": 16}, "one attention head"),
    ],
)
def test_impossible_requests_are_refused_before_any_work(
    parameters: dict[str, Any], words: str, tiny_model: Callable[..., nn.Module]
) -> None:
    with pytest.raises(NiwakiError, match=words):
        Prune(by="mask-search", **parameters).check(tiny_model("bert"))


def test_latency_of_a_language_model_is_refused(tiny_model: Callable[..., nn.Module]) -> None:
    with pytest.raises(NiwakiError, match=r"not exported\n.*keep: \{macs: 0.5\}"):
        Prune(by="second-order", keep={"latency": 0.5}).check(tiny_model("llama"))
