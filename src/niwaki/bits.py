"""Unsigned integers of 1 to 8 bits, packed into bytes without gaps: the first value in the lowest bits."""

# N values, P bytes

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack integers of so many bits, uint8 (..., N), into uint8 (..., ceil(N * bits / 8)).

    >>> pack_bits(torch.tensor([1, 2, 15], dtype=torch.uint8), 4).tolist()
    [33, 15]
    """
    if bits == 8:
        return values.contiguous()
    shifts = torch.arange(bits, dtype=torch.uint8, device=values.device)
    stream = (values.unsqueeze(-1).bitwise_right_shift(shifts) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)).unflatten(-1, (-1, 8))
    places = torch.arange(8, dtype=torch.uint8, device=values.device)
    packed: Tensor = stream.bitwise_left_shift(places).sum(dim=-1, dtype=torch.uint8)
    return packed


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the first `count` integers that were packed, uint8 (..., N).

    >>> unpack_bits(torch.tensor([33, 15], dtype=torch.uint8), 4, 3).tolist()
    [1, 2, 15]
    """
    if bits == 8:
        return packed[..., :count]
    if 8 % bits == 0:  # no value lies across two bytes
        starts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        values: Tensor = packed.unsqueeze(-1).bitwise_right_shift(starts) & (2**bits - 1)
        return values.flatten(-2)[..., :count]
    first = torch.arange(count, device=packed.device) * bits
    words = torch.nn.functional.pad(packed, (0, 1)).to(torch.int32)
    pairs: Tensor = words[..., :-1] | words[..., 1:].bitwise_left_shift(8)
    values = pairs[..., first // 8].bitwise_right_shift(first % 8) & (2**bits - 1)
    return values.to(torch.uint8)


def packed_size(count: int, bits: int) -> int:
    """Return the bytes of so many packed values.

    >>> packed_size(3, 3)
    2
    """
    return (count * bits + 7) // 8
