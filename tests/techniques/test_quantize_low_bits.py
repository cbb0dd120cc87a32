"""`quantize` below 8 bits, in groups, and by methods that look at more than the range."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import input_products, inputs_of
from niwaki.checkpoint import WEIGHTS, load, save
from niwaki.errors import NiwakiError
from niwaki.export.artifact import export_onnx, export_openvino
from niwaki.grid import Grid, Rounded, nearest, spread
from niwaki.layers import int4_kernel
from niwaki.layers.linear import QuantizedLinear
from niwaki.layers.packed import Packed, PackedEmbedding, PackedLinear
from niwaki.measure import count_macs_per_token, count_parameters
from niwaki.surgery import quantize_linear
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.quantize.rounding import SHRINKS, awq, gptq, hqq, mean_square, percentile, swept
from niwaki.testing import fresh, logits, make_context

Bases = Callable[..., Path]
METHODS = ("nearest", "mean-square", "percentile", "gptq", "awq", "hqq")


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert"), toy_task, tmp_path)


def correlated(inputs: int = 32, rows: int = 400, seed: int = 0) -> torch.Tensor:
    """Return inputs (rows, inputs) of a few directions and very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(rows, 8, generator=generator) @ torch.randn(8, inputs, generator=generator)
    noise = torch.randn(rows, inputs, generator=generator)
    return (mixed + 0.3 * noise) * torch.logspace(-1, 1, inputs)


def error_of(weight_OI: torch.Tensor, rounded: Rounded, grid: Grid, inputs_PI: torch.Tensor) -> float:
    """Return how much the outputs change, in all."""
    scale_I = torch.ones(weight_OI.shape[1]) if rounded.input_scale is None else rounded.input_scale
    return float((inputs_PI @ (rounded.floats(grid) * scale_I - weight_OI).T).square().sum())


# Methods


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("zero", ["middle", "integer"])
def test_solvers_change_the_outputs_less(bits: int, zero: str) -> None:
    weight_OI = torch.randn(24, 32, generator=torch.Generator().manual_seed(1))
    inputs_PI = correlated()
    products_II = (inputs_PI.T @ inputs_PI).double()
    grid = Grid(bits, 16, zero)  # type: ignore[arg-type]
    plain = error_of(weight_OI, nearest(weight_OI, grid), grid, inputs_PI)
    assert error_of(weight_OI, awq(weight_OI, products_II, grid), grid, inputs_PI) < plain
    assert error_of(weight_OI, gptq(weight_OI, products_II, grid), grid, inputs_PI) < 0.6 * plain


def test_gptq_in_blocks_is_gptq() -> None:
    weight_OI = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    inputs_PI = correlated()
    products_II = (inputs_PI.T @ inputs_PI).double()
    whole, blocks = (gptq(weight_OI, products_II, Grid(4, 8), block) for block in (32, 5))
    assert float((whole.integers != blocks.integers).float().mean()) < 0.02, "but for the order of sums"


@pytest.mark.parametrize("idle", [False, True])
def test_one_factor_does_what_the_inverse_does(idle: bool) -> None:
    """Algorithm 1 of the paper, column by column in 64 bits: errors by U of U^T U = (H + 0.01 mean I)^-1."""
    weight_OI = torch.randn(5, 24, generator=torch.Generator().manual_seed(6))
    inputs_PI = correlated(24, seed=6)
    inputs_PI[:, 7] *= 0.0 if idle else 1.0
    products_II = (inputs_PI.T @ inputs_PI).double()
    grid = Grid(3, 8, "integer")
    found = gptq(weight_OI, products_II, grid, block=5, sweeps=0)
    order_I = products_II.diagonal().argsort(descending=True)
    damped_II = products_II[order_I][:, order_I] + torch.eye(24) * 0.01 * products_II.diagonal().mean()
    upper_II = torch.linalg.cholesky(torch.linalg.inv(damped_II), upper=True)
    left_OI = weight_OI.double()[:, order_I]
    scale_OI, zero_OI = (spread(one, 24, grid)[:, order_I].double() for one in (found.scale, found.zero))
    expected_OI = torch.zeros(5, 24)
    for column in range(23 if idle else 24):
        scale_O, zero_O = scale_OI[:, column], zero_OI[:, column]
        expected_OI[:, column] = (left_OI[:, column] / scale_O + zero_O).round().clamp(0, 7)
        gone_O = left_OI[:, column] - (expected_OI[:, column] - zero_O) * scale_O
        left_OI[:, column:] -= (gone_O / upper_II[column, column])[:, None] * upper_II[column, column:]
    if idle:
        expected_OI[:, 23] = zero_OI[:, 23]  # a weight that does nothing is 0
    assert torch.equal(found.integers.float(), expected_OI[:, order_I.argsort()])


def test_a_sweep_never_makes_it_worse_and_by_hand() -> None:
    """With H = (1 .9; .9 1), w = (.4 .4) and steps of 1, (0 0) has the error .608, and the sweep finds (1 0): .088."""
    grid = Grid(4)
    products_II = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
    start = Rounded(torch.full((1, 2), 8, dtype=torch.uint8), torch.ones(1, 1))
    assert swept(torch.tensor([[0.4, 0.4]]), products_II, start, grid).integers.tolist() == [[9, 8]]
    weight_OI = torch.randn(8, 32, generator=torch.Generator().manual_seed(3))
    inputs_PI = correlated(seed=3)
    products_II = (inputs_PI.T @ inputs_PI).double()
    rounded = nearest(weight_OI, Grid(3, 8))
    for block in (7, 32):
        errors = [error_of(weight_OI, rounded, Grid(3, 8), inputs_PI)]
        better = rounded
        for _ in range(3):
            better = swept(weight_OI, products_II, better, Grid(3, 8), block)
            errors.append(error_of(weight_OI, better, Grid(3, 8), inputs_PI))
        assert all(after <= before * (1 + 1e-4) for before, after in zip(errors, errors[1:], strict=False))
        assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("group", [8, "channel", "tensor"])
def test_mean_square_is_the_best_of_its_ranges(group: Any) -> None:
    weight_OI = torch.randn(5, 16, generator=torch.Generator().manual_seed(4))
    weight_OI[:, 3] *= 6.0  # outliers, which a smaller range does without
    grid = Grid(3, group)
    errors = []
    for shrink in SHRINKS:
        low, high = weight_OI.min(), weight_OI.max()
        assert low < 0 < high
        from niwaki.grid import fit, to_integers

        scale, zero = fit(weight_OI, grid, shrink)
        tried = Rounded(to_integers(weight_OI, scale, zero, grid), scale, zero)
        errors.append(float((tried.floats(grid) - weight_OI).square().sum()))
    found = float((mean_square(weight_OI, grid).floats(grid) - weight_OI).square().sum())
    assert found <= min(errors) * (1 + 1e-6)
    assert found < errors[0]


def test_percentile_cuts_the_tails() -> None:
    weight_OI = torch.linspace(-1, 1, 1000)[None].clone()
    weight_OI[0, 0], weight_OI[0, -1] = -50.0, 50.0
    rounded = percentile(weight_OI, Grid(4), share=0.99)
    assert float(rounded.scale) == pytest.approx(1 / 7, rel=0.02)
    assert rounded.integers[0, 0] == 1 and rounded.integers[0, -1] == 15


def test_hqq_forgives_outliers() -> None:
    """In the mean of |error|, where outliers count least."""
    weight_OI = torch.randn(16, 64, generator=torch.Generator().manual_seed(5)) ** 3
    grid = Grid(4, "channel", "float")
    moved, plain = (
        (one.floats(grid) - weight_OI).abs().mean() for one in (hqq(weight_OI, grid), nearest(weight_OI, grid))
    )
    assert float(moved) < float(plain)


# In a model


@pytest.mark.parametrize("by", METHODS)
@pytest.mark.parametrize("bits", [8, 6, 4, 3, 2])
def test_every_method_packs_and_reloads(by: str, bits: int, context: Context, tmp_path: Path) -> None:
    quantize = Quantize(bits=bits, group=16, symmetric=False, by=by, embeddings=4, examples=32)
    model = quantize.apply(fresh(context), context)
    linears = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(linears) == 2 * 6 + 1 and {linear.grid.bits for linear in linears} == {bits}
    assert any(isinstance(module, PackedEmbedding) for module in model.modules())
    file = save(model, tmp_path / "saved") / WEIGHTS
    assert torch.equal(logits(load(file.parent), context), logits(model, context))
    for module in model.modules():
        if isinstance(module, Packed):
            assert module.weight.numel() == len(module.scale) * module.width * module.grid.bits // 8, "without gaps"


@pytest.mark.parametrize("bits", [6, 3])
def test_packed_weights_count_as_weights(bits: int, context: Context) -> None:
    """However few bytes they take, there are as many, and as many products with them."""
    whole, packed = fresh(context), Quantize(bits=bits, embeddings=4).apply(fresh(context), context)
    assert count_parameters(packed) == count_parameters(whole)
    rows = context.data.evaluation
    assert count_macs_per_token(packed, rows) == count_macs_per_token(whole, rows)


def test_fewer_bits_lose_more(context: Context) -> None:
    whole = logits(fresh(context), context)
    models = [Quantize(bits=bits, group=8).apply(fresh(context), context) for bits in (8, 6, 4, 2)]
    losses = [float((logits(model, context) - whole).abs().mean()) for model in models]
    assert losses == sorted(losses) and losses[0] < 0.1 * losses[-1]


def test_presets_and_what_is_given_beside_them() -> None:
    assert Quantize(preset="int8").grid == Grid()
    assert Quantize(preset="int4-gptq", embeddings=8).table_bits == 8
    assert Quantize(preset="int4").activations == "none"
    assert Quantize(preset="int8-embeddings-int4").activations == "dynamic"
    with pytest.raises(NiwakiError, match="int4"):
        Quantize(preset="int5")
    with pytest.raises(NiwakiError, match="activations"):
        Quantize(bits=4, activations="dynamic")


def test_single_modules_may_differ(context: Context) -> None:
    quantize = Quantize(
        preset="int4", group=16, override={"*.query": {"bits": 8, "group": "channel", "symmetric": True}}
    )
    model = quantize.apply(fresh(context), context)
    layer = anatomy_of(model).layers[0]
    query = layer.part("query")
    assert isinstance(query, QuantizedLinear) and query.activations == "dynamic"
    key = layer.part("key")
    assert isinstance(key, PackedLinear) and key.grid == Grid(4, 16, "integer")
    with pytest.raises(NiwakiError, match="matches no module"):
        Quantize(override={"*.nothing": {"bits": 4}}).check(fresh(context))
    with pytest.raises(NiwakiError, match="override"):
        Quantize(override={"*.query": {"colour": 4}})


def test_the_solver_sees_what_the_layers_before_have_become(context: Context) -> None:
    """The second layer's inputs are those behind the first layer, rounded."""
    seen: list[torch.Tensor] = []
    quantize = Quantize(bits=2, by="gptq", embeddings=False, examples=32)
    original = fresh(context)
    name = anatomy_of(original).layers[1].name_of("query")
    before = input_products(original, [name], context.calibration_batches(32))[name]
    from niwaki.techniques.quantize import packing

    def spy(weight_OI: torch.Tensor, products_II: torch.Tensor, grid: Grid) -> Rounded:
        seen.append(products_II)
        return nearest(weight_OI, grid)

    solvers = dict(packing.SOLVERS)
    try:
        packing.SOLVERS["gptq"] = spy
        quantize.apply(fresh(context), context)
    finally:
        packing.SOLVERS.update(solvers)
    assert len(seen) == 13
    assert not any(one.shape == before.shape and torch.equal(one, before) for one in seen[6:])


def test_what_cannot_be_done_is_refused_with_the_module(context: Context) -> None:
    model = fresh(context)
    with pytest.raises(NiwakiError, match=r"group is 24.*32 inputs") as caught:
        Quantize(bits=4, group=24).check(model)
    assert "write: group: 16, or override" in str(caught.value)  # the largest up to 24 that divides all
    name = anatomy_of(model).layers[0].name_of("up")
    with torch.no_grad():
        anatomy_of(model).layers[0].part("up").weight[0, 0] = float("nan")
    with pytest.raises(NiwakiError, match=f"{name} has weights that are not finite"):
        Quantize().check(model)
    with pytest.raises(NiwakiError, match="8 bits"):
        quantize_linear(fresh(context), module=name, bits=4, activations="dynamic")


def test_integers_found_elsewhere_run_as_integers(context: Context, tmp_path: Path) -> None:
    """8 bits by row: what GPTQ finds is what the integer product multiplies."""
    model = Quantize(by="gptq", examples=32).apply(fresh(context), context)
    layer = anatomy_of(model).layers[0].part("up")
    assert isinstance(layer, QuantizedLinear) and layer.weight.dtype == torch.int8
    whole, packed = logits(fresh(context), context), logits(model, context)
    assert float((whole - packed).abs().max()) < 0.1 * float(whole.abs().max()) + 0.05
    assert torch.equal(logits(load(save(model, tmp_path / "x")), context), packed)


def test_a_tied_head_goes_on_sharing_its_packed_table(
    saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path
) -> None:
    task = Task("language-modelling", data=str(toy_data()))
    context = make_context(saved_base("llama"), task, tmp_path)
    model = Quantize(preset="int4", group=16).apply(fresh(context), context)
    assert isinstance(model.lm_head, PackedLinear) and isinstance(model.model.embed_tokens, PackedEmbedding)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    batch = inputs_of(context.data.evaluation.batch(range(2)))
    reloaded = load(save(model, tmp_path / "x"))
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, reloaded(**batch).logits)


def test_the_layer_is_the_linear_of_its_weights() -> None:
    linear = nn.Linear(32, 5)
    for grid in (Grid(4, 8), Grid(3, 16, "integer"), Grid(6, "channel", "float")):
        packed = PackedLinear.from_linear(linear, grid)
        hidden = torch.randn(2, 3, 32)
        expected = nn.functional.linear(hidden, packed.dequantized(), linear.bias)
        assert torch.equal(packed(hidden), expected)
        scaled = PackedLinear(
            grid, Rounded(packed.integers(), packed.scale, packed.zero, torch.full((32,), 2.0)), packed.bias
        )
        torch.testing.assert_close(scaled(hidden / 2), expected)
    table = nn.Embedding(7, 12)
    rows = PackedEmbedding.from_embedding(table, Grid(4))
    ids = torch.tensor([[0, 3], [6, 6]])
    assert torch.equal(rows(ids), rows.dequantized()[ids])


@pytest.mark.parametrize("zero", ["middle", "integer", "float"])
def test_a_few_rows_in_bfloat16_take_the_kernel(zero: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    linear = int4_kernel.linear
    monkeypatch.setattr(int4_kernel, "linear", lambda *given: used.append(1) or linear(*given))
    layer = PackedLinear.from_linear(nn.Linear(64, 48), Grid(4, 32, zero)).to(torch.bfloat16)
    hidden = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    product = layer(hidden)
    assert used and product.dtype == torch.bfloat16 and product.shape == (2, 3, 48)
    wanted = hidden.float() @ layer.dequantized().float().T + layer.bias.float()
    assert float((product.float() - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
    layer.load_state_dict(PackedLinear.from_linear(nn.Linear(64, 48), Grid(4, 32, zero)).state_dict())
    assert not torch.equal(layer(hidden), product)  # what was prepared is forgotten
    used.clear()
    layer(hidden.float())
    layer(hidden.repeat(6, 1, 1))
    layer(hidden.clone().requires_grad_())
    assert not used


# Exported


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize(
    "quantize",
    [
        Quantize(preset="int4", group=16),
        Quantize(bits=6, embeddings=3),
        Quantize(bits=2, group=16, symmetric=False, by="awq", examples=16, embeddings=2),
        Quantize(bits=3, by="hqq", embeddings=8),
    ],
    ids=lambda one: f"{one.bits}-{one.by}-{one.embeddings}",
)
def test_the_artifact_holds_the_integers_and_agrees(
    quantize: Quantize, to: str, context: Context, tmp_path: Path
) -> None:
    model = quantize.apply(fresh(context), context)
    write, ending = (export_onnx, ".onnx") if to == "onnx" else (export_openvino, ".xml")
    rows = context.data.evaluation
    examples = [{name: value for name, value in rows.batch(range(8)).items() if name != "labels"}]
    path = tmp_path / f"small{ending}"
    parity = write(model, examples, path)
    assert parity.agreement == 1.0 and parity.largest_difference < 1e-4
    data = path.with_suffix(".bin" if to == "openvino" else ".onnx")
    assert data.stat().st_size < 0.75 * sum(4 * parameter.numel() for parameter in fresh(context).parameters())
