"""The best linear readout of the units that stay: least squares from moments gathered over real tokens."""

# P tokens that are not padding, I inputs, O outputs, S inputs that stay

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.techniques.prune.removal import inverse_hessian

#: A readout whose weights grow more than this over the old ones has fitted noise.
LARGEST_GROWTH = 10.0


class Moments:
    """Gather what least squares needs of a linear's inputs x, with a 1 for the bias, and the outputs y wanted of it.

    Args:
        inputs: of the linear.
        outputs: of the linear.
        bias: whether it has one, to be fitted too.

    Attributes:
        gram: X^T X, (I + 1, I + 1), in double precision.
        cross: X^T Y, (I + 1, O).
    """

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.bias = bias
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def see(self, inputs_PI: Tensor, wanted_PO: Tensor, weight_P: Tensor | None = None) -> None:
        """Add tokens, each with its weight."""
        inputs_PI = nn.functional.pad(inputs_PI.float(), (0, 1), value=1.0)
        scaled_PI = inputs_PI if weight_P is None else inputs_PI * weight_P[:, None]
        self.gram += (scaled_PI.T @ inputs_PI).double()
        self.cross += (scaled_PI.T @ wanted_PO.float()).double()

    @property
    def count(self) -> float:
        """Return the number of tokens."""
        return float(self.gram[-1, -1])

    @property
    def hessian(self) -> Tensor:
        """Return the Hessian by the weights, (I, I): X X^T, of centred inputs where a bias is free."""
        if not self.bias:
            return self.gram[:-1, :-1]
        return self.gram[:-1, :-1] - self.gram[:-1, -1:] @ self.gram[-1:, :-1] / max(self.count, 1e-12)

    def readout(self, linear: nn.Linear, kept: Tensor, ridge: float) -> tuple[Tensor, Tensor | None]:
        """Return weight (O, S) and bias (O,), if there is one, that give the wanted outputs best from what stays.

        W' = W + D with D the least squares solution, with ridge, of what W leaves to be wanted: where the tokens tell
        nothing, the weights stay as they are. The ridge grows until no weight grows out of proportion.
        """
        old_SO, rows = linear.weight.detach()[:, kept].T, kept
        if self.bias:
            old_SO = torch.cat([old_SO, linear.bias.detach()[None]])
            rows = torch.cat([kept, torch.tensor([len(self.gram) - 1])])
        gram_SS, old_SO = self.gram[rows][:, rows], old_SO.double()
        left_SO = self.cross[rows] - gram_SS @ old_SO
        limit = LARGEST_GROWTH * float(linear.weight.detach().abs().max())
        while True:
            new_SO = old_SO + inverse_hessian(gram_SS, ridge) @ left_SO
            if bool((new_SO[: len(kept)].abs() <= limit).all()) or ridge > 1e3:
                break
            ridge *= 10.0
        new_SO = new_SO.to(linear.weight.dtype)
        return new_SO[: len(kept)].T.contiguous(), new_SO[-1] if self.bias else None
