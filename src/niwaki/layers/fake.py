"""Fake quantization: floats that lie on a grid of integers, with gradients for the values, the steps and the zeros."""

# O outputs, I inputs, G groups of a row, N inputs of a group; `...` any dimensions

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor

from niwaki.grid import Grid, in_groups
from niwaki.layers.integer import quantize_dynamic

#: Inputs of an integer product: one step and one zero point a tensor, unsigned bytes.
INPUTS = Grid(8, "tensor", "integer")
#: How much faster a step grows than the number that it is learnt by. See `learnt_scale`.
RATE = 20.0


def on_grid(values: Tensor, scale: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Return the nearest integers of a grid, as floats: clamp(round(x / s) + z).

    Args:
        values: floats (...).
        scale: steps, above 0, of a shape that spreads over the values.
        zero: what stands for 0, of a shape that spreads over the values.
        grid: whose lowest and highest integer bound the result.

    >>> on_grid(torch.tensor([-9.0, -0.5, 0.25]), torch.tensor(0.5), torch.tensor(3.0), INPUTS).tolist()
    [0.0, 2.0, 3.0]
    """
    # A whole zero is added after rounding, as the integer operators do: halves then go the same way.
    whole = zero.round()
    return ((values / scale + (zero - whole)).round() + whole).clamp(grid.lowest, grid.highest)


class _FakeQuantize(torch.autograd.Function):
    """Round to a grid and back; the gradients are those of `fake_quantize`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, zero: Tensor, grid: Grid, share: float) -> Tensor:
        ctx.save_for_backward(values, scale, zero)
        ctx.grid, ctx.share = grid, share
        return (on_grid(values, scale, zero, grid) - zero) * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, scale, zero = ctx.saved_tensors
        place = values / scale + zero
        inside = (place > ctx.grid.lowest) & (place < ctx.grid.highest)
        of_scale = of_zero = None
        if ctx.needs_input_grad[1]:
            moved = on_grid(values, scale, zero, ctx.grid) - torch.where(inside, place, zero)
            of_scale = (gradient * moved).sum_to_size(scale.shape) * ctx.share
        if ctx.needs_input_grad[2]:
            of_zero = (gradient * ~inside * -scale).sum_to_size(zero.shape) * ctx.share
        return gradient * inside, of_scale, of_zero, None, None


def fake_quantize(values: Tensor, scale: Tensor, zero: Tensor, grid: Grid, count: int) -> Tensor:
    """Round to a grid and return to floats: y = (clamp(round(x / s) + z) - z) s.

    Rounding has the derivative 1 (straight-through). With p = x / s + z, q the integer, and "inside" where p lies
    between the lowest and the highest integer:

        dy/dx = 1 inside, else 0
        dy/ds = q - p inside, which is round(x / s) - x / s; else q - z
        dy/dz = 0 inside, else -s

    and the gradients of s and z are multiplied by 1 / sqrt(N Q), so that those of a step are not greater than those of
    the weights that share it, and do not use up what gradient clipping leaves.

    Args:
        values: float32 (...).
        scale: steps, above 0, of a shape that spreads over the values.
        zero: what stands for 0, of a shape that spreads over the values.
        grid: whose lowest and highest integer bound the integers; Q is the highest above the middle of a symmetric one.
        count: N, values that share a step.

    References:
        Esser et al. 2020, Learned Step Size Quantization, equations 1 to 5 and section 2.2. Bhalgat et al. 2020, LSQ+,
        for the zeros.
    """
    above = grid.highest - grid.middle if grid.zero == "middle" else grid.highest
    share = 1.0 / math.sqrt(count * above)
    return cast(Tensor, _FakeQuantize.apply(values, scale, zero, grid, share))  # type: ignore[no-untyped-call]


class _Through(torch.autograd.Function):
    """Show other numbers than the values; the gradient goes to the values as it is."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, shown: Tensor) -> Tensor:
        return shown.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def through(values: Tensor, shown: Tensor) -> Tensor:
    """Return `shown`, with its gradient given to `values` (straight-through).

    >>> values = torch.tensor([0.4], requires_grad=True)
    >>> through(values, values.detach().round()).backward()
    >>> values.grad
    tensor([1.])
    """
    return cast(Tensor, _Through.apply(values, shown))  # type: ignore[no-untyped-call]


def learnt_scale(start: Tensor, growth: Tensor) -> Tensor:
    """Return steps s = s0 exp(RATE g), g being learnt from 0 on.

    Through its logarithm a step stays above 0, and an optimizer with the same rate for all parameters (Adam) moves
    each by the same share of itself, however small it is: 20 times a learning rate of 5e-5 is a thousandth in a step of
    the training, about what weights move by.

    >>> learnt_scale(torch.tensor([0.5]), torch.tensor([0.0]))
    tensor([0.5000])
    """
    return start * (RATE * growth).exp()


def learnt_zero(start: Tensor, shift: Tensor, grid: Grid) -> Tensor:
    """Return zero points z = z0 + RATE Q h, h being learnt from 0 on and Q the highest integer.

    So they move by the same share of the range as steps do. In a grid whose zeros are integers they are rounded.

    >>> learnt_zero(torch.tensor([7.0]), torch.tensor([0.002]), Grid(bits=4, zero="integer"))
    tensor([8.])
    """
    zero = start + RATE * grid.highest * shift
    return through(zero, zero.detach().round().clamp(0, grid.highest)) if grid.zero == "integer" else zero


def fake_weight(weight_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor, grid: Grid) -> Tensor:
    """Return a matrix as its integers will make it, (O, I); (1, 1) is one step for the whole matrix."""
    grouped_OGN = in_groups(weight_OI.float(), grid)
    count = grouped_OGN.numel() // scale_OG.numel()
    faked_OGN = fake_quantize(grouped_OGN, scale_OG[..., None], zero_OG[..., None], grid, count)
    return faked_OGN.flatten(1)[:, : weight_OI.shape[1]]


def integers_of(weight_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor, grid: Grid) -> Tensor:
    """Return the integers that `fake_weight` computes with, uint8 (O, I)."""
    grouped_OGN = in_groups(weight_OI.detach().float(), grid)
    integers_OGN = on_grid(grouped_OGN, scale_OG[..., None], zero_OG[..., None], grid)
    return integers_OGN.flatten(1)[:, : weight_OI.shape[1]].to(torch.uint8)


def fake_input(hidden: Tensor) -> Tensor:
    """Return an input as the integer product will see it, with a range taken from itself.

    The range follows its values, so nothing is cut off and the gradient is that of the input.
    """
    integers, scale, zero = quantize_dynamic(hidden.detach().float())
    return through(hidden.float(), (integers.float() - zero.float()) * scale)
