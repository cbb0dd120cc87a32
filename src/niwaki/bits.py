"""Pack small unsigned integers densely into bytes, and unpack them."""

# N values in a row, M bytes; `...` any leading dimensions

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.errors import NiwakiError

#: Values that are packed together: as many as bits in a byte, so that a block of them fills whole bytes, one a bit.
BLOCK = 8


def pack_bits(values: Tensor, bits: int) -> Tensor:
    """Pack unsigned integers of `bits` bits along the last dimension, low bits first.

    Value i takes the bits i * bits to (i + 1) * bits - 1 of its row; bit j of a row is bit j % 8 (least significant
    first) of byte j // 8. What is left of the last byte is 0. A meta tensor gives a meta tensor.

    Args:
        values: uint8, (..., N), each below 2 ** bits.
        bits: 1 to 8.

    Returns:
        uint8, (..., ceil(N * bits / 8)).

    Raises:
        NiwakiError: a value has more bits.

    >>> pack_bits(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist()
    [33, 3]
    """
    _check(bits)
    largest = int(values.max()) if values.numel() and not values.is_meta else 0
    if largest >> bits:
        raise NiwakiError(f"{largest} is to be packed into {bits} bits", expected=f"values up to {2**bits - 1}")
    count = values.shape[-1]
    lanes = torch.nn.functional.pad(values, (0, -count % BLOCK)).unflatten(-1, (-1, BLOCK))
    words = lanes[..., 0].to(torch.int64)
    for lane in range(1, BLOCK):
        words |= lanes[..., lane].to(torch.int64) << (lane * bits)
    packed: Tensor = words[..., None].view(torch.uint8)[..., :bits].flatten(-2)
    return packed[..., : packed_size(count, bits)].contiguous()


def unpack_bits(packed: Tensor, bits: int, count: int) -> Tensor:
    """Return the `count` values a row that `pack_bits` packed.

    Args:
        packed: uint8, (..., ceil(count * bits / 8)).
        bits: 1 to 8.
        count: values in a row, N.

    Returns:
        uint8, (..., N).

    Raises:
        NiwakiError: so many values do not take so many bytes.

    >>> unpack_bits(torch.tensor([33, 3], dtype=torch.uint8), bits=4, count=3).tolist()
    [1, 2, 3]
    """
    _check(bits)
    if packed.shape[-1] != packed_size(count, bits):
        raise NiwakiError(
            f"{packed.shape[-1]} bytes a row for {count} values of {bits} bits",
            expected=f"{packed_size(count, bits)} bytes",
        )
    if BLOCK % bits == 0:  # no value lies in two bytes, so bytes need not become words
        lanes = [(packed >> shift).bitwise_and_(2**bits - 1) for shift in range(0, BLOCK, bits)]
        return (torch.stack(lanes, dim=-1).flatten(-2) if bits < BLOCK else lanes[0])[..., :count].contiguous()
    blocks = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % bits)).unflatten(-1, (-1, bits))
    words = torch.nn.functional.pad(blocks, (0, BLOCK - bits)).view(torch.int64)[..., 0]
    lanes = [(words >> (lane * bits)).to(torch.uint8).bitwise_and_(2**bits - 1) for lane in range(BLOCK)]
    return torch.stack(lanes, dim=-1).flatten(-2)[..., :count].contiguous()


def packed_size(count: int, bits: int) -> int:
    """Return how many bytes so many values take.

    >>> packed_size(3, bits=3)
    2
    """
    return -(-count * bits // 8)


def _check(bits: int) -> None:
    if not 1 <= bits <= BLOCK:
        raise NiwakiError(f"bits is {bits}", expected="1 to 8")
