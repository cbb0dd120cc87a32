"""Which weight is shared: pure functions of the weights that it takes the place of."""

# O outputs, I inputs, R rank

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Share of the mean square of an input that is added to all: where inputs say nothing, the mean of the weights stands.
DAMPING = 1e-6


def mean(weights: Sequence[Tensor]) -> Tensor:
    """Return the mean of weights (O, I)."""
    return torch.stack(list(weights)).mean(dim=0)


def least_squares(weights: Sequence[Tensor], products: Sequence[Tensor]) -> Tensor:
    """Return the weight whose outputs are nearest to those of all the others, each on its own inputs.

    W = argmin sum_l |W X_l - W_l X_l|^2 = (sum_l W_l C_l) (sum_l C_l)^-1, with C_l = X_l X_l'.

    Args:
        weights: W_l, (O, I).
        products: C_l, (I, I).

    >>> one, two = torch.eye(1), 3 * torch.eye(1)
    >>> least_squares([one, two], [3 * torch.eye(1), torch.eye(1)])  # (1 * 3 + 3 * 1) / (3 + 1)
    tensor([[1.5000]])
    """
    total_II = torch.stack([product.double() for product in products]).sum(dim=0)
    level = DAMPING * float(total_II.diagonal().mean()) + torch.finfo(torch.float64).tiny
    damping_II = level * torch.eye(len(total_II), dtype=torch.float64, device=total_II.device)
    damped = [product.double() + damping_II for product in products]
    wanted_OI = torch.stack([w.double() @ c for w, c in zip(weights, damped, strict=True)]).sum(dim=0)
    solved_IO: Tensor = torch.linalg.solve(torch.stack(damped).sum(dim=0), wanted_OI.T)  # the sum is symmetric
    return solved_IO.T.to(weights[0].dtype).contiguous()


def low_rank(difference_OI: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U (O, R) and V (R, I) whose product is nearest to the difference, of even size.

    >>> up, down = low_rank(torch.tensor([[4.0, 0.0], [0.0, 1.0]]), 1)
    >>> (up @ down).abs().tolist()
    [[4.0, 0.0], [0.0, 0.0]]
    """
    left, values, right = torch.linalg.svd(difference_OI.double(), full_matrices=False)
    roots_R = values[:rank].sqrt()
    up_OR, down_RI = left[:, :rank] * roots_R, roots_R[:, None] * right[:rank]
    return up_OR.to(difference_OI.dtype).contiguous(), down_RI.to(difference_OI.dtype).contiguous()
