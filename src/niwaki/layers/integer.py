"""Integer arithmetic as torch operators: what a quantized layer computes, and what export maps to a runtime's kernels.

Two operators make a quantized matrix product: one rounds the input to unsigned bytes, one multiplies bytes. They
are apart because several products may share one rounded input (query, key and value do), and because the arithmetic
of both is that of the ONNX operators `DynamicQuantizeLinear` / `QuantizeLinear` and `MatMulInteger`, so the exported
file computes with the integers of the saved model.
"""

# B batch, T tokens, I inputs, O outputs; `...` any leading dimensions

from __future__ import annotations

import torch
from torch import Tensor

Quantized = tuple[Tensor, Tensor, Tensor]


def quantize_dynamic(hidden: Tensor) -> Quantized:
    """Round a tensor to unsigned bytes, with a scale and a zero point taken from its own range.

    One scale for the whole tensor, asymmetric, zero always representable:
    `scale = (max(x, 0) - min(x, 0)) / 255`, `zero = round(-min / scale)`, `q = clamp(round(x / scale) + zero, 0, 255)`,
    ties to even.

    Args:
        hidden: float tensor of any shape.

    Returns:
        the bytes (uint8, same shape), the scale (float32 scalar) and the zero point (uint8 scalar).

    References:
        ONNX operator DynamicQuantizeLinear.

    >>> quantize_dynamic(torch.tensor([0.0, 1.0, 2.55]))[0].tolist()
    [0, 100, 255]
    """
    low, high = torch.aminmax(hidden)
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    scale = (high - low) / 255.0
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    zero = torch.round(-low / scale).clamp_(0, 255)
    quantized = (hidden / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8)
    return quantized, scale, zero.to(torch.uint8)


def quantize_static(hidden: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Round a tensor to unsigned bytes with a known scale and zero point (both scalars; zero is uint8).

    References:
        ONNX operator QuantizeLinear.

    >>> zero = torch.tensor(3, dtype=torch.uint8)
    >>> quantize_static(torch.tensor([-9.0, -0.5, 0.25]), torch.tensor(0.5), zero).tolist()
    [0, 2, 3]
    """
    return (hidden / scale).round_().add_(zero).clamp_(0, 255).to(torch.uint8)


def linear_int8(
    quantized: Tensor, scale: Tensor, zero: Tensor, weight_OI: Tensor, weight_scale_O: Tensor, bias_O: Tensor | None
) -> Tensor:
    """Multiply bytes by an int8 weight, summing in 32-bit integers, and return floats.

    `y = (q - zero) @ W.T * (scale * weight_scale) + bias`. The product is exact: bytes are shifted by 128 to fit the
    signed kernel, and the shift and the zero point are taken out again with the column sums of the weight.

    Args:
        quantized: uint8, (..., I).
        scale: float32 scalar.
        zero: uint8 scalar.
        weight_OI: int8, symmetric, one scale per output.
        weight_scale_O: float32.
        bias_O: float32 or none.

    Returns:
        float32, (..., O).

    References:
        ONNX operator MatMulInteger.
    """
    # 128 less, read as signed, is the same bits with the highest one flipped.
    signed = quantized.bitwise_xor(128).view(torch.int8).reshape(-1, quantized.shape[-1])
    sums_O = _integer_product(signed.new_ones(1, signed.shape[1]), weight_OI)
    total = _integer_product(signed, weight_OI).sub_(sums_O.mul_(zero.to(torch.int32) - 128)).to(torch.float32)
    output_scale_O = scale * weight_scale_O
    result = total.mul_(output_scale_O) if bias_O is None else torch.addcmul(bias_O, total, output_scale_O)
    return result.reshape(*quantized.shape[:-1], -1)


def _integer_product(left_RI: Tensor, weight_OI: Tensor) -> Tensor:
    """Return the exact int32 product of two int8 matrices, (R, O)."""
    if left_RI.device.type == "cpu":
        return torch._int_mm(left_RI, weight_OI.t())
    # Kernels of other devices refuse few rows; every such sum is exact in doubles.
    return (left_RI.double() @ weight_OI.double().t()).to(torch.int32)


def linear_weight_only(hidden: Tensor, weight_OI: Tensor, weight_scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
    """Multiply floats by an int8 weight: `y = (x @ W.T) * weight_scale + bias`, float32 (..., O).

    The scale is applied after the product, so that a runtime may widen the weight once, when it loads the file.
    """
    result = torch.nn.functional.linear(hidden, weight_OI.to(hidden.dtype))
    return result * weight_scale_O if bias_O is None else torch.addcmul(bias_O, result, weight_scale_O)


def _register() -> None:
    """Make the four functions torch operators, with shapes for tracing."""
    library = torch.library.Library("niwaki", "FRAGMENT")
    linear = "Tensor weight, Tensor weight_scale, Tensor? bias) -> Tensor"
    library.define("quantize_dynamic(Tensor hidden) -> (Tensor, Tensor, Tensor)")
    library.define("quantize_static(Tensor hidden, Tensor scale, Tensor zero) -> Tensor")
    library.define(f"linear_int8(Tensor quantized, Tensor scale, Tensor zero, {linear}")
    library.define(f"linear_weight_only(Tensor hidden, {linear}")
    for function in (quantize_dynamic, quantize_static, linear_int8, linear_weight_only):
        library.impl(function.__name__, function, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)
    torch.library.register_fake("niwaki::quantize_dynamic", _quantized_shapes)
    torch.library.register_fake("niwaki::quantize_static", lambda hidden, scale, zero: _quantized_shapes(hidden)[0])
    torch.library.register_fake("niwaki::linear_int8", lambda q, scale, zero, weight, *rest: _output_shape(q, weight))
    torch.library.register_fake("niwaki::linear_weight_only", lambda x, weight, *rest: _output_shape(x, weight))


def _quantized_shapes(hidden: Tensor) -> Quantized:
    """Return empty tensors of the shapes and types `quantize_dynamic` returns."""
    scale = hidden.new_empty((), dtype=torch.float32)
    return torch.empty_like(hidden, dtype=torch.uint8), scale, torch.empty_like(scale, dtype=torch.uint8)


def _output_shape(hidden: Tensor, weight_OI: Tensor) -> Tensor:
    """Return an empty float tensor of the shape the product of `hidden` and `weight_OI` has."""
    return hidden.new_empty((*hidden.shape[:-1], weight_OI.shape[0]), dtype=torch.float32)


# An operator lives as long as the library object that defined it.
_LIBRARIES: list[torch.library.Library] = []
_register()
