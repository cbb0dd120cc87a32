"""A moving average of weights: steadier than the last ones that a training comes to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

#: Steps between two updates; each stands for all of them, so that the average costs a few percent of a step.
EVERY = 4


class MovingAverage:
    """Keep an exponential moving average of parameters beside them.

    After every `EVERY` steps: average <- d average + (1 - d) weights, with d = decay^EVERY, or less in the beginning,
    so that where the training began does not count for long.

    Args:
        parameters: what is averaged; the list must not change.
        decay: of one step, in (0, 1). It averages over about 1 / (1 - decay) steps.

    References:
        Polyak and Juditsky 1992, Acceleration of Stochastic Approximation by Averaging.
        Tarvainen and Valpola 2017, Mean Teachers Are Better Role Models, section 2 (exponential).

    Example:
        >>> weight = nn.Parameter(torch.tensor([0.0]))
        >>> average = MovingAverage([weight], decay=0.5)
        >>> with torch.no_grad():
        ...     weight.fill_(1.0)
        Parameter containing:
        tensor([1.], requires_grad=True)
        >>> average.update(step=4)  # the first update counts for 1 - min(0.5 ** 4, 2 / 11)
        >>> with average.in_place():
        ...     print(weight.item())
        0.9375
        >>> weight.item()
        1.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.averages = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this many steps."""
        if step % EVERY:
            return
        updates = step // EVERY
        decay = min(self.decay**EVERY, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self.averages, self._weights(), 1 - decay)

    @torch.no_grad()
    def take(self) -> None:
        """Put the average in the place of the weights, for good."""
        torch._foreach_copy_(self._weights(), self.averages)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in the place of the weights, for a moment."""
        kept = [weight.clone() for weight in self._weights()]
        self.take()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self._weights(), kept)

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {str(index): average for index, average in enumerate(self.averages)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up what a checkpoint kept."""
        for index, average in enumerate(self.averages):
            average.copy_(state[str(index)])

    def _weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]
