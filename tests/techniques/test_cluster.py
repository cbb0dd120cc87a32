"""`cluster` stores codes and centroids: the same bits when read, gradients that are sums, zeros that stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.artifacts import examples_of, write_artifact
from niwaki.checkpoint import WEIGHTS, load, save, tensors_of, weights_hash
from niwaki.errors import NiwakiError
from niwaki.layers.codebook import ClusteredEmbedding, ClusteredLinear, Codebook, in_floats
from niwaki.measure.counting import count_parameters, module_table
from niwaki.surgery import cluster_embedding, cluster_linear, is_plain, journal_of, keep_layers, narrow_heads
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.cluster import Cluster
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.testing import fresh, logits, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]
RunUntil = Callable[[Train, Context, int], None]
Models = Callable[..., nn.Module]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert"), toy_task, tmp_path)


def clustered(model: nn.Module) -> dict[str, Codebook]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Codebook)}


# The layers and their edits


@pytest.mark.parametrize("bits", [1, 3, 4, 8])
@pytest.mark.parametrize("group_rows", [None, 1, 5])
def test_a_linear_computes_with_the_weights_looked_up(bits: int, group_rows: int | None) -> None:
    linear = nn.Linear(13, 12)
    layer = ClusteredLinear(linear, bits, group_rows)
    assert layer.codes.dtype == torch.uint8 and layer.codes.shape == (12, -(-13 * bits // 8))
    assert layer.centroids.shape == (1 if group_rows is None else -(-12 // group_rows), 2**bits)
    assert layer.num_weights == 12 * 13 and not list(layer.parameters())
    for group, table in zip(layer.weight.split(group_rows or 12), layer.centroids, strict=True):
        assert torch.isin(group, table).all()
    hidden = torch.randn(4, 13)
    assert torch.equal(layer(hidden), nn.functional.linear(hidden, layer.weight, linear.bias))
    worst = (layer.weight - linear.weight).abs().max()
    assert worst <= (linear.weight.max() - linear.weight.min()) / 2**bits * 1.01 or bits == 1


@pytest.mark.parametrize("group_rows", [None, 7])
def test_a_table_gives_rows_of_its_weights(group_rows: int | None) -> None:
    table = nn.Embedding(30, 9, padding_idx=0)
    layer = ClusteredEmbedding(table, 4, group_rows)
    ids = torch.tensor([[0, 29], [7, 7]])
    assert torch.equal(layer(ids), layer.weight[ids]) and layer.padding_idx == 0
    assert (layer.weight - table.weight).abs().max() < 0.5


def test_a_few_different_values_are_kept() -> None:
    """The neutral setting: what has no more values than a table has room for changes by no bit."""
    linear = nn.Linear(20, 12)
    with torch.no_grad():
        linear.weight.mul_(20).round_()
    assert len(linear.weight.unique()) <= 16
    assert torch.equal(ClusteredLinear(linear, bits=4).weight, linear.weight)


def test_what_is_looked_up_follows_its_tables() -> None:
    layer = ClusteredLinear(nn.Linear(8, 8), bits=2)
    with torch.inference_mode():
        before = layer(torch.ones(1, 8))
    other = ClusteredLinear(nn.Linear(8, 8), bits=2)
    layer.load_state_dict(other.state_dict())
    assert torch.equal(layer.weight, other.weight) and not torch.equal(layer(torch.ones(1, 8)), before)
    hidden = torch.ones(1, 8, requires_grad=True)
    layer(hidden).sum().backward()  # also after it was first looked up without gradients
    torch.testing.assert_close(hidden.grad, layer.weight.sum(dim=0)[None])
    assert layer.double().weight.dtype == torch.float64 and layer.weight.dtype == torch.float64


@pytest.mark.parametrize("entropy", [False, True])
def test_it_reloads_bit_equal(entropy: bool, family: str, tiny_model: Models, tmp_path: Path) -> None:
    model = tiny_model(family)
    before, size = count_parameters(model), (save(model, tmp_path / "base") / WEIGHTS).stat().st_size
    for name in anatomy_of(model).linear_names():
        cluster_linear(model, module=name, bits=3, group_rows=20, entropy=entropy)
    for name in anatomy_of(model).embedding_names():
        cluster_embedding(model, module=name, bits=5, entropy=entropy)
    assert count_parameters(model) == before and not is_plain(model)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert weights_hash(again) == weights_hash(model)
    assert journal_of(again)[1:] == journal_of(model)[1:]
    assert {name: module.entropy for name, module in clustered(again).items()} == dict.fromkeys(
        clustered(model), entropy
    )
    batch = {"input_ids": torch.tensor([[2, 9, 30, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.int64)}
    assert torch.equal(again(**batch).logits, model.eval()(**batch).logits)
    file = (tmp_path / "run" / WEIGHTS).stat().st_size
    told = sum(row["bytes"] for row in module_table(model, batch))
    assert file < 0.4 * size and 0 < file - told < 250 * len(model.state_dict())


def test_entropy_coding_saves_bytes_unless_asked_to_leave_it(tiny_model: Models, tmp_path: Path) -> None:
    model = tiny_model("bert", hidden=64, neurons=256)
    for name in anatomy_of(model).linear_names():
        cluster_linear(model, module=name, bits=4, entropy=True)
    coded = save(model, tmp_path / "coded") / WEIGHTS
    plain = save(model, tmp_path / "plain", dense=True) / WEIGHTS
    assert weights_hash(load(tmp_path / "coded")) == weights_hash(load(tmp_path / "plain")) == weights_hash(model)
    assert coded.stat().st_size < plain.stat().st_size - 1000


def test_a_tied_head_stays_tied_in_codes(tiny_model: Models, tmp_path: Path) -> None:
    model = tiny_model("llama")
    cluster_linear(model, module="lm_head", bits=4, entropy=True)
    assert anatomy_of(model).tied_names is None  # one in codes, one in floats
    cluster_embedding(model, module="model.embed_tokens", bits=4, entropy=True)
    assert anatomy_of(model).tied_names == ("lm_head", "model.embed_tokens")
    assert not any(name.startswith("lm_head") for name in tensors_of(model))
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert weights_hash(again) == weights_hash(model)
    assert again.lm_head.codes is again.model.embed_tokens.codes
    assert again.lm_head.centroids is again.model.embed_tokens.centroids
    ids = torch.tensor([[5, 9, 30]])
    assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_edits_before_and_after(tiny_model: Models, tmp_path: Path) -> None:
    """Layers may still go; units may not, and the message says why."""
    model = narrow_heads(tiny_model("bert"), layer=0, heads=[1, 2])
    for name in anatomy_of(model).linear_names():
        cluster_linear(model, module=name, bits=4)
    with pytest.raises(NiwakiError, match="ClusteredLinear"):
        narrow_heads(model, layer=1, heads=[0])
    with pytest.raises(NiwakiError, match="not packed into bits yet"):
        cluster_linear(model, module=anatomy_of(model).layers[0].name_of("query"), bits=4)
    keep_layers(model, layers=[0])
    save(model, tmp_path / "run")
    assert weights_hash(load(tmp_path / "run")) == weights_hash(model)


# As a step


def test_what_is_clustered(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = Cluster(bits=6).apply(fresh(context), context)
    assert isinstance(anatomy_of(model).head, nn.Linear)
    anatomy = anatomy_of(model)
    assert set(anatomy.linear_names()) <= set(clustered(model))
    assert isinstance(anatomy.word_embeddings, ClusteredEmbedding)
    for name, module in clustered(model).items():
        weight = context.base.get_submodule(name).weight
        assert (module.weight - weight).square().mean() < 0.002 * weight.square().mean()
    before = logits(context.base, context)
    assert 0 < (logits(model, context) - before).abs().mean() < 0.5 * before.std()  # random weights are steep


def test_more_bits_and_smaller_groups_are_nearer(context: Context) -> None:
    before = logits(context.base, context)
    errors = [
        float((logits(Cluster(bits=bits, group_rows=rows).apply(fresh(context), context), context) - before).norm())
        for bits, rows in ((2, None), (4, None), (4, 2), (7, None))
    ]
    assert errors[0] > errors[1] > errors[2] and errors[1] > errors[3]


def test_skip_patterns_and_what_does_not_pay(context: Context) -> None:
    model = Cluster(skip=("*pooler*", "*.layer.0.*"), embeddings=False).apply(fresh(context), context)
    assert len(clustered(model)) == 6 and all(".layer.1." in name for name in clustered(model))
    for wrong in (Cluster(skip=("decoder*",)).check, lambda base: Cluster(skip=("decoder*",)).apply(base, context)):
        with pytest.raises(NiwakiError, match="cluster: .*matches no module"):
            wrong(fresh(context))
    with pytest.raises(NiwakiError, match="cluster found nothing to pack"):
        Cluster(skip=("*",)).apply(fresh(context), context)
    with pytest.raises(NiwakiError, match="no matrix that gets smaller"):
        Cluster(bits=8, group_rows=1).apply(fresh(context), context)  # a table of 256 for 32 weights


def test_pruned_zeros_stay_zeros(context: Context, tmp_path: Path) -> None:
    """Prune, cluster, Huffman, the three steps of the paper: each makes the file smaller."""
    pruned = Prune(keep_weights=0.3, by="magnitude").apply(fresh(context), context)
    masks = {name: module.weight == 0 for name, module in pruned.named_modules() if isinstance(module, nn.Linear)}
    sizes = [(save(pruned, tmp_path / "0") / WEIGHTS).stat().st_size]
    for number, entropy in enumerate((False, True), start=1):
        model = fresh(context)
        model.load_state_dict(pruned.state_dict())
        model = Cluster(bits=4, entropy=entropy).apply(model, context)
        for name in anatomy_of(model).linear_names():
            assert torch.equal(model.get_submodule(name).weight == 0, masks[name])
        sizes.append((save(model, tmp_path / str(number)) / WEIGHTS).stat().st_size)
        assert weights_hash(load(tmp_path / str(number))) == weights_hash(model)
    assert sizes[0] > sizes[1] > sizes[2]


# In training


def test_the_gradient_of_a_centroid_is_the_sum_over_its_weights(context: Context) -> None:
    model = fresh(context).eval()
    batch = next(context.calibration_batches(8))
    batch.pop("labels")
    companion = Cluster(bits=2).accompany(model, context)
    name = anatomy_of(model).layers[0].name_of("up")
    matrix = model.get_submodule(name)
    model(**batch).logits.square().sum().backward()
    assert matrix.weight.grad is None and not matrix.weight.requires_grad
    learnt, codes = matrix.centroids.grad, matrix.codes
    companion.finish(model)
    twin = in_floats(model)
    dense = twin.get_submodule(name).requires_grad_(True)
    twin(**batch).logits.square().sum().backward()
    for code in range(4):
        expected = dense.weight.grad[codes == code + 1].sum()
        torch.testing.assert_close(learnt[code], expected, rtol=1e-3, atol=1e-3 * float(learnt.abs().max()))


def test_training_moves_centroids_and_no_weight_from_its_cluster(context: Context) -> None:
    trained = short_train([Cluster(bits=3)], context).run(fresh(context), context)
    at_once = Cluster(bits=3).apply(fresh(context), context)
    name = anatomy_of(trained).layers[0].name_of("up")
    one, other = trained.get_submodule(name), at_once.get_submodule(name)
    assert torch.equal(one.codes, other.codes) and not torch.equal(one.centroids, other.centroids)
    assert all(len(module.weight.unique()) <= 8 for module in clustered(trained).values())
    assert set(clustered(trained)) == set(clustered(at_once))


@pytest.mark.parametrize("prune", [Prune(keep_weights=0.4, by="magnitude"), Prune(keep_weights=0.4, by="movement")])
def test_beside_pruning_the_zeros_are_those_that_pruning_left(prune: Prune, context: Context) -> None:
    model = short_train([prune, Cluster(bits=3)], context).run(fresh(context), context)
    kept = {record["module"]: record["kept"] for record in journal_of(model) if record["edit"] == "sparsify_linear"}
    names = anatomy_of(model).linear_names()
    found = {name: int(model.get_submodule(name).weight.count_nonzero()) for name in names}
    assert found == kept and sum(kept.values()) == pytest.approx(0.4 * 2 * (4 * 32 * 32 + 2 * 32 * 64), rel=0.01)
    assert all(len(module.weight.unique()) <= 8 for module in clustered(model).values())


def test_what_is_trained_is_what_is_stored(context: Context) -> None:
    """Taking the scaffolding down changes no output, zeros in a matrix or not."""
    model = fresh(context)
    with torch.no_grad():
        anatomy_of(model).layers[0].part("up").weight[0, :3] = 0  # type: ignore[index]
    companion = Cluster(bits=3).accompany(model, context)
    with torch.no_grad():
        for module in model.modules():
            if "centroids" in module._parameters:
                module.centroids.add_(0.01)  # type: ignore[operator]
    before = logits(model, context)
    torch.testing.assert_close(logits(companion.finish(model), context), before)


def test_the_best_epoch_of_a_tied_model_comes_back(
    saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path
) -> None:
    task = Task("language-modelling", data=str(toy_data()))
    context = make_context(saved_base("llama"), task, tmp_path)
    train = Train(together=(Cluster(bits=3),), epochs=1, batch_size=48, learning_rate=1e-3, best=True)
    model = train.run(fresh(context), context)
    assert model.lm_head.codes is model.model.embed_tokens.codes
    save(model, tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run"), context), logits(model, context))


def test_an_interrupted_training_ends_the_same(context: Context, tmp_path: Path, run_until: RunUntil) -> None:
    train = short_train([Cluster(bits=3)], context).model_copy(update={"checkpoint_seconds": 1e-9})
    (tmp_path / "whole").mkdir()
    whole = train.run(fresh(context), replace(context, workspace=tmp_path / "whole"))
    run_until(train, context, 1)
    assert weights_hash(train.run(fresh(context), context)) == weights_hash(whole)


# Beside other techniques, and out of the house


def test_quantize_packs_what_is_left(context: Context) -> None:
    model = Cluster(bits=4, skip=("*.layer.1.*",)).apply(fresh(context), context)
    model = Quantize().apply(model, context)
    edits = [(record["edit"], ".layer.1." in record["module"]) for record in journal_of(model)[1:]]
    assert ("quantize_linear", True) in edits and ("cluster_linear", True) not in edits
    with pytest.raises(NiwakiError, match="nothing to pack"):
        Quantize().apply(Cluster(bits=4).apply(fresh(context), context), context)


def test_in_floats_leaves_the_model_alone(context: Context) -> None:
    assert in_floats(context.base) is context.base
    model = Cluster(bits=3).apply(fresh(context), context).eval()
    digest = weights_hash(model)
    dense = in_floats(model)
    assert not clustered(dense) and clustered(model) and weights_hash(model) == digest
    assert torch.equal(logits(dense, context), logits(model, context))
    norm = anatomy_of(model).layers[0].name_of("output_norm")
    assert dense.get_submodule(norm) is model.get_submodule(norm)


@pytest.mark.parametrize(("family", "to"), [("roberta", "onnx"), ("distilbert", "openvino")])
def test_it_exports(family: str, to: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    pytest.importorskip({"onnx": "onnxruntime"}.get(to, to))
    file = {"onnx": "model.onnx", "openvino": "model.xml"}[to]
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = Cluster(bits=3, group_rows=10).apply(fresh(context), context)
    parity = write_artifact(model, to, tmp_path / file, examples_of(model, context.data.evaluation, 16))
    assert parity["agreement"] == 1.0 and clustered(model)
