"""Export a model: prepare, write aside, audit, compare, and only then put the file in its place."""

# B batch, T tokens, C classes

from __future__ import annotations

import importlib.util
import inspect
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from niwaki.anatomy import FAMILIES, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.export.audit import audit, weights_in_onnx, weights_in_openvino
from niwaki.export.chain import Write, join_chain, write_chain
from niwaki.export.onnx_file import write_onnx
from niwaki.export.openvino_file import write_openvino
from niwaki.export.parity import Parity, check_rewriting, compare
from niwaki.export.prepare import prepare
from niwaki.layers.exits import exits_of
from niwaki.runtime.chain import SUFFIX

Batch = Mapping[str, Tensor]


def export_onnx(model: nn.Module, examples: Sequence[Batch], path: str | Path) -> Parity:
    """Write a classifier as ONNX and check it on real inputs in ONNX Runtime.

    Args:
        model: a Transformers classifier, its linears and embeddings quantized or not. It is left as it was.
        examples: inputs to check on, (B, T) each, padded ones among them; token types are an input of the artifact
            if the examples have them.
        path: the .onnx file; of a model with exits chain.json, with a file for each segment beside it, or an .onnx file
            that asks by itself who leaves. The folder must exist.

    Returns:
        How well the artifact agrees with the model.

    Raises:
        NiwakiError: a weight of the model is not in the file, the logits differ, or rows leave at other exits; nothing
            is left at `path`.
    """
    return _export(model, examples, Path(path), "onnxruntime", write_onnx)


def export_openvino(model: nn.Module, examples: Sequence[Batch], path: str | Path) -> Parity:
    """Write a classifier as OpenVINO IR, `path` (.xml) and the .bin beside it, and check it; else as `export_onnx`.

    Static ranges run on integers. Dynamic ones have no operator in OpenVINO: their inputs stay floats in the file, and
    the runtime rounds them in its own way (in groups of 32), or not, as it is told.
    """
    return _export(model, examples, Path(path), "openvino", write_openvino)


def _export(model: nn.Module, examples: Sequence[Batch], path: Path, runtime: str, write: Write) -> Parity:
    if not examples:
        raise NiwakiError("there are no examples", expected="real inputs, to check the artifact on", place=str(path))
    _require(runtime)
    if _writes_text(model):
        raise NiwakiError(
            f"a language model ({type(model).__name__}) cannot be exported yet",
            expected="a classifier",
            fix="the PyTorch runtime, which opens the run folder itself",
            place=str(path),
        )
    with_exits = exits_of(model) is not None
    _check_name(model, path, runtime)
    names = _input_names(model, examples)
    batches = [_inputs(batch, names) for batch in examples]
    read = weights_in_onnx if runtime == "onnxruntime" else weights_in_openvino
    with _evaluating(model), torch.no_grad(), _written_aside(path) as draft:
        if with_exits:
            chain = file_for(model, draft)
            parity = write_chain(model, _sample(names), batches, chain, runtime, write, read, place=str(path))
            if draft != chain:
                join_chain(model, chain, draft, batches, place=str(path))
            return parity
        prepared = prepare(model, token_types="token_type_ids" in names).eval()
        check_rewriting(model, prepared, batches)
        with sdpa_kernel(SDPBackend.MATH):  # other kernels of torch ask whether the batch is 1
            write(prepared, _sample(names), draft, ("logits",))
        audit(model, read(draft), place=str(path))
        return compare(model, prepared, draft, runtime, batches, place=str(path))


def file_for(model: nn.Module, path: Path) -> Path:
    """Return the file that an export of the model to `path` writes: of a model with exits chain.json in its folder."""
    return path if exits_of(model) is None else path.with_name(f"chain{SUFFIX}")


def _check_name(model: nn.Module, path: Path, runtime: str) -> None:
    """Refuse to write a chain of a model without exits, and what is neither chain nor ONNX of one with them."""
    with_exits = exits_of(model) is not None
    joined = with_exits and runtime == "onnxruntime" and path.suffix == ".onnx"
    if with_exits != (path.suffix == SUFFIX) and not joined:
        raise NiwakiError(
            f"{path.name} is to hold a model {'with' if with_exits else 'without'} exits",
            expected="chain.json, or one .onnx file, of a model with exits; a graph file of any other",
            fix=str(file_for(model, path) if with_exits else path.with_name("model.onnx")),
        )


def _writes_text(model: nn.Module) -> bool:
    """Say whether a model of a known family is a language model; others are exported as they stand."""
    known = getattr(getattr(model, "config", None), "model_type", None) in FAMILIES
    return known and anatomy_of(model).language_head is not None


def _require(runtime: str) -> None:
    """Refuse, before any work, what the packages installed cannot write and check."""
    extra = {"onnxruntime": "onnx"}.get(runtime, runtime)
    packages = ("onnx", "onnxscript", "onnxruntime") if extra == "onnx" else ("openvino",)
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        raise NiwakiError(
            f"{', '.join(missing)} not installed",
            expected=f"{' and '.join(packages)}, to export to {extra}",
            fix=f"pip install 'niwaki[{extra}]'",
        )


def _input_names(model: nn.Module, examples: Sequence[Batch]) -> list[str]:
    """Return the artifact's inputs in their order."""
    given = any("token_type_ids" in batch for batch in examples)
    taken = "token_type_ids" in inspect.signature(model.forward).parameters
    return ["input_ids", "attention_mask", *(["token_type_ids"] if given and taken else [])]


def _inputs(batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
    """Return the named inputs of a batch; a missing mask is ones, missing token types are zeros."""
    ids = batch["input_ids"]
    absent = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    return {name: batch.get(name, absent.get(name, ids)).to(torch.int64) for name in names}


def _sample(names: Sequence[str]) -> dict[str, Tensor]:
    """Return the batch to trace with: 2 rows of 8, one padded, so that nothing in it looks like a constant."""
    sample = {name: torch.zeros(2, 8, dtype=torch.int64) for name in names}
    sample["attention_mask"][0] = 1
    sample["attention_mask"][1, :5] = 1
    return sample


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode, and every module of it back into the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def _written_aside(path: Path) -> Iterator[Path]:
    """Yield a file of the same name in a folder of its own; move what was written there into place if all went well."""
    for left_over in path.parent.glob(f".{path.name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        draft = Path(folder) / path.name
        yield draft
        files = sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name)
        # The file that names the others goes first and comes last: it is never there with any but its own.
        if len(files) > 1:
            path.unlink(missing_ok=True)
        for written in files:
            written.replace(path.parent / written.name)
