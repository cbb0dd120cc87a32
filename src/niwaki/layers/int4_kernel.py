"""PyTorch's own product with weights of 4 bits on a CPU: where it can be used, and what it wants.

In bfloat16 it reads four times fewer bytes than a product of floats. In float32 it is slower than unpacking.
"""

# P rows, I inputs, O outputs, G groups of a row; `...` any leading dimensions

from __future__ import annotations

import torch
from torch import Tensor

#: Inputs of a group that the kernel knows; outputs come in blocks; with more rows unpacking once is faster.
GROUPS, BLOCK, ROWS = (32, 64, 128, 256), 16, 32
MIDDLE = 8


def suits(hidden: Tensor, outputs: int, bits: int, columns: int) -> bool:
    """Say whether the kernel multiplies these inputs (..., I) by such weights, and is the fastest way to do so."""
    return (
        hidden.dtype == torch.bfloat16
        and hidden.device.type == "cpu"
        and not hidden.requires_grad
        and bits == 4
        and columns in GROUPS
        and outputs % BLOCK == 0
        and 0 < hidden.numel() <= ROWS * hidden.shape[-1]
        and not torch.compiler.is_compiling()
    )


def prepared(integers_OI: Tensor, scale_OG: Tensor, zero_OG: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the integers in the kernel's own order, and (G, O, 2): the step, and what an integer of 8 stands for."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(integers_OI.to(torch.int32), 1)
    scale = scale_OG.float()
    middle = torch.zeros_like(scale) if zero_OG is None else (MIDDLE - zero_OG.float()) * scale
    return packed, torch.stack([scale, middle], dim=-1).transpose(0, 1).contiguous().bfloat16()


def linear(hidden: Tensor, packed: Tensor, scale_GO2: Tensor) -> Tensor:
    """Multiply (..., I) by the prepared weights: (..., O)."""
    columns = hidden.shape[-1] // scale_GO2.shape[0]
    rows_PI = hidden.reshape(-1, hidden.shape[-1])
    product_PO: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows_PI, packed, columns, scale_GO2)
    return product_PO.reshape(*hidden.shape[:-1], -1)
