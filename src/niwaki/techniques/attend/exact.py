"""The exact attention, in the place of another one, while the model goes from one to the other."""

# B batch, T tokens, D hidden

from __future__ import annotations

from torch import Tensor, nn

from niwaki.layers.attention import Mechanism


class Exact(nn.Module):
    """Attend as the model did before, in the place of another attention; both read the same projections.

    Args:
        other: the attention that is to replace it.
    """

    def __init__(self, other: Mechanism) -> None:
        super().__init__()
        self.other = [other]  # in a list: no part of this one

    def forward(
        self,
        query_BTD: Tensor,
        key_BTD: Tensor,
        value_BTD: Tensor,
        real_BT: Tensor,
        scaling: float,
        dropout: float = 0.0,
    ) -> Tensor:
        """Return the answers of all tokens (B, T, D)."""
        return self.other[0].exact(query_BTD, key_BTD, value_BTD, real_BT, scaling, dropout)
