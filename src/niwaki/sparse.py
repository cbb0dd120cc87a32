"""Store tensors with many zeros as a bitmap and the values that are not zero; read them back bit-equal.

A packed tensor `X` of N elements, K of them not zero, stands in a safetensors file as

- `X`: its K values in row-major order, in its own type, one dimension;
- `X.bitmap`: ceil(N / 8) bytes; bit i (byte i // 8, least significant bit first) says whether element i is there;

and the file's metadata has under `niwaki.sparse` a JSON object from each packed name to the tensor's shape. An element
counts as zero only where all its bits are: -0.0 is a value. A tensor is packed where that saves bytes, so a file may
hold packed and plain tensors side by side.
"""

# N elements of a tensor, K of them stored

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from niwaki.errors import NiwakiError

SHAPES = "niwaki.sparse"
#: What a packed tensor adds to the header of the file, in bytes: names, types and places of two tensors, and a shape.
OVERHEAD = 256
# To look at the bits alone, whatever they mean: NumPy knows neither bfloat16 nor 8-bit floats.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return what a file is to hold, and its metadata; empty metadata where nothing was worth packing.

    Args:
        tensors: contiguous, on the CPU.

    >>> stored, metadata = pack({"w": torch.eye(64)})
    >>> stored["w"].shape, stored["w.bitmap"].shape, metadata
    (torch.Size([64]), torch.Size([512]), {'niwaki.sparse': '{"w": [64, 64]}'})
    """
    stored: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        packed = _packed(tensor)
        if packed is None:
            stored[name] = tensor
        else:
            stored[name], stored[f"{name}.bitmap"] = packed
            shapes[name] = list(tensor.shape)
    return stored, {SHAPES: json.dumps(shapes)} if shapes else {}


def unpack(stored: Mapping[str, Tensor], metadata: Mapping[str, str] | None, place: str = "") -> dict[str, Tensor]:
    """Return the tensors that were packed into these.

    Args:
        stored: the tensors of a file.
        metadata: of that file; without the key `niwaki.sparse`, nothing was packed.
        place: the file, for messages.

    Raises:
        NiwakiError: bitmap, values and shape of a tensor do not fit each other.
    """
    shapes = _shapes((metadata or {}).get(SHAPES, "{}"), place)
    bitmaps = {f"{name}.bitmap" for name in shapes}
    dense = {name: _unpacked(name, stored, shape, place) for name, shape in shapes.items()}
    return {name: dense.get(name, tensor) for name, tensor in stored.items() if name not in bitmaps}


def _packed(tensor: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return values and bitmap, or None where they are not smaller than the tensor."""
    word = _WORDS.get(tensor.element_size())
    if word is None or tensor.numel() * tensor.element_size() <= OVERHEAD:
        return None
    bits_N = tensor.reshape(-1).view(word).numpy()
    there_N = bits_N != 0
    count = int(np.count_nonzero(there_N))
    bitmap_bytes = -(-tensor.numel() // 8)
    if count * tensor.element_size() + bitmap_bytes + OVERHEAD >= tensor.numel() * tensor.element_size():
        return None
    values_K = torch.from_numpy(bits_N[there_N]).view(tensor.dtype)
    return values_K, torch.from_numpy(np.packbits(there_N, bitorder="little"))


def _unpacked(name: str, stored: Mapping[str, Tensor], shape: list[int], place: str) -> Tensor:
    values_K, bitmap = stored.get(name), stored.get(f"{name}.bitmap")
    if values_K is None or bitmap is None:
        raise _corrupt(f"{name} has no {'values' if values_K is None else 'bitmap'}", place)
    count, word = math.prod(shape), _WORDS.get(values_K.element_size())
    if bitmap.dtype != torch.uint8 or list(bitmap.shape) != [-(-count // 8)]:
        raise _corrupt(f"{name}.bitmap is {bitmap.dtype} {tuple(bitmap.shape)}, for a tensor of shape {shape}", place)
    there = np.unpackbits(bitmap.numpy(), bitorder="little").view(np.bool_)
    there_N: npt.NDArray[np.bool_] = there[:count]
    if there[count:].any() or word is None or list(values_K.shape) != [int(np.count_nonzero(there_N))]:
        raise _corrupt(
            f"{name}.bitmap has {int(there.sum())} bits set, and {values_K.numel()} values are stored", place
        )
    dense_N = torch.zeros(count, dtype=word)
    dense_N.numpy()[there_N] = values_K.view(word).numpy()
    return dense_N.view(values_K.dtype).reshape(shape)


def _shapes(text: str, place: str) -> dict[str, list[int]]:
    """Read the shapes of the packed tensors."""
    try:
        shapes = json.loads(text)
    except ValueError:
        shapes = None
    good = isinstance(shapes, dict) and all(
        isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape) for shape in shapes.values()
    )
    if not good:
        raise _corrupt(f"the metadata {SHAPES} is {text[:80]!r}", place)
    result: dict[str, list[int]] = shapes
    return result


def _corrupt(what: str, place: str) -> NiwakiError:
    return NiwakiError(
        what, expected="a bitmap with one bit set for each stored value", fix="write the file again", place=place
    )
