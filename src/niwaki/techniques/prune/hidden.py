"""Importances of the hidden channels, the width between the layers."""

# D hidden

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from niwaki.residual import residual_of


def magnitude(model: nn.Module) -> Tensor:
    """Return for each channel the norm of the weights that read it: its column in every linear on the stream."""
    residual = residual_of(model)
    columns_D = torch.zeros(residual.width)
    for name in residual.readers:
        weight = cast(Tensor, model.get_submodule(name).weight).detach()
        columns_D = columns_D.to(weight.device) + weight.float().square().sum(dim=0)
    return columns_D.sqrt()


def random(model: nn.Module, seed: int) -> Tensor:
    """Return importances that mean nothing: the control."""
    return torch.rand(residual_of(model).width, generator=torch.Generator().manual_seed(seed))
