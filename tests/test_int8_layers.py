"""Integer layers: numbers worked out by hand, and the arithmetic of the ONNX operators they export to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from niwaki.errors import NiwakiError
from niwaki.layers import integer
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear, quantize_rows


def numbers(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def byte(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.uint8)


def test_rows_are_rounded_to_the_nearest_of_127_steps() -> None:
    # Row 0: scale 2.54 / 127 = 0.02, so 0.05 is 2.5 steps and goes to the even 2. A row of zeros keeps scale 1.
    weight, scale = quantize_rows(torch.tensor([[-2.54, 0.05, 0.031], [0.0, 0.0, 0.0]]))
    assert weight.tolist() == [[-127, 2, 2], [0, 0, 0]]
    assert weight.dtype == torch.int8
    assert scale.tolist() == pytest.approx([0.02, 1.0])


def test_a_dynamic_range_covers_zero_and_rounds_to_even() -> None:
    # Range -1 .. 1.55 in 255 steps of 0.01; zero is step 100; 0.255 is half way and goes to the even 126 = 100 + 26.
    quantized, scale, zero = integer.quantize_dynamic(torch.tensor([-1.0, 0.0, 0.254, 1.55]))
    assert (round(float(scale), 6), int(zero)) == (0.01, 100)
    assert quantized.tolist() == [0, 100, 125, 255]
    # All positive: the range still begins at 0. All zero: scale 1.
    assert integer.quantize_dynamic(torch.tensor([1.0, 2.55]))[0].tolist() == [100, 255]
    quantized, scale, zero = integer.quantize_dynamic(torch.zeros(3))
    assert (quantized.tolist(), float(scale), int(zero)) == ([0, 0, 0], 1.0, 0)


@pytest.mark.parametrize("shift", [-9.0, -0.3, 0.0, 4.0])
def test_a_dynamic_range_is_that_of_the_onnx_operator(shift: float) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper

    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    types = {"q": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero": TensorProto.UINT8}
    graph = helper.make_graph(
        [node],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in types.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    hidden = numbers(37, 96, scale=3.0) + shift
    expected = session.run(None, {"x": hidden.numpy()})
    for ours, theirs in zip(integer.quantize_dynamic(hidden), expected, strict=True):
        assert torch.equal(ours, torch.from_numpy(theirs.copy()).reshape(ours.shape))


def test_the_integer_product_by_hand() -> None:
    # (10 - 100) * 1 + (200 - 100) * -2 = -290; times 0.5 * 2 is -290; plus the bias 1 is -289.
    result = integer.linear_int8(
        torch.tensor([[10, 200]], dtype=torch.uint8),
        torch.tensor(0.5),
        byte(100),
        torch.tensor([[1, -2]], dtype=torch.int8),
        torch.tensor([2.0]),
        torch.tensor([1.0]),
    )
    assert result.tolist() == [[-289.0]]


@pytest.mark.parametrize("rows", [1, 2, 65])
def test_the_integer_product_is_exact(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    quantized = torch.randint(0, 256, (rows, 3, 200), dtype=torch.uint8, generator=generator)
    weight = torch.randint(-127, 128, (48, 200), dtype=torch.int8, generator=generator)
    result = integer.linear_int8(quantized, torch.tensor(1.0), byte(255), weight, torch.ones(48), None)
    assert torch.equal(result.to(torch.int64), (quantized.to(torch.int64) - 255) @ weight.to(torch.int64).t())


def test_the_operators_can_be_traced() -> None:
    hidden, weight, scale = numbers(3, 8), torch.ones(4, 8, dtype=torch.int8), torch.ones(4)
    for name, arguments in {
        "quantize_dynamic": (hidden,),
        "quantize_static": (hidden, torch.tensor(0.1), byte(128)),
        "linear_int8": (torch.ones(3, 8, dtype=torch.uint8), torch.tensor(0.1), byte(128), weight, scale, None),
        "linear_weight_only": (hidden, weight, scale, torch.ones(4)),
    }.items():
        operator = getattr(torch.ops.niwaki, name).default
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("activations", ["dynamic", "static", "none"])
@pytest.mark.parametrize("bias", [True, False])
def test_numbers_on_the_grid_lose_nothing(activations: str, bias: bool) -> None:
    # Integers up to 127 as weights and from 0 to 255 as inputs are their own rounding: the neutral setting.
    linear = nn.Linear(6, 4, bias=bias)
    with torch.no_grad():
        linear.weight.copy_(torch.randint(-127, 128, (4, 6), generator=torch.Generator().manual_seed(0)))
        linear.weight[:, 0] = 127.0
    static = {"activation_scale": 1.0, "activation_zero_point": 0} if activations == "static" else {}
    layer = QuantizedLinear.from_linear(linear, activations, **static)
    hidden = torch.tensor([[0.0, 255.0, 3.0, 77.0, 128.0, 254.0]])
    assert torch.allclose(layer(hidden), linear(hidden), atol=0, rtol=1e-6)
    assert layer.scale.tolist() == [1.0] * 4


@pytest.mark.parametrize("activations", ["dynamic", "none"])
@torch.no_grad()
def test_the_error_is_bounded_by_the_steps(activations: str) -> None:
    linear = nn.Linear(64, 32)
    hidden = numbers(5, 7, 64)
    layer = QuantizedLinear.from_linear(linear, activations)
    # A weight moves by half a step of its row at most. An input moves by half a step of the tensor, or by a whole
    # one at the ends of the range, where rounding the zero point may push it out.
    bound = hidden.abs().sum(-1, keepdim=True) * layer.scale / 2
    if activations == "dynamic":
        bound = bound + (hidden.max() - hidden.min()) / 255 * layer.weight.abs().sum(1) * layer.scale
    error = (layer(hidden) - linear(hidden)).abs()
    assert error.shape == (5, 7, 32)
    assert bool((error <= bound + 1e-5).all())
    assert float(error.max()) > 1e-4


def test_static_ranges_clip() -> None:
    linear = nn.Linear(1, 1, bias=False)
    nn.init.constant_(linear.weight, 1.27)
    layer = QuantizedLinear.from_linear(linear, "static", activation_scale=0.1, activation_zero_point=55)
    # 255 - 55 = 200 steps above zero, 55 below: inputs end at 20 and -5.5.
    assert layer(torch.tensor([[100.0], [-100.0], [0.26]])).flatten().tolist() == pytest.approx(
        [20 * 1.27, -5.5 * 1.27, 0.3 * 1.27], rel=1e-6
    )


def test_embedding_rows_by_hand() -> None:
    table = nn.Embedding(3, 2, padding_idx=0)
    with torch.no_grad():
        table.weight.copy_(torch.tensor([[0.0, 0.0], [1.27, -0.5], [2.54, 2.54]]))
    layer = QuantizedEmbedding.from_embedding(table)
    assert layer.weight.tolist() == [[0, 0], [127, -50], [127, 127]]
    assert layer.padding_idx == 0
    rows = layer(torch.tensor([[2, 1], [0, 1]]))
    expected = torch.tensor([[[2.54, 2.54], [1.27, -0.5]], [[0.0, 0.0], [1.27, -0.5]]])
    assert torch.allclose(rows, expected, atol=1e-6)
    assert torch.equal(layer.dequantized()[torch.tensor([[2, 1], [0, 1]])], rows)


@pytest.mark.parametrize("activations", ["dynamic", "static", "none"])
def test_a_layer_built_on_empty_tensors_takes_the_saved_ones(activations: str) -> None:
    static = {"activation_scale": 0.25, "activation_zero_point": 7} if activations == "static" else {}
    layer = QuantizedLinear.from_linear(nn.Linear(8, 4), activations, **static)
    table = QuantizedEmbedding.from_embedding(nn.Embedding(5, 8))
    with torch.device("meta"):
        empty = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 4))
    rebuilt = nn.Sequential(
        QuantizedEmbedding.from_embedding(empty[0]), QuantizedLinear.from_linear(empty[1], activations, **static)
    )
    rebuilt.load_state_dict(nn.Sequential(table, layer).state_dict(), strict=True, assign=True)
    ids = torch.tensor([[4, 0, 1]])
    assert torch.equal(rebuilt(ids), layer(table(ids)))
    assert not list(rebuilt.parameters())


def test_the_linear_it_was_made_from_stays_as_it_was() -> None:
    linear = nn.Linear(4, 2)
    before = {name: value.clone() for name, value in linear.state_dict().items()}
    layer = QuantizedLinear.from_linear(linear)
    assert layer.bias is not None
    layer.bias.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in linear.state_dict().items())


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"activations": "sometimes"}, "activations is 'sometimes'"),
        ({"activations": "static"}, "static activations with scale None"),
        ({"activations": "static", "activation_scale": 0.0, "activation_zero_point": 3}, "scale 0.0"),
        ({"activations": "static", "activation_scale": 0.1, "activation_zero_point": 256}, "zero point 256"),
    ],
)
def test_wrong_settings_are_refused(arguments: dict, wrong: str) -> None:
    with pytest.raises(NiwakiError, match=wrong):
        QuantizedLinear.from_linear(nn.Linear(4, 2), **arguments)
