"""Layers whose weights are integers of 2 to 8 bits, packed into bytes; inputs stay floats.

Smaller in the file and in memory. The products are those of floats, so time is gained only where reading weights is
what takes it: a decoder that reads all of them for each token.
"""

# B batch, T tokens, I inputs, O outputs, G groups of a row, P packed bytes of a row, V vocabulary, D width

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from niwaki.bits import pack_bits, unpack_bits
from niwaki.grid import Grid, Rounded, nearest, to_floats
from niwaki.layers import int4_kernel
from niwaki.layers import packed_operators as _operators  # noqa: F401  defines torch.ops.niwaki


class Packed(nn.Module):
    """Hold a matrix of packed integers.

    Attributes:
        weight: uint8, (O, P): integers of `grid.bits` bits without gaps, the first in the lowest bits.
        scale: float32, (O, G).
        zero: uint8 or float32, (O, G), or none where the grid's middle stands for 0.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor | None

    def __init__(self, grid: Grid, rounded: Rounded) -> None:
        super().__init__()
        self.grid = grid
        self.width = rounded.integers.shape[1]
        self.register_buffer("weight", pack_bits(rounded.integers, grid.bits))
        self.register_buffer("scale", rounded.scale)
        self.register_buffer("zero", rounded.zero)

    def integers(self) -> Tensor:
        """Return the integers, uint8 (O, I)."""
        return unpack_bits(self.weight, self.grid.bits, self.width)

    def dequantized(self) -> Tensor:
        """Return the weights that the integers stand for, float32 (O, I)."""
        return to_floats(self.integers(), self.scale, self.zero, self.grid)


class PackedLinear(Packed):
    """Stand in for `nn.Linear` with packed integers; inference only, nothing here is a parameter.

    A model in bfloat16 that reads a few tokens at once, as one that generates does, multiplies 4 bits in groups by
    PyTorch's own kernel, which reads the integers as they are. All else is unpacked for each product.

    Attributes:
        bias: float32, (O,), or none.
        input_scale: float32, (I,), what inputs are multiplied by first, or none.
    """

    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(self, grid: Grid, rounded: Rounded, bias_O: Tensor | None = None) -> None:
        super().__init__(grid, rounded)
        self.out_features, self.in_features = rounded.integers.shape
        self.register_buffer("bias", bias_O)
        self.register_buffer("input_scale", rounded.input_scale)
        self._for_kernel: tuple[Tensor, Tensor] | None = None

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, grid: Grid, rounded: Rounded | None = None, *, scales_inputs: bool = False
    ) -> PackedLinear:
        """Pack a linear's weight; on meta tensors only the shapes are made.

        Args:
            linear: the layer, float weights (O, I).
            grid: what weights are rounded to.
            rounded: the integers, where another than the nearest was found for each weight.
            scales_inputs: whether inputs are multiplied by numbers of their own; they come with `rounded`.
        """
        weight_OI = linear.weight.detach()
        if rounded is None:
            rounded = _empty(weight_OI, grid, scales_inputs) if weight_OI.is_meta else nearest(weight_OI, grid)
        bias_O = None if linear.bias is None else linear.bias.detach().float().clone()
        return cls(grid, rounded, bias_O)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        if self.input_scale is not None:
            hidden = hidden * self.input_scale.to(hidden.dtype)
        if int4_kernel.suits(hidden, self.out_features, self.grid.bits, self.grid.columns(self.width)):
            if self._for_kernel is None:
                self._for_kernel = int4_kernel.prepared(self.integers(), self.scale, self.zero)
            product = int4_kernel.linear(hidden, *self._for_kernel)
            return product if self.bias is None else product + self.bias.to(product.dtype)
        numbers = (self.grid.bits, self.grid.columns(self.width), self.width)
        result: Tensor = torch.ops.niwaki.linear_packed(hidden, self.weight, self.scale, self.zero, *numbers)
        return result if self.bias is None else result + self.bias

    def _load_from_state_dict(self, *arguments: Any) -> None:
        """Forget what was prepared from the integers that were there."""
        self._for_kernel = None
        super()._load_from_state_dict(*arguments)

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.grid}"


class PackedEmbedding(Packed):
    """Stand in for `nn.Embedding` with packed rows, one step a row, around the middle."""

    def __init__(self, grid: Grid, rounded: Rounded, padding_idx: int | None = None) -> None:
        super().__init__(grid, rounded)
        self.num_embeddings, self.embedding_dim = rounded.integers.shape
        self.padding_idx = padding_idx

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, grid: Grid, rounded: Rounded | None = None) -> PackedEmbedding:
        """Pack an embedding's rows; on meta tensors only the shapes are made."""
        weight_VD = embedding.weight.detach()
        if rounded is None:
            rounded = _empty(weight_VD, grid, False) if weight_VD.is_meta else nearest(weight_VD, grid)
        return cls(grid, rounded, embedding.padding_idx)

    def forward(self, ids: Tensor) -> Tensor:
        """Map ids (...) to rows (..., D), float32."""
        result: Tensor = torch.ops.niwaki.rows_packed(
            ids, self.weight, self.scale, self.zero, self.grid.bits, self.width
        )
        return result

    def extra_repr(self) -> str:
        """Describe the layer in one line."""
        return f"{self.num_embeddings}, {self.embedding_dim}, padding_idx={self.padding_idx}, {self.grid}"


def _empty(weight_OI: Tensor, grid: Grid, scales_inputs: bool) -> Rounded:
    """Return tensors of the right shapes without numbers."""
    rows, width = weight_OI.shape
    groups = (rows, grid.groups(width))
    return Rounded(
        weight_OI.new_empty((rows, width), dtype=torch.uint8),
        weight_OI.new_empty(groups, dtype=torch.float32),
        None if grid.zero_type is None else weight_OI.new_empty(groups, dtype=grid.zero_type),
        weight_OI.new_empty(width, dtype=torch.float32) if scales_inputs else None,
    )
