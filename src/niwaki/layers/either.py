"""Two answers in one place: a successor that stands in the model, and the modules it is to replace beside it."""

# B batch, T tokens, D hidden

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Either:
    """Let the predecessor answer in the place of its successor, as coins fall, while the model trains.

    The successor is part of the model, and all that is there outside training: who walks over the model, saves it or
    runs it in eval mode finds it alone. The predecessor is scaffolding, and no submodule of anything, so that it is
    neither trained nor kept in checkpoints.

    The successor runs at every forward pass, whatever the coins say, so that whoever watches what is inside of it
    always sees something; the predecessor runs only where a coin asks for it.

    Args:
        successor: module of a model, called with states (B, ...) first and whatever else.
        predecessor: frozen modules that do the same work, one after the other; see `frozen_copies`.
        coins: called with B; returns B truths, or one for all: whether the successor's answer goes on.
        last: whether no other stands above. Where all coins fell for predecessors nothing learns, and the loss still
            needs something to be derived by.
    """

    def __init__(
        self,
        successor: nn.Module,
        predecessor: Sequence[nn.Module],
        coins: Callable[[int], Tensor],
        *,
        last: bool = False,
    ) -> None:
        self.successor, self.predecessor = successor, tuple(predecessor)
        self.coins, self.last = coins, last
        self._handle = successor.register_forward_hook(self._answer, with_kwargs=True)

    def _answer(
        self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], ours: Tensor
    ) -> Tensor | None:
        """Return what goes on; None leaves the successor's answer as it is."""
        if not module.training:
            return None
        coins_B = self.coins(len(ours))
        if bool(coins_B.all()):
            return None
        theirs = self._ask_predecessor(inputs, named)
        mixed = mix(ours, theirs, coins_B) if bool(coins_B.any()) else theirs
        if self.last and torch.is_grad_enabled() and not mixed.requires_grad:
            mixed.requires_grad_()
        return mixed

    def _ask_predecessor(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
        states, *others = inputs
        # keys and values that a decoder keeps belong to the layers that stay
        arguments = {**named, "past_key_values": None} if "past_key_values" in named else named
        for module in self.predecessor:
            states = module.to(states.device)(states, *others, **arguments)
        result: Tensor = states
        return result

    def take_down(self) -> None:
        """Leave the successor alone, and let the predecessor go."""
        self._handle.remove()
        self.predecessor = ()


def coins(count: int, probability: float, *, seed: int, progress: float, place: int) -> Tensor:
    """Toss so many coins; each is true with this probability.

    They are a function of the arguments alone: a training that goes on from a checkpoint tosses the same ones, and so
    does whoever runs a batch twice.

    >>> tossed, again = (coins(1000, 0.25, seed=0, progress=0.1, place=2) for _ in range(2))
    >>> torch.equal(tossed, again), 200 < int(tossed.sum()) < 300
    (True, True)
    """
    # a float in [0, 1] times 2^53 is a whole number, another one for each
    generator = np.random.default_rng([seed, int(progress * 2**53), place])
    return torch.from_numpy(generator.random(count) < probability)


def is_successor(module: nn.Module) -> bool:
    """Say whether a predecessor stands beside the module."""
    return any(isinstance(getattr(hook, "__self__", None), Either) for hook in module._forward_hooks.values())


def mix(ours: Tensor, theirs: Tensor, coins_B: Tensor) -> Tensor:
    """Return the rows of `ours` where the coins are true, and those of `theirs` elsewhere.

    >>> mix(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [4.0]]), torch.tensor([True, False])).tolist()
    [[1.0], [4.0]]
    """
    return torch.where(coins_B.to(ours.device).view(-1, *[1] * (ours.dim() - 1)), ours, theirs)


def frozen_copies(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """Return copies that do not learn, and do as in evaluation: without dropout."""
    return tuple(copy.deepcopy(module).requires_grad_(False).eval() for module in modules)
