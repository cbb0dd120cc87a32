"""The edits of how weights are stored: as integers, or without their zeros."""

# O outputs, I inputs, V vocabulary, D hidden

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from niwaki.errors import NiwakiError
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear
from niwaki.surgery.cutting import as_linear, as_table, put
from niwaki.surgery.journal import Record, edit
from niwaki.surgery.ties import tie_head


@edit
def quantize_linear(
    model: nn.Module,
    *,
    module: str,
    bits: int = 8,
    activations: Literal["dynamic", "static", "none"] = "dynamic",
    scale: float | None = None,
    zero_point: int | None = None,
) -> None:
    """Store a linear's weight (O, I) as integers with one scale an output channel.

    Args:
        model: any model.
        module: dotted name of the linear.
        bits: bits of a weight; 8.
        activations: "dynamic" (their range is taken at run time), "static" (`scale` and `zero_point` given) or "none".
        scale: of static activations, above 0.
        zero_point: of static activations, 0 to 255.
    """
    linear = as_linear(model.get_submodule(module), module)
    packed = QuantizedLinear.from_linear(
        linear, activations=activations, activation_scale=scale, activation_zero_point=zero_point
    )
    put(model, module, packed)
    tie_head(model)


@edit
def quantize_embedding(model: nn.Module, *, module: str, bits: int = 8) -> None:
    """Store an embedding table (V, D) as integers with one scale a row.

    A language head tied to it and packed as well goes on sharing it: both are rounded row by row, to the same integers.
    """
    table = as_table(model.get_submodule(module), module)
    put(model, module, QuantizedEmbedding.from_embedding(table))
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
