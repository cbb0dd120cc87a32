"""What the edits cut with: rows and columns of parameters, and the checks that come before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.factored import FactoredEmbedding, FactoredLinear
from niwaki.layers.relaxed import RelaxedLinear

#: What is cut as one linear: a matrix, two in a row, or one with a low-rank difference beside it.
Linear = nn.Linear | FactoredLinear | RelaxedLinear


def narrow_linear(linear: Linear, index: torch.Tensor, dim: int) -> None:
    """Keep these rows (`dim` 0) or columns (`dim` 1) of a linear, or of those it is made of, in place."""
    if isinstance(linear, FactoredLinear):
        narrow_linear(linear.inner if dim else linear.outer, index, dim)
        return
    if isinstance(linear, RelaxedLinear):
        for part in (linear.shared, linear.down if dim else linear.up):
            narrow_linear(cast(nn.Linear, part), index, dim)
        linear.out_features, linear.in_features = linear.weight.shape
        return
    for pair in linear.children():  # what takes its place at the end of a training
        narrow_linear(cast(FactoredLinear, pair), index, dim)
    narrow_weight(linear, index, dim)
    if dim == 0:
        narrow(linear, "bias", index, dim=0)
    linear.out_features, linear.in_features = linear.weight.shape


def narrow_columns(table: nn.Embedding | FactoredEmbedding, index: torch.Tensor) -> None:
    """Keep these columns of an embedding table, or of what widens a pair's rows, in place."""
    if isinstance(table, FactoredEmbedding):
        narrow_linear(table.outer, index, dim=0)
        return
    for pair in table.children():
        narrow_columns(cast(FactoredEmbedding, pair), index)
    narrow_weight(table, index, dim=1)
    table.embedding_dim = len(index)


def narrow_weight(module: nn.Linear | nn.Embedding, index: torch.Tensor, dim: int) -> None:
    """Keep these rows or columns of a weight, and of what belongs to it.

    That is every matrix among its buffers that is as long in this dimension: (O, I) goes weight by weight, as a mask
    does, (O, 1) row by row.
    """
    for name, buffer in module.named_buffers(recurse=False):
        if buffer.dim() == 2 and buffer.shape[dim] == module.weight.shape[dim]:
            setattr(module, name, buffer.index_select(dim, index.to(buffer.device)))
    narrow(module, "weight", index, dim)


def narrow(module: nn.Module, name: str, index: torch.Tensor, dim: int) -> None:
    """Keep these rows or columns of a module's parameter, where it has it."""
    value = getattr(module, name, None)
    if value is not None:
        # index_select copies what is chosen into contiguous memory, and keeps meta tensors meta
        chosen = value.detach().index_select(dim, index.to(value.device))
        setattr(module, name, nn.Parameter(chosen, value.requires_grad))


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of this name."""
    parent, _, leaf = name.rpartition(".")
    module.train(model.training)
    setattr(model.get_submodule(parent), leaf, module)


def layer_at(model: nn.Module, index: int) -> Layer:
    """Return a layer by its index, or refuse one that is not there."""
    layers = anatomy_of(model).layers
    check_indices([index], len(layers), "layer")
    return layers[index]


def linear_of(layer: Layer, role: str) -> Linear:
    """Return the linear that plays a role in a layer, or what is in its place."""
    return linear_or_pair(layer.part(role), layer.name_of(role))


def linear_or_pair(module: nn.Module, name: str) -> Linear:
    """Return the module as a linear, two in a row or one with a difference, in floats, or refuse another one."""
    if isinstance(module, FactoredLinear | RelaxedLinear):
        for part, linear in module.named_children():
            as_linear(linear, f"{name}.{part}")
        return module
    return as_linear(module, name)


def table_or_pair(module: nn.Module, name: str) -> nn.Embedding | FactoredEmbedding:
    """Return the module as an embedding table or as a table and a linear, in floats, or refuse another one."""
    if isinstance(module, FactoredEmbedding):
        as_table(module.inner, f"{name}.inner")
        as_linear(module.outer, f"{name}.outer")
        return module
    return as_table(module, name)


def as_linear(module: nn.Module, name: str) -> nn.Linear:
    """Return the module as a linear, or refuse another one."""
    if not isinstance(module, nn.Linear):
        raise _refused(module, name, "linear")
    return module


def as_table(module: nn.Module, name: str) -> nn.Embedding:
    """Return the module as an embedding table, or refuse another one."""
    if not isinstance(module, nn.Embedding):
        raise _refused(module, name, "table")
    return module


def _refused(module: nn.Module, name: str, what: str) -> NiwakiError:
    whole = isinstance(module, FactoredLinear | FactoredEmbedding)
    return NiwakiError(
        f"{name} is a {type(module).__name__}",
        expected=f"a {what} that is not {'two factors' if whole else 'packed into bits'} yet",
        fix="this step before factor" if whole else "",
    )


def check_indices(indices: Sequence[int], count: int, what: str, least: int = 1) -> None:
    """Refuse indices that do not ascend, are not there, or are too few."""
    good = len(indices) >= least and all(0 <= index < count for index in indices)
    if not good or sorted(set(indices)) != list(indices):
        number = "one or more " if least else ""
        shown = f"{list(indices)}" if len(indices) <= 32 else f"[{indices[0]}, ..., {indices[-1]}]"
        raise NiwakiError(f"{what} are {shown}", expected=f"{number}indices in 0..{count - 1}, ascending")
