"""Find the integers of a model's linears and put them in their place, one layer after the other."""

# O outputs, I inputs

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from niwaki.anatomy import anatomy_of, uses_of
from niwaki.calibrate import Batches, input_products
from niwaki.grid import Grid, Rounded, nearest
from niwaki.parts import Parts
from niwaki.surgery import quantize_linear
from niwaki.techniques.quantize import rounding
from niwaki.techniques.quantize.calibration import Calibration
from niwaki.techniques.quantize.smoothing import divided, fold_awq
from niwaki.walk import Walk

DATA_FREE: dict[str, Callable[[Tensor, Grid], Rounded]] = {
    "mean-square": rounding.mean_square,
    "percentile": rounding.percentile,
    "hqq": rounding.hqq,
}
SOLVERS: dict[str, Callable[[Tensor, Tensor, Grid], Rounded]] = {"gptq": rounding.gptq, "awq": rounding.awq}
#: Calibration rows that go through a layer together: what it computes of them stands in memory beside it.
ROWS = 8


def pack_linears(
    model: nn.Module, names: Sequence[str], found: Calibration, rows: Callable[[], Batches], parts: Parts
) -> None:
    """Pack linears layer by layer, each on the inputs that those before put out, and then those outside the layers.

    Args:
        model: is changed.
        names: linears.
        found: what is wanted of them, and what calibration found.
        rows: gives calibration batches from the first one on.
        parts: where the weights are.
    """
    solved = {name for name in names if parts.has_weights and found.wanted[name].by in SOLVERS}
    layers = anatomy_of(model).layers
    inside = {layer.index: [name for name in names if name.startswith(f"{layer.path}.")] for layer in layers}
    last = max((index for index, own in inside.items() if solved & set(own)), default=-1)
    # a layer that runs several times is packed for what all its runs read
    walk = Walk(model, rows(), parts) if last >= 0 and uses_of(model) == 1 else None
    for layer in layers:
        own = inside[layer.index]
        with parts.held(model, layer.path):
            seen = [name for name in own if name in solved]
            look = partial(walk.products, layer) if walk else partial(input_products, model, batches=rows())
            pack(model, own, found, look(seen) if seen else {})
            if walk and layer.index < last:
                walk.go_through(layer)
    rest = [name for name in names if not any(name in own for own in inside.values())]
    seen = [name for name in rest if name in solved]
    with parts.held(model, *rest):
        pack(model, rest, found, input_products(model, seen, rows()) if seen else {})


def pack(
    model: nn.Module, names: Sequence[str], found: Calibration, products: Mapping[str, Tensor] | None = None
) -> None:
    """Pack some linears, given X^T X of the inputs of those that are solved for.

    A model without weights gets the same edits.
    """
    products = products or {}
    awq = {name: found.wanted[name].grid for name in names if found.wanted[name].by == "awq"}
    folded = fold_awq(model, awq, names, products)
    for name in names:
        one, factors_I = found.wanted[name], found.factors.get(name)
        weight_OI = cast(nn.Linear, model.get_submodule(name)).weight.detach()
        if weight_OI.is_meta:
            rounded = None
        elif (squares_I := folded.get(name)) is not None:  # the weights have taken the factors
            rounded = rounding.mean_square(weight_OI, one.grid, squares_I)
        else:
            rounded = rounded_by(one.by, weight_OI, products.get(name), one.grid, factors_I)
        scales_inputs = factors_I is not None or (one.by == "awq" and name not in folded)
        put(model, name, found, rounded, scales_inputs)


def put(model: nn.Module, name: str, found: Calibration, rounded: Rounded | None, scales_inputs: bool = False) -> None:
    """Put the integers of a linear in its place; the journal says what is not as usual."""
    wanted = found.wanted[name]
    grid = wanted.grid
    arguments: dict[str, Any] = {"module": name, "bits": grid.bits, "activations": wanted.activations}
    if grid.group != "channel":
        arguments["group"] = grid.group
    if grid.zero != "middle":
        arguments["zero"] = grid.zero
    if grid.reduced:
        arguments["reduced"] = True
    if wanted.activations == "static":
        arguments["scale"], arguments["zero_point"] = affine(*found.ranges[name])
    if rounded is not None:
        arguments["values"] = rounded
    if scales_inputs:
        arguments["scales_inputs"] = True
    quantize_linear(model, **arguments)


def rounded_by(
    by: str, weight_OI: Tensor, products_II: Tensor | None, grid: Grid, factors_I: Tensor | None = None
) -> Rounded | None:
    """Return the integers that a method finds for one matrix; none where they are the nearest.

    With factors, columns are multiplied by them first, and inputs divided in front of the product.
    """
    if factors_I is not None:
        factors_I = factors_I.to(weight_OI.device)
        products_II = None if products_II is None else divided(products_II, factors_I)
        rounded = rounded_by(by, weight_OI * factors_I, products_II, grid)
        return replace(rounded or nearest(weight_OI * factors_I, grid), input_scale=1.0 / factors_I)
    if products_II is not None:
        return SOLVERS[by](weight_OI, products_II.to(weight_OI.device), grid)
    return None if by == "nearest" else DATA_FREE[by](weight_OI, grid)


def affine(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point that map [low, high], widened to hold 0, onto 0..255.

    >>> affine(-100.0, 155.0)
    (1.0, 100)
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / 255.0, 1e-12)
    return scale, int(min(255, max(0, round(-low / scale))))
