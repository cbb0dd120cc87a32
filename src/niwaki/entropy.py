"""Store packed codes Huffman-coded; read them back bit-equal.

A tensor `X` of R rows of C codes of b bits (`niwaki.bits`) stands in a safetensors file as

- `X`: a zlib stream as uint8, one dimension. It holds the codes in row-major order, 8 // b of them in a byte, the
  first in the lowest bits; what is left of the last byte is 0;

and the file's metadata has under `niwaki.entropy` a JSON object from each such name to [R, C, b]. The stream is made
by Huffman coding alone (RFC 1951, without repeated strings: codes of trained weights repeat by chance only), so any
zlib reads it. Whole codes in a byte are coded together, so that frequent ones take less than a bit each. A
tensor is coded where that saves bytes.
"""

# R rows, C codes in a row, L codes in a byte

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from niwaki.bits import pack_bits, unpack_bits
from niwaki.errors import NiwakiError

SHAPES = "niwaki.entropy"
#: What a coded tensor adds to the header of the file, in bytes.
OVERHEAD = 64


def pack(
    tensors: Mapping[str, Tensor], codes: Mapping[str, tuple[int, int]]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what a file is to hold, and its metadata; empty metadata where nothing was worth coding.

    Args:
        tensors: by name, on the CPU.
        codes: codes in a row, and their bits, of the tensors that hold codes; others stay as they are.

    >>> stored, metadata = pack({"x": torch.zeros(64, 64, dtype=torch.uint8)}, {"x": (128, 4)})
    >>> len(stored["x"]) < 600, metadata
    (True, {'niwaki.entropy': '{"x": [64, 128, 4]}'})
    """
    stored, shapes = dict(tensors), {}
    for name, (columns, bits) in codes.items():
        if name not in tensors:  # of two that share one tensor, the file has one name
            continue
        stream = _coded(tensors[name], columns, bits)
        if len(stream) + OVERHEAD < tensors[name].numel():
            stored[name] = torch.frombuffer(bytearray(stream), dtype=torch.uint8)
            shapes[name] = [len(tensors[name]), columns, bits]
    return stored, {SHAPES: json.dumps(shapes)} if shapes else {}


def unpack(stored: Mapping[str, Tensor], metadata: Mapping[str, str] | None, place: str = "") -> dict[str, Tensor]:
    """Return the tensors that were coded into these.

    Args:
        stored: the tensors of a file.
        metadata: of that file; without the key `niwaki.entropy`, nothing was coded.
        place: the file, for messages.

    Raises:
        NiwakiError: a stream is broken, or does not hold so many codes.
    """
    tensors = dict(stored)
    for name, (rows, columns, bits) in _shapes((metadata or {}).get(SHAPES, "{}"), place).items():
        if name not in stored:
            raise _corrupt(f"{name} is not there", place)
        tensors[name] = _decoded(name, stored[name], rows, columns, bits, place)
    return tensors


def _coded(packed: Tensor, columns: int, bits: int) -> bytes:
    """Return the stream of packed codes."""
    lanes = 8 // bits
    codes = unpack_bits(packed, bits, columns).flatten()
    codes_L = torch.nn.functional.pad(codes, (0, -len(codes) % lanes)).unflatten(0, (-1, lanes))
    together = codes_L[:, 0].clone()
    for lane in range(1, lanes):
        together |= codes_L[:, lane] << (lane * bits)
    coder = zlib.compressobj(level=9, memLevel=9, strategy=zlib.Z_HUFFMAN_ONLY)
    return coder.compress(together.numpy().data) + coder.flush()


def _decoded(name: str, stream: Tensor, rows: int, columns: int, bits: int, place: str) -> Tensor:
    """Return the packed codes of a stream."""
    lanes, count = 8 // bits, rows * columns
    size = -(-count // lanes)
    decoder = zlib.decompressobj()
    try:
        data = decoder.decompress(stream.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise _corrupt(f"{name} cannot be decoded ({error})", place) from error
    if len(data) != size or not decoder.eof or decoder.unused_data:
        raise _corrupt(f"{name} holds {'at least ' * (not decoder.eof)}{len(data)} bytes, {size} are needed", place)
    together = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
    codes_L = torch.stack([together >> (lane * bits) for lane in range(lanes)], dim=-1).bitwise_and_(2**bits - 1)
    return pack_bits(codes_L.flatten()[:count].view(rows, columns), bits)


def _shapes(text: str, place: str) -> dict[str, list[int]]:
    """Read rows, columns and bits of the coded tensors."""
    try:
        shapes = json.loads(text)
    except ValueError:
        shapes = None
    good = isinstance(shapes, dict) and all(
        isinstance(shape, list)
        and len(shape) == 3
        and all(type(size) is int and size >= 0 for size in shape)
        and 1 <= shape[2] <= 8
        for shape in shapes.values()
    )
    if not good:
        raise _corrupt(f"the metadata {SHAPES} is {text[:80]!r}", place)
    result: dict[str, list[int]] = shapes
    return result


def _corrupt(what: str, place: str) -> NiwakiError:
    return NiwakiError(what, expected="a zlib stream of that many codes", fix="write the file again", place=place)
