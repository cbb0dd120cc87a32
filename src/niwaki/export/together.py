"""Several linears that read one input: round it once, and multiply once."""

# I inputs, O outputs; `...` any leading dimensions

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.layers.factored import FactoredLinear
from niwaki.layers.linear import QuantizedLinear


class Together(nn.Module):
    """Apply linears that share an input: round it once where all round it alike, and multiply once where possible.

    Of a pair of factors it is the first that shares its input; the second follows by itself.

    Args:
        linears: the linears.
        merges: multiply once where possible; else each by itself.
    """

    def __init__(self, linears: Sequence[nn.Module], merges: bool = True) -> None:
        super().__init__()
        self.seconds = nn.ModuleList(one.outer if isinstance(one, FactoredLinear) else nn.Identity() for one in linears)
        linears = [_first(linear) for linear in linears]
        self.alike = alike(linears)
        merged = _merge(linears) if self.alike and merges else None
        self.sizes = [len(cast(Tensor, linear.weight)) for linear in linears] if merged is not None else []
        self.linears = nn.ModuleList([merged] if merged is not None else linears)

    def share(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the input as `multiply` takes it: bytes with scale and zero point, or as it is."""
        first = self.linears[0]
        rounds = self.alike and isinstance(first, QuantizedLinear) and first.activations != "none"
        return first.quantize(hidden) if rounds else (hidden,)  # type: ignore[operator]

    def multiply(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return one output a linear, of what `share` returned."""
        linears: list[Any] = list(self.linears)
        outputs = [linear(*inputs) if len(inputs) == 1 else linear.multiply(*inputs) for linear in linears]
        firsts = outputs[0].split(self.sizes, dim=-1) if self.sizes else outputs
        return tuple(second(first) for second, first in zip(self.seconds, firsts, strict=True))

    def forward(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return one output a linear."""
        return self.multiply(*self.share(hidden))


def alike(linears: Sequence[Any]) -> bool:
    """Say whether linears do the same to their input: nothing, or round it to the same bytes."""
    linears = [_first(linear) for linear in linears]
    if all(type(linear) is nn.Linear for linear in linears):
        return True
    if not all(isinstance(linear, QuantizedLinear) for linear in linears):
        return False
    if not all(_same(linear.input_scale, linears[0].input_scale) for linear in linears):
        return False
    if any(linear.activations == "static" for linear in linears):
        return len({(linear.activations, *_static_range(linear)) for linear in linears}) == 1
    return len({linear.activations for linear in linears}) == 1


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Say whether both are the same numbers, or none."""
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _first(linear: Any) -> Any:
    """Return what of a linear reads the input: of a pair of factors, the first."""
    return linear.inner if isinstance(linear, FactoredLinear) else linear


def _static_range(linear: QuantizedLinear) -> tuple[float | None, int | None]:
    """Return scale and zero point of a static linear, and nothing of any other."""
    if linear.activation_scale is None or linear.activation_zero_point is None:
        return None, None
    return float(linear.activation_scale), int(linear.activation_zero_point)


def _merge(linears: Sequence[Any]) -> nn.Module | None:
    """Return one linear whose outputs are those of `linears` in a row: the same numbers, so the same results."""
    if len(linears) == 1 or len({linear.bias is None for linear in linears}) > 1:
        return None
    weight = torch.cat([linear.weight.detach() for linear in linears])
    bias = None if linears[0].bias is None else torch.cat([linear.bias.detach() for linear in linears])
    if isinstance(linears[0], QuantizedLinear):
        scale, zero_point = _static_range(linears[0])
        return QuantizedLinear(
            weight,
            torch.cat([linear.scale for linear in linears]),
            bias,
            activations=linears[0].activations,
            activation_scale=scale,
            activation_zero_point=zero_point,
            input_scale=linears[0].input_scale,
        )
    merged = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], bias=bias is not None)
    merged.weight = nn.Parameter(weight, requires_grad=False)
    merged.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return cast(nn.Module, merged)
