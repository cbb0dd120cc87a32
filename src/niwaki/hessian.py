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

    The lower factor of H with its rows and columns in reverse, put in reverse itself, is an upper R with H = R R^T. So
    H^-1 = R^-T R^-1, and U is the inverse of R.

    Args:
        products_II: H = X^T X of the inputs X, in 64 bits.
        damping: share of the mean of the diagonal that is added to it at first.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.
    """
    reverse_II = lower_factor(products_II.flip((0, 1)), damping).flip((0, 1))
    eye_II = torch.eye(len(reverse_II), dtype=reverse_II.dtype, device=reverse_II.device)
    factor_II: Tensor = torch.linalg.solve_triangular(reverse_II, eye_II, upper=True)
    return factor_II


def lower_factor(products_II: Tensor, damping: float = DAMPING) -> Tensor:
    """Return the lower Cholesky factor L of the damped H: L L^T = H + damping I.

    Args:
        products_II: H = X^T X of the inputs X, in 64 or 32 bits; inputs that are always zero count as if they were one.
        damping: share of the mean of the diagonal that is added to it at first.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.

    Example:
        >>> lower_factor(torch.tensor([[4.0, 2.0], [2.0, 5.0]]), damping=0.0)
        tensor([[2., 0.],
                [1., 2.]])
    """
    diagonal_I, share = products_II.diagonal().clone(), damping
    idle_I, mean = diagonal_I == 0, diagonal_I.mean()
    products_II = products_II.clone()  # what was given is not held: it may be large
    for _ in range(TRIES):
        products_II.diagonal().copy_(diagonal_I + (share * mean + idle_I))
        lower_II, failed = torch.linalg.cholesky_ex(products_II)
        if not failed and bool(torch.isfinite(lower_II.diagonal()).all()):
            found_II: Tensor = lower_II
            return found_II
        share *= 10.0
    raise NiwakiError(
        f"the products of the inputs have no Cholesky factor, with {share / 10 * 100:g}% of their mean added",
        expected="finite activations",
        fix="a method that does not solve, or more examples",
    )
