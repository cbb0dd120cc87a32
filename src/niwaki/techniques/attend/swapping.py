"""Go from exact attention to another one while the model trains."""

# B batch, T tokens, D hidden

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from niwaki.layers.attention import Mechanism, mechanisms_of
from niwaki.layers.either import Either, coins
from niwaki.schedules import ramp
from niwaki.technique import Companion


class Swapping(Companion):
    """Let each new attention answer in the place of the exact one, with a probability that rises to 1 at `end`.

    Both read the same projections, so that these learn for both.

    Args:
        model: with attentions swapped.
        end: progress from which on the new ones alone answer; 0 from the beginning.
        seed: of the coins.
    """

    def __init__(self, model: nn.Module, end: float, seed: int) -> None:
        super().__init__()
        self.end, self.seed, self.progress = end, seed, 0.0
        own = [mechanism for _, mechanism in mechanisms_of(model)] if end else []
        self.eithers = [Either(one, [Exact(one)], self._coins(place)) for place, one in enumerate(own)]

    def _coins(self, place: int) -> Callable[[int], Tensor]:
        """Return what tosses one layer's coin for a batch."""

        def toss(batch: int) -> Tensor:
            probability = ramp(self.progress, 0.0, self.end)
            return coins(1, probability, seed=self.seed, progress=self.progress, place=place)

        return toss

    def step(self, progress: float) -> None:
        """Take up the probability of the moment."""
        self.progress = progress

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the exact ones away."""
        for either in self.eithers:
            either.take_down()
        return model


class Exact(nn.Module):
    """Attend as the model did before, in the place of another attention."""

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
