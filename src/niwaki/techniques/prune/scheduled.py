"""What all pruning along the cubic schedule does: begin, go on, be done, and remember how far it is."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from niwaki.schedules import cubic, in_stages
from niwaki.technique import Companion


class Scheduled(Companion):
    """Take parts of a model away while it trains, along the cubic schedule from `begin` to `end`."""

    #: In how many steps of the schedule parts go; 0 is in each step of the training.
    stages: ClassVar[int] = 0
    done: Tensor

    def __init__(self, *, begin: float, end: float) -> None:
        super().__init__()
        self.begin, self.end = begin, end
        # a buffer, so that a training that goes on from a checkpoint does not choose again what is chosen
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return none: nothing is learnt beside the model."""
        return []

    def step(self, progress: float) -> None:
        """Take away what the schedule asks for."""
        if self.stages:
            progress = in_stages(progress, self.begin, self.end, self.stages)
        done = cubic(progress, self.begin, self.end)
        if done > float(self.done):
            self.done.fill_(done)
            self.take(done)

    @abstractmethod
    def take(self, done: float) -> None:
        """Choose what is gone when the share `done` of the pruning, in (0, 1], is done."""

    def ready(self, progress: float) -> bool:
        """Judge the model only once all that goes is gone."""
        return progress >= self.end
