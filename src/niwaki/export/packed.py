"""Packed layers as the runtimes have them: integers of the bits they know, steps by block, zero points written out."""

# B batch, T tokens, O outputs, I inputs, G blocks of a row, P bytes of a block, V vocabulary, D width

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.bits import pack_bits
from niwaki.errors import NiwakiError
from niwaki.grid import Grid
from niwaki.layers.packed import Packed, PackedLinear

#: Bits of the packed integers that ONNX Runtime multiplies and looks up.
ONNX_BITS = (2, 4, 8)
LARGEST_BLOCK = 128


def replaced(prepared: nn.Module, make: Callable[[Packed, str], nn.Module]) -> nn.Module:
    """Return the module with something else in the place of each packed layer.

    Args:
        prepared: is not changed, and shares its tensors with the result.
        make: is called with a packed layer and its name.
    """
    if not any(isinstance(module, Packed) for module in prepared.modules()):
        return prepared
    shared = {id(tensor): tensor for tensor in (*prepared.parameters(), *prepared.buffers())}
    result = copy.deepcopy(prepared, dict(shared))
    for name, module in list(result.named_modules(remove_duplicate=False)):
        if isinstance(module, Packed):
            parent, _, leaf = name.rpartition(".")
            setattr(result.get_submodule(parent), leaf, make(module, name))
    return result


class InBlocks(nn.Module):
    """Multiply by packed integers, or look up packed rows, with ONNX Runtime's own operators.

    Standard ONNX has neither. The integers are those of the model, in the next higher number of bits that the operators
    have; a group of any width is a number of blocks that share a step.

    Attributes:
        weight: uint8, (O, G, P) for products, (V, G * P) for rows.
        scale: float32, (O, G).
        zero: uint8, (O, packed G), or float32, (O, G); none for rows.
    """

    weight: Tensor
    scale: Tensor
    zero: Tensor | None
    bias: Tensor | None
    input_scale: Tensor | None

    def __init__(self, packed: Packed, name: str) -> None:
        super().__init__()
        grid, width = packed.grid, packed.width
        self.is_product = isinstance(packed, PackedLinear)
        self.width, self.block = width, require_onnx(grid, width, name)
        self.bits = min(bits for bits in ONNX_BITS if bits >= grid.bits)
        repeats = grid.columns(width) // self.block
        self.rows = len(packed.scale)
        zero_OG = torch.full((1, 1), grid.middle) if packed.zero is None else packed.zero
        integers_OI = packed.integers()
        if not self.is_product:  # its operator has no other zero than its own middle
            integers_OI = integers_OI + (2 ** (self.bits - 1) - grid.middle)
        weight_OGP = pack_bits(integers_OI.unflatten(1, (-1, self.block)), self.bits)
        self.register_buffer("weight", weight_OGP if self.is_product else weight_OGP.flatten(1))
        self.register_buffer("scale", packed.scale.repeat_interleave(repeats, dim=1))
        zero_OG = zero_OG.expand_as(packed.scale).repeat_interleave(repeats, dim=1)
        if grid.zero != "float":
            zero_OG = pack_bits(zero_OG.to(torch.uint8), self.bits)
        self.register_buffer("zero", zero_OG.contiguous() if self.is_product else None)
        self.register_buffer("bias", getattr(packed, "bias", None))
        self.register_buffer("input_scale", getattr(packed, "input_scale", None))

    def forward(self, inputs: Tensor) -> Tensor:
        """Map hidden states (..., I) to (..., O), or ids (...) to rows (..., D)."""
        settings: Any = {"bits": self.bits, "block_size": self.block}
        if not self.is_product:
            settings |= {"gather_axis": 0, "quantize_axis": 1}
            shape = (*inputs.shape, self.width)
            return _call("GatherBlockQuantized", [self.weight, inputs, self.scale], settings, shape)
        if self.input_scale is not None:
            inputs = inputs * self.input_scale
        settings |= {"K": self.width, "N": self.rows}
        tensors = [inputs, self.weight, self.scale, self.zero]
        result = _call("MatMulNBits", tensors, settings, (*inputs.shape[:-1], self.rows))
        return result if self.bias is None else result + self.bias


def _call(name: str, tensors: list[Tensor | None], settings: Any, shape: tuple[int, ...]) -> Tensor:
    full_name = f"com.microsoft::{name}"
    return torch.onnx.ops.symbolic(full_name, tensors, settings, dtype=torch.float32, shape=shape, version=1)


def require_onnx(grid: Grid, width: int, name: str) -> int:
    """Refuse a matrix that ONNX Runtime has no operator for, and return the inputs of a block of it.

    Args:
        grid: of the matrix, which is packed.
        width: its inputs.
        name: of the module, for the message.
    """
    if grid.zero == "float" and grid.bits > 4:
        raise NiwakiError(
            f"{name} has {grid.bits} bits and zero points between integers, which ONNX Runtime cannot multiply",
            expected="4 bits or less, or whole zero points",
            fix="by: mean-square",
        )
    return block_of(width, grid.columns(width), name)


def block_of(width: int, columns: int, name: str) -> int:
    """Return the inputs of a block: the highest power of 2, from 16 on, that divides the group.

    >>> block_of(384, 384, "up"), block_of(64, 32, "up")
    (128, 32)
    """
    block = min(columns & -columns, LARGEST_BLOCK)
    if block < 16 or width % columns:
        raise NiwakiError(
            f"{name} has {width} inputs in groups of {columns}, which ONNX Runtime cannot divide into blocks",
            expected="groups that are multiples of 16",
            fix="group: 16, or prune to a multiple_of: 16",
        )
    return block
