"""Gates on heads and neurons: a mask that can fall, and the gradient that says what it would cost."""

# B batch, T tokens, H heads, N neurons, S width of a head

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from niwaki.anatomy import Layer, anatomy_of


def stand(layer: Layer, kind: str, value: Callable[[nn.Module, Tensor], Tensor]) -> RemovableHandle:
    """Stand gates in front of the linear of one layer that reads its units, until the handle is removed.

    Args:
        layer: of any family.
        kind: "heads" (before the output projection) or "neurons" (before the down projection). Heads that share their
            keys and values go together, so they are one unit with one gate.
        value: called with that linear and its input (..., units * width); returns the factors (units).
    """
    width = layer.unit_width(kind)

    def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        factors = value(module, inputs[0])
        if width > 1:
            factors = factors.repeat_interleave(width)
        return (inputs[0] * factors.to(inputs[0].dtype), *inputs[1:])

    return layer.reader(kind).register_forward_pre_hook(multiply)


class Masks(nn.Module):
    """Hold gates and a mask of 0 and 1 for groups of units, and gather each unit's importance.

    What is gathered, a step: |dL/dg| at g = 1, the first-order change of the loss if the unit went (Michel et al. 2019,
    equation 2; Molchanov et al. 2017); (dL/dg)^2, the diagonal of the empirical Fisher information (Kwon et al. 2022,
    equation 6); or the mean square of what the unit puts out, over tokens that are not padding. Steps are summed, or
    averaged with weight `memory` on the past.

    Args:
        model: whose units they are.
        counts: number of units in each group.
        by: "first-order", "fisher" or "activation"; with any other word nothing is gathered.
        memory: in [0, 1); 0 keeps the sum over all steps instead of a moving average.
    """

    def __init__(self, model: nn.Module, counts: Sequence[int], by: str, memory: float) -> None:
        super().__init__()
        self.by, self.memory = by, memory
        self._real_BT: Tensor | None = None
        device = next(model.parameters()).device
        self.gates = nn.ParameterList([nn.Parameter(torch.ones(count, device=device)) for count in counts])
        for index, count in enumerate(counts):
            self.register_buffer(f"mask_{index}", torch.ones(count, device=device))
            self.register_buffer(f"importance_{index}", torch.zeros(count, device=device))
        self._handles: list[RemovableHandle] = []
        if by in ("first-order", "fisher"):
            self._handles += [gate.register_hook(self._remember(index)) for index, gate in enumerate(self.gates)]
        elif by == "activation":
            self._handles.append(model.register_forward_pre_hook(self._note_padding, with_kwargs=True))

    def _remember(self, index: int) -> Callable[[Tensor], None]:
        """Return what gathers the gradient of one group's gates."""

        def remember(gradient: Tensor) -> None:
            self._gather(index, gradient.square() if self.by == "fisher" else gradient.abs())

        return remember

    def _note_padding(self, model: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        mask_BT = named.get("attention_mask")
        self._real_BT = None if mask_BT is None else mask_BT.bool()

    def see(self, index: int, states: Tensor) -> None:
        """Gather what one group's units put out, (B, T, units * width), where that is the importance."""
        count = len(self.gates[index])
        if self.by != "activation" or not count:
            return
        has_tokens = self._real_BT is not None and states.shape[:-1] == self._real_BT.shape
        real_PI = states.detach()[self._real_BT] if has_tokens else states.detach().flatten(0, -2)
        squares = real_PI.float().square().mean(dim=0)
        self._gather(index, squares.unflatten(0, (count, -1)).sum(dim=1) * self.mask(index))

    def value(self, index: int) -> Tensor:
        """Return what one group's units are multiplied by."""
        return cast(Tensor, self.gates[index] * self.mask(index))

    def _gather(self, index: int, value: Tensor) -> None:
        importance = self.importance(index)
        if self.memory:
            importance.mul_(self.memory).add_(value, alpha=1.0 - self.memory)
        else:
            importance.add_(value)

    def mask(self, index: int) -> Tensor:
        """Return the mask of one layer."""
        return self.get_buffer(f"mask_{index}")

    def importance(self, index: int) -> Tensor:
        """Return the importances of one layer's units."""
        return self.get_buffer(f"importance_{index}")

    def importances(self) -> list[Tensor]:
        """Return the importances of all layers; a unit that is gone has -1, below any other."""
        return self.closed_last([self.importance(index) for index in range(len(self.gates))])

    def closed_last(self, values: list[Tensor]) -> list[Tensor]:
        """Return importances of all layers with -1 for each unit that is gone."""
        return [value.masked_fill(self.mask(index) == 0, -1.0) for index, value in enumerate(values)]

    def open_units(self) -> list[list[int]]:
        """Return the units of each layer that are let through."""
        return [self.mask(index).nonzero()[:, 0].tolist() for index in range(len(self.gates))]

    def close(self, kept: list[list[int]]) -> None:
        """Let only these units of each layer through."""
        for index, units in enumerate(kept):
            mask = torch.zeros_like(self.mask(index))
            mask[units] = 1.0
            self.mask(index).copy_(mask)

    def forget_gradients(self) -> None:
        """Drop the gates' own gradients; they are remembered already."""
        for gate in self.gates:
            gate.grad = None

    def take_down(self) -> None:
        """Remove every hook."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


class Gates(Masks):
    """Multiply the units of one kind, in every layer, by a mask, and gather importances; a group is a layer.

    Args:
        model: of a known family.
        kind: "heads" or "neurons".
        by: "first-order", "fisher" or "activation"; with any other word nothing is gathered.
        memory: in [0, 1); 0 keeps the sum over all steps instead of a moving average.
    """

    def __init__(self, model: nn.Module, kind: str, by: str = "first-order", memory: float = 0.0) -> None:
        layers = anatomy_of(model).layers
        super().__init__(model, [layer.units(kind) for layer in layers], by, memory)
        self.kind = kind
        self._handles += [stand(layer, kind, self._values(index)) for index, layer in enumerate(layers)]

    def _values(self, index: int) -> Callable[[nn.Module, Tensor], Tensor]:
        """Return what gives the factors of one layer's units and looks at the units on the way."""

        def values(module: nn.Module, units: Tensor) -> Tensor:
            self.see(index, units)
            return self.value(index)

        return values


def choose(importances: list[Tensor], keep: float, even: bool, multiple_of: int = 1) -> list[list[int]]:
    """Choose the units that stay in each layer.

    Args:
        importances: one tensor (units,) a layer.
        keep: share of all units that stays, in (0, 1].
        even: the same number in every layer; else the most important ones of the whole model.
        multiple_of: the number in a layer is rounded to a multiple of it, and is at least that (or the layer's all).

    >>> choose([torch.tensor([3.0, 1.0]), torch.tensor([4.0, 2.0])], keep=0.5, even=True)
    [[0], [0]]
    >>> choose([torch.tensor([9.0, 8.0]), torch.tensor([4.0, 2.0, 1.0])], keep=0.6, even=False)
    [[0, 1], [0]]
    """
    if even:
        counts = [even_level([len(values) for values in importances], keep)] * len(importances)
    else:
        wanted = round(keep * sum(len(values) for values in importances))
        everything = torch.cat(importances)
        layer_of = torch.repeat_interleave(torch.arange(len(importances)), torch.tensor([len(v) for v in importances]))
        best = everything.cpu().argsort(descending=True, stable=True)[:wanted]
        counts = torch.bincount(layer_of[best], minlength=len(importances)).tolist()
    return [
        _top(values, _rounded(count, len(values), multiple_of))
        for values, count in zip(importances, counts, strict=True)
    ]


def even_level(totals: Sequence[int], keep: float) -> int:
    """Return the number of units in each layer that keeps this share of all of them; smaller layers keep theirs.

    >>> even_level([8, 8], keep=0.5), even_level([8, 2], keep=0.8)
    (4, 6)
    """
    levels = np.arange(max(totals, default=0) + 1)
    kept = np.minimum.outer(levels, np.array(totals, dtype=np.int64)).sum(axis=1)
    return int(np.abs(kept - keep * sum(totals)).argmin())


def even_counts(totals: Sequence[int], keep: float, multiple_of: int = 1) -> list[int]:
    """Return how many units stay in each layer where all are to keep the same number."""
    return [_rounded(even_level(totals, keep), total, multiple_of) for total in totals]


def _rounded(count: int, total: int, multiple_of: int) -> int:
    rounded = max(multiple_of, round(count / multiple_of) * multiple_of)
    return min(rounded, total)


def _top(values: Tensor, count: int) -> list[int]:
    index: list[int] = values.cpu().argsort(descending=True, stable=True)[:count].sort().values.tolist()
    return index
