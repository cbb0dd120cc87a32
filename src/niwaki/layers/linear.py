"""Layers with 8-bit weights: what `quantize_linear` and `quantize_embedding` put in."""

# B batch, T tokens, I inputs, O outputs, V vocabulary, D width

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from niwaki.errors import NiwakiError
from niwaki.grid import Grid, Rounded
from niwaki.layers import integer as _operators  # noqa: F401  defines torch.ops.niwaki

Activations = Literal["dynamic", "static", "none"]


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round each row to int8, symmetric: `scale = max|w| / 127`, `q = round(w / scale)`.

    Args:
        weight: float, (R, C). A meta tensor gives meta tensors.

    Returns:
        int8 (R, C) in -127..127, and float32 scales (R,); a row of zeros has scale 1.

    >>> quantize_rows(torch.tensor([[-2.54, 0.02, 1.27]]))[0].tolist()
    [[-127, 1, 64]]
    """
    weight = weight.detach().to(torch.float32)
    scale = weight.abs().amax(dim=1) / 127.0
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return torch.round(weight / scale[:, None]).clamp_(-127, 127).to(torch.int8), scale


def is_int8(grid: Grid) -> bool:
    """Say whether a grid is one of integer products: 8 bits around the middle, with one step for a row at most."""
    return grid.bits == 8 and grid.zero == "middle" and not isinstance(grid.group, int)


class QuantizedLinear(nn.Module):
    """Stand in for `nn.Linear` with an int8 weight, symmetric, one scale per output.

    The input is rounded to unsigned bytes with a range taken from itself (`dynamic`), with a range found by
    calibration (`static`), or left in floats (`none`, which saves bytes but no time). Inference only: nothing here
    is a parameter.

    Attributes:
        weight: int8, (O, I), in -127..127.
        scale: float32, (O,).
        bias: float32, (O,), or none.
        activations: "dynamic", "static" or "none".
        activation_scale, activation_zero_point: float32 and uint8 scalars; none unless static.
        input_scale: float32, (I,), what inputs are multiplied by before they are rounded, or none.

    References:
        Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
        Inference", section 2.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None
    activation_scale: Tensor | None
    activation_zero_point: Tensor | None
    input_scale: Tensor | None

    def __init__(
        self,
        weight_OI: Tensor,
        scale_O: Tensor,
        bias_O: Tensor | None = None,
        *,
        activations: Activations = "dynamic",
        activation_scale: float | None = None,
        activation_zero_point: int | None = None,
        input_scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        _check_activations(activations, activation_scale, activation_zero_point)
        self.out_features, self.in_features = weight_OI.shape
        self.activations = activations
        self.register_buffer("weight", weight_OI)
        self.register_buffer("scale", scale_O)
        self.register_buffer("bias", bias_O)
        device = weight_OI.device
        static = activations == "static"
        self.register_buffer(
            "activation_scale", torch.tensor(activation_scale, dtype=torch.float32, device=device) if static else None
        )
        self.register_buffer(
            "activation_zero_point",
            torch.tensor(activation_zero_point, dtype=torch.uint8, device=device) if static else None,
        )
        self.register_buffer("input_scale", input_scale)

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        activations: Activations = "dynamic",
        activation_scale: float | None = None,
        activation_zero_point: int | None = None,
        rounded: Rounded | None = None,
        *,
        scales_inputs: bool = False,
    ) -> QuantizedLinear:
        """Round a linear layer's weight; on meta tensors only the shapes are made.

        Args:
            linear: the layer, float weights (O, I).
            activations: how inputs are rounded.
            activation_scale: above 0, when static.
            activation_zero_point: 0..255, when static.
            rounded: the integers of 8 bits, where others than the nearest of each row were found.
            scales_inputs: whether inputs are multiplied by numbers of their own; they come with `rounded`.
        """
        input_scale = None if rounded is None else rounded.input_scale
        if scales_inputs and linear.weight.is_meta:
            input_scale = linear.weight.new_empty(linear.in_features, dtype=torch.float32)
        if rounded is None:
            weight_OI, scale_O = quantize_rows(linear.weight)
        else:
            weight_OI, scale_O = _as_int8(rounded)
        bias_O = None if linear.bias is None else linear.bias.detach().to(torch.float32).clone()
        return cls(
            weight_OI,
            scale_O,
            bias_O,
            activations=activations,
            activation_scale=activation_scale,
            activation_zero_point=activation_zero_point,
            input_scale=input_scale,
        )

    def scaled(self, hidden: Tensor) -> Tensor:
        """Return the input as the weight takes it: multiplied, where it has numbers of its own."""
        return hidden if self.input_scale is None else hidden * self.input_scale

    def quantize(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the input as bytes, with scale and zero point."""
        hidden = self.scaled(hidden)
        if self.activations == "dynamic":
            return cast("tuple[Tensor, Tensor, Tensor]", torch.ops.niwaki.quantize_dynamic(hidden))
        assert self.activation_scale is not None and self.activation_zero_point is not None
        scale, zero = self.activation_scale, self.activation_zero_point
        return torch.ops.niwaki.quantize_static(hidden, scale, zero), scale, zero

    def multiply(self, quantized: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """Multiply an input already in bytes by the weight, giving floats (..., O)."""
        return cast(Tensor, torch.ops.niwaki.linear_int8(quantized, scale, zero, self.weight, self.scale, self.bias))

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., I) to (..., O), both float32."""
        if self.activations == "none":
            return cast(
                Tensor, torch.ops.niwaki.linear_weight_only(self.scaled(hidden), self.weight, self.scale, self.bias)
            )
        return self.multiply(*self.quantize(hidden))

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"activations={self.activations}"
        )


class QuantizedEmbedding(nn.Module):
    """Stand in for `nn.Embedding` with int8 rows, symmetric, one scale per row.

    Attributes:
        weight: int8, (V, D), in -127..127.
        scale: float32, (V, 1).
        padding_idx: as in `nn.Embedding`; its row is kept as any other.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight_VD: Tensor, scale_V1: Tensor, padding_idx: int | None = None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight_VD.shape
        self.padding_idx = padding_idx
        self.register_buffer("weight", weight_VD)
        self.register_buffer("scale", scale_V1)

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, rounded: Rounded | None = None) -> QuantizedEmbedding:
        """Round an embedding's rows, unless their integers were found; on meta tensors only the shapes are made."""
        weight_VD, scale_V = quantize_rows(embedding.weight) if rounded is None else _as_int8(rounded)
        return cls(weight_VD, scale_V[:, None], embedding.padding_idx)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D), float32."""
        rows = nn.functional.embedding(ids, self.weight).to(torch.float32)
        return rows * nn.functional.embedding(ids, self.scale)

    def dequantized(self) -> Tensor:
        """Return the table in floats, (V, D)."""
        return self.weight.to(torch.float32) * self.scale

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}"


def rows_independent(model: nn.Module) -> bool:
    """Say whether no range of activations is taken from a batch as a whole."""
    linears = (module for module in model.modules() if isinstance(module, QuantizedLinear))
    return all(linear.activations != "dynamic" for linear in linears)


def _as_int8(rounded: Rounded) -> tuple[Tensor, Tensor]:
    """Return integers of 8 bits around the middle, signed, and the step of each row."""
    return rounded.integers.bitwise_xor(128).view(torch.int8), rounded.scale[:, 0].contiguous()


def _check_activations(activations: str, scale: float | None, zero_point: int | None) -> None:
    """Refuse a way of rounding that does not exist, and a static one without its numbers."""
    if activations not in get_args(Activations):
        raise NiwakiError(
            f"activations is {activations!r}", expected="dynamic, static or none", fix='activations="dynamic"'
        )
    given = scale is not None and zero_point is not None and scale > 0 and 0 <= zero_point <= 255
    if activations == "static" and not given:
        raise NiwakiError(
            f"static activations with scale {scale} and zero point {zero_point}",
            expected="a scale above 0 and a zero point in 0..255, found by calibration",
            fix='activations="dynamic", which needs neither',
        )
