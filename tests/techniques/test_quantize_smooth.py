"""`quantize` with `smooth`, with AWQ's factors folded, and on calibration rows that say too little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import input_sizes, inputs_of
from niwaki.checkpoint import load, save
from niwaki.errors import NiwakiError
from niwaki.export.artifact import export_openvino
from niwaki.export.together import alike
from niwaki.grid import Grid, nearest
from niwaki.layers.linear import QuantizedLinear
from niwaki.layers.packed import PackedLinear
from niwaki.packable import packable
from niwaki.report.log import notes_of
from niwaki.surgery import journal_of, scale_inputs
from niwaki.surgery.scaling import READERS, for_channels, for_inputs
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.quantize.smoothing import smooth, smoothing_factors
from niwaki.testing import fresh, make_context

Bases = Callable[..., Path]


@pytest.fixture
def make(saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path) -> Callable[[str], Context]:
    """Return make(family): a context on a classifier, or on a language model of a decoder."""

    def context_of(family: str) -> Context:
        kind = "language-modelling" if family == "llama" else "text-classification"
        return make_context(saved_base(family), Task(kind, data=str(toy_data())), tmp_path)

    return context_of


def outputs(model: nn.Module, context: Context) -> torch.Tensor:
    batch = inputs_of(context.data.evaluation.batch(range(8)))
    with torch.inference_mode():
        result: torch.Tensor = model.eval()(**batch).logits
    return result.clone()


def with_outlier(context: Context, size: float = 60.0) -> nn.Module:
    """Return the base with one hidden channel that is far larger than the others, in every norm's output."""
    model = fresh(context)
    with torch.no_grad():
        for layer in anatomy_of(model).layers:
            for role in ("attention_norm", "output_norm"):
                norm: Any = layer.part(role)
                norm.weight[5] *= size
    return model


# The edit


@pytest.mark.parametrize("family", ["bert", "distilbert", "llama"])
def test_the_edit_is_the_same_function_and_reloads(family: str, make: Callable[[str], Context], tmp_path: Path) -> None:
    """Whatever takes factors, with factors of 1/8 to 8: values shared by heads, norms in the branch, gated units."""
    context = make(family)
    model = fresh(context)
    sources = list(READERS) if family == "llama" else ["value"]
    before = outputs(model, context)
    for source in sources:
        part: Any = anatomy_of(model).layers[1].part(source)
        old = part.weight.clone()
        factors = 2.0 ** torch.randint(-3, 4, (len(part.weight),), generator=torch.Generator().manual_seed(1)).float()
        scale_inputs(model, layer=1, source=source, values=factors)
        assert not torch.equal(part.weight, old)
        assert float((outputs(model, context) - before).abs().max()) < 1e-5
    assert journal_of(model)[-1] == {"edit": "scale_inputs", "layer": 1, "source": sources[-1]}
    assert torch.equal(outputs(load(save(model, tmp_path / "x")), context), outputs(model, context))


def test_what_would_change_the_function_is_refused(make: Callable[[str], Context]) -> None:
    """Behind a sum, a norm's output is the residual stream; and GELU is not linear."""
    model = fresh(make("bert"))
    for source in ("attention_norm", "output_norm", "up", "query"):
        with pytest.raises(NiwakiError, match="value, in the family bert"):
            scale_inputs(model, layer=0, source=source, values=torch.ones(32))
    with pytest.raises(NiwakiError, match="above 0"):
        scale_inputs(model, layer=0, source="value", values=torch.zeros(32))
    assert len(journal_of(model)) == 1


def test_values_that_heads_share_by_hand(make: Callable[[str], Context]) -> None:
    """Two value heads of 8 channels, each read by two: channel 0 is the inputs 0 and 8, channel 8 is 16 and 24."""
    layer = anatomy_of(make("llama").base).layers[0]
    spread = for_inputs(torch.arange(16.0), layer, "value")
    assert [int(spread[place]) for place in (0, 8, 7, 15, 16, 24, 31)] == [0, 0, 7, 7, 8, 8, 15]
    largest = for_channels(torch.arange(32.0), layer, "value")
    assert [int(largest[place]) for place in (0, 7, 8, 15)] == [8, 15, 24, 31]


# Smoothing


def test_the_factors_by_hand() -> None:
    """|X| of 8 and |W| of 2: 8^.75 / 2^.25 = 4; at the strength 1 all of |X| moves."""
    assert smoothing_factors(torch.tensor([8.0]), torch.tensor([2.0]), 0.75).item() == pytest.approx(4.0)
    assert smoothing_factors(torch.tensor([8.0, 0.0]), torch.tensor([2.0, 2.0]), 1.0).tolist() == [8.0, 1.0]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "llama"])
def test_smoothing_without_rounding_changes_nothing(family: str, make: Callable[[str], Context]) -> None:
    context = make(family)
    model = fresh(context)
    before = outputs(model, context)
    names = packable(model, embeddings=False, skip=(), technique="quantize")[0]
    sizes = input_sizes(model, names, context.calibration_batches(32))
    left = smooth(model, names, names, sizes, 0.5)
    folded = {name for name in names if name not in left}
    if family == "llama":
        assert not left
    else:
        assert folded == {layer.name_of("output") for layer in anatomy_of(model).layers}
    for name, factors in left.items():
        linear: Any = model.get_submodule(name)
        linear.weight.data.mul_(factors)
        linear.register_forward_pre_hook(lambda module, inputs, factors=factors: (inputs[0] / factors,))
    assert float((outputs(model, context) - before).abs().max()) < 1e-5
    linear = model.get_submodule(anatomy_of(model).layers[0].name_of("output"))
    assert not torch.equal(
        linear.weight, context.base.get_submodule(anatomy_of(model).layers[0].name_of("output")).weight
    )


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_an_outlier_costs_less(family: str, activations: str, make: Callable[[str], Context], tmp_path: Path) -> None:
    context = make(family)
    whole = outputs(with_outlier(context), context)
    packed = {
        strength: Quantize(activations=activations, embeddings=False, smooth=strength).apply(
            with_outlier(context), context
        )
        for strength in (0.0, 0.5)
    }
    plain, smoothed = (float((outputs(one, context) - whole).abs().mean()) for one in packed.values())
    assert smoothed < 0.7 * plain
    layer = anatomy_of(packed[0.5]).layers[1]
    query, output = layer.part("query"), layer.part("output")
    assert isinstance(query, QuantizedLinear) and isinstance(output, QuantizedLinear)
    assert output.input_scale is None and (query.input_scale is None) == (family == "llama")
    assert alike([layer.part(role) for role in ("query", "key", "value")]), "one rounded input serves all three"
    reloaded = load(save(packed[0.5], tmp_path / "x"))
    assert torch.equal(outputs(reloaded, context), outputs(packed[0.5], context))


def test_what_is_to_stay_stays(make: Callable[[str], Context]) -> None:
    """Nothing is folded into a linear that is skipped: its reader's inputs are multiplied instead."""
    context = make("bert")
    model = Quantize(smooth=0.5, skip=("*.value",), embeddings=False).apply(fresh(context), context)
    layer = anatomy_of(model).layers[0]
    assert torch.equal(layer.part("value").weight, context.base.get_submodule(layer.name_of("value")).weight)
    assert layer.part("output").input_scale is not None
    assert not any(record["edit"] == "scale_inputs" for record in journal_of(model))


def test_a_linear_with_numbers_for_its_inputs_is_that_of_the_scaled_ones() -> None:
    linear = nn.Linear(16, 5)
    factors = torch.linspace(0.5, 4, 16)
    rounded = replace(nearest(linear.weight * factors, Grid()), input_scale=1.0 / factors)
    hidden = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    for activations in ("dynamic", "none"):
        one = QuantizedLinear.from_linear(linear, activations, rounded=rounded)  # type: ignore[arg-type]
        other = QuantizedLinear.from_linear(linear, activations, rounded=replace(rounded, input_scale=None))  # type: ignore[arg-type]
        assert torch.equal(one(hidden), other(hidden * (1.0 / factors)))
    assert not alike([one, other])


def test_the_artifact_agrees(make: Callable[[str], Context], tmp_path: Path) -> None:
    """In OpenVINO, with static ranges; ONNX and dynamic ones have their row in the contract."""
    context = make("bert")
    model = Quantize(activations="static", smooth=0.5).apply(fresh(context), context)
    rows = context.data.evaluation
    examples = [{name: value for name, value in rows.batch(range(8)).items() if name != "labels"}]
    assert export_openvino(model, examples, tmp_path / "x.xml").agreement >= 0.875


def test_smoothing_wants_rounded_activations() -> None:
    with pytest.raises(NiwakiError, match="smooth"):
        Quantize(bits=4, smooth=0.5)
    assert Quantize(bits=4, smooth=0.5, override={"*.query": {"bits": 8}}).of("a.query").activations == "dynamic"
    with pytest.raises(NiwakiError, match="awq"):
        Quantize(by="awq", activations="dynamic")
    assert Quantize(by="awq").activations == "none"
    assert Quantize(override={"*.query": {"by": "awq"}}).of("a.query").activations == "none"


# AWQ


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_awq_folds_its_factors(family: str, make: Callable[[str], Context], tmp_path: Path) -> None:
    context = make(family)
    whole = outputs(with_outlier(context), context)
    settings: dict[str, Any] = {"bits": 3, "group": 16, "symmetric": False, "embeddings": False, "examples": 64}
    model = Quantize(**settings, by="awq").apply(with_outlier(context), context)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    folded = {name for name, linear in linears.items() if linear.input_scale is None}
    if family == "llama":
        assert folded == set(linears), "no multiplication is left"
        plain = Quantize(**settings, by="mean-square").apply(with_outlier(context), context)
        errors = [float((outputs(one, context) - whole).abs().mean()) for one in (model, plain)]
        assert errors[0] < errors[1]
    else:
        assert folded == {layer.name_of("output") for layer in anatomy_of(model).layers}
    assert torch.equal(outputs(load(save(model, tmp_path / "x")), context), outputs(model, context))


# Calibration


def noting(context: Context) -> tuple[Context, list[dict[str, Any]]]:
    notes: list[dict[str, Any]] = []
    return replace(context, log=notes.append), notes


def with_rows(context: Context, count: int) -> Context:
    return replace(context, data=replace(context.data, train=context.train.select(range(count))))


def test_what_saw_too_few_tokens_falls_back_and_says_so(make: Callable[[str], Context]) -> None:
    """Of 20 rows the pooler sees 20 tokens, of 32 inputs; the layers see all tokens, and `down` wants 64."""
    context, notes = noting(with_rows(make("bert"), 20))
    model = Quantize(by="gptq", activations="static", smooth=0.5).apply(fresh(context), context)
    assert notes_of(notes) == [
        "bert.pooler.dense saw too few tokens in calibration: tokens 20, inputs 32, by nearest, activations dynamic, "
        "smooth 0"
    ]
    pooler: Any = model.get_submodule("bert.pooler.dense")
    assert pooler.activations == "dynamic" and pooler.input_scale is None
    expected = nearest(context.base.get_submodule("bert.pooler.dense").weight, Grid())
    assert torch.equal(pooler.weight, expected.integers.bitwise_xor(128).view(torch.int8))
    assert anatomy_of(model).layers[0].part("up").activations == "static"


def test_padding_is_no_token_and_long_rows_are_cut(make: Callable[[str], Context]) -> None:
    context = make("bert")
    model, rows = context.base, context.train
    name = anatomy_of(model).layers[0].name_of("query")
    whole = input_sizes(model, [name], context.calibration_batches(len(rows)))[name]
    assert whole.tokens == int(rows.lengths.sum())
    alone = input_sizes(model, [name], (rows.batch([index]) for index in range(len(rows))))[name]
    torch.testing.assert_close(whole.largest_I, alone.largest_I)
    cut = input_sizes(model, [name], context.calibration_batches(len(rows), length=4))[name]
    assert cut.tokens == int(rows.lengths.clip(max=4).sum()) < whole.tokens
    one, other = (Quantize(activations="static", length=length).apply(fresh(context), context) for length in (4, None))
    assert one.get_submodule(name).activation_scale != other.get_submodule(name).activation_scale


@pytest.mark.parametrize("settings", [{"activations": "static"}, {"smooth": 0.5}, {"by": "gptq", "bits": 4}])
def test_nothing_to_look_at_is_refused_before_anything_is_done(
    settings: dict[str, Any], make: Callable[[str], Context]
) -> None:
    context = with_rows(make("bert"), 0)
    model = fresh(context)
    with pytest.raises(NiwakiError, match="no rows"):
        Quantize(**settings).apply(model, context)
    assert len(journal_of(model)) == 1
    Quantize().apply(model, context)  # looks at none
