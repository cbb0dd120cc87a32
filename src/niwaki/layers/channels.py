"""Gates on the hidden channels: one for each, wherever the residual width is read or normalised.

A gated model with gates of 0 and 1 computes what the narrow one will, so that cutting it changes nothing.
"""

# B batch, T tokens, D hidden; `...` any leading dimensions

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from niwaki.anatomy import anatomy_of
from niwaki.layers.gates import Masks
from niwaki.residual import residual_of


def gated_norm(norm: nn.Module, hidden: Tensor, gates_D: Tensor) -> Tensor:
    """Normalise (..., D) over the channels that are open, and multiply by the gates.

    Mean and variance are weighted by the gates, so that closed channels do not count: a mask over a plain layer norm
    would leave the numbers of the whole width in its mean and variance, which the narrow norm never sees.
    Norms without a mean (root mean square) are known by their lack of one, `nn.LayerNorm`.
    """
    states, weights = (hidden, gates_D) if hidden.dtype == torch.float64 else (hidden.float(), gates_D.float())
    shares = weights / weights.sum().clamp_min(1e-3)  # none open: 0, not 0 / 0
    if isinstance(norm, nn.LayerNorm):
        # sums, not products of matrices: autocast would do those in half precision
        states = states - (states * shares).sum(dim=-1, keepdim=True)
        epsilon = norm.eps
    else:
        epsilon = norm.variance_epsilon  # type: ignore[assignment]
    variance = (states.square() * shares).sum(dim=-1, keepdim=True)
    scaled = states * torch.rsqrt(variance + epsilon) * (cast(Tensor, norm.weight) * weights)
    bias = getattr(norm, "bias", None)
    return scaled if bias is None else scaled + bias * weights


def stand_channels(
    model: nn.Module, value: Callable[[nn.Module], Tensor], see: Callable[[Tensor], None] | None = None
) -> list[RemovableHandle]:
    """Stand gates on the hidden channels, until the handles are removed.

    Args:
        model: of a known family.
        value: called with a module; returns the factors (D).
        see: called with each norm's gated output (..., D).
    """

    def normalise(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        gated = gated_norm(module, inputs[0], value(module)).to(output.dtype)
        if see is not None:
            see(gated)
        return gated

    def multiply(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * value(module).to(output.dtype)

    residual = residual_of(model)
    handles = [model.get_submodule(name).register_forward_hook(normalise) for name in residual.norms]
    return handles + [model.get_submodule(name).register_forward_hook(multiply) for name in residual.sources]


class ChannelGates(Masks):
    """Multiply the hidden channels by a mask and gather each one's importance; the whole width is one group.

    Args:
        model: of a known family.
        by: "first-order", "fisher" or "activation"; with any other word nothing is gathered.
        memory: in [0, 1); 0 keeps the sum over all steps instead of a moving average.
    """

    def __init__(self, model: nn.Module, by: str = "first-order", memory: float = 0.0) -> None:
        super().__init__(model, [residual_of(model).width], by, memory)
        self._handles += stand_channels(model, lambda module: self.value(0), lambda hidden: self.see(0, hidden))


class PooledGates(Masks):
    """Multiply what the pooling linear puts out by a mask, before the head; the whole width is one group.

    Args:
        model: a classifier with a pooling linear.
        by, memory: as of `ChannelGates`.
    """

    def __init__(self, model: nn.Module, by: str = "first-order", memory: float = 0.0) -> None:
        head = cast(nn.Linear, anatomy_of(model).head)
        super().__init__(model, [head.in_features], by, memory)
        self._handles.append(head.register_forward_pre_hook(self._multiply))

    def _multiply(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.see(0, inputs[0])
        return (inputs[0] * self.value(0).to(inputs[0].dtype), *inputs[1:])
