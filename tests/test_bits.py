"""Small integers packed densely: every width, every length, the layout as documented."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.bits import pack_bits, packed_size, unpack_bits
from niwaki.errors import NiwakiError


@given(st.integers(1, 8), st.integers(0, 70), st.sampled_from([(), (3,), (2, 3)]), st.integers(0, 2**32))
def test_any_values_come_back(bits: int, count: int, leading: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 2**bits, (*leading, count), generator=generator, dtype=torch.uint8)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (*leading, packed_size(count, bits))
    assert torch.equal(unpack_bits(packed, bits, count), values)
    assert torch.equal(pack_bits(unpack_bits(packed, bits, count), bits), packed)
    shape = pack_bits(values.to("meta"), bits)
    assert shape.is_meta and shape.shape == packed.shape
    assert unpack_bits(shape, bits, count).shape == values.shape


@given(st.integers(1, 8), st.lists(st.integers(0, 255), max_size=20))
def test_bits_stand_where_they_are_said_to(bits: int, numbers: list[int]) -> None:
    """Bit k of value i is bit i * bits + k of the row, counted from the lowest bit of the first byte."""
    values = [number % 2**bits for number in numbers]
    whole = sum(value << (index * bits) for index, value in enumerate(values))
    expected = list(whole.to_bytes(packed_size(len(values), bits), "little"))
    assert pack_bits(torch.tensor(values, dtype=torch.uint8), bits).tolist() == expected


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(NiwakiError, match="8 is to be packed into 3 bits"):
        pack_bits(torch.tensor([1, 8], dtype=torch.uint8), 3)
    for bits in (0, 9):
        with pytest.raises(NiwakiError, match="1 to 8"):
            pack_bits(torch.zeros(4, dtype=torch.uint8), bits)
    with pytest.raises(NiwakiError, match="2 bytes a row for 6 values of 3 bits"):
        unpack_bits(torch.zeros(5, 2, dtype=torch.uint8), bits=3, count=6)
