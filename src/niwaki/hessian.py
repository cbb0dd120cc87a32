"""The Cholesky factors of what inputs say of weights: pruning and rounding column by column share them."""

# I inputs of a linear

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.errors import NiwakiError

#: Share of the mean of the diagonal that is added to it; ten times more at each try, where that is too little.
DAMPING = 0.01
TRIES = 8


def factor_of_inverse(products_II: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the upper Cholesky factor U of the damped inverse: U^T U = (H + damping I)^-1.

    It is the inverse of `reverse_factor`: H^-1 = (R R^T)^-1 = R^-T R^-1.

    Args:
        products_II: H = X^T X of the inputs X, in 64 bits.
        damping: share of the mean of the diagonal that is added to it at first.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.
    """
    reverse_II = reverse_factor(products_II, damping)
    eye_II = torch.eye(len(reverse_II), dtype=reverse_II.dtype, device=reverse_II.device)
    return torch.linalg.solve_triangular(reverse_II, eye_II, upper=True)


def reverse_factor(products_II: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the upper R with R R^T = H + damping I: the Cholesky factor with rows and columns taken from the last.

    Args:
        products_II: H = X^T X of the inputs X, in 64 or 32 bits; inputs that are always zero count as if they were one.
        damping: share of the mean of the diagonal that is added to it at first.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.
    """
    diagonal_I = products_II.diagonal()
    idle_I, mean = (diagonal_I == 0).flip(0), diagonal_I.mean()
    share = damping
    for _ in range(TRIES):
        damped_II = products_II.flip((0, 1))
        damped_II.diagonal().add_(share * mean + idle_I)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed and bool(torch.isfinite(lower_II.diagonal()).all()):
            return lower_II.flip((0, 1))
        share *= 10.0
    raise NiwakiError(
        f"the products of the inputs have no Cholesky factor, with {share / 10 * 100:g}% of their mean added",
        expected="finite activations",
        fix="a method that does not solve, or more examples",
    )
