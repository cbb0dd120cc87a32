"""Hard-concrete gates: random factors in [0, 1], often exactly 0 or 1, whose chance to be open is learnt."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Temperature and limits of the stretched distribution (Louizos et al. 2018, section 4.1).
BETA, LOW, HIGH = 2 / 3, -0.1, 1.1
#: log P(open) is log sigmoid(log alpha + SHIFT).
SHIFT = -BETA * math.log(-LOW / HIGH)
#: Where log alpha starts: open with chance 0.99, exactly 1 four times of five, and not so far in that it cannot fall.
START = 3.0


class HardConcrete(nn.Module):
    """Hold hard-concrete gates z, learnt by log alpha.

    s = sigmoid((log u - log(1 - u) + log alpha) / beta), u uniform in (0, 1); z = clamp(s (high - low) + low, 0, 1).
    P(z > 0) = sigmoid(log alpha - beta log(-low / high)).

    Args:
        count: number of gates.
        device: where they are.

    Source: Louizos, Welling and Kingma 2018, Learning Sparse Neural Networks through L0 Regularization, equations 10 to
    13.
    """

    def __init__(self, count: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.log_alpha = nn.Parameter(torch.full((count,), START, device=device))

    def sample(self) -> Tensor:
        """Draw every gate."""
        uniform = torch.rand_like(self.log_alpha).clamp(1e-6, 1 - 1e-6)
        return _stretched(torch.sigmoid((torch.logit(uniform) + self.log_alpha) / BETA))

    def open_chance(self) -> Tensor:
        """Return P(z > 0) of every gate."""
        return torch.sigmoid(self.log_alpha + SHIFT)

    def log_open_chance(self) -> Tensor:
        """Return log P(z > 0) of every gate."""
        return functional.logsigmoid(self.log_alpha + SHIFT)

    def settled(self) -> Tensor:
        """Return the gates without chance, for evaluation."""
        return _stretched(torch.sigmoid(self.log_alpha))


def _stretched(shares: Tensor) -> Tensor:
    return (shares * (HIGH - LOW) + LOW).clamp(0.0, 1.0)
