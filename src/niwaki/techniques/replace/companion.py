"""Toss coins between predecessors and successors while the model trains, and hold the rest of it still."""

# B batch

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from niwaki.layers.either import Either, coins
from niwaki.schedules import cosine, ramp
from niwaki.technique import Companion


@dataclass(frozen=True)
class Pair:
    """Name two that do the same work: a module of the model, and the frozen modules that it is to replace."""

    successor: nn.Module
    predecessor: Sequence[nn.Module]


@dataclass(frozen=True)
class Curriculum:
    """Say how likely a successor is to answer at each moment, and what is held still.

    Attributes:
        schedule: how the probability goes from `probability` to 1 at `end`; "constant" stays and then jumps.
        probability: at the beginning, in [0, 1].
        end: progress from which on successors alone answer.
        hold: "until-end", "always" or "never": when all weights but the successors' are held.
    """

    schedule: Literal["constant", "linear", "cosine"]
    probability: float
    end: float
    hold: Literal["until-end", "always", "never"]

    def probability_at(self, progress: float) -> float:
        """Return the probability of a successor at this progress.

        >>> linear = Curriculum("linear", probability=0.5, end=0.8, hold="never")
        >>> [round(linear.probability_at(p), 3) for p in (0.0, 0.4, 0.8, 1.0)]
        [0.5, 0.75, 1.0, 1.0]
        """
        if progress >= self.end:
            return 1.0
        rise = {"constant": lambda *_: 0.0, "linear": ramp, "cosine": cosine}[self.schedule]
        return self.probability + (1.0 - self.probability) * rise(progress, 0.0, self.end)

    def holds(self, progress: float) -> bool:
        """Say whether the rest of the model is held still at this progress."""
        return self.hold == "always" or (self.hold == "until-end" and progress < self.end)


class Replacing(Companion):
    """Let each successor answer in the place of its predecessor more and more often, and at last always.

    Until they are released, or always, only successors learn. The other weights stand in the optimizer all the same,
    which is made once; they are held by having no gradient at all, for one of zeros would still let them decay and be
    moved on by their momentum.

    The model may be judged at any moment: in evaluation it is what it will be.
    """

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[Pair],
        curriculum: Curriculum,
        *,
        coin: Literal["batch", "example"],
        seed: int,
    ) -> None:
        super().__init__()
        self.curriculum, self.coin, self.seed = curriculum, coin, seed
        self.model = [model]  # in a list: the model is not part of its companion
        self.progress = 0.0
        self.eithers = [
            Either(pair.successor, pair.predecessor, self._coins(place), last=place == len(pairs) - 1)
            for place, pair in enumerate(pairs)
        ]
        self.rest: list[nn.Parameter] | None = None

    def _coins(self, place: int) -> Callable[[int], Tensor]:
        """Return what tosses the coins of one place."""

        def toss(batch: int) -> Tensor:
            probability = self.curriculum.probability_at(self.progress)
            count = batch if self.coin == "example" else 1
            return coins(count, probability, seed=self.seed, progress=self.progress, place=place)

        return toss

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return none: successors are part of the model."""
        return []

    def step(self, progress: float) -> None:
        """Take up the probability of the moment, and hold the rest of the model or let it go."""
        self.progress = progress
        if self.rest is None:
            self.rest = self._rest()
        self._hold(self.curriculum.holds(progress))

    def _rest(self) -> list[nn.Parameter]:
        """Return what learns and is no successor, now that all companions stand and have frozen what they freeze."""
        if not self.eithers:
            return []
        learning = {id(parameter) for either in self.eithers for parameter in either.successor.parameters()}
        parameters = self.model[0].parameters()
        return [each for each in parameters if each.requires_grad and id(each) not in learning]

    def _hold(self, held: bool) -> None:
        for parameter in self.rest or ():
            parameter.requires_grad_(not held)

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the predecessors away: the model has been its small self all the time."""
        for either in self.eithers:
            either.take_down()
        self._hold(False)
        return model
