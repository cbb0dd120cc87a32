"""Codes that are stored Huffman-coded: near the entropy, the same bits when read, refused where the file is broken."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from niwaki import entropy
from niwaki.bits import pack_bits
from niwaki.errors import NiwakiError


@given(st.integers(1, 8), st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.integers(1, 256))
def test_any_codes_come_back(bits: int, rows: int, columns: int, seed: int, different: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, min(different, 2**bits), (rows, columns), generator=generator, dtype=torch.uint8)
    tensors = {"x": pack_bits(codes, bits), "other": torch.ones(3)}
    stored, metadata = entropy.pack(tensors, {"x": (columns, bits), "a second name of x": (columns, bits)})
    again = entropy.unpack(stored, metadata)
    assert list(again) == ["x", "other"] and torch.equal(again["x"], tensors["x"])
    assert sum(len(tensor) for tensor in stored.values()) <= sum(len(t.flatten()) for t in tensors.values())


def test_the_stream_is_as_documented() -> None:
    """3 bits: two codes in a byte, the first in the lowest bits."""
    codes = torch.tensor([1, 2, 7] + [0] * 2997, dtype=torch.uint8)[None]
    stored, metadata = entropy.pack({"x": pack_bits(codes, 3)}, {"x": (3000, 3)})
    assert json.loads(metadata["niwaki.entropy"]) == {"x": [1, 3000, 3]}
    data = zlib.decompress(bytes(stored["x"].tolist()))
    assert len(data) == 1500 and list(data[:3]) == [0b010001, 0b000111, 0]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_it_takes_little_more_than_the_entropy(bits: int) -> None:
    """Codes of a normal distribution in equal steps."""
    normal = torch.randn(400, 500, generator=torch.Generator().manual_seed(0))
    codes = ((normal / 8 + 0.5) * 2**bits).clamp(0, 2**bits - 1).to(torch.uint8)
    shares = torch.bincount(codes.flatten().int()).double() / codes.numel()
    least = float(-(shares[shares > 0] * shares[shares > 0].log2()).sum())
    stored, _ = entropy.pack({"x": pack_bits(codes, bits)}, {"x": (500, bits)})
    assert least <= len(stored["x"]) * 8 / codes.numel() < least + 0.1 < bits


def test_what_does_not_pay_is_left_alone() -> None:
    even = torch.randint(0, 256, (64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stored, metadata = entropy.pack({"x": even}, {"x": (64, 8)})
    assert not metadata and stored["x"] is even


def whole() -> tuple[dict[str, Tensor], dict[str, str]]:
    return entropy.pack({"x": torch.zeros(64, 64, dtype=torch.uint8)}, {"x": (64, 8)})


BREAKS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], object]] = {
    "cut": lambda stored, metadata: stored.update(x=stored["x"][:-5]),
    "flipped": lambda stored, metadata: stored["x"][-1:].bitwise_xor_(1),
    "longer": lambda stored, metadata: stored.update(x=torch.cat([stored["x"], stored["x"]])),
    "gone": lambda stored, metadata: stored.pop("x"),
    "too few rows": lambda stored, metadata: metadata.update({"niwaki.entropy": '{"x": [63, 64, 8]}'}),
    "too many rows": lambda stored, metadata: metadata.update({"niwaki.entropy": '{"x": [1099511627776, 64, 8]}'}),
    "negative": lambda stored, metadata: metadata.update({"niwaki.entropy": '{"x": [-64, 64, 8]}'}),
    "bits": lambda stored, metadata: metadata.update({"niwaki.entropy": '{"x": [64, 64, 9]}'}),
    "no shape": lambda stored, metadata: metadata.update({"niwaki.entropy": '{"x": 3}'}),
    "no JSON": lambda stored, metadata: metadata.update({"niwaki.entropy": "{"}),
}


@pytest.mark.parametrize("how", BREAKS)
def test_a_broken_file_is_refused(how: str) -> None:
    stored, metadata = whole()
    assert torch.equal(entropy.unpack(stored, metadata)["x"], torch.zeros(64, 64, dtype=torch.uint8))
    BREAKS[how](stored, metadata)
    with pytest.raises(NiwakiError, match=r"a file: .*(x|niwaki\.entropy)"):
        entropy.unpack(stored, metadata, "a file")
