"""Importances of the hidden channels, the width between the layers, and of what the pooling linear puts out."""

# D hidden, P outputs of the pooling linear

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.residual import residual_of

#: Kinds of units of which the whole model has one group.
WHOLE = ("hidden", "pooled")


def pooled_share(model: nn.Module, share: float) -> float:
    """Return the share of the pooling linear's outputs that are as many as the channels which stay; 1 without one."""
    anatomy = anatomy_of(model)
    if anatomy.pooler is None or anatomy.head is None:
        return 1.0
    return min(1.0, share * residual_of(model).width / cast(nn.Linear, anatomy.head).in_features)


def standing(model: nn.Module, kind: str, by: str, seed: int) -> Tensor:
    """Return importances of "hidden" or "pooled" units that need no batch: by "magnitude", or by "random"."""
    if by == "random":
        head = cast(nn.Linear, anatomy_of(model).head)
        return random(residual_of(model).width if kind == "hidden" else head.in_features, seed)
    return magnitude(model) if kind == "hidden" else pooled_magnitude(model)


def pooled_magnitude(model: nn.Module) -> Tensor:
    """Return for each output of the pooling linear the norm of the weights that read it, (P,)."""
    weight_CP: Tensor = cast(nn.Linear, anatomy_of(model).head).weight.detach()
    norms_P: Tensor = torch.linalg.vector_norm(weight_CP.float(), dim=0)
    return norms_P


def magnitude(model: nn.Module) -> Tensor:
    """Return for each channel the norm of the weights that read it: its column in every linear on the stream."""
    residual = residual_of(model)
    columns_D = torch.zeros(residual.width)
    for name in residual.readers:
        weight = cast(Tensor, model.get_submodule(name).weight).detach()
        columns_D = columns_D.to(weight.device) + weight.float().square().sum(dim=0)
    return columns_D.sqrt()


def random(count: int, seed: int) -> Tensor:
    """Return importances that mean nothing: the control."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed))
