"""Safetensors in pieces: read single tensors of a folder of shards, and write a file tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from niwaki.errors import NiwakiError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
#: The types that models and what becomes of them have, as a safetensors header names them, in the order of a file.
TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
#: What a header ends on, so that the numbers behind it stand where processors like to read them.
ALIGNMENT = 8


class Shards:
    """Read the weights of a Transformers folder, or of a model on the hub, a few tensors at a time.

    Nothing stays open or in memory between two reads.

    Args:
        source: a folder with `model.safetensors`, or with `model.safetensors.index.json` and its shards; or a hub id.

    Raises:
        NiwakiError: there are no such weights, or a shard is missing.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = str(source)

    @cached_property
    def files(self) -> dict[str, Path]:
        """Return the file that holds each tensor, by the tensor's name."""
        index = self._find(INDEX)
        if index is None:
            single = self._found(SINGLE)
            with _opened(single) as opened:
                return dict.fromkeys(opened.keys(), single)
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        found = {file: self._found(file) for file in sorted(set(places.values()))}
        return {name: found[file] for name, file in places.items()}

    @cached_property
    def count(self) -> int:
        """Return how many numbers there are; the headers alone are read."""
        total = 0
        for file in sorted(set(self.files.values())):
            with _opened(file) as opened:
                shapes = (opened.get_slice(name).get_shape() for name in opened.keys())  # noqa: SIM118
                total += sum(int(torch.Size(shape).numel()) for shape in shapes)
        return total

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Return tensors by name, in 32 bits, and finite; each shard is opened once, and closed.

        Raises:
            NiwakiError: a tensor is not there, or holds what is no number.
        """
        wanted = list(names)
        if missing := sorted(set(wanted) - set(self.files)):
            raise NiwakiError(
                f"{self.source} has no {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}",
                expected="every weight that its config.json speaks of",
            )
        tensors: dict[str, Tensor] = {}
        for file in sorted({self.files[name] for name in wanted}):
            with _opened(file) as opened:
                for name in (name for name in wanted if self.files[name] == file):
                    tensors[name] = _checked(name, _read(opened, name, file).to(torch.float32, copy=True), file)
        return tensors

    def _found(self, name: str) -> Path:
        path = self._find(name)
        if path is None:
            raise NiwakiError(
                f"{self.source} has no {name}",
                expected=f"weights as {SINGLE}, or {INDEX} and every shard that it names",
                fix="copy or download the missing file",
            )
        return path

    def _find(self, name: str) -> Path | None:
        """Return where a file is, in the folder or in the hub's cache, or None."""
        if Path(self.source).is_dir():
            path = Path(self.source) / name
            return path if path.is_file() else None
        from transformers.utils.hub import cached_file

        try:
            found = cached_file(self.source, name, _raise_exceptions_for_missing_entries=False)
        except OSError as error:
            raise NiwakiError(
                f"no weights could be read from {self.source!r}: {str(error).splitlines()[0]}",
                expected="a folder with config.json and safetensors, or a hub id",
            ) from error
        return None if found is None else Path(found)


def _opened(file: Path) -> Any:
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise NiwakiError(f"{file} cannot be read: {error}", expected="a whole safetensors file") from error


def _read(opened: Any, name: str, file: Path) -> Tensor:
    from safetensors import SafetensorError

    try:
        tensor: Tensor = opened.get_tensor(name)
    except SafetensorError as error:
        raise NiwakiError(f"{file} has no {name}", expected="the tensors that the index says it has") from error
    return tensor


def _checked(name: str, tensor: Tensor, file: Path) -> Tensor:
    if not bool(torch.isfinite(tensor).all()):
        module = name.rpartition(".")[0]
        raise NiwakiError(f"{module} has weights that are not finite", expected="numbers", place=str(file))
    return tensor


class TensorFile:
    """Write a safetensors file tensor by tensor, in any order; what was written is not kept in memory.

    The header tells shapes and places, so these must be known before. A file that is not closed, or lacks a tensor,
    never gets its name.

    Args:
        path: of the file.
        layout: by name, tensors of the type and shape that will be written; meta tensors will do.
        metadata: of the file.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import load_file
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> with TensorFile(path, {"a": torch.empty(2, device="meta"), "b": torch.empty(1, device="meta")}) as file:
        ...     file.write("b", torch.ones(1))
        ...     file.write("a", torch.zeros(2))
        >>> load_file(path)["a"].tolist()
        [0.0, 0.0]
    """

    def __init__(self, path: Path, layout: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
        self.path, self.layout = path, dict(layout)
        self.left = set(layout)
        header, self._places = _header(self.layout, metadata or {})
        self._aside = path.with_name(f".{path.name}.writing")
        self._stream = self._aside.open("wb")
        self._stream.write(header)
        self._start = len(header)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write one tensor to its place."""
        expected = self.layout[name]
        if (tensor.dtype, tensor.shape) != (expected.dtype, expected.shape):
            raise NiwakiError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)}",
                expected=f"{expected.dtype} {tuple(expected.shape)}, as the header says",
            )
        self._stream.seek(self._start + self._places[name])
        self._stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.left.discard(name)

    def close(self) -> None:
        """Give the file its name; every tensor must be there."""
        self._stream.close()
        if self.left:
            self._aside.unlink()
            raise NiwakiError(f"{self.path} lacks {', '.join(sorted(self.left)[:3])}", expected="every tensor written")
        self._aside.replace(self.path)

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is None:
            self.close()
        else:
            self._stream.close()
            self._aside.unlink(missing_ok=True)


def _header(layout: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """Return the bytes before the numbers, and where behind them each tensor begins: wide types first, by name."""
    ranks = {dtype: rank for rank, dtype in enumerate(TYPES)}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    places, end = {}, 0
    for name, tensor in sorted(layout.items(), key=lambda item: (ranks[item[1].dtype], item[0])):
        places[name], end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [places[name], end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, places
