"""Quantization-aware training: the forward pass computes with what will be packed, and the steps of the grids learn."""

# O outputs, I inputs, G groups of a row, V vocabulary, D hidden; `...` any dimensions

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from niwaki.grid import Grid, Rounded, nearest
from niwaki.layers.fake import (
    INPUTS,
    fake_input,
    fake_quantize,
    fake_weight,
    integers_of,
    learnt_scale,
    learnt_zero,
)
from niwaki.surgery import quantize_embedding
from niwaki.technique import Companion
from niwaki.techniques.quantize.calibration import Calibration, Wanted
from niwaki.techniques.quantize.packing import put
from niwaki.techniques.quantize.rounding import mean_square

Matrix = nn.Linear | nn.Embedding
Activations = Literal["dynamic", "static", "none"]
#: What stands beside a weight while it trains.
SCAFFOLDING = ("start_scale", "growth", "start_zero", "shift", "rows", "start_input", "growth_input", "shift_input")


@dataclass(frozen=True)
class Plan:
    """Say how one matrix is rounded while it trains.

    Attributes:
        grid: what its weights are rounded to.
        start: gives the steps and zero points to begin with.
        activations: how a linear's inputs are rounded.
        start_input: step and zero point of static activations to begin with.
    """

    grid: Grid
    start: Callable[[Tensor, Grid], Rounded] = nearest
    activations: Activations = "none"
    start_input: tuple[float, int] | None = None


class Steps(Companion):
    """Let the steps and zero points of a model's matrices learn beside its weights.

    All that is learnt stands beside the weight it is for and is saved with it: `growth` of the steps from
    `start_scale`, `shift` of the zero points from `start_zero`, and, of static activations, the same for the input.
    They are flat, so that no decay pulls at them, and need no rate of their own: see `learnt_scale`. Two modules that
    are one tensor share them. `rows` are the weight's own at the start: what is cut from the weight is cut from them,
    and so they find their steps.

    A linear's forward pass sees its weight rounded, after the masks of coarser companions; a table's rows are rounded
    as they are looked up, for a table is large and a batch is small.

    Args:
        model: to be trained.
        plans: by name, how each matrix is rounded.
    """

    def __init__(self, model: nn.Module, plans: Mapping[str, Plan]) -> None:
        super().__init__()
        # by module, not by name: coarser companions may move it
        self.plans: dict[nn.Module, Plan] = {}
        self.widths: dict[nn.Module, int] = {}
        self.handles: list[Any] = []
        first: dict[int, nn.Module] = {}
        for name, plan in plans.items():
            matrix = model.get_submodule(name)
            assert isinstance(matrix, Matrix)
            self.plans[matrix], self.widths[matrix] = plan, matrix.weight.shape[1]
            _learn_grid(matrix, plan, first.setdefault(id(matrix.weight), matrix))
            if plan.start_input is not None:
                _learn_input(matrix, plan.start_input)
            self.handles += _hooks(matrix, plan)

    def finish(self, model: nn.Module) -> nn.Module:
        """Pack the integers that the forward pass computed with."""
        for handle in self.handles:
            handle.remove()
        found = {name: module for name, module in model.named_modules() if module in self.plans}
        # where all units are pruned nothing is left to pack
        whole = {name: module for name, module in found.items() if module.get_parameter("weight").numel()}
        # all are rounded before any is packed: two may be one tensor
        rounded = {name: self._rounded(module) for name, module in whole.items()}
        limits = {name: _limits(module) for name, module in whole.items() if "start_input" in module._buffers}
        for module in found.values():
            _take_down(module)
        for name, module in whole.items():
            plan = self.plans[module]
            if isinstance(module, nn.Embedding):
                quantize_embedding(model, module=name, bits=plan.grid.bits, values=rounded[name])
            else:
                wanted = Wanted("nearest", plan.activations, grid=plan.grid)
                put(model, name, Calibration({name: wanted}, ranges=limits), rounded[name])
        return model

    @torch.no_grad()
    def _rounded(self, matrix: nn.Module) -> Rounded:
        """Return the integers of a matrix; of groups that lost some of their columns, newly found ones."""
        grid, weight_OI = self.plans[matrix].grid, matrix.get_parameter("weight")
        if isinstance(grid.group, int) and weight_OI.shape[1] < self.widths[matrix]:
            return mean_square(weight_OI, grid)
        scale_OG, zero_OG = _grid_of(matrix, grid)
        if grid.group != "tensor":
            rows_O = matrix.get_buffer("rows")[:, 0]
            scale_OG, zero_OG = scale_OG[rows_O], zero_OG[rows_O] if len(zero_OG) > 1 else zero_OG
        integers_OI = integers_of(weight_OI, scale_OG, zero_OG, grid)
        shape = (len(weight_OI), scale_OG.shape[1])
        zeros = None if grid.zero_type is None else zero_OG.expand(shape).to(grid.zero_type).contiguous()
        return Rounded(integers_OI, scale_OG.expand(shape).contiguous(), zeros)


def _learn_grid(matrix: Matrix, plan: Plan, first: nn.Module) -> None:
    """Put the steps of a weight beside it, or those of the first module that is the same tensor."""
    if first is matrix:
        rounded = plan.start(matrix.weight.detach(), plan.grid)
        count = 1 if plan.grid.group == "tensor" else len(rounded.scale)
        scale = rounded.scale[:count].flatten().float()
        matrix.register_buffer("start_scale", scale.clone())
        matrix.register_parameter("growth", nn.Parameter(torch.zeros_like(scale)))
        if rounded.zero is not None:
            matrix.register_buffer("start_zero", rounded.zero[:count].flatten().float())
            matrix.register_parameter("shift", nn.Parameter(torch.zeros_like(scale)))
        matrix.register_buffer("rows", torch.arange(len(matrix.weight), device=scale.device)[:, None])
        return
    for name in SCAFFOLDING:
        if name in first._buffers:
            matrix.register_buffer(name, first._buffers[name])
        if name in first._parameters:
            matrix.register_parameter(name, first._parameters[name])


def _learn_input(linear: Matrix, start: tuple[float, int]) -> None:
    """Put step and zero point of a linear's input beside its weight."""
    device = linear.weight.device
    linear.register_buffer("start_input", torch.tensor(start, dtype=torch.float32, device=device))
    for name in ("growth_input", "shift_input"):
        linear.register_parameter(name, nn.Parameter(torch.zeros((), device=device)))


def _grid_of(matrix: nn.Module, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the present steps (O, G), (1, 1) for a whole matrix, and the zero points alike, (1, 1) for the middle."""
    groups = grid.groups(cast(Tensor, matrix.weight).shape[1])
    scale_OG = learnt_scale(matrix.get_buffer("start_scale"), matrix.get_parameter("growth")).view(-1, groups)
    if grid.zero == "middle":
        return scale_OG, scale_OG.new_full((1, 1), grid.middle)
    zero = learnt_zero(matrix.get_buffer("start_zero"), matrix.get_parameter("shift"), grid)
    return scale_OG, zero.view(-1, groups)


def _input_of(linear: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the present step and zero point of a linear's static input."""
    start_scale, start_zero = linear.get_buffer("start_input")
    scale = learnt_scale(start_scale, linear.get_parameter("growth_input"))
    return scale, learnt_zero(start_zero, linear.get_parameter("shift_input"), INPUTS)


@torch.no_grad()
def _limits(linear: nn.Module) -> tuple[float, float]:
    """Return the range that step and zero point of a linear's static input cover."""
    scale, zero = _input_of(linear)
    return -float(zero) * float(scale), (255.0 - float(zero)) * float(scale)


def _hooks(matrix: Matrix, plan: Plan) -> list[Any]:
    """Let the forward pass of a matrix compute with what will be packed, until the handles are removed."""
    if isinstance(matrix, nn.Embedding):
        # before the hooks of coarser companions, which multiply the rows by their gates
        return [matrix.register_forward_hook(partial(_fake_rows, plan.grid), prepend=True)]
    return [
        matrix.register_forward_pre_hook(partial(_show, plan)),
        matrix.register_forward_hook(_hide, always_call=True),
    ]


def _show(plan: Plan, linear: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Put the rounded weight before the parameter, for one forward pass, and round the input."""
    # the parameter, or what another companion put before it; in full precision also under autocast
    weight_OI: Any = linear.weight
    linear.__dict__["weight"] = fake_weight(weight_OI, *_grid_of(linear, plan.grid), plan.grid)
    if plan.activations == "none":
        return inputs
    if plan.activations == "dynamic":
        return (fake_input(inputs[0]), *inputs[1:])
    faked = fake_quantize(inputs[0].float(), *_input_of(linear), INPUTS, count=inputs[0].shape[-1])
    return (faked, *inputs[1:])


def _hide(linear: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    """Take the rounded weight away; the parameter is seen again."""
    linear.__dict__.pop("weight", None)


def _fake_rows(grid: Grid, table: nn.Module, inputs: tuple[Tensor, ...], rows: Tensor) -> Tensor:
    """Return the rows (..., D) that were looked up as their integers will make them."""
    start, growth = (
        nn.functional.embedding(inputs[0], values[:, None])
        for values in (table.get_buffer("start_scale"), table.get_parameter("growth"))
    )
    middle = start.new_full((), grid.middle)
    return fake_quantize(rows.float(), learnt_scale(start, growth), middle, grid, count=rows.shape[-1])


def _take_down(matrix: nn.Module) -> None:
    """Leave the weight alone again."""
    for name in SCAFFOLDING:
        matrix._buffers.pop(name, None)
        matrix._parameters.pop(name, None)
