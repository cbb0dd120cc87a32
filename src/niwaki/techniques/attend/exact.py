"""The exact attention, in the place of another one, while the model goes from one to the other."""

# B batch, T tokens, D hidden

from __future__ import annotations

from typing import Any

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

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Return the answers of all tokens (B, T, D) to what the other one is given."""
        return self.other[0].exact(*inputs, **named)
