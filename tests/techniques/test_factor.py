"""`factor` keeps what counts most of each matrix: errors by hand, ranks where they pay, pairs that are linears."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.artifacts import examples_of, write_artifact
from niwaki.checkpoint import load, save, tensors_of, weights_hash
from niwaki.errors import NiwakiError
from niwaki.export.prepare import LeanClassifier, prepare
from niwaki.hessian import factor_of_inverse
from niwaki.layers.factored import FactoredEmbedding, FactoredLinear
from niwaki.layers.linear import QuantizedLinear
from niwaki.measure.counting import count_macs_per_token, count_parameters
from niwaki.recipe import Recipe
from niwaki.removal import Part, predict_without
from niwaki.surgery import (
    factor_embedding,
    factor_linear,
    journal_of,
    narrow_heads,
    narrow_hidden,
    narrow_neurons,
    word_table,
)
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.factor import Factor
from niwaki.techniques.factor.at_once import metrics, weight_fisher
from niwaki.techniques.factor.ranks import Shape, least_cost, options_of
from niwaki.techniques.factor.truncate import RIDGE, by_fisher, by_size, narrow_table, refitted, spectrum
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.trim import Trim
from niwaki.testing import check_no_scaffolding, fresh, logits, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]
Models = Callable[..., nn.Module]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert"), toy_task, tmp_path)


@pytest.fixture
def decoder(saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path) -> Context:
    task = Task("language-modelling", data=str(toy_data()))
    return make_context(saved_base("llama"), task, tmp_path)


def pairs(model: nn.Module) -> dict[str, FactoredLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, FactoredLinear)}


def correlated(rows: int, width: int, seed: int = 0) -> Tensor:
    """Return inputs (P, I) whose channels differ in size and hang together."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)[:, None]
    return (torch.randn(rows, width, generator=generator) @ mixing) * torch.logspace(-1, 1, width)


def output_error(weight_OI: Tensor, pair: tuple[Tensor, Tensor], inputs_PI: Tensor) -> float:
    inner_RI, outer_OR = pair
    return float((inputs_PI @ (weight_OI - outer_OR @ inner_RI).T).square().sum())


# Truncation, by hand


def test_whitened_truncation_costs_the_squares_of_what_is_dropped() -> None:
    inputs_PI, weight_OI = correlated(200, 8).double(), torch.randn(6, 8, dtype=torch.float64)
    products_II = inputs_PI.T @ inputs_PI
    damped_II = products_II + RIDGE * products_II.diagonal().mean() * torch.eye(8)
    one = spectrum(weight_OI, products_II)
    for rank in (1, 3, 5):
        inner_RI, outer_OR = one.pair(rank)
        left_OI = weight_OI - (outer_OR @ inner_RI).double()
        loss = float((left_OI @ damped_II * left_OI).sum())
        assert loss == pytest.approx(float(one.values_K[rank:].square().sum()), rel=1e-4)
        assert float(one.lost_K[rank]) == pytest.approx(
            loss / float((weight_OI @ damped_II * weight_OI).sum()), rel=1e-4
        )
    root_II = torch.linalg.inv(factor_of_inverse(products_II, RIDGE))
    torch.testing.assert_close(root_II @ root_II.T, damped_II)


def test_fisher_keeps_the_input_that_the_loss_feels() -> None:
    # weights 2 and 1; the loss feels the second 100 times as much: metric (1, 10), scaled (2, 10)
    weight_OI = torch.diag(torch.tensor([2.0, 1.0]))
    fisher_OI = torch.tensor([[0.5, 40.0], [0.5, 60.0]])
    torch.testing.assert_close(by_fisher(fisher_OI), torch.tensor([1.0, 10.0], dtype=torch.float64))
    assert spectrum(weight_OI).values_K.tolist() == [2.0, 1.0]
    weighed = spectrum(weight_OI, by_fisher(fisher_OI))
    torch.testing.assert_close(weighed.values_K, torch.tensor([10.0, 2.0], dtype=torch.float64))
    inner_RI, outer_OR = weighed.pair(1)
    torch.testing.assert_close(outer_OR @ inner_RI, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(weighed.lost_K, torch.tensor([1.0, 4 / 104, 0.0], dtype=torch.float64))
    inner_RI, outer_OR = spectrum(weight_OI).pair(1)
    torch.testing.assert_close(outer_OR @ inner_RI, torch.tensor([[2.0, 0.0], [0.0, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_knowing_more_of_the_inputs_costs_less_at_the_outputs(seed: int) -> None:
    inputs_PI = correlated(400, 24, seed)
    weight_OI = torch.randn(16, 24, generator=torch.Generator().manual_seed(seed))
    products_II = inputs_PI.T @ inputs_PI
    by_metric = [None, by_size(products_II.diagonal()), products_II]
    plain, sized, whitened = (
        output_error(weight_OI, spectrum(weight_OI, metric).pair(6), inputs_PI) for metric in by_metric
    )
    assert whitened < sized < plain


def test_the_outer_factor_is_fitted_to_what_was_put_out_before() -> None:
    before_PI = correlated(300, 12)
    now_PI = before_PI @ (torch.eye(12) + 0.1 * torch.randn(12, 12, generator=torch.Generator().manual_seed(1)))
    weight_OI = torch.randn(10, 12, generator=torch.Generator().manual_seed(2))
    products_II = (now_PI.T @ now_PI).double()
    inner_RI, outer_OR = spectrum(weight_OI, products_II).pair(5)
    fitted_OR = refitted(weight_OI, inner_RI, outer_OR, products_II, (before_PI.T @ now_PI).double())
    solved_RO = torch.linalg.lstsq((now_PI @ inner_RI.T).double(), (before_PI @ weight_OI.T).double()).solution
    wanted_PO, features_PR = before_PI @ weight_OI.T, now_PI @ inner_RI.T

    def error(outer: Tensor) -> float:
        return float((wanted_PO - features_PR @ outer.T).square().sum())

    best = error(solved_RO.T.float())
    assert best <= error(fitted_OR) < best + 0.05 * (error(outer_OR) - best)
    # where nothing changed before it, the pair is the best already
    same_OR = refitted(weight_OI, inner_RI, outer_OR, products_II, products_II)
    torch.testing.assert_close(same_OR @ inner_RI, outer_OR @ inner_RI, atol=2e-2, rtol=1e-2)


def test_a_table_weighed_by_its_tokens_loses_less_where_they_are_read() -> None:
    generator = torch.Generator().manual_seed(0)
    table_VD = torch.randn(50, 12, generator=generator)
    counts_V = 1 + (1000 / torch.arange(1, 51)).long()

    def error(inner_VR: Tensor, outer_DR: Tensor) -> float:
        return float((counts_V[:, None] * (table_VD - inner_VR @ outer_DR.T).square()).sum())

    weighed = narrow_table(table_VD, counts_V, 4)
    plain = narrow_table(table_VD, torch.ones(50), 4)
    assert error(*weighed[:2]) < 0.95 * error(*plain[:2])
    assert weighed[2] == pytest.approx(error(*weighed[:2]) / error(torch.zeros(50, 4), torch.zeros(12, 4)), rel=1e-4)
    # by hand: rows (1, 0) read 9 times and (0, 2) read once: 9 * 1 against 1 * 4
    inner_VR, outer_DR, lost = narrow_table(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([9, 1]), 1)
    torch.testing.assert_close(inner_VR @ outer_DR.T, torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert lost == pytest.approx(4 / 13)


# Ranks


def test_break_even() -> None:
    assert Shape(384, 384).break_even == 192 and Shape(384, 1536).break_even == pytest.approx(307.2)
    assert Shape(384, 384).paying(191) == 191 and Shape(384, 384).paying(192) is None
    assert Shape(384, 384).at_share(0.5, 32) == 96 and Shape(384, 384).at_share(0.5, 40) == 80
    assert Shape(32, 32).at_share(0.1, 8) == 8 and Shape(16, 16).at_share(0.5, 8) is None
    assert Shape(4, 3).of_rank(1) == 7 and Shape(4, 3).of_rank(None) == 12


def test_a_budget_goes_where_it_saves_most() -> None:
    # 8 x 8: ranks 1, 2, 3 hold 16, 32, 48, the whole 64; above 3 nothing pays
    steep, flat = [8.0, 2.0, 1.0, 0.5, 0.2, 0.1, 0.1, 0.1, 0.0], [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    assert [one.rank for one in options_of(Shape(8, 8), steep, 1)] == [1, 2, 3, None]
    assert [one.rank for one in options_of(Shape(8, 8), flat, 1)] == [1, None]  # 7 over 48 beats 1 over 16
    options = {"steep": options_of(Shape(8, 8), steep, 1), "flat": options_of(Shape(8, 8), flat, 1)}
    assert least_cost(options, 0.7) == {"steep": 1, "flat": None}  # 80 of 128 parameters, and 16 do not fit
    assert least_cost(options, 0.5) == {"steep": 3, "flat": 1}  # 64
    assert least_cost(options, 1.0) == {"steep": None, "flat": None}
    with pytest.raises(NiwakiError, match="keep is 0.2"):  # 32 are the least
        least_cost(options, 0.2)


def test_a_budget_holds_and_ranks_differ(context: Context) -> None:
    technique = Factor(keep=0.6, even=False, multiple_of=1, examples=32)
    model = fresh(context)
    shapes = technique.shapes(model)
    chosen = technique.ranks(model, context)
    held = sum(shape.of_rank(chosen[name]) for name, shape in shapes.items())
    whole = sum(shape.parameters for shape in shapes.values())
    assert 0.55 * whole < held <= 0.6 * whole
    assert len(set(chosen.values())) > 2


def test_what_does_not_pay_is_refused_with_the_break_even_rank(context: Context) -> None:
    model = fresh(context)
    with pytest.raises(NiwakiError, match="16 for 32 x 32, 21.33 for 64 x 32"):
        Factor(rank=22).check(model)
    with pytest.raises(NiwakiError, match="break-even|below 27.59"):
        Factor(embedding=28).check(model)
    events: list[dict[str, Any]] = []
    done = Factor(rank=20, by="svd").apply(model, replace(context, log=events.append))  # pays for neurons alone
    assert {name.split(".")[-2] for name in pairs(done)} == {"intermediate", "output"} and len(pairs(done)) == 4
    told = {one["module"]: one for one in events[-1]["matrices"]}
    dense = told["bert.encoder.layer.0.attention.self.query"]
    assert dense["rank"] is None and dense["lost"] == 0.0 and dense["break_even"] == 16
    assert 0 < told["bert.encoder.layer.1.intermediate.dense"]["lost"] < 1


def test_chosen_matrices(context: Context) -> None:
    model = fresh(context)
    assert len(Factor(keep=0.5, modules=("attention",)).shapes(model)) == 8
    assert list(Factor(keep=0.5, modules=("*.0.*query", "bert.pooler.dense")).shapes(model)) == [
        "bert.encoder.layer.0.attention.self.query",
        "bert.pooler.dense",
    ]
    assert len(Factor(keep=0.5, skip=("*key", "*layer.1*")).shapes(model)) == 5
    with pytest.raises(NiwakiError, match="matches no module"):
        Factor(keep=0.5, modules=("*nonsense",)).check(model)
    with pytest.raises(NiwakiError, match="leave keep"):
        Factor(keep=0.5, rank=4)
    with pytest.raises(NiwakiError, match="factor before quantize"):
        Factor(keep=0.5).check(Quantize().apply(model, context))
    with pytest.raises(NiwakiError, match="packed into bits"):
        Recipe.parse("steps: [quantize: {}, factor: {keep: 0.5}]")


# At once


def test_each_method_weighs_by_what_it_says(context: Context) -> None:
    model, name = fresh(context), "bert.encoder.layer.0.attention.self.query"
    assert metrics(model, [name], "svd", context, 16) == {}
    fisher = weight_fisher(model, [name], context, 16)[name]
    assert fisher.shape == (32, 32) and float(fisher.min()) >= 0 and all(p.requires_grad for p in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
    products_II = metrics(model, [name], "whitened", context, 16)[name]
    torch.testing.assert_close(
        metrics(model, [name], "asvd", context, 16)[name], by_size(products_II.diagonal()), atol=1e-5, rtol=1e-5
    )
    # the more a method knows of the inputs, the less it changes the model's answers
    whole = logits(context.base, context)
    changed = {
        by: float((logits(Factor(keep=0.9, by=by, examples=64).apply(fresh(context), context), context) - whole).norm())
        for by in ("svd", "asvd", "whitened")
    }
    assert changed["whitened"] < changed["asvd"] < changed["svd"]


def test_pairs_count_their_own_parameters_and_products(context: Context) -> None:
    model = Factor(keep=0.5, by="svd").apply(fresh(context), context)
    batch = context.data.evaluation.batch([0])
    saved = {name: 32 * 32 - 8 * 64 for name in pairs(model) if "attention" in name}
    saved |= {name: 32 * 64 - 8 * 96 for name in pairs(model) if "attention" not in name}
    assert len(saved) == 12
    assert count_parameters(context.base) - count_parameters(model) == sum(saved.values())
    macs = [count_macs_per_token(one, batch) for one in (context.base, model)]
    assert macs[0] - macs[1] == sum(saved.values())


@pytest.mark.parametrize(("to", "activations"), [("onnx", "dynamic"), ("openvino", "static")])
def test_packed_pairs_export(saved_base: Bases, toy_task: Task, tmp_path: Path, to: str, activations: Any) -> None:
    context = make_context(saved_base("bert", layers=1), toy_task, tmp_path)
    model = Factor(keep=0.5, embedding=8, examples=32, skip=("*self.value",)).apply(fresh(context), context)
    model = Quantize(activations=activations, examples=32).apply(model, context)
    assert all(isinstance(half, QuantizedLinear) for pair in pairs(model).values() for half in pair.children())
    assert len(pairs(model)) == 5
    rows = examples_of(model, context.data.evaluation, 16)
    file = tmp_path / ("model.onnx" if to == "onnx" else "model.xml")
    parity = write_artifact(model, to, file, rows)  # audits that all integers are in the file
    assert parity["agreement"] == 1.0


def test_the_first_factors_of_query_key_and_value_are_one_product(context: Context) -> None:
    model = Factor(keep=0.5, by="svd", examples=32, skip=("*0.attention.self.value",)).apply(fresh(context), context)
    prepared = prepare(model.eval(), token_types=False)
    assert isinstance(prepared, LeanClassifier)
    merged = prepared.layers[0].projections
    assert merged.alike and merged.sizes == []  # of the dense value with its bias, nothing can be merged
    batch = context.data.evaluation.batch(range(8))
    torch.testing.assert_close(
        prepared(batch["input_ids"], batch["attention_mask"]), logits(model, context), atol=1e-5, rtol=0
    )
    whole = prepare(Factor(keep=0.5, by="svd").apply(fresh(context), context).eval(), token_types=False)
    assert whole.layers[0].projections.sizes == [8, 8, 8]


# Other edits after it


def test_units_and_channels_of_pairs_are_cut_as_those_of_linears(
    family: str, tiny_model: Models, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = tiny_model(family)
    for layer in anatomy_of(model).layers:
        for role in ("query", "key", "value", "output", "up", "down"):
            factor_linear(model, module=layer.name_of(role), rank=6)
    word_table = anatomy_of(model).prefix + anatomy_of(model).family.word_embeddings
    factor_embedding(model, module=word_table, rank=5)
    dense = copy.deepcopy(model)  # the same function, in whole matrices
    for name, module in list(dense.named_modules()):
        if isinstance(module, FactoredLinear | FactoredEmbedding):
            parent, _, leaf = name.rpartition(".")
            setattr(dense.get_submodule(parent), leaf, whole_of(module))
    for one in (model, dense):
        narrow_heads(one, layer=0, heads=[])
        narrow_heads(one, layer=1, heads=[0, 3])
        narrow_neurons(one, layer=0, neurons=list(range(0, 64, 3)))
        narrow_neurons(one, layer=1, neurons=[])
        narrow_hidden(one, channels=list(range(0, 32, 2)))
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits, dense(**batch).logits, atol=1e-4, rtol=1e-4)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert weights_hash(again) == weights_hash(model) and journal_of(again) == journal_of(model)


def whole_of(module: FactoredLinear | FactoredEmbedding) -> nn.Module:
    if isinstance(module, FactoredEmbedding):
        return nn.Embedding.from_pretrained(module.weight.detach().clone(), padding_idx=module.padding_idx)
    linear = nn.Linear(module.in_features, module.out_features)
    linear.load_state_dict({"weight": module.weight, "bias": module.bias})
    return linear


def test_pruning_after_it(context: Context) -> None:
    model = Factor(keep=0.5, embedding=8, by="svd").apply(fresh(context), context)
    for technique in (
        Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8, by="magnitude"),
        Prune(keep_hidden=0.5, multiple_of=8, by="fisher", examples=16),
        Prune(keep_weights=0.5, by="wanda", examples=16),
    ):
        model = technique.apply(model, context)
    assert logits(model, context).isfinite().all()
    for refused in (Prune(keep_neurons=0.5, by="second-order"), Prune(keep={"parameters": 0.5}, by="hard-concrete")):
        with pytest.raises(NiwakiError, match="prune before factor"):
            refused.check(model)
    with pytest.raises(NiwakiError, match="this step before factor"):
        Trim().check(model)
    _, without = predict_without(model, context.data.evaluation, [Part("feed-forward", 0), Part("head", 1, 0)])
    assert len(without) == 2


# A language head that is the word table


def test_a_tied_head_follows_the_table(decoder: Context, tmp_path: Path) -> None:
    with pytest.raises(NiwakiError, match="embedding: 12"):
        Factor(rank=12, modules=("lm_head",)).check(fresh(decoder))
    model = Factor(embedding=12).apply(fresh(decoder), decoder)
    table, head = anatomy_of(model).word_embeddings, anatomy_of(model).language_head
    assert isinstance(table, FactoredEmbedding) and isinstance(head, FactoredLinear)
    assert head.outer.weight is table.inner.weight
    torch.testing.assert_close(head.weight, table.weight)
    save(model, tmp_path / "run", decoder.tokenizer)
    again = load(tmp_path / "run")
    assert anatomy_of(again).language_head.outer.weight is anatomy_of(again).word_embeddings.inner.weight
    assert torch.equal(logits(again, decoder), logits(model, decoder))
    packed = Quantize().apply(copy.deepcopy(model), decoder)
    assert not any(isinstance(module, nn.Linear | nn.Embedding) for module in packed.modules())
    assert anatomy_of(packed).language_head.outer.weight is anatomy_of(packed).word_embeddings.inner.weight
    floats = Quantize(embeddings=False).apply(model, decoder)
    assert all(isinstance(half, nn.Linear) for half in anatomy_of(floats).language_head.children())


# In training


def test_the_residual_fades(context: Context) -> None:
    model = fresh(context)
    before = logits(model, context)
    companion = Factor(keep=0.5, embedding=8, examples=32, begin=0.0, end=0.5).accompany(model, context)
    torch.testing.assert_close(logits(model, context), before, atol=1e-5, rtol=1e-5)  # nothing is gone yet
    companion.step(0.25)  # (1 - 0.5)^3 of the residual is left
    query = anatomy_of(model).layers[0].part("query")
    hidden = torch.randn(3, 32)
    seen = query.pair.weight + 0.125 * (query.weight - query.pair.weight)
    torch.testing.assert_close(query(hidden), nn.functional.linear(hidden, seen, query.bias), atol=1e-5, rtol=1e-5)
    companion.step(0.5)
    assert companion.ready(0.5) and not companion.ready(0.49)
    faded = logits(model, context)
    check_no_scaffolding(companion.finish(model), Factor())
    torch.testing.assert_close(logits(model, context), faded, atol=1e-6, rtol=1e-6)
    assert len(pairs(model)) == 12 and {record["edit"] for record in journal_of(model)[1:]} == {
        "factor_linear",
        "factor_embedding",
    }


@pytest.mark.parametrize("coin", ["batch", "example"])
def test_by_coins_the_residual_stands_or_does_not(coin: Any, context: Context) -> None:
    """Each row of linear and table is that of the matrix or that of the pair; in evaluation all are the pair's."""
    model = fresh(context)
    companion = Factor(keep=0.5, embedding=8, examples=32, begin=0.0, end=1.0, coin=coin).accompany(model, context)
    companion.step(0.2)  # 0.8^3: about half of them stand
    layer, table = anatomy_of(model).layers[0].part("query"), word_table(model)
    inputs = {layer: torch.randn(32, 3, 32), table: torch.randint(0, 20, (32, 3))}
    for matrix, given in inputs.items():
        whole, alone = type(matrix).forward(matrix, given), matrix.eval()(given)
        seen = matrix.train()(given)
        are_whole, are_alone = (torch.isclose(seen, one, atol=1e-5).all(-1).all(-1) for one in (whole, alone))
        assert torch.equal(are_whole, ~are_alone)
        assert (0 < int(are_whole.sum()) < 32) if coin == "example" else int(are_whole.sum()) in (0, 32)
    companion.step(1.0)
    torch.testing.assert_close(layer(inputs[layer]), layer.eval()(inputs[layer]))


def test_both_factors_learn_and_what_is_whole_stays_whole(context: Context) -> None:
    technique = Factor(keep=0.5, by="svd", modules=("feed-forward",), examples=32)
    trained = short_train((technique,), context).run(fresh(context), context)
    at_once = technique.apply(fresh(context), context)
    for name, pair in pairs(trained).items():
        for half, start in zip(pair.children(), at_once.get_submodule(name).children(), strict=True):
            assert not torch.equal(half.weight, start.weight)
    assert all(parameter.requires_grad for parameter in trained.parameters())
    assert not any(name.endswith(("residual", ".pair")) for name, _ in trained.named_modules())


def test_matrices_that_another_cuts_below_their_rank_are_joined(context: Context) -> None:
    neurons = Prune(keep_neurons=0.25, multiple_of=8, by="magnitude", even=True)
    factor = Factor(rank=15, modules=("*dense",), skip=("*attention*", "bert.pooler*"), by="svd")
    events: list[dict[str, Any]] = []
    listening = replace(context, log=events.append)
    model = short_train((neurons, factor), context).run(fresh(context), listening)
    assert not pairs(model)  # 16 x 32 breaks even at 10.7
    assert sum("stays one matrix" in str(event.get("note")) for event in events) == 4
    check_no_scaffolding(model, factor)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_tied_head_learns_by_the_factors_of_the_table(decoder: Context, tmp_path: Path) -> None:
    model = fresh(decoder)
    before = logits(model, decoder)
    companion = Factor(embedding=12, begin=0.0, end=0.5).accompany(model, decoder)
    torch.testing.assert_close(logits(model, decoder), before, atol=1e-4, rtol=1e-4)
    companion.step(0.5)
    faded = logits(model, decoder)
    companion.finish(model)
    torch.testing.assert_close(logits(model, decoder), faded, atol=1e-5, rtol=1e-5)
    # the best epoch's weights are kept and put back while pair, residual and tie stand
    train = Train(together=(Factor(embedding=12, end=0.2),), epochs=1, batch_size=32, best=True, learning_rate=1e-3)
    trained = train.run(fresh(decoder), decoder)
    assert anatomy_of(trained).language_head.outer.weight is anatomy_of(trained).word_embeddings.inner.weight
    save(trained, tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run"), decoder), logits(trained, decoder))


def test_an_interrupted_training_ends_with_the_same_weights(
    context: Context, tmp_path: Path, run_until: Callable[[Train, Context, int], None]
) -> None:
    train = Train(
        together=(Factor(keep=0.5, embedding=8, examples=32),), epochs=1, batch_size=16, checkpoint_seconds=1e-6
    )

    def at(folder: str) -> Context:
        (tmp_path / folder).mkdir()
        return replace(context, workspace=tmp_path / folder)

    straight = train.run(fresh(context), at("straight"))
    interrupted = at("interrupted")
    run_until(train, interrupted, 2)
    resumed = train.run(fresh(context), interrupted)
    assert tensors_of(resumed).keys() == tensors_of(straight).keys()
    assert weights_hash(resumed) == weights_hash(straight)
