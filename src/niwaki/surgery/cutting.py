"""What the edits cut with: rows and columns of parameters, and the checks that come before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.errors import NiwakiError


def narrow_linear(linear: nn.Linear, index: torch.Tensor, dim: int) -> None:
    """Keep these rows (`dim` 0) or columns (`dim` 1) of a linear, in place."""
    narrow_weight(linear, index, dim)
    if dim == 0:
        narrow(linear, "bias", index, dim=0)
    linear.out_features, linear.in_features = linear.weight.shape


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


def linear_of(layer: Layer, role: str) -> nn.Linear:
    """Return the linear that plays a role in a layer."""
    return as_linear(layer.part(role), layer.name_of(role))


def as_linear(module: nn.Module, name: str) -> nn.Linear:
    """Return the module as a linear, or refuse another one."""
    if not isinstance(module, nn.Linear):
        raise NiwakiError(f"{name} is a {type(module).__name__}", expected="a linear that is not packed into bits yet")
    return module


def as_table(module: nn.Module, name: str) -> nn.Embedding:
    """Return the module as an embedding table, or refuse another one."""
    if not isinstance(module, nn.Embedding):
        raise NiwakiError(f"{name} is a {type(module).__name__}", expected="a table that is not packed into bits yet")
    return module


def check_indices(indices: Sequence[int], count: int, what: str, least: int = 1) -> None:
    """Refuse indices that do not ascend, are not there, or are too few."""
    good = len(indices) >= least and all(0 <= index < count for index in indices)
    if not good or sorted(set(indices)) != list(indices):
        number = "one or more " if least else ""
        shown = f"{list(indices)}" if len(indices) <= 32 else f"[{indices[0]}, ..., {indices[-1]}]"
        raise NiwakiError(f"{what} are {shown}", expected=f"{number}indices in 0..{count - 1}, ascending")
