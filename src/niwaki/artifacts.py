"""`export`: write what ships from a model folder, and remember how well it agrees with the model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of, label_names, longest_input, rows_of
from niwaki.checkpoint import is_run, load, load_tokenizer, model_hash, write_text
from niwaki.errors import NiwakiError, closest
from niwaki.export import Parity, export_onnx, export_openvino, export_safetensors, file_for
from niwaki.runtime import size_on_disk

if TYPE_CHECKING:
    from niwaki.task import Encoded, Task

#: What can be exported: the file below `artifacts/`, and what writes it.
FORMATS: dict[str, tuple[str, Callable[..., Parity]]] = {
    "onnx": ("model.onnx", export_onnx),
    "openvino": ("openvino/model.xml", export_openvino),
    "safetensors": ("safetensors/model.safetensors", export_safetensors),
}
PARITY_ROWS = 64


def export(run: str | Path | Any, to: str = "onnx", out: str | Path | None = None, *, task: Task | None = None) -> Path:
    """Write an artifact of a model folder and check it against the model on real inputs.

    Args:
        run: a run, its folder, or a folder that Transformers wrote.
        to: "onnx", "openvino" or "safetensors" (a folder with every weight, zeros too, and the tokenizer).
        out: the file to write; by default it stands in `artifacts/` in the model's folder.
        task: where the inputs of the check come from; a run remembers its own.

    Returns:
        The file that was written.

    Raises:
        NiwakiError: the artifact does not agree with the model; it is not left behind.
    """
    folder = Path(run)
    if to not in FORMATS:
        raise NiwakiError(
            f"there is no export to {to!r}", expected=f"one of {', '.join(FORMATS)}", fix=closest(to, FORMATS)
        )
    model = load(folder)
    rows = _rows(folder, model, task)
    path = Path(out) if out is not None else place_of(model, to, folder / "artifacts")
    write_artifact(model, to, path, examples_of(model, rows))
    _complete(folder, to, path)
    return path


def usual_exports(task: Task) -> tuple[str, ...]:
    """Return the formats that models of the task are exported to unless told otherwise."""
    return ("onnx",) if task.exports else ()


def require_exportable(task: Task, formats: Sequence[str]) -> None:
    """Refuse, before any work, to export what no exporter can write yet."""
    if formats and not task.exports:
        raise NiwakiError(
            f"a model for {task.kind} cannot be exported to {formats[0]} yet",
            expected="the PyTorch runtime, which opens the run folder itself",
            fix="--export none --runtimes torch (both are the default of this task)",
        )


def export_run(folder: Path, to: str, rows: Encoded, log: Callable[[dict[str, Any]], None]) -> Path:
    """Write an artifact into a model folder, unless the one there came from the same weights."""
    path, _ = artifact_of(folder, to, rows, folder / "artifacts", log)
    return path


def artifact_of(
    source: str | Path,
    to: str,
    rows: Encoded,
    artifacts: Path,
    log: Callable[[dict[str, Any]], None] = lambda event: None,
) -> tuple[Path, dict[str, Any]]:
    """Return an artifact's file and parity record, written first where it is missing or came from other weights."""
    if to not in FORMATS:
        raise NiwakiError(
            f"there is no export to {to!r}", expected=f"one of {', '.join(FORMATS)}", fix=closest(to, FORMATS)
        )
    model = load(source)
    path, digest = place_of(model, to, artifacts), model_hash(model)
    record = _parity_file(path)
    if path.is_file() and record.is_file():
        kept: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        if kept.pop("model", None) == digest:
            return path, kept
    parity = write_artifact(model, to, path, examples_of(model, rows))
    _complete(source, to, path)
    size_bytes = size_on_disk(path, "openvino" if to == "openvino" else "onnxruntime")
    log({"event": "export", "to": to, "size_bytes": size_bytes, **parity})
    return path, parity


def place_of(model: nn.Module, to: str, artifacts: Path) -> Path:
    """Return the file, in a folder of artifacts, that an export of the model writes."""
    path = artifacts / FORMATS[to][0]
    return path if to == "safetensors" else file_for(model, path)


def _complete(source: str | Path, to: str, path: Path) -> None:
    """Put the tokenizer beside weights that are to be loaded as a model folder."""
    if to == "safetensors":
        load_tokenizer(source).save_pretrained(path.parent)


def write_artifact(model: nn.Module, to: str, path: Path, examples: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Export, check, and write the parity record beside the artifact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parity = FORMATS[to][1](model, examples, path)
    values: dict[str, Any] = {
        "agreement": parity.agreement,
        "largest_difference": parity.largest_difference,
        "count": parity.count,
    }
    if parity.same_exit is not None:
        values["same_exit"] = parity.same_exit
    write_text(_parity_file(path), json.dumps({"model": model_hash(model), **values}))
    return values


def examples_of(model: nn.Module, rows: Encoded, count: int = PARITY_ROWS) -> list[dict[str, Tensor]]:
    """Return real inputs for the check: single rows, and padded batches of unlike lengths."""
    chosen = np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)
    groups: list[Sequence[int]] = [[int(index)] for index in chosen[: len(chosen) // 2]]
    rest = chosen[len(chosen) // 2 :]
    groups += [rest[start : start + 8].tolist() for start in range(0, len(rest), 8)]
    batches = [rows.batch(group) for group in groups]
    return [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]


def _rows(folder: Path, model: nn.Module, task: Task | None) -> Encoded:
    """Return rows to check an artifact on: of the task given, of the run's own task, or random tokens."""
    if task is None and is_run(folder) and (folder / "base.json").is_file():
        from niwaki.task import Task

        parameters = json.loads((folder / "base.json").read_text(encoding="utf-8"))["task"]
        task = Task(**parameters)
    if task is None:
        return random_rows(model)
    tokenizer = load_tokenizer(folder)
    return task.encode(tokenizer, longest_input(model, tokenizer, task.max_length), label_names(model)).evaluation


def random_rows(model: nn.Module, count: int = PARITY_ROWS, seed: int = 0) -> Encoded:
    """Return rows of random tokens of many lengths, where no task tells of real ones."""
    from niwaki.task import Encoded

    generator = torch.Generator().manual_seed(seed)
    words = rows_of(anatomy_of(model).word_embeddings)
    lengths = torch.randint(4, 48, (count,), generator=generator).numpy()
    tokens = torch.randint(5, int(words), (int(lengths.sum()),), generator=generator).numpy().astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    config: Any = model.config
    pad = int(config.pad_token_id or 0)
    return Encoded(
        name="random",
        tokens=tokens,
        types=None,
        offsets=offsets,
        labels=np.zeros(count, np.int64),
        truncated=0,
        pad=pad,
    )


def _parity_file(path: Path) -> Path:
    return path.with_suffix(".parity.json")
