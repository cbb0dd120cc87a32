"""A linear that shares its weight with others, and the low-rank difference that is its own."""

# O outputs, I inputs, R rank; `...` any leading dimensions

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class RelaxedLinear(nn.Module):
    """Add a low-rank difference to a linear: y = W x + b + U (V x).

    The three are ordinary linears, so whoever packs or counts linears finds them.

    Attributes:
        shared: the linear, W (O, I) and b; it is the one that was there before.
        down: V, (R, I), without bias.
        up: U, (O, R), without bias.

    References:
        Bae et al. 2024, Relaxed Recursive Transformers, section 2.3.
    """

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        like = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.out_features, self.in_features = linear.out_features, linear.in_features
        self.shared: nn.Module = linear
        self.down: nn.Module = nn.utils.skip_init(nn.Linear, self.in_features, rank, bias=False, **like)
        self.up: nn.Module = nn.utils.skip_init(nn.Linear, rank, self.out_features, bias=False, **like)

    @property
    def weight(self) -> Tensor:
        """Return what the whole multiplies by, W + U V (O, I): computed anew each time."""
        matrices = (cast(Tensor, linear.weight) for linear in (self.shared, self.up, self.down))
        return torch.addmm(*matrices)

    @property
    def bias(self) -> Tensor | None:
        """Return the bias, (O,), or none."""
        return cast("Tensor | None", self.shared.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        return cast(Tensor, self.shared(hidden) + self.up(self.down(hidden)))
