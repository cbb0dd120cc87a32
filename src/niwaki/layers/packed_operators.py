"""Products with packed integers, and rows of packed tables, as torch operators that export maps to a runtime's own."""

# I inputs, O outputs, G groups of a row, P packed bytes of a row, V vocabulary, D width; `...` any leading dimensions

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.bits import unpack_bits
from niwaki.grid import Grid, to_floats


def linear_packed(
    hidden: Tensor, weight_OP: Tensor, scale_OG: Tensor, zero_OG: Tensor | None, bits: int, columns: int, width: int
) -> Tensor:
    """Multiply floats (..., I) by W = (q - zero) * scale: `x @ W.T`, (..., O).

    Args:
        hidden: floats.
        weight_OP: packed integers.
        scale_OG: one step a group of inputs.
        zero_OG: uint8 or float32, or none where the middle stands for 0.
        bits: of an integer.
        columns: inputs of a group.
        width: inputs.
    """
    weight_OI = to_floats(unpack_bits(weight_OP, bits, width), scale_OG, zero_OG, Grid(bits, columns))
    return torch.nn.functional.linear(hidden, weight_OI.to(hidden.dtype))


def rows_packed(
    ids: Tensor, weight_VP: Tensor, scale_V1: Tensor, zero_V1: Tensor | None, bits: int, width: int
) -> Tensor:
    """Return rows (q - zero) * scale of a packed table, (..., D)."""
    flat = ids.flatten()
    rows = unpack_bits(weight_VP[flat], bits, width)
    zero = None if zero_V1 is None else zero_V1[flat]
    return to_floats(rows, scale_V1[flat], zero, Grid(bits)).reshape(*ids.shape, width)


def _register() -> None:
    """Make the two functions torch operators, with shapes for tracing."""
    library = torch.library.Library("niwaki", "FRAGMENT")
    packed = "Tensor weight, Tensor scale, Tensor? zero, int bits"
    library.define(f"linear_packed(Tensor hidden, {packed}, int columns, int width) -> Tensor")
    library.define(f"rows_packed(Tensor ids, {packed}, int width) -> Tensor")
    for function in (linear_packed, rows_packed):
        library.impl(function.__name__, function, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)
    torch.library.register_fake("niwaki::linear_packed", _product_shape)
    torch.library.register_fake("niwaki::rows_packed", _rows_shape)


def _product_shape(hidden: Tensor, weight_OP: Tensor, *rest: object) -> Tensor:
    return hidden.new_empty((*hidden.shape[:-1], weight_OP.shape[0]))


def _rows_shape(ids: Tensor, weight_VP: Tensor, scale_V1: Tensor, zero: Tensor | None, bits: int, width: int) -> Tensor:
    return scale_V1.new_empty((*ids.shape, width))


# An operator lives as long as the library object that defined it.
_LIBRARIES: list[torch.library.Library] = []
_register()
