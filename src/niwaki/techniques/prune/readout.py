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

    Attributes:
        gram: X^T X, (I + 1, I + 1), in double precision.
        cross: X^T Y, (I + 1, O).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def see(self, inputs_PI: Tensor, wanted_PO: Tensor, weight_P: Tensor | None = None) -> None:
        """Add tokens, each with its weight."""
        inputs_PI = nn.functional.pad(inputs_PI.float(), (0, 1), value=1.0)
        scaled_PI = inputs_PI if weight_P is None else inputs_PI * weight_P[:, None]
        self.gram += (scaled_PI.T @ inputs_PI).double()
        self.cross += (scaled_PI.T @ wanted_PO.float()).double()

    @property
    def hessian(self) -> Tensor:
        """Return the Hessian by the weights when the bias is free: X X^T of the centred inputs, (I, I)."""
        count = self.gram[-1, -1].clamp_min(1e-12)
        return self.gram[:-1, :-1] - self.gram[:-1, -1:] @ self.gram[-1:, :-1] / count

    def readout(self, linear: nn.Linear, kept: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """Return weight (O, S) and bias (O,) that give the wanted outputs best from the inputs that stay.

        W' = W + D with D the least squares solution, with ridge, of what W leaves to be wanted: where the tokens tell
        nothing, the weights stay as they are. The ridge grows until no weight grows out of proportion.
        """
        rows = torch.cat([kept, torch.tensor([len(self.gram) - 1])])
        gram_SS, cross_SO = self.gram[rows][:, rows], self.cross[rows]
        bias_O = torch.zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        old_SO = torch.cat([linear.weight.detach()[:, kept].T, bias_O[None]]).double()
        left_SO = cross_SO - gram_SS @ old_SO
        limit = LARGEST_GROWTH * float(linear.weight.detach().abs().max())
        while True:
            new_SO = old_SO + inverse_hessian(gram_SS, ridge) @ left_SO
            if float(new_SO[:-1].abs().max()) <= limit or ridge > 1e3:
                break
            ridge *= 10.0
        new_SO = new_SO.to(linear.weight.dtype)
        return new_SO[:-1].T.contiguous(), new_SO[-1]
