"""A teacher's outputs on the training rows, computed once and kept on disk, memory-mapped.

Files are keyed by the hashes of teacher and rows, so that runs share them and a changed teacher never meets old
outputs. States are kept in half precision, one row a token that is not padding.
"""

# B batch, T tokens, D hidden, C classes, P tokens that are not padding

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.bar import progress_bar
from niwaki.batching import length_sorted
from niwaki.calibrate import inputs_of, watched
from niwaki.checkpoint import weights_hash
from niwaki.task import Encoded

LOGITS = "logits"
ROLES = ("query", "key", "value")
#: Most bytes of teacher outputs that are kept; the ones unused for longest go first.
CACHE_BYTES = 20 * 10**9


def cache_folder() -> Path:
    """Return the folder shared by runs: NIWAKI_CACHE, or `niwaki` in the user's cache folder."""
    named = os.environ.get("NIWAKI_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "niwaki"


def hidden_name(layer: int) -> str:
    """Name the output of layer `layer` (1 for the first; 0 for the embeddings)."""
    return f"hidden-{layer}"


def relation_name(role: str, layer: int) -> str:
    """Name the query, key or value states of layer `layer` (1 for the first)."""
    return f"{role}-{layer}"


class TeacherOutputs:
    """Give a teacher's outputs for chosen rows: logits (B, C), and states (P, D) in the order of the batch's tokens."""

    def __init__(self, folder: Path, rows: Encoded, names: Sequence[str]) -> None:
        self.rows = rows
        self.arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in names}

    def logits(self, indices: Tensor) -> Tensor:
        """Return the logits (B, C) of these rows."""
        return torch.from_numpy(np.asarray(self.arrays[LOGITS][indices.numpy()]))

    def states(self, name: str, indices: Tensor) -> Tensor:
        """Return the states (P, D) of the tokens of these rows, row after row, as float32."""
        array, offsets = self.arrays[name], self.rows.offsets
        parts = [array[offsets[index] : offsets[index + 1]] for index in indices.tolist()]
        return torch.from_numpy(np.concatenate(parts)).float()

    def width(self, name: str) -> int:
        """Return the width of these states."""
        return int(self.arrays[name].shape[1])


def teacher_outputs(
    teacher: nn.Module, rows: Encoded, names: Sequence[str], cache: Path, batch_size: int = 128, progress: bool = False
) -> TeacherOutputs:
    """Compute what of `names` is not in the cache yet, in one pass over the rows, and open all of it."""
    if not names:
        return TeacherOutputs(cache, rows, names)
    folder = cache / "teacher" / f"{weights_hash(teacher)[:20]}-{rows.fingerprint[:20]}"
    missing = [name for name in names if not (folder / f"{name}.npy").is_file()]
    if missing:
        folder.mkdir(parents=True, exist_ok=True)
        _make_room(folder, cache / "teacher")
        _compute(teacher, rows, missing, folder, batch_size, progress)
    os.utime(folder)
    return TeacherOutputs(folder, rows, names)


def _compute(
    teacher: nn.Module, rows: Encoded, names: Sequence[str], folder: Path, batch_size: int, progress: bool
) -> None:
    """Run the teacher over all rows, in batches of like length, and write each array aside."""
    device = next(teacher.parameters()).device
    batches = length_sorted(rows.lengths, batch_size)
    arrays: dict[str, Any] = {}
    seen: dict[str, Tensor] = {}
    teacher.eval()
    with (
        torch.inference_mode(),
        watched(_watched_modules(teacher, names), lambda name, _, output: seen.update({name: _first(output)})),
        progress_bar("teacher", progress) as advance,
    ):
        for indices in batches:
            batch = rows.batch(indices)
            logits = teacher(**inputs_of({name: value.to(device) for name, value in batch.items()})).logits
            seen[LOGITS] = logits
            for name in names:
                _store(arrays, name, seen[name], batch["attention_mask"].bool(), indices, rows, folder)
            advance(len(indices) / len(rows))
    for name, array in arrays.items():
        array.flush()
        _aside(folder, name).replace(folder / f"{name}.npy")


def _store(
    arrays: dict[str, Any], name: str, value: Tensor, mask_BT: Tensor, indices: np.ndarray, rows: Encoded, folder: Path
) -> None:
    """Put one batch's output where its rows stand in the array, which is made at first sight."""
    flat = name != LOGITS
    if name not in arrays:
        shape = (int(rows.offsets[-1]), value.shape[-1]) if flat else (len(rows), value.shape[-1])
        arrays[name] = np.lib.format.open_memmap(
            _aside(folder, name), mode="w+", dtype=np.float16 if flat else np.float32, shape=shape
        )
    if not flat:
        arrays[name][indices] = value.float().cpu().numpy()
        return
    states_PD = value.cpu()[mask_BT].to(torch.float16).numpy()
    place = 0
    for index in indices:
        low, high = rows.offsets[index], rows.offsets[index + 1]
        arrays[name][low:high] = states_PD[place : place + high - low]
        place += high - low


def _watched_modules(teacher: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """Return the module whose output is each wanted state."""
    anatomy = anatomy_of(teacher)
    modules: dict[str, nn.Module] = {}
    for name in names:
        if name == LOGITS:
            continue
        role, _, number = name.rpartition("-")
        layer = int(number)
        if role == "hidden":
            modules[name] = anatomy.layers[layer - 1].module if layer else anatomy.embeddings
        else:
            modules[name] = anatomy.layers[layer - 1].part(role)
    return modules


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _aside(folder: Path, name: str) -> Path:
    return folder / f".{name}.{os.getpid()}.writing"


def _make_room(folder: Path, root: Path) -> None:
    """Remove the outputs that were not used for longest, until what stays is within bounds."""
    others = sorted((path for path in root.iterdir() if path != folder), key=lambda path: path.stat().st_mtime)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in others}
    total = sum(sizes.values())
    for path in others:
        if total <= CACHE_BYTES:
            break
        total -= sizes[path]
        shutil.rmtree(path, ignore_errors=True)
