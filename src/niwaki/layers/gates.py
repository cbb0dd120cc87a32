"""Gates on heads and neurons: a mask that can fall, and the gradient that says what it would cost."""

# B batch, T tokens, H heads, N neurons, S width of a head

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of


class Gates(nn.Module):
    """Multiply the units of one kind, in every layer, by a mask of 0 and 1, and gather each unit's importance.

    The importance of a unit is |dL/dg| at g = 1, the first-order change of the loss if the unit went (Michel et al.
    2019, equation 2; Molchanov et al. 2017), averaged over steps with weight `memory` on the past.

    Args:
        model: of a known family.
        kind: "heads" (gates stand before the output projection) or "neurons" (before the down projection). Heads that
            share their keys and values go together, so they are one unit with one gate.
        memory: in [0, 1); 0 keeps the sum over all steps instead of a moving average.
    """

    def __init__(self, model: nn.Module, kind: str, memory: float = 0.0) -> None:
        super().__init__()
        self.kind, self.memory = kind, memory
        layers = anatomy_of(model).layers
        device = next(model.parameters()).device
        counts = [layer.key_value_heads if kind == "heads" else layer.neurons for layer in layers]
        self.gates = nn.ParameterList([nn.Parameter(torch.ones(count, device=device)) for count in counts])
        for index, count in enumerate(counts):
            self.register_buffer(f"mask_{index}", torch.ones(count, device=device))
            self.register_buffer(f"importance_{index}", torch.zeros(count, device=device))
        self._handles = [self._stand(layer, index) for index, layer in enumerate(layers)]

    def _stand(self, layer: Layer, index: int) -> list[torch.utils.hooks.RemovableHandle]:
        """Stand the gates of one layer in front of the linear that reads its units."""
        width = layer.group_size * layer.head_size if self.kind == "heads" else 1
        gate = self.gates[index]

        def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            value = gate * self.mask(index)
            if width > 1:
                value = value.repeat_interleave(width)
            return (inputs[0] * value.to(inputs[0].dtype), *inputs[1:])

        def remember(gradient: Tensor) -> None:
            importance = self.importance(index)
            if self.memory:
                importance.mul_(self.memory).add_(gradient.abs(), alpha=1.0 - self.memory)
            else:
                importance.add_(gradient.abs())

        linear = layer.part("output" if self.kind == "heads" else "down")
        return [linear.register_forward_pre_hook(multiply), gate.register_hook(remember)]

    def mask(self, index: int) -> Tensor:
        """Return the mask of one layer."""
        return self.get_buffer(f"mask_{index}")

    def importance(self, index: int) -> Tensor:
        """Return the importances of one layer's units."""
        return self.get_buffer(f"importance_{index}")

    def importances(self) -> list[Tensor]:
        """Return the importances of all layers; a unit that is gone has -1, below any other."""
        return [self.importance(i).masked_fill(self.mask(i) == 0, -1.0) for i in range(len(self.gates))]

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
        for handles in self._handles:
            for handle in handles:
                handle.remove()
        self._handles = []


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
        counts = [round(keep * len(values)) for values in importances]
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


def _rounded(count: int, total: int, multiple_of: int) -> int:
    rounded = max(multiple_of, round(count / multiple_of) * multiple_of)
    return min(rounded, total)


def _top(values: Tensor, count: int) -> list[int]:
    index: list[int] = values.cpu().argsort(descending=True, stable=True)[:count].sort().values.tolist()
    return index
