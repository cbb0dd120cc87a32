"""Hard-concrete gates: their distribution, the count of parameters, the budget, and the cut that changes nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.errors import NiwakiError
from niwaki.layers.hard_concrete import HardConcrete
from niwaki.residual import residual_of
from niwaki.surgery import narrow_heads, narrow_hidden, narrow_neurons
from niwaki.task import Task
from niwaki.techniques.distill import Distill
from niwaki.techniques.prune import Prune
from niwaki.techniques.prune.hard_concrete import Learnt
from niwaki.techniques.prune.structure import Chances, Costs, choose_structure, costs_of, count
from niwaki.testing import fresh, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]


def layers_size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in anatomy_of(model).layer_list.parameters())


def learnt(model: nn.Module, context: Any, keep: float = 0.5, multiple_of: int = 8) -> Learnt:
    return Learnt(model, context, keep, multiple_of, begin=0.1, end=0.8, gate_learning_rate=0.1)


def test_chance_to_be_open_by_hand() -> None:
    """With log alpha 0, P(z > 0) = sigmoid(2/3 log 11) = 11^(2/3) / (1 + 11^(2/3)) = 0.8318."""
    gates = HardConcrete(3)
    gates.log_alpha.data = torch.tensor([-2.0, 0.0, 2.0])
    assert float(gates.open_chance().detach()[1]) == pytest.approx(0.8318, abs=1e-4)
    torch.testing.assert_close(gates.log_open_chance().exp(), gates.open_chance())
    assert gates.settled().detach().tolist() == pytest.approx([0.0430, 0.5, 0.9570], abs=1e-4)


def test_samples_follow_the_formula() -> None:
    torch.manual_seed(0)
    gates = HardConcrete(40_000)
    for log_alpha in (-2.0, 0.0, 2.0):
        gates.log_alpha.data.fill_(log_alpha)
        drawn = gates.sample().detach()
        assert float((drawn > 0).float().mean()) == pytest.approx(float(gates.open_chance().detach()[0]), abs=0.01)
        # P(z = 1) mirrors P(z = 0): sigmoid(log alpha - 2/3 log 11)
        closed = 1 / (1 + math.exp(-(log_alpha - 2 / 3 * math.log(11))))
        assert float((drawn == 1).float().mean()) == pytest.approx(closed, abs=0.01)
        assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1


def test_count_by_hand(tiny_model: Callable[..., nn.Module]) -> None:
    """A head of 8: 4 x 8 weights a channel and 24 biases; a neuron: 2 and 1; a channel: 2 biases, 2 norms of 2."""
    model = tiny_model("bert")
    cost = costs_of(model)[0]
    assert (cost.unit, cost.bias, cost.channel) == ({"heads": 32, "neurons": 2}, {"heads": 24, "neurons": 1}, 6)


def test_count_is_that_of_the_cut_model(family: str, tiny_model: Callable[..., nn.Module]) -> None:
    model = tiny_model(family)
    costs = costs_of(model)

    def counted(hidden: int, heads: list[int], neurons: list[int]) -> int:
        numbers = [[torch.tensor(float(number)) for number in each] for each in (heads, neurons)]
        return int(count(costs, torch.tensor(float(hidden)), *numbers))

    assert counted(32, [4, 4], [64, 64]) == layers_size(model)
    narrow_heads(model, layer=0, heads=[])
    narrow_heads(model, layer=1, heads=[1, 2, 3])
    narrow_neurons(model, layer=0, neurons=[0, 5])
    narrow_neurons(model, layer=1, neurons=[])
    narrow_hidden(model, channels=list(range(11)))
    assert counted(11, [0, 3], [2, 0]) == layers_size(model)


def test_expected_share_of_gates_that_are_sure(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Gates that are surely open or closed expect exactly the parameters that are there after the cut."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    whole = layers_size(model)
    companion = learnt(model, context, keep=0.9)
    generator = torch.Generator().manual_seed(1)
    for parameter in companion.parameters():
        parameter.data = torch.where(torch.rand(parameter.shape, generator=generator) < 0.6, 60.0, -60.0)
    companion.attentions.log_alpha.data = torch.tensor([60.0, -60.0])
    companion.feed_forwards.log_alpha.data = torch.tensor([-60.0, 60.0])
    companion.heads[0].log_alpha.data = torch.tensor([60.0, -60.0, 60.0, 60.0])
    expected = float(companion.expected_share().detach())
    for name, mask in companion.named_buffers():
        if "mask" in name:
            parts = name.split("_")
            gates = companion.hidden if parts[0] == "hidden" else getattr(companion, parts[0])[int(parts[2])]
            modules = {"heads": companion.attentions, "neurons": companion.feed_forwards}.get(parts[0])
            module = 1.0 if modules is None else float(modules.settled().detach()[int(parts[2])])
            mask.copy_(gates.settled().detach() * module)
    companion.is_frozen.fill_(True)
    model = companion.finish(model)
    assert layers_size(model) / whole == pytest.approx(expected, abs=1e-6)
    assert [layer.heads for layer in anatomy_of(model).layers] == [3, 0]


def run_gates(model: nn.Module, companion: Learnt, context: Any, steps: int, learns: bool) -> None:
    """Train gates (and weights) on the toy rows."""
    batches = list(context.calibration_batches(64, batch_size=16))
    groups = companion.parameter_groups(1e-3)
    if learns:
        groups.append({"params": list(model.parameters()), "lr": 1e-3})
    optimizer = torch.optim.AdamW(groups)
    model.train()
    for step in range(steps):
        companion.step(step / steps)
        batch = batches[step % len(batches)]
        output = model(**inputs_of(batch))
        loss = context.task.loss(output.logits, batch["labels"]) + companion.loss(output, batch)["size"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_multipliers_drive_the_share_to_its_target(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base("bert"), toy_task, tmp_path), log=events.append)
    model = fresh(context)
    whole = layers_size(model)
    companion = learnt(model, context, keep=0.4)
    run_gates(model, companion, context, steps=150, learns=True)
    frozen = events[0]
    assert frozen["expected_share"] == pytest.approx(0.4, abs=0.04)
    model = companion.finish(model)
    share = layers_size(model) / whole
    last = events[-1]
    assert (last["parameters"], last["share"]) == (layers_size(model), share)
    assert frozen["share"] == pytest.approx(share)
    assert 0.4 - 0.06 < share <= 0.4  # a block of 8 neurons on all channels is 0.03


def test_heads_that_do_nothing_are_unlearnt(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Weights stand still, and only heads 2 and 3 of each layer reach the output."""
    torch.manual_seed(0)
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = fresh(context)
    for layer in anatomy_of(model).layers:
        layer.part("output").weight.data[:, :16] = 0
    companion = learnt(model, context, keep=0.6)
    run_gates(model, companion, context, steps=120, learns=False)
    for heads in companion.heads:
        assert heads.log_alpha.data[2:].mean() > heads.log_alpha.data[:2].mean() + 0.3


def test_cutting_changes_nothing(
    family: str, saved_base: Bases, toy_task: Task, tmp_path: Path, batch: dict[str, Tensor]
) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    companion = learnt(model, context, keep=0.3)
    generator = torch.Generator().manual_seed(2)
    for parameter in companion.parameters():
        parameter.data = 3 * torch.randn(parameter.shape, generator=generator)
    with torch.inference_mode():
        drawn = model(**batch).logits
        companion.step(0.9)
        gated = model(**batch).logits
        again = model.train()(**batch).logits.isfinite().all()
        cut = companion.finish(model).eval()
        torch.testing.assert_close(cut(**batch).logits, gated, atol=1e-5, rtol=0)
    assert again and (drawn - gated).abs().max() > 1e-3
    assert layers_size(cut) <= 0.3 * layers_size(context.base)
    assert residual_of(cut).width % 8 == 0
    assert all(layer.neurons % 8 == 0 for layer in anatomy_of(cut).layers)
    assert any(layer.heads for layer in anatomy_of(cut).layers)


@given(st.integers(0, 10_000), st.floats(0.12, 1.0), st.sampled_from([1, 8, 24, 32]))
def test_the_choice_never_exceeds_the_budget(seed: int, keep: float, multiple_of: int) -> None:
    costs = [Costs({"heads": 32, "neurons": 2}, {"heads": 24, "neurons": 1}, 6)] * 2  # of the tiny BERT
    generator = torch.Generator().manual_seed(seed)

    def chance(number: int) -> Tensor:
        return nn.functional.logsigmoid(4 * torch.randn(number, generator=generator))

    chances = Chances(chance(32), chance(2), chance(2), [chance(4), chance(4)], [chance(64), chance(64)])
    budget = keep * 17_000
    structure = choose_structure(costs, chances, budget, multiple_of)
    if structure is None:
        least = min(32, multiple_of)
        assert budget < 2 * 6 * least + 32 * least + 24
        return
    sizes = [[torch.tensor(float(len(units))) for units in each] for each in (structure.heads, structure.neurons)]
    assert float(count(costs, torch.tensor(float(len(structure.hidden))), *sizes)) <= budget
    assert any(structure.heads)
    assert len(structure.hidden) in (32, multiple_of) or len(structure.hidden) % multiple_of == 0
    assert all(len(units) in (0, 64) or len(units) % multiple_of == 0 for units in structure.neurons)


def test_in_train_beside_distill(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    together = [
        Distill(hidden=1.0, hidden_layers="nearest"),
        Prune(by="hard-concrete", keep={"parameters": 0.4}, multiple_of=8),
    ]
    model = short_train(together, context).run(fresh(context), context)
    assert 0.3 < layers_size(model) / layers_size(context.base) <= 0.4


def test_an_interrupted_training_stays_frozen(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    first, second = (learnt(fresh(context), context) for _ in range(2))
    first.neurons[1].log_alpha.data -= torch.arange(64.0)
    first.step(0.8)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    second.step(0.9)
    assert second.frozen
    assert torch.equal(second.get_buffer("neurons_mask_1"), first.get_buffer("neurons_mask_1"))


def test_what_cannot_be_is_refused(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    step = Train(together=(Prune(by="hard-concrete", keep={"parameters": 0.05}),))
    with pytest.raises(NiwakiError, match="no room for one attention head"):
        step.check(fresh(context))
    Train(together=(Prune(by="hard-concrete", keep={"parameters": 0.05}, multiple_of=8),)).check(fresh(context))
    with pytest.raises(NiwakiError, match="hard-concrete cannot cut heads"):
        Prune(by="hard-concrete", keep_heads=0.5)
    with pytest.raises(NiwakiError, match="even"):
        Prune(by="hard-concrete", keep={"parameters": 0.5}, even=True)
    with pytest.raises(NiwakiError, match="cannot stand as a step"):
        Prune(by="hard-concrete", keep={"parameters": 0.5}).apply(fresh(context), context)
