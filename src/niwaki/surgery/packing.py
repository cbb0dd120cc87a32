"""The edits of how weights are stored: as integers, or without their zeros."""

# O outputs, I inputs, V vocabulary, D hidden

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from niwaki.errors import NiwakiError
from niwaki.grid import Grid, Rounded, Zero, nearest
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear, is_int8
from niwaki.layers.packed import PackedEmbedding, PackedLinear
from niwaki.surgery.cutting import as_linear, as_table, put
from niwaki.surgery.journal import Record, edit
from niwaki.surgery.sharing import tie_again
from niwaki.surgery.ties import tie_head


@edit
def quantize_linear(
    model: nn.Module,
    *,
    module: str,
    bits: int = 8,
    group: int | Literal["channel", "tensor"] = "channel",
    zero: Zero = "middle",
    activations: Literal["dynamic", "static", "none"] = "dynamic",
    scale: float | None = None,
    zero_point: int | None = None,
    scales_inputs: bool = False,
    reduced: bool = False,
    values: Rounded | None = None,
) -> None:
    """Store a linear's weight (O, I) as integers.

    Args:
        model: any model.
        module: dotted name of the linear.
        bits: bits of a weight, 2 to 8.
        group: inputs of a row that share a step, "channel" for a whole row, "tensor" for the whole matrix.
        zero: the integer that stands for 0: "middle", or one of each group, "integer" or "float".
        activations: "dynamic" (their range is taken at run time), "static" (`scale` and `zero_point` given) or "none".
            The first two are for 8 bits by channel or tensor around the middle.
        scale: of static activations, above 0.
        zero_point: of static activations, 0 to 255.
        scales_inputs: whether inputs are multiplied by numbers of their own, which come with `values`.
        reduced: keep the integers of 8 bits within -64..64, for processors that add products in pairs in 16 bits.
        values: the integers, where others than the nearest were found.
    """
    linear = as_linear(model.get_submodule(module), module)
    grid = Grid(bits, group, zero, reduced)
    if is_int8(grid) and not (scales_inputs and activations == "none"):
        packed: nn.Module = QuantizedLinear.from_linear(
            linear,
            activations=activations,
            activation_scale=scale,
            activation_zero_point=zero_point,
            rounded=nearest(linear.weight, grid) if values is None and (group == "tensor" or reduced) else values,
            scales_inputs=scales_inputs,
        )
    elif activations == "none":
        packed = PackedLinear.from_linear(linear, grid, values, scales_inputs=scales_inputs)
    else:
        raise NiwakiError(
            f"{module} has {activations} activations and {grid}",
            expected='8 bits by channel or tensor, symmetric: what integer products take, or activations "none"',
        )
    put(model, module, packed)
    tie_head(model)
    tie_again(model)


@edit
def quantize_embedding(model: nn.Module, *, module: str, bits: int = 8, values: Rounded | None = None) -> None:
    """Store an embedding table (V, D) as integers of 2 to 8 bits with one scale a row.

    A language head tied to it and packed as well goes on sharing it: both are rounded row by row, to the same integers.
    """
    table = as_table(model.get_submodule(module), module)
    if bits == 8:
        put(model, module, QuantizedEmbedding.from_embedding(table, values))
    else:
        put(model, module, PackedEmbedding.from_embedding(table, Grid(bits), values))
    tie_head(model)


@edit
def sparsify_linear(model: nn.Module, *, module: str, kept: int) -> None:
    """Store a linear's weight (O, I) sparse: in the file only the weights that are not zero, and a bitmap.

    The zeros were decided, and the others trained or solved for, by whoever calls; here they are counted, and lose
    their sign (a mask times a negative weight is -0.0, whose bits are not zero). In memory the linear stays what it is,
    so it can be trained, narrowed, quantized and exported as any other.

    Args:
        model: any model.
        module: dotted name of the linear.
        kept: how many weights may be other than zero.
    """
    linear = as_linear(model.get_submodule(module), module)
    if linear.weight.is_meta:
        return
    found = int(linear.weight.count_nonzero())
    if found > kept:
        raise NiwakiError(f"{module} has {found} weights that are not zero", expected=f"at most {kept}")
    with torch.no_grad():
        linear.weight.masked_fill_(linear.weight == 0, 0.0)


def is_sparse(model: nn.Module) -> bool:
    """Say whether weights of the model are to be stored sparse."""
    journal: list[Record] = getattr(model, "niwaki_journal", None) or []
    return any(record["edit"] == "sparsify_linear" for record in journal)
