"""Grids that weights are rounded to: steps and zero points, by matrix, row or group of a row."""

# O outputs (rows), I inputs, G groups of a row, N inputs of a group

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Zero = Literal["middle", "integer", "float"]
#: The largest weight w with 2 * 255 * w within 16 bits.
REDUCED_REACH = (2**15 - 1) // (2 * 255)


@dataclass(frozen=True)
class Grid:
    """Say which integers a weight may become, and which weights share a step.

    Attributes:
        bits: of an integer, 2 to 8.
        group: inputs of a row that share a step, "channel" for all of them, "tensor" for the whole matrix.
        zero: the integer that stands for 0: "middle" (symmetric), one found for each group ("integer"), or a number
            between integers ("float").
        reduced: of 8 bits around the middle use only those integers whose products with bytes can be added in pairs in
            16 bits, as processors without VNNI do it: 2 * 255 * 64 = 32,640 fits, 2 * 255 * 65 would not.
    """

    bits: int = 8
    group: int | Literal["channel", "tensor"] = "channel"
    zero: Zero = "middle"
    reduced: bool = False

    @property
    def highest(self) -> int:
        """Return the highest integer."""
        return self.middle + self.reach if self.reduced else int(2**self.bits - 1)

    @property
    def middle(self) -> int:
        """Return the integer that stands for 0 in a symmetric grid."""
        return int(2 ** (self.bits - 1))

    @property
    def lowest(self) -> int:
        """Return the lowest integer: symmetric grids have as many steps below 0 as above."""
        return self.middle - self.reach if self.zero == "middle" else 0

    @property
    def reach(self) -> int:
        """Return how many steps a symmetric grid has on either side of 0.

        >>> Grid(bits=8).reach, Grid(bits=8, reduced=True).reach, Grid(bits=4).reach
        (127, 64, 7)
        """
        return REDUCED_REACH if self.reduced else self.middle - 1

    def columns(self, width: int) -> int:
        """Return how many inputs share a step, in a row of this width."""
        return self.group if isinstance(self.group, int) else width

    def groups(self, width: int) -> int:
        """Return how many groups a row of this width has."""
        return -(-width // self.columns(width))

    @property
    def zero_type(self) -> torch.dtype | None:
        """Return the type of stored zero points; none where they are all the middle."""
        return {"middle": None, "integer": torch.uint8, "float": torch.float32}[self.zero]


@dataclass(frozen=True)
class Rounded:
    """Hold a rounded matrix: w = (q - zero) * scale.

    Attributes:
        integers: uint8 (O, I).
        scale: float32 (O, G), above 0.
        zero: uint8 or float32 (O, G), or none where it is the grid's middle.
        input_scale: float32 (I,), what inputs are multiplied by before the product, or none.
    """

    integers: Tensor
    scale: Tensor
    zero: Tensor | None = None
    input_scale: Tensor | None = None

    def floats(self, grid: Grid) -> Tensor:
        """Return the weights that the integers stand for, as the product sees them, (O, I)."""
        return to_floats(self.integers, self.scale, self.zero, grid)


def in_groups(weight_OI: Tensor, grid: Grid) -> Tensor:
    """Return (O, G, N), the last group filled up with zeros."""
    columns = grid.columns(weight_OI.shape[1])
    filled_OI = functional.pad(weight_OI, (0, -weight_OI.shape[1] % columns))
    return filled_OI.reshape(len(weight_OI), -1, columns)


def spread(values_OG: Tensor, width: int, grid: Grid) -> Tensor:
    """Return each group's value at each of its inputs, (O, I)."""
    if values_OG.shape[1] == 1:
        return values_OG.expand(-1, width)
    # one copy of a view: `repeat_interleave` takes thirty times as long
    return values_OG[:, :, None].expand(-1, -1, grid.columns(width)).flatten(1)[:, :width]


def fit(weight_OI: Tensor, grid: Grid, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor | None]:
    """Return the steps (O, G) and zero points (O, G) with which the range of each group, times `shrink`, is covered.

    Source: Jacob et al. 2018, Quantization and Training of Neural Networks, equation 1.

    >>> fit(torch.tensor([[-7.0, 3.5]]), Grid(bits=4))
    (tensor([[1.]]), None)
    >>> fit(torch.tensor([[-5.0, 10.0]]), Grid(bits=4, zero="integer"))
    (tensor([[1.]]), tensor([[5]], dtype=torch.uint8))
    """
    grouped_OGN = in_groups(weight_OI.detach().float(), grid)
    low_OG, high_OG = grouped_OGN.amin(dim=2).clamp(max=0.0), grouped_OGN.amax(dim=2).clamp(min=0.0)
    if grid.group == "tensor":
        low_OG, high_OG = low_OG.min().expand_as(low_OG), high_OG.max().expand_as(high_OG)
    low_OG, high_OG = low_OG * shrink, high_OG * shrink
    if grid.zero == "middle":
        scale_OG = torch.maximum(-low_OG, high_OG) / grid.reach
        return torch.where(scale_OG > 0, scale_OG, torch.ones_like(scale_OG)), None
    scale_OG = (high_OG - low_OG) / grid.highest
    scale_OG = torch.where(scale_OG > 0, scale_OG, torch.ones_like(scale_OG))
    zero_OG = -low_OG / scale_OG
    if grid.zero == "integer":
        zero_OG = zero_OG.round().clamp(0, grid.highest).to(torch.uint8)
    return scale_OG, zero_OG


def to_integers(weight_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None, grid: Grid) -> Tensor:
    """Return the nearest integers, uint8 (O, I)."""
    width = weight_OI.shape[1]
    zero_OI = grid.middle if zero_OG is None else spread(zero_OG.float(), width, grid)
    rounded_OI = (weight_OI.detach().float() / spread(scale_OG, width, grid) + zero_OI).round()
    return rounded_OI.clamp(grid.lowest, grid.highest).to(torch.uint8)


def to_floats(integers_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None, grid: Grid) -> Tensor:
    """Return (q - zero) * scale, float32 (O, I)."""
    grouped_OGN = in_groups(integers_OI, grid).float()
    zero_OG1 = grid.middle if zero_OG is None else zero_OG.float()[:, :, None]
    return ((grouped_OGN - zero_OG1) * scale_OG[:, :, None]).flatten(1)[:, : integers_OI.shape[1]]


def nearest(weight_OI: Tensor, grid: Grid) -> Rounded:
    """Round each weight to the nearest step of a grid that holds the whole range.

    >>> nearest(torch.tensor([[-7.0, 3.4]]), Grid(bits=4)).integers.tolist()
    [[1, 11]]
    """
    scale_OG, zero_OG = fit(weight_OI, grid)
    return Rounded(to_integers(weight_OI, scale_OG, zero_OG, grid), scale_OG.contiguous(), zero_OG)
