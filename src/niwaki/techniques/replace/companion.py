"""Swap in successors while the model trains, and hold the rest of it still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from niwaki.swapping import Coin, Curriculum, Pair, Swapping

#: When all weights but the successors' are held as they are.
Hold = Literal["until-end", "always", "never"]


class Replacing(Swapping):
    """Let successors answer more and more often, and hold what is no successor.

    Until they are released, or always, only successors learn, and what other companions put up: pairs of `factor`,
    heads of `exit`, feature maps of `attend`. The other weights stand in the optimizer all the same, which is made
    once; they are held by having no gradient at all, for one of zeros would still let them decay and be moved on by
    their momentum.

    Args:
        model: in which the successors stand.
        pairs: of successors and predecessors.
        curriculum: the probability of a successor.
        hold: until successors alone answer, always or never.
        coin: one for each place and batch, or for each place and example.
        seed: of the coins.
    """

    def __init__(
        self, model: nn.Module, pairs: Sequence[Pair], curriculum: Curriculum, *, hold: Hold, coin: Coin, seed: int
    ) -> None:
        super().__init__(pairs, curriculum, coin=coin, seed=seed)
        self.hold = hold
        self.there = list(model.parameters())  # before other companions put up their own
        self.rest: list[nn.Parameter] | None = None

    def holds(self, progress: float) -> bool:
        """Say whether the rest of the model is held still at this progress."""
        return self.hold == "always" or (self.hold == "until-end" and progress < self.curriculum.end)

    def step(self, progress: float) -> None:
        """Take up the probability of the moment, and hold the rest of the model or let it go."""
        super().step(progress)
        if self.rest is None:
            self.rest = self._rest()
        self._hold(self.holds(progress))

    def _rest(self) -> list[nn.Parameter]:
        """Return what learns and is no successor, now that all companions stand and have frozen what they freeze."""
        if not self.eithers:
            return []
        learning = {id(parameter) for either in self.eithers for parameter in either.successor.parameters()}
        return [each for each in self.there if each.requires_grad and id(each) not in learning]

    def _hold(self, held: bool) -> None:
        for parameter in self.rest or ():
            parameter.requires_grad_(not held)

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the predecessors away, and let go what was held."""
        self._hold(False)
        return super().finish(model)
