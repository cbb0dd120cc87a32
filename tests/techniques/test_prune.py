"""`prune` measures importance right and cuts the least important."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.errors import NiwakiError
from niwaki.layers.gates import Gates, choose
from niwaki.task import Task
from niwaki.techniques.prune import Prune, units
from niwaki.testing import fresh, make_context, short_train

Bases = Callable[..., Path]


def test_importance_is_the_derivative_by_a_gate(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """|dL/dg| of a unit equals the slope of the loss when its outgoing weights are scaled."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context).double()
    batch = next(context.calibration_batches(8))

    def loss() -> torch.Tensor:
        return toy_task.loss(model(**inputs_of(batch)).logits, batch["labels"])

    gates = {kind: Gates(model, kind) for kind in ("heads", "neurons")}
    loss().backward()
    for gate in gates.values():
        gate.take_down()
    layer = anatomy_of(model).layers[1]
    for kind, role, columns, unit in (("heads", "output", slice(16, 24), 2), ("neurons", "down", slice(7, 8), 7)):
        weight = layer.part(role).weight
        kept, ends = weight.data[:, columns].clone(), []
        for factor in (1 + 1e-5, 1 - 1e-5):
            weight.data[:, columns] = kept * factor
            with torch.no_grad():
                ends.append(float(loss()))
        weight.data[:, columns] = kept
        slope = abs(ends[0] - ends[1]) / 2e-5
        assert float(gates[kind].importances()[1][unit]) == pytest.approx(slope, rel=1e-3, abs=1e-7)


def test_units_that_do_nothing_go_first(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    idle = list(range(10, 42))
    for layer in anatomy_of(model).layers:
        layer.part("down").weight.data[:, idle] = 0
        layer.part("output").weight.data[:, :16] = 0
    batch = context.data.evaluation.batch(range(8))
    batch.pop("labels")
    with torch.inference_mode():
        before = model(**batch).logits.clone()
        pruned = Prune(keep_heads=0.5, keep_neurons=0.5, even=True, examples=64)
    with torch.enable_grad():
        model = pruned.apply(model, context)
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits, before, atol=1e-5, rtol=0)
    assert [(layer.heads, layer.neurons) for layer in anatomy_of(model).layers] == [(2, 32), (2, 32)]


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=12), min_size=1, max_size=4),
    st.floats(0.01, 1),
    st.booleans(),
    st.integers(1, 4),
)
def test_choice_is_sound(values: list[list[float]], keep: float, even: bool, multiple_of: int) -> None:
    importances = [torch.tensor(layer) for layer in values]
    kept = choose(importances, keep, even, multiple_of)
    for layer, stay in zip(importances, kept, strict=True):
        assert stay == sorted(set(stay)) and stay
        assert len(stay) % multiple_of == 0 or len(stay) == len(layer)
        gone = [float(layer[unit]) for unit in range(len(layer)) if unit not in stay]
        assert not gone or min(float(layer[unit]) for unit in stay) >= max(gone)
    if keep == 1.0:
        assert kept == [list(range(len(layer))) for layer in values] or multiple_of > 1


def test_gradual_pruning_ends_at_the_asked_share(
    family: str, saved_base: Bases, toy_task: Task, tmp_path: Path
) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    prune = Prune(keep_heads=0.5, keep_neurons=0.25, even=True, multiple_of=8)
    model = short_train([prune], context).run(fresh(context), context)
    assert [(layer.heads, layer.neurons) for layer in anatomy_of(model).layers] == [(2, 16), (2, 16)]


def test_what_is_cut_is_what_was_closed(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Whatever the importances say after the last gates closed, a model without them computes the same."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = fresh(context)
    companion = Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8).accompany(model, context)
    assert isinstance(companion, units.Gradual)
    generator = torch.Generator().manual_seed(0)

    def shake() -> None:
        for kind in ("heads", "neurons"):
            gates = companion.gates(kind)
            for index in range(len(gates.gates)):
                gates.importance(index).uniform_(generator=generator)

    shake()
    companion.step(0.3)
    shake()
    companion.step(0.5)
    closed = {kind: companion.gates(kind).open_units() for kind in ("heads", "neurons")}
    batch = inputs_of(context.data.evaluation.batch(range(8)))
    with torch.inference_mode():
        gated = model(**batch).logits
    shake()
    resumed = Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8).accompany(fresh(context), context)
    resumed.load_state_dict(companion.state_dict())
    resumed.step(0.7)
    assert isinstance(resumed, units.Gradual)
    assert {kind: resumed.gates(kind).open_units() for kind in closed} == closed
    model = companion.finish(model)
    assert [layer.neurons for layer in anatomy_of(model).layers] == [len(one) for one in closed["neurons"]]
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits, gated, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["heads", "neurons", "hidden"])
def test_activations_are_of_real_tokens(
    kind: str, family: str, saved_base: Bases, toy_task: Task, tmp_path: Path
) -> None:
    """A row says the same of each unit with padding and without."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    batch = inputs_of(next(context.calibration_batches(8)))
    length = int(batch["attention_mask"][0].sum())
    assert length < batch["attention_mask"].shape[1], "there is padding"

    def importances(tokens: int) -> torch.Tensor:
        gates = units.gates_on(model, kind, "activation")
        with torch.no_grad():
            model(**{name: value[:1, :tokens] for name, value in batch.items()})
        gates.take_down()
        return torch.cat(gates.importances())

    torch.testing.assert_close(importances(batch["attention_mask"].shape[1]), importances(length), rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_gates_that_need_no_batch_gather_nothing(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = fresh(context)
    gates = units.gates_on(model, "neurons", "magnitude")
    batch = next(context.calibration_batches(8))
    toy_task.loss(model(**inputs_of(batch)).logits, batch["labels"]).backward()
    assert not any(bool(gates.importance(index).any()) for index in range(len(gates.gates)))


def test_uneven_by_default(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Neurons of a layer that is cut off from the answer go before any of the other."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = fresh(context)
    torch.nn.init.zeros_(anatomy_of(model).layers[0].part("down").weight)
    Prune(keep_neurons=0.5, multiple_of=8).apply(model, context)
    assert [layer.neurons for layer in anatomy_of(model).layers] == [8, 64]


def test_nothing_to_remove_is_an_error(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    with pytest.raises(NiwakiError, match="nothing to remove"):
        Prune(keep_neurons=0.9, multiple_of=64).apply(fresh(context), context)
    with pytest.raises(NiwakiError, match="above begin"):
        Prune(begin=0.5, end=0.5)
