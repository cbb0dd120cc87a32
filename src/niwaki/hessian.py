"""The Cholesky factor that pruning and rounding column by column share."""

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

    Args:
        products_II: H = X^T X of the inputs X, in 64 bits.
        damping: share of the mean of the diagonal that is added to it at first.

    Raises:
        NiwakiError: H has no Cholesky factor, however damped: the inputs are not finite.
    """
    idle_I = products_II.diagonal() == 0
    mean = products_II.diagonal().mean()
    eye_II = torch.eye(len(products_II), dtype=products_II.dtype, device=products_II.device)
    share = damping
    upper_II: Tensor
    for _ in range(TRIES):
        damped_II = products_II + eye_II * (share * mean + idle_I)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if not failed and bool(torch.isfinite(upper_II).all()):
                return upper_II
        share *= 10.0
    raise NiwakiError(
        f"the products of the inputs have no Cholesky factor, with {share / 10 * 100:g}% of their mean added",
        expected="finite activations",
        fix="a method that does not solve, or more examples",
    )
