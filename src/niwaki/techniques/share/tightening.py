"""Sharing while a model trains: each layer's own difference fades, until one weight is left."""

# O outputs, I inputs, R rank

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.surgery import relax_linear, tie_weights
from niwaki.technique import Companion

#: What a linear has beside its weight while it trains: the shared weight, and U and V of its low-rank difference.
EXTRA = ("shared_weight", "relaxed_up", "relaxed_down")


@dataclass(frozen=True)
class Shared:
    """Hold what takes the place of the weights of some linears.

    Attributes:
        names: dotted names of the linears.
        weight_OI: what they share.
        own: of each of them U (O, R) and V (R, I); empty where they share everything.
    """

    names: tuple[str, ...]
    weight_OI: Tensor
    own: tuple[tuple[Tensor, Tensor], ...] = ()

    def put(self, model: nn.Module) -> None:
        """Make the change for good."""
        for name, factors in zip(self.names, self.own, strict=False):
            relax_linear(model, module=name, rank=len(factors[1]), values=factors)
        names = [f"{name}.shared" if self.own else name for name in self.names]
        tie_weights(model, modules=names, values=self.weight_OI)


class Tightening(Companion):
    """Let linears see S + U V + (1 - t) D: S is shared, U V and D are the linear's own, and t rises to 1.

    While the training lasts, the weight of each linear is D, the difference from what it will see in the end. S, U and
    V stand beside it as parameters, S in every linear that shares it, so that its gradient is the sum over all uses.

    Args:
        model: the model.
        sets: what is shared.
        tightness: t of progress.
    """

    def __init__(self, model: nn.Module, sets: Sequence[Shared], tightness: Callable[[float], float]) -> None:
        super().__init__()
        self.sets, self.tightness, self.left = sets, tightness, 1.0
        self.handles: list[Any] = []
        for one in sets:
            weight_OI = nn.Parameter(one.weight_OI.clone())
            for index, name in enumerate(one.names):
                linear = model.get_submodule(name)
                linear.register_parameter("shared_weight", weight_OI)
                for key, factor in zip(EXTRA[1:], one.own[index] if one.own else (), strict=False):
                    linear.register_parameter(key, nn.Parameter(factor.clone()))
                linear.weight = nn.Parameter(linear.get_parameter("weight").detach() - _last(linear).detach())
                self.handles += [
                    linear.register_forward_pre_hook(self._show),
                    linear.register_forward_hook(_hide, always_call=True),
                ]

    def step(self, progress: float) -> None:
        """Draw the ties tighter."""
        self.left = 1.0 - self.tightness(progress)

    def ready(self, progress: float) -> bool:
        """Say whether nothing is left of the differences."""
        return self.left == 0.0

    def _show(self, linear: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Put what the linear is to see before its parameter, for one forward pass."""
        difference_OI = linear.get_parameter("weight")
        linear.__dict__["weight"] = torch.add(_last(linear), difference_OI, alpha=self.left)

    def finish(self, model: nn.Module) -> nn.Module:
        """Drop what is left of the differences, and tie."""
        for handle in self.handles:
            handle.remove()
        for one in self.sets:
            linears = [model.get_submodule(name) for name in one.names]
            weight_OI = linears[0].get_parameter("shared_weight").detach()
            own = tuple(_factors(linear) for linear in linears) if one.own else ()
            for linear in linears:
                for key in EXTRA:
                    linear._parameters.pop(key, None)
            Shared(one.names, weight_OI, own).put(model)
        return model


def _last(linear: nn.Module) -> Tensor:
    """Return the weight (O, I) that the linear sees in the end: S, or S + U V."""
    weight_OI = linear.get_parameter("shared_weight")
    if "relaxed_up" not in linear._parameters:
        return weight_OI
    return torch.addmm(weight_OI, linear.get_parameter("relaxed_up"), linear.get_parameter("relaxed_down"))


def _factors(linear: nn.Module) -> tuple[Tensor, Tensor]:
    return linear.get_parameter("relaxed_up").detach(), linear.get_parameter("relaxed_down").detach()


def _hide(linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Let the parameter be seen again."""
    linear.__dict__.pop("weight", None)
