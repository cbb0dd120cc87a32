"""Go from modules to others that do the same work while a model trains: coins say who answers."""

# B batch

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from niwaki.layers.either import Either, coins
from niwaki.schedules import cosine, ramp
from niwaki.technique import Companion

#: Who a coin is tossed for: all rows of a batch, or each.
Coin = Literal["batch", "example"]
Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class Pair:
    """Name two that do the same work: a module of the model, and the frozen modules that it is to replace."""

    successor: nn.Module
    predecessor: Sequence[nn.Module]


@dataclass(frozen=True)
class Curriculum:
    """Say how likely a successor is to answer at each moment.

    Attributes:
        schedule: how the probability goes from `probability` to 1 at `end`; "constant" stays and then jumps.
        probability: at the beginning, in [0, 1].
        end: progress from which on successors alone answer.
    """

    schedule: Schedule
    probability: float
    end: float

    def probability_at(self, progress: float) -> float:
        """Return the probability of a successor at this progress.

        >>> linear = Curriculum("linear", probability=0.5, end=0.8)
        >>> [round(linear.probability_at(p), 3) for p in (0.0, 0.4, 0.8, 1.0)]
        [0.5, 0.75, 1.0, 1.0]
        """
        if progress >= self.end:
            return 1.0
        rise = {"constant": lambda *_: 0.0, "linear": ramp, "cosine": cosine}[self.schedule]
        return self.probability + (1.0 - self.probability) * rise(progress, 0.0, self.end)


class Swapping(Companion):
    """Let each successor answer in the place of its predecessor more and more often, and at last always.

    The model may be judged at any moment: in evaluation it is what it will be.

    Args:
        pairs: in the order of their places, which coins depend on.
        curriculum: the probability of a successor.
        coin: one for each place and batch, or for each place and example.
        seed: of the coins.
    """

    def __init__(self, pairs: Sequence[Pair], curriculum: Curriculum, *, coin: Coin, seed: int) -> None:
        super().__init__()
        self.curriculum, self.coin, self.seed = curriculum, coin, seed
        self.progress = 0.0
        self.eithers = [
            Either(pair.successor, pair.predecessor, self._coins(place), last=place == len(pairs) - 1)
            for place, pair in enumerate(pairs)
        ]

    def _coins(self, place: int) -> Callable[[int], Tensor]:
        """Return what tosses the coins of one place."""

        def toss(batch: int) -> Tensor:
            probability = self.curriculum.probability_at(self.progress)
            count = batch if self.coin == "example" else 1
            return coins(count, probability, seed=self.seed, progress=self.progress, place=place)

        return toss

    def step(self, progress: float) -> None:
        """Take up the probability of the moment."""
        self.progress = progress

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the predecessors away: in evaluation the model has been what it is now all the time."""
        for either in self.eithers:
            either.take_down()
        return model
