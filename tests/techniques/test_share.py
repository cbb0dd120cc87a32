"""Sharing across layers: the shared weight by hand, one tensor in every file, gradients from every use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.artifacts import FORMATS, examples_of, write_artifact
from niwaki.checkpoint import WEIGHTS, load, save, weights_hash
from niwaki.errors import NiwakiError
from niwaki.layers.gates import Gates
from niwaki.measure.counting import count_macs_per_token, count_parameters
from niwaki.recipe import Recipe
from niwaki.surgery import (
    journal_of,
    keep_layers,
    narrow_heads,
    narrow_hidden,
    narrow_neurons,
    reorder_neurons,
    scale_inputs,
    ties_of,
    turn_heads,
)
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.cluster import Cluster
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.factor import Factor
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.share import Share, weights
from niwaki.techniques.share.aligning import align
from niwaki.techniques.share.technique import mean_loss
from niwaki.techniques.share.tightening import Tightening
from niwaki.techniques.trim import Trim
from niwaki.testing import fresh, logits, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]
#: Weights of the matrices of one tiny layer: 4 of 32 x 32 and 2 of 32 x 64.
MATRICES = 4 * 32 * 32 + 2 * 32 * 64


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert", layers=3), toy_task, tmp_path)


def matrices(model: nn.Module, role: str) -> list[Any]:
    return [layer.part(role) for layer in anatomy_of(model).layers]


def reloaded(model: nn.Module, folder: Path, context: Context) -> nn.Module:
    """Return what a save reads as, bit-equal and with the same ties."""
    again = load(save(model, folder))
    assert weights_hash(again) == weights_hash(model)
    assert torch.equal(logits(again, context), logits(model, context))
    return again


def test_the_shared_weight_by_hand() -> None:
    one, two = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[5.0, 2.0], [4.0, 3.0]])
    assert weights.mean([one, two]).tolist() == [[3.0, 1.0], [2.0, 2.0]]
    # by columns: inputs of the first count 1 and 3, (1 + 3 * 5) / 4 and (0 + 3 * 4) / 4; of the second 1 and 1
    nearest = weights.least_squares([one, two], [torch.diag(torch.tensor(c)) for c in ([1.0, 1.0], [3.0, 1.0])])
    torch.testing.assert_close(nearest, torch.tensor([[4.0, 1.0], [3.0, 2.0]]), atol=1e-5, rtol=0)
    # an input that is never there says nothing: there stands the mean
    silent = weights.least_squares([one, two], [torch.diag(torch.tensor([1.0, 0.0]))] * 2)
    torch.testing.assert_close(silent, torch.tensor([[3.0, 1.0], [2.0, 2.0]]), atol=1e-5, rtol=0)


def test_least_squares_is_nearer_to_all_outputs_than_any_other_start(context: Context) -> None:
    def error(start: str) -> float:
        """Return the squared difference of the first shared linear's outputs from the members' own."""
        share = Share(groups="all", parts="attention", start=start, align=False, examples=32)
        first = share.sets(fresh(context), context)[0]
        model, total = fresh(context), 0.0
        for name in first.names:
            seen: list[torch.Tensor] = []
            linear: Any = model.get_submodule(name)
            linear.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0]))
            for batch in context.calibration_batches(32):
                seen.clear()
                model.eval()(**{key: batch[key] for key in ("input_ids", "attention_mask")})
                inputs_PD = seen[0][batch["attention_mask"].bool()]
                total += float((inputs_PD @ (first.weight_OI - linear.weight).T).square().sum().detach())
        return total

    errors = {start: error(start) for start in ("mean", "best", "least-squares")}
    assert errors["least-squares"] < 0.99 * min(errors["mean"], errors["best"])


def test_best_is_the_layer_that_costs_least_in_the_place_of_the_others(context: Context) -> None:
    notes: list[dict[str, Any]] = []
    share = Share(groups="all", start="best", align=False, examples=32)
    model = share.apply(fresh(context), replace(context, log=notes.append))
    told = next(note["values"] for note in notes if "loss" in note["note"])
    for member, loss in enumerate(told):
        other = fresh(context)
        for role in share.roles(other):
            for linear in matrices(other, role):
                linear.weight = nn.Parameter(matrices(fresh(context), role)[member].weight.detach().clone())
        assert mean_loss(other, context, 32) == pytest.approx(loss, rel=1e-5)
    assert torch.equal(matrices(model, "up")[0].weight, matrices(context.base, "up")[told.index(min(told))].weight)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "llama", "qwen2"])
def test_in_line_a_model_computes_what_it_did_and_its_layers_are_nearer(
    family: str, saved_base: Bases, toy_task: Task, tmp_path: Path
) -> None:
    context = make_context(saved_base(family, layers=3), toy_task, tmp_path)
    model, roles = fresh(context), Share().roles(context.base)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(std=0.1)  # a tiny model has none; they are turned as well
    expected, before = logits(model, context), copy.deepcopy(model)
    align(model, [[0, 1, 2]], roles)
    torch.testing.assert_close(logits(model, context), expected, atol=1e-5, rtol=1e-4)

    def spread(of: nn.Module, roles: tuple[str, ...]) -> float:
        weights = [torch.stack([linear.weight.detach() for linear in matrices(of, role)]) for role in roles]
        return sum(float((one - one.mean(dim=0)).square().sum()) for one in weights)

    assert spread(model, ("up", "down")) < 0.99 * spread(before, ("up", "down"))
    if family in ("llama", "qwen2"):
        with pytest.raises(NiwakiError, match="cannot be turned"):
            turn_heads(model, layer=0)
    heads, turned = ("query", "key", "value", "output"), family not in ("llama", "qwen2")
    assert (spread(model, heads) < 0.99 * spread(before, heads)) == turned, "rotary positions turn heads themselves"
    assert all(torch.equal(matrices(model, role)[2].weight, matrices(before, role)[2].weight) for role in roles)


def test_layers_that_are_the_same_but_for_order_and_turns_share_without_loss(context: Context) -> None:
    """The second layer is the first with its neurons and heads elsewhere, and each head turned."""
    model = fresh(context)
    first, second, _ = anatomy_of(model).layers
    second.module.load_state_dict(first.module.state_dict())
    expected = logits(model, context)
    generator = torch.Generator().manual_seed(0)
    count, size = second.heads, second.head_size
    turns = torch.linalg.qr(torch.randn(2, count, size, size, generator=generator, dtype=torch.float64)).Q
    turn_heads(model, layer=1, values=(torch.randperm(count, generator=generator), turns))
    reorder_neurons(model, layer=1, values=torch.randperm(second.neurons, generator=generator))
    assert journal_of(model)[-2:] == [{"edit": "turn_heads", "layer": 1}, {"edit": "reorder_neurons", "layer": 1}]
    torch.testing.assert_close(logits(model, context), expected, atol=1e-5, rtol=1e-4)
    apart = copy.deepcopy(model)
    shared = Share(groups=((0, 1),)).apply(model, context)
    with pytest.raises(NiwakiError, match="shares its weight"):
        turn_heads(shared, layer=0)
    torch.testing.assert_close(logits(shared, context), expected, atol=1e-4, rtol=1e-3)
    lost = logits(Share(groups=((0, 1),), align=False).apply(apart, context), context) - expected
    assert float(lost.abs().max()) > 1e-3


def test_similar_layers_are_found_wherever_they_are(context: Context) -> None:
    model = fresh(context)
    for role in Share().roles(model):
        first, _, last = matrices(model, role)
        last.weight = nn.Parameter(first.weight.detach() * 1.01)
    assert Share(groups=2, by="similar").grouped(model) == [[0, 2]]
    assert Share(groups=2, by="cyclic").grouped(model) == [[0, 2]]
    assert Share(groups=3).grouped(model) == []  # all three stay, as asked for
    assert Share(groups=2).grouped(model) == [[1, 2]]
    assert Share(groups=((2, 0),)).grouped(model) == [[0, 2]]


def test_one_tensor_in_memory_in_the_file_and_in_the_count(context: Context, tmp_path: Path) -> None:
    model = Share(groups="all", align=False).apply(fresh(context), context)
    for role in Share().roles(model):
        linears, own = matrices(model, role), matrices(context.base, role)
        assert all(linear.weight is linears[0].weight for linear in linears)
        assert all(torch.equal(linear.bias, other.bias) for linear, other in zip(linears, own, strict=True))
        torch.testing.assert_close(linears[0].weight, sum(other.weight for other in own) / 3)
    assert count_parameters(context.base) - count_parameters(model) == 2 * MATRICES
    batch = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    assert count_macs_per_token(model, batch) == count_macs_per_token(context.base, batch)
    again = reloaded(model, tmp_path / "shared", context)
    assert matrices(again, "up")[0].weight is matrices(again, "up")[2].weight
    sizes = [(save(one, tmp_path / name) / WEIGHTS).stat().st_size for one, name in ((context.base, "a"), (again, "b"))]
    assert 0 <= sizes[0] - sizes[1] - 4 * 2 * MATRICES < 4096  # and the names that are gone
    assert '"plain": false' in (tmp_path / "b" / "config.json").read_text()
    assert matrices(copy.deepcopy(again), "up")[0].weight is not matrices(again, "up")[0].weight


@pytest.mark.parametrize(
    "pack",
    [
        None,
        Quantize(activations="static", examples=32),
        Quantize(preset="int4-gptq", group=16, examples=32),
        Cluster(bits=4, entropy=True),
    ],
    ids=lambda pack: pack.name if pack else "floats",
)
def test_files_hold_each_shared_tensor_once(pack: Any, toy_task: Task, saved_base: Bases, tmp_path: Path) -> None:
    context = make_context(saved_base("bert", layers=3, hidden=64, neurons=128), toy_task, tmp_path)
    shared, apart = Share(groups="all").apply(fresh(context), context), fresh(context)
    for model in (shared, apart):
        if pack is not None:
            pack.apply(model, context)
    for role in Share().roles(shared):
        stored = [linear.state_dict(keep_vars=True) for linear in matrices(shared, role)]
        key = "codes" if "codes" in stored[0] else "weight"
        assert all(one[key] is stored[0][key] for one in stored)
        assert all(one["bias"] is not stored[0]["bias"] for one in stored[1:])
    again = reloaded(shared, tmp_path / "shared", context)
    if isinstance(pack, Quantize) and pack.activations == "static":
        assert len({float(linear.activation_scale) for linear in matrices(again, "up")}) == 3
    # two of three copies of each matrix and its steps; an artifact holds the floats that codes stand for
    spared = 2 * 4 * (4 * 64 * 64 + 2 * 64 * 128)
    if isinstance(pack, Quantize):
        spared = 2 * sum(matrix_bytes(matrices(again, role)[0]) for role in Share().roles(again))
    examples = examples_of(again, context.data.evaluation, 8)
    for to in ("onnx", "openvino"):
        one, three = (
            artifact_bytes(model, to, tmp_path / f"{to}-{name}", examples)
            for name, model in (("one", again), ("three", apart))
        )
        assert 0.9 * spared < three - one < 1.35 * spared, (to, one, three, spared)


def matrix_bytes(linear: nn.Module) -> int:
    """Return the bytes of a packed matrix, its steps and zero points."""
    return sum(
        tensor.nbytes for name, tensor in linear.state_dict().items() if name != "bias" and "activation" not in name
    )


def artifact_bytes(model: nn.Module, to: str, folder: Path, examples: Any) -> int:
    """Return the size of an artifact, having checked that it agrees with the model."""
    folder.mkdir()
    write_artifact(model, to, folder / FORMATS[to][0], examples)
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_gradients_come_from_every_use(context: Context) -> None:
    """At t = 1 the shared weight's gradient is the sum of those that the layers' weights have, each by itself."""
    apart, tied = fresh(context), fresh(context)
    companion = Share(groups=((0, 2),), align=False).accompany(tied, context)
    assert isinstance(companion, Tightening)
    torch.testing.assert_close(logits(tied, context), logits(context.base, context), atol=1e-5, rtol=0)
    companion.step(0.25)  # half of the way, cubic: 1 - (1 - 1/2)^3
    assert companion.left == pytest.approx(0.125) and not companion.ready(0.25)
    companion.step(0.5)
    assert companion.left == 0.0 and companion.ready(0.5)
    for role in Share().roles(apart):
        first, _, last = matrices(apart, role)
        first.weight = nn.Parameter((first.weight + last.weight).detach() / 2)
        last.weight = nn.Parameter(first.weight.detach().clone())
    batch = next(iter(context.calibration_batches(8)))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    for model in (apart, tied):
        context.task.loss(model.eval()(**inputs).logits, batch["labels"]).backward()  # type: ignore[no-untyped-call]
    for role in Share().roles(apart):
        first, _, last = matrices(apart, role)
        shared = matrices(tied, role)[2].shared_weight
        assert shared is matrices(tied, role)[0].shared_weight
        torch.testing.assert_close(shared.grad, first.weight.grad + last.weight.grad, atol=1e-5, rtol=1e-4)
    done = companion.finish(tied)
    assert matrices(done, "up")[0].weight is matrices(done, "up")[2].weight
    torch.testing.assert_close(logits(done, context), logits(apart, context), atol=1e-5, rtol=0)


def test_the_last_step_of_a_training_ties(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three steps the last is done at 2/3, and 1/3 of the differences would be cut off unlearnt."""
    left: list[float] = []
    step = Tightening.step

    def watched(companion: Tightening, progress: float) -> None:
        step(companion, progress)
        left.append(companion.left)

    monkeypatch.setattr(Tightening, "step", watched)
    share = Share(groups="all", schedule="linear", end=1.0)
    there = replace(context, workspace=tmp_path)
    Train(together=(share,), epochs=3, batch_size=96, best=True).run(fresh(context), there)
    assert left == pytest.approx([1, 2 / 3, 0]) and left[-1] == 0
    assert (tmp_path / "best-model.safetensors").is_file()  # of the last epoch, the first in which layers are one


def test_a_full_rank_difference_is_the_layer_itself(context: Context, tmp_path: Path) -> None:
    with pytest.raises(NiwakiError, match="sharing saves"):
        Share(groups="all", rank=32).apply(fresh(context), context)
    whole = fresh(context)
    for one in Share.model_construct(**{**Share(groups="all", align=False).model_dump(), "rank": 32}).sets(
        whole, context
    ):
        one.put(whole)
    assert count_parameters(whole) > count_parameters(context.base)
    torch.testing.assert_close(logits(whole, context), logits(context.base, context), atol=1e-4, rtol=0)
    own = matrices(context.base, "up")[0].weight
    lost = []
    for rank in (0, 4, 8):
        relaxed = Share(groups="all", rank=rank, align=False).apply(fresh(context), context)
        lost.append(float((matrices(relaxed, "up")[0].weight - own).detach().norm()))
    assert lost[0] > lost[1] > lost[2] > 0
    model = reloaded(Share(groups="all", rank=4).apply(fresh(context), context), tmp_path / "relaxed", context)
    assert matrices(model, "up")[0].shared.weight is matrices(model, "up")[1].shared.weight
    batch = {name: torch.ones(2, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    more = count_macs_per_token(model, batch) - count_macs_per_token(context.base, batch)
    assert more == 3 * 4 * (4 * 64 + 2 * 96)  # of three layers, rank 4 times inputs and outputs
    packed = reloaded(Quantize().apply(model, context), tmp_path / "packed", context)
    assert matrices(packed, "up")[0].shared.weight is matrices(packed, "up")[1].shared.weight
    with pytest.raises(NiwakiError, match="RelaxedLinear"):
        Share().check(model)
    relaxed = Share(groups="all", rank=4).apply(fresh(context), context)
    with pytest.raises(NiwakiError, match=r"difference of its own\n.*rank: 0 in share"):
        Factor(rank=8).check(relaxed)


def test_an_interrupted_training_ends_the_same(
    context: Context, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = Train(
        together=(Distill(), Share(groups="all", rank=4, end=0.6)),
        epochs=6 * 16 / 96,
        batch_size=16,
        learning_rate=1e-3,
        checkpoint_seconds=1e-9,
    )
    whole = train.run(fresh(context), replace(context, workspace=tmp_path / "whole"))

    def stop(event: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    class Stopped(Distill):
        name = "distill"

        def accompany(self, model: nn.Module, context: Context) -> Any:
            companion = super().accompany(model, context)
            step = companion.step

            def steps(progress: float) -> None:
                if progress >= 0.5:
                    raise KeyboardInterrupt
                step(progress)

            companion.step = steps  # type: ignore[method-assign]
            return companion

    there = replace(context, workspace=tmp_path / "there")
    with pytest.raises(KeyboardInterrupt):
        train.model_copy(update={"together": (Stopped(), train.together[1])}).run(fresh(context), there)
    assert weights_hash(train.run(fresh(context), there)) == weights_hash(whole)
    assert not caplog.records  # Accelerate warns of shared weights at each checkpoint


def test_edits_after_it_are_made_for_all_users(context: Context, tmp_path: Path) -> None:
    model = Share(groups=((0, 2),), rank=4).apply(fresh(context), context)
    narrow_heads(model, layer=2, heads=[0, 3])
    narrow_neurons(model, layer=0, neurons=[0, 1, 5])
    first, other, last = anatomy_of(model).layers
    assert [layer.heads for layer in (first, other, last)] == [2, 4, 2]
    assert [layer.neurons for layer in (first, other, last)] == [3, 64, 3]
    up, down = last.part("up"), last.part("down")
    assert up.shared.weight is first.part("up").shared.weight and up.shared.weight.shape == (3, 32)
    assert up.up.weight.shape == (3, 4) and down.down.weight.shape == (4, 3) and down.up.weight.shape == (32, 4)
    assert torch.equal(up.bias, matrices(context.base, "up")[2].bias[[0, 1, 5]])
    narrow_hidden(model, channels=list(range(24)))
    keep_layers(model, layers=[0, 2])
    name = "bert.encoder.layer.{}.intermediate.dense.shared"
    assert [name.format(0), name.format(1)] in ties_of(model)
    again = reloaded(model, tmp_path / "edited", context)
    assert matrices(again, "up")[0].shared.weight is matrices(again, "up")[1].shared.weight
    short_train((), context).run(again, context)  # training after it keeps one weight
    assert matrices(again, "up")[0].shared.weight is matrices(again, "up")[1].shared.weight
    keep_layers(again, layers=[1])
    assert ties_of(again) == []


def test_a_unit_goes_for_all_that_share_it_by_what_it_is_worth_to_all(context: Context, tmp_path: Path) -> None:
    """The last layer alone would keep other neurons than the first: what counts is the sum."""
    model = Share(groups=((0, 2),), parts="feed-forward").apply(fresh(context), context)
    gates = Gates(model, "neurons", by="first-order")
    for batch in context.calibration_batches(32, batch_size=8):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        context.task.loss(model.eval()(**inputs).logits, batch["labels"]).backward()  # type: ignore[no-untyped-call]
    gates.take_down()
    first, _, last = gates.importances()
    wanted = (first + last).argsort(descending=True)[:32].sort().values.tolist()
    assert wanted != last.argsort(descending=True)[:32].sort().values.tolist()
    before = matrices(model, "up")[0].weight
    pruned = Prune(keep_neurons=0.5, even=True, multiple_of=1, examples=32).apply(model, context)
    assert [layer.neurons for layer in anatomy_of(pruned).layers] == [32, 32, 32]
    assert torch.equal(matrices(pruned, "up")[2].weight, before[wanted])
    assert matrices(pruned, "up")[0].weight is matrices(pruned, "up")[2].weight
    reloaded(pruned, tmp_path / "pruned", context)
    for by in ("second-order", "hard-concrete"):
        keep: Any = {"keep": {"parameters": 0.5}} if by == "hard-concrete" else {"keep_neurons": 0.5}
        with pytest.raises(NiwakiError, match="shares its weight with"):
            Prune(by=by, **keep).check(model)


def test_units_go_while_layers_become_one(context: Context, tmp_path: Path) -> None:
    together = (Distill(), Share(groups=((0, 2),), rank=2), Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8))
    model = reloaded(short_train(together, context).run(fresh(context), context), tmp_path / "both", context)
    first, _, last = anatomy_of(model).layers
    assert first.part("down").shared.weight is last.part("down").shared.weight
    assert (first.heads, first.neurons) == (last.heads, last.neurons)
    assert sum(layer.neurons for layer in anatomy_of(model).layers) < 3 * 64


def test_factors_of_what_is_shared_are_shared_and_packed_once(context: Context, tmp_path: Path) -> None:
    model = Share(groups="all", align=False).apply(fresh(context), context)
    factored = Factor(rank=8, examples=32).apply(model, context)
    for role in Share().roles(model):
        pairs = matrices(factored, role)
        assert all(pair.inner.weight is pairs[0].inner.weight for pair in pairs)
        assert all(pair.outer.weight is pairs[0].outer.weight for pair in pairs)
        assert all(
            torch.equal(pair.bias, own.bias) for pair, own in zip(pairs, matrices(context.base, role), strict=True)
        )
    assert count_parameters(context.base) - count_parameters(factored) == 3 * MATRICES - 8 * (4 * 64 + 2 * 96)
    packed = reloaded(
        Quantize().apply(reloaded(factored, tmp_path / "pairs", context), context), tmp_path / "int8", context
    )
    for half in ("inner", "outer"):
        weights_of = [pair.get_submodule(half).weight for pair in matrices(packed, "up")]
        assert weights_of[0].dtype == torch.int8 and all(weight is weights_of[0] for weight in weights_of)
    with pytest.raises(NiwakiError, match="a step of its own"):
        short_train((Factor(rank=8, examples=32),), context).run(Share().apply(fresh(context), context), context)


def test_factors_of_inputs_are_one_for_all_uses(context: Context) -> None:
    """A factor folded into a shared weight would change the layers it was not found for."""
    model = Share(groups="all").apply(fresh(context), context)
    with pytest.raises(NiwakiError, match="shares its weight with"):
        scale_inputs(model, layer=1, source="value", values=torch.full((32,), 2.0))
    packed = Quantize(smooth=0.5, activations="static", examples=32).apply(copy.deepcopy(model), context)
    for role in ("query", "output", "down"):
        scales = [linear.input_scale for linear in matrices(packed, role)]
        assert scales[0] is not None and all(torch.equal(scale, scales[0]) for scale in scales)
    difference = (logits(packed, context) - logits(model, context)).abs().max()
    plain = Quantize(activations="static", examples=32).apply(copy.deepcopy(model), context)
    assert difference < 3 * (logits(plain, context) - logits(model, context)).abs().max()


def test_orders_that_cannot_be() -> None:
    share = Share()
    Recipe([Prune(keep_heads=0.5), Train(together=(Distill(), share, Prune(keep_neurons=0.5))), Quantize()])
    Recipe([share, Trim(), Drop(keep_layers=2), Prune(keep_hidden=0.5), Factor(keep=0.5), Train(together=(Cluster(),))])
    for after in (Prune(keep_weights=0.5, by="magnitude"), Prune(keep_neurons=0.5, by="second-order")):
        with pytest.raises(NiwakiError, match=r"cuts layer by layer") as refused:
            Recipe([share, after])
        assert refused.value.place == "steps[1]"
    for beside in (Prune(keep_neurons=0.5, by="magnitude"), Prune(keep={"parameters": 0.5}, by="hard-concrete")):
        with pytest.raises(NiwakiError, match=r"in a step of its own, before this train"):
            Recipe([Train(together=(share, beside))])
    with pytest.raises(NiwakiError, match=r"in a step of its own, after this train"):
        Recipe([Train(together=(share, Cluster()))])


def test_groups_that_cannot_be(context: Context) -> None:
    for groups, message in ((9, "a model that has 3"), (((1, 3),), "a model that has 3")):
        with pytest.raises(NiwakiError, match=message):
            Share(groups=groups).check(context.base)
    with pytest.raises(NiwakiError, match="each layer in one of them"):
        Share(groups=((0, 1), (1, 2)))
    with pytest.raises(NiwakiError, match="no two layers stand in one"):
        Share(groups=((0,), (2,)))
    with pytest.raises(NiwakiError, match="leave by, or write a number"):
        Share(groups="pairs", by="similar")
    with pytest.raises(NiwakiError, match="no two layers share") as refused:
        Share(groups="sandwich").check(context.base)
    assert refused.value.place == "share"
    model = fresh(context)
    narrow_neurons(model, layer=0, neurons=[0, 1])
    narrow_neurons(model, layer=1, neurons=[0, 1, 2])
    with pytest.raises(NiwakiError, match="other shapes"):
        Share(groups="all").check(model)
    Share(groups="all", parts="attention").check(model)
    with pytest.raises(NiwakiError, match="no two layers share"):
        Share(groups=1, by="similar").check(model)
    alike = fresh(context)
    narrow_neurons(alike, layer=1, neurons=[0, 1, 2])
    assert Share(groups=2, by="similar").grouped(alike) == [[0, 2]]
