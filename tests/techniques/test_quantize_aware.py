"""`quantize` inside `train`: gradients of steps, and a packed model that is the one that was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from niwaki import Recipe
from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import load, save, weights_hash
from niwaki.errors import NiwakiError
from niwaki.grid import Grid, Rounded, nearest, spread
from niwaki.layers.fake import INPUTS, RATE, fake_input, fake_quantize, fake_weight, integers_of, learnt_scale, on_grid
from niwaki.layers.integer import quantize_dynamic, quantize_static
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear
from niwaki.layers.packed import Packed, PackedLinear
from niwaki.surgery import journal_of, quantize_embedding
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.testing import check_no_scaffolding, fresh, logits, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]
RunUntil = Callable[[Train, Context, int], None]
Weights = dict[str, Tensor]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert"), toy_task, tmp_path)


def matrices(model: nn.Module) -> dict[str, Any]:
    """Return what is rounded while it trains."""
    return {name: module for name, module in model.named_modules() if "growth" in module._parameters}


def packed_floats(module: nn.Module) -> Tensor:
    """Return the weights that a packed layer stands for."""
    if isinstance(module, Packed | QuantizedEmbedding):
        return module.dequantized()
    assert isinstance(module, QuantizedLinear)
    return module.weight.float() * module.scale[:, None]


def unsettle(model: nn.Module) -> None:
    """Move all that is learnt, as a training would."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("growth", "shift", "growth_input", "shift_input"):
                parameter.copy_(0.1 / RATE * torch.randn(parameter.shape, generator=generator))


def seen_weights(model: nn.Module, context: Context) -> tuple[Tensor, Weights]:
    """Return logits, and the weights that the products of that forward pass saw."""
    seen: Weights = {}

    def see(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda module, inputs: seen.update({name: module.weight.detach().clone()})

    linears = {name: module for name, module in matrices(model).items() if isinstance(module, nn.Linear)}
    handles = [module.register_forward_pre_hook(see(name)) for name, module in linears.items()]
    before = logits(model, context)
    for handle in handles:
        handle.remove()
    return before, seen


# The functions


def test_gradients_by_hand() -> None:
    """Three bits around the middle are -3 to 3 steps; the step is 0.5."""
    values = torch.tensor([-2.0, -0.6, 0.3, 0.9, 1.6], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    faked = fake_quantize(values, scale, torch.tensor(4.0), Grid(3), count=5)
    assert faked.tolist() == [-1.5, -0.5, 0.5, 1.0, 1.5]
    faked.backward(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert values.grad is not None and scale.grad is not None
    assert values.grad.tolist() == [0, 2, 3, 4, 0]
    # outside -3 and 3; inside -1 + 1.2, 1 - 0.6, 2 - 1.8
    expected = (-3 * 1 + 0.2 * 2 + 0.4 * 3 + 0.2 * 4 + 3 * 5) / math.sqrt(5 * 3)
    assert float(scale.grad) == pytest.approx(expected, rel=1e-5)


def test_gradients_of_zero_points_by_hand() -> None:
    """Two bits are 0 to 3; the zero at 1 and steps of 0.5, -0.8 and 1.6 are cut off: their error moves the zero."""
    values = torch.tensor([-0.8, 0.2, 1.6, 0.9], requires_grad=True)
    scale, zero = torch.tensor([0.5], requires_grad=True), torch.tensor([1.0], requires_grad=True)
    faked = fake_quantize(values, scale, zero, Grid(2, zero="integer"), count=4)
    assert faked.tolist() == [-0.5, 0.0, 1.0, 1.0]
    faked.backward(torch.tensor([1.0, 1.0, 3.0, 2.0]))
    assert values.grad is not None and scale.grad is not None and zero.grad is not None
    assert values.grad.tolist() == [0, 1, 0, 2]
    share = 1 / math.sqrt(4 * 3)
    assert zero.grad.tolist() == pytest.approx([-0.5 * (1 + 3) * share])
    assert scale.grad.tolist() == pytest.approx([(-1 - 0.4 + 2 * 3 + 0.2 * 2) * share], rel=1e-5)


def test_each_group_has_its_own_step_and_gradient() -> None:
    grid, weight_OI = Grid(4, 4), torch.randn(3, 10)  # the last group of each row has two
    start = nearest(weight_OI, grid)
    growth = torch.full(start.scale.shape, 0.01, requires_grad=True)
    scale_OG = learnt_scale(start.scale, growth)
    faked_OI = fake_weight(weight_OI, scale_OG, torch.tensor([[8.0]]), grid)
    integers_OI = integers_of(weight_OI, scale_OG, torch.tensor([[8.0]]), grid)
    torch.testing.assert_close(faked_OI, (integers_OI.float() - 8) * spread(scale_OG, 10, grid))
    torch.testing.assert_close(scale_OG, start.scale * math.exp(RATE * 0.01))
    faked_OI[1, 8:].sum().backward()  # the third group of the second row
    assert growth.grad is not None
    assert growth.grad.nonzero().tolist() == [[1, 2]]


def test_inputs_are_rounded_as_the_integer_product_rounds_them() -> None:
    hidden = torch.cat([torch.randn(200), torch.arange(-8, 8) / 4])  # halves among them
    zero = torch.tensor(7, dtype=torch.uint8)
    rounded = quantize_static(hidden, torch.tensor(0.5), zero)
    assert torch.equal(on_grid(hidden, torch.tensor(0.5), zero.float(), INPUTS), rounded.float())
    integers, scale, zero = quantize_dynamic(hidden)
    seen = hidden.clone().requires_grad_(True)
    faked = fake_input(seen)
    assert torch.equal(faked, (integers.float() - zero.float()) * scale)
    faked.backward(torch.arange(216.0))
    assert seen.grad is not None and torch.equal(seen.grad, torch.arange(216.0))


def test_a_table_keeps_integers_that_were_found(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = tiny_model("bert")
    name = next(iter(anatomy_of(model).embedding_names()))
    table = model.get_submodule(name)
    assert isinstance(table, nn.Embedding)
    start = nearest(table.weight, Grid(8))
    values = Rounded(start.integers.clamp(100, 140), start.scale * 2)
    quantize_embedding(model, module=name, values=values)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run").get_submodule(name)
    assert isinstance(again, QuantizedEmbedding) and torch.equal(again.dequantized(), values.floats(Grid(8)))


# What is trained is what is packed

SETTINGS = [
    Quantize(),
    Quantize(activations="static", examples=32),
    Quantize(activations="none", group="tensor"),
    Quantize(bits=6, symmetric=False, embeddings=False),
    Quantize(preset="int4", group=16),
    Quantize(bits=3, group=10, embeddings=3),  # 32 inputs: the last group is shorter
    Quantize(bits=2, by="hqq", group=16, embeddings=2),
    Quantize(bits=4, by="percentile", group="tensor", symmetric=False),
    Quantize(bits=4, group=16, override={"*.layer.0.*": {"bits": 8, "group": "channel", "activations": "dynamic"}}),
]


@pytest.mark.parametrize("technique", SETTINGS, ids=repr)
def test_what_is_trained_is_what_is_packed(
    technique: Quantize, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quantize, "check", lambda self, model: None)  # groups that do not divide are refused
    model = fresh(context)
    companion = technique.accompany(model, context)
    unsettle(model)
    before, seen = seen_weights(model, context)
    tables = [name for name, module in matrices(model).items() if isinstance(module, nn.Embedding)]
    rows = {name: model.get_submodule(name)(torch.arange(2)).detach() for name in tables}
    companion.finish(model)
    check_no_scaffolding(model, technique)
    assert not matrices(model) and seen
    for name, weight_OI in seen.items():
        assert torch.equal(packed_floats(model.get_submodule(name)), weight_OI), name
    for name, rows_RD in rows.items():
        assert torch.equal(model.get_submodule(name)(torch.arange(2)), rows_RD), name
    # noise of floats may turn one rounding of an input, a 255th of its range, the other way
    rounds_inputs = any(getattr(module, "activations", "none") != "none" for module in model.modules())
    torch.testing.assert_close(logits(model, context), before, rtol=0, atol=5e-2 if rounds_inputs else 1e-4)


def test_one_linear_gives_the_outputs_of_the_integer_product(context: Context) -> None:
    """Where the input is the same, so is the output, with ranges of its own or learnt ones."""
    for activations in ("dynamic", "static"):
        model = fresh(context).eval()
        name = anatomy_of(model).layers[0].name_of("up")
        companion = Quantize(activations=activations, examples=32).accompany(model, context)
        unsettle(model)
        hidden = 3 * torch.randn(4, 5, 32)
        before = model.get_submodule(name)(hidden)
        companion.finish(model)
        torch.testing.assert_close(model.get_submodule(name)(hidden), before, rtol=1e-5, atol=1e-4)


def test_steps_learn_and_the_mask_of_padding_does_not_matter(context: Context) -> None:
    model = fresh(context)
    companion = Quantize(activations="static", examples=32).accompany(model, context)
    assert companion.parameter_groups(1e-3) == []  # the model's own rate and no decay: they are flat
    batch = next(context.calibration_batches(8))
    labels = batch.pop("labels")
    context.task.loss(model(**batch).logits, labels).backward()
    for name, module in matrices(model).items():
        assert module.growth.dim() == 1 and bool(module.growth.grad.any()) and bool(module.weight.grad.any()), name
        if isinstance(module, nn.Linear):
            assert float(module.growth_input.grad) != 0, name
    looked_up = batch["input_ids"].unique()
    gradient_V = anatomy_of(model).word_embeddings.growth.grad  # type: ignore[union-attr]
    assert set(gradient_V.nonzero()[:, 0].tolist()) <= set(looked_up.tolist())  # type: ignore[union-attr, operator]


def test_under_autocast_weights_are_rounded_in_full_precision(context: Context) -> None:
    model = fresh(context)
    Quantize().accompany(model, context)
    _, seen = seen_weights(model, context)
    with torch.autocast("cpu", torch.bfloat16):
        _, again = seen_weights(model, context)
    assert all(torch.equal(again[name], weight) and weight.dtype == torch.float32 for name, weight in seen.items())


# In training


def distance(model: nn.Module, context: Context) -> Tensor:
    """Return how far the logits of 32 rows are from the base's, in the mean square."""
    batch = next(context.calibration_batches(32))
    batch.pop("labels")
    with torch.no_grad():
        expected = context.base(**batch).logits
    return (model.eval()(**batch).logits - expected).square().mean()


@pytest.mark.parametrize("learnt", ["growth", "weight"])
def test_training_mends_what_three_bits_break(learnt: str, context: Context) -> None:
    """Steps alone, and weights with them, come nearer to the base; what is packed is as near as what was trained."""
    model = fresh(context)
    technique = Quantize(bits=3, embeddings=3)
    at_once = float(distance(technique.apply(fresh(context), context), context).detach())
    companion = technique.accompany(model, context)
    assert float(distance(model, context).detach()) == pytest.approx(at_once, rel=1e-3)
    parameters = [one for name, one in model.named_parameters() if learnt in name or "growth" in name]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(40):
        optimizer.zero_grad()
        distance(model, context).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    trained = float(distance(model, context).detach())
    assert trained < {"growth": 0.7, "weight": 0.3}[learnt] * at_once
    assert float(distance(companion.finish(model), context).detach()) == pytest.approx(trained, rel=1e-3)


def test_an_interrupted_training_ends_the_same(context: Context, tmp_path: Path, run_until: RunUntil) -> None:
    train = short_train([Quantize(activations="static", examples=32)], context)
    train = train.model_copy(update={"checkpoint_seconds": 1e-9})
    (tmp_path / "whole").mkdir()
    whole = train.run(fresh(context), replace(context, workspace=tmp_path / "whole"))
    run_until(train, context, 1)
    assert weights_hash(train.run(fresh(context), context)) == weights_hash(whole)


@pytest.mark.parametrize("embeddings", [8, 4])
def test_the_best_epoch_of_a_tied_model_comes_back(
    embeddings: int, saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path
) -> None:
    task = Task("language-modelling", data=str(toy_data()))
    context = make_context(saved_base("llama"), task, tmp_path)
    quantize = Quantize(embeddings=embeddings, activations="static", examples=32)
    train = Train(together=(quantize,), epochs=1, batch_size=48, learning_rate=1e-3, best=True)
    model = train.run(fresh(context), context)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.lm_head.scale is model.model.embed_tokens.scale or embeddings == 8
    save(model, tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run"), context), logits(model, context))


# Beside other techniques


@pytest.mark.parametrize(
    "prune",
    [
        Prune(keep_heads=0.5, keep_neurons=0.5),
        Prune(keep_hidden=0.5, multiple_of=8),
        Prune(keep_weights=0.4, by="magnitude"),
    ],
)
@pytest.mark.parametrize("quantize", [Quantize(activations="none"), Quantize(bits=4, symmetric=False, embeddings=4)])
def test_what_is_cut_leaves_the_integers_as_they_were(prune: Prune, quantize: Quantize, context: Context) -> None:
    model = fresh(context)
    companions = [prune.accompany(model, context), quantize.accompany(model, context)]
    unsettle(model)
    companions[0].step(1.0)
    before = logits(model, context)
    for companion in companions:
        companion.finish(model)
    check_no_scaffolding(model, quantize)
    torch.testing.assert_close(logits(model, context), before, rtol=0, atol=2e-4)
    if "weights" in prune.cut:
        kept = {record["module"]: record["kept"] for record in journal_of(model) if record["edit"] == "sparsify_linear"}
        found = {name: int(packed_floats(model.get_submodule(name)).count_nonzero()) for name in kept}
        assert kept and all(found[name] <= kept[name] for name in kept)


def test_groups_that_lost_columns_are_rounded_anew(context: Context, tmp_path: Path) -> None:
    together = [Distill(), Prune(keep_neurons=0.5, multiple_of=8), Quantize(preset="int4", group=16)]
    model = short_train(together, context).run(fresh(context), context)
    down = anatomy_of(model).layers[0].part("down")
    assert isinstance(down, PackedLinear) and down.scale.shape[1] == -(-down.in_features // 16) < 4
    save(model, tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run"), context), logits(model, context))


def test_methods_that_solve_for_integers_are_refused(context: Context) -> None:
    assert not Quantize(preset="int4-gptq").can_accompany and Quantize(preset="int4").can_accompany
    with pytest.raises(NiwakiError, match=r"together\[0\].*quantize by awq cannot stand inside train"):
        Recipe([Train(together=(Quantize(preset="int4-awq"),))])
    for settings, told in (({"smooth": 0.5}, "with smooth"), ({"allowed_drop": 1.0}, "with allowed_drop")):
        with pytest.raises(NiwakiError, match=f"quantize {told} cannot stand inside train"):
            Recipe([Train(together=(Quantize(**settings),))])
    for technique in (Quantize(bits=4, by="gptq"), Quantize(bits=4, override={"*.layer.1.*": {"by": "gptq"}})):
        with pytest.raises(NiwakiError, match="by gptq, which does its work at once") as caught:
            technique.accompany(fresh(context), context)
        assert "by: mean-square, or quantize as a step of its own after train" in str(caught.value)
