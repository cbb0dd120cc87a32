"""Write a model to a folder and read it back bit-equal: config, journal, safetensors, tokenizer."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from niwaki import entropy, sparse
from niwaki.errors import NiwakiError
from niwaki.surgery import entropy_coded, is_plain, is_sparse, journal_of, replay, tie_head, tied_names
from niwaki.vocabulary import ids_of, narrowed

WEIGHTS = "model.safetensors"
JOURNAL = "journal.jsonl"

#: Bytes, of the addresses at which PyTorch puts tensors on a CPU.
ALIGNMENT = 64


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`; it takes its place when the block ends well, and vanishes otherwise."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file aside and rename it."""
    from safetensors.torch import save_file

    aside = path.with_name(f".{path.name}.{os.getpid()}.writing")
    save_file(tensors, aside, metadata=metadata)
    aside.replace(path)


def save(model: nn.Module, folder: str | Path, tokenizer: Any = None, *, dense: bool = False) -> Path:
    """Write a model into `folder`, beside whatever else is there.

    The weights are written last: a folder with `model.safetensors` is whole. Where every layer kept the shape that the
    config states, the folder is a plain Transformers model as well, unless its weights are stored sparse.

    Args:
        model: to be written.
        folder: made where it is missing.
        tokenizer: written beside the model.
        dense: write zeros too, also of weights that `surgery.sparsify_linear` says are stored sparse, and codes as
            they are, also those that are to be entropy-coded.
    """
    folder = Path(folder)
    tensors, metadata = (tensors_of(model), {}) if dense else stored(model)
    describe(model, folder, tokenizer, plain=not metadata)
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt", **metadata})
    return folder


def describe(model: nn.Module, folder: Path, tokenizer: Any = None, *, plain: bool = True) -> None:
    """Write all of a model's folder but the weights; those that are there, of what was before, go.

    Args:
        model: to be written.
        folder: made where it is missing.
        tokenizer: written beside the model.
        plain: whether the weights will be stored as plain Transformers reads them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).unlink(missing_ok=True)
    config = model.config.to_dict()  # type: ignore[union-attr,operator]
    config["architectures"] = [type(model).__name__]
    config["niwaki"] = {"plain": plain and is_plain(model)}
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    journal = journal_of(model)
    if len(journal) > 1:
        write_text(folder / JOURNAL, "".join(json.dumps(record) + "\n" for record in journal))
    else:
        (folder / JOURNAL).unlink(missing_ok=True)  # nothing was edited: a plain Transformers folder
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def stored(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return what a model's file holds, and its metadata: no zeros, and codes coded, where the edits say so."""
    tensors, coded = entropy.pack(tensors_of(model), entropy_coded(model))
    if not is_sparse(model):
        return tensors, coded
    tensors, packed = sparse.pack(tensors)
    return tensors, {**coded, **packed}


def read(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file as the model has them.

    They lie where PyTorch would have put them: matrix kernels sum in another order where memory is not aligned, and a
    model read again would differ in the last bit.
    """
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        tensors = {name: _aligned(opened.get_tensor(name)) for name in opened.keys()}  # noqa: SIM118
        metadata = opened.metadata()
    return entropy.unpack(sparse.unpack(tensors, metadata, str(file)), metadata, str(file))


def _aligned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a file of the model holds, on the CPU: each tensor once, tied ones by their first name."""
    named = {id(tensor): name for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    first = set(named.values())
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items() if name in first}


def put_tensors(model: nn.Module, tensors: dict[str, torch.Tensor], assign: bool = True) -> None:
    """Give a model, empty or not, the tensors that `tensors_of` returned; every one must have its place.

    Args:
        model: of the shapes of the tensors.
        tensors: by name; of those that are one tensor, the first alone.
        assign: put them in the places of the model's own, else copy the numbers.

    Raises:
        RuntimeError: of PyTorch, when one is missing, too many or of another shape.
    """
    names = tied_names(model)
    if names is not None:
        head, table = names
        shared = [name for name in model.get_submodule(head).state_dict() if f"{table}.{name}" in tensors]
        tensors = {**{f"{head}.{name}": tensors[f"{table}.{name}"] for name in shared}, **tensors}
    ones = _ones(model)
    tensors = {**{name: tensors[one[0]] for one in ones if one[0] in tensors for name in one}, **tensors}
    model.load_state_dict(tensors, strict=True, assign=assign)
    tie_head(model)
    for first, *others in ones:
        for name in others:
            _set(model, name, _get(model, first))


def _ones(model: nn.Module) -> list[list[str]]:
    """Return the names of the tensors that are one tensor, one list a tensor, in the order of the model."""
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [several for several in names.values() if len(several) > 1]


def _get(model: nn.Module, name: str) -> torch.Tensor:
    home, _, leaf = name.rpartition(".")
    tensor: torch.Tensor = getattr(model.get_submodule(home), leaf)
    return tensor


def _set(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    home, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(home), leaf, tensor)


def is_run(folder: str | Path) -> bool:
    """Say whether a folder holds a journal, that is, a model that surgery changed."""
    return (Path(folder) / JOURNAL).is_file()


def load(
    source: str | Path, *, labels: list[str] | None = None, allow_pickle: bool = False, trust_remote_code: bool = False
) -> nn.Module:
    """Load a sequence classifier or a causal language model as a plain Transformers module, in eval mode.

    Which of the two it is, its config says; with `labels` it becomes a classifier.

    Args:
        source: a run folder, a folder that Transformers wrote, or a hub id.
        labels: names of the classes; given, a missing head is made new (random) with one output a label.
        allow_pickle: also read weights that are not safetensors.
        trust_remote_code: run code that comes with the model.

    Raises:
        NiwakiError: there is no such model, or it has no fine-tuned head and `labels` is not given.
    """
    if is_run(source):
        return load_run(Path(source))
    return _load_plain(str(source), labels, allow_pickle, trust_remote_code)


def load_run(folder: Path) -> nn.Module:
    """Build the base without weights, replay the journal, read the weights strictly."""
    model = empty_run(folder)
    try:
        put_tensors(model, read(folder / WEIGHTS))
    except RuntimeError as error:
        raise NiwakiError(f"{folder / WEIGHTS} does not fit {folder / JOURNAL}: {error}") from error
    return model


def empty_run(folder: Path) -> nn.Module:
    """Build the base of a finished run without weights, and replay the journal."""
    import transformers
    from accelerate import init_empty_weights

    if not (folder / WEIGHTS).is_file():
        raise NiwakiError(
            f"{folder} has no {WEIGHTS}", expected="a finished run", fix="run the same `niwaki compress` again"
        )
    records = [json.loads(line) for line in (folder / JOURNAL).read_text(encoding="utf-8").splitlines()]
    build = records[0]
    config = transformers.AutoConfig.for_model(**build["config"])
    with init_empty_weights(include_buffers=False):
        model: nn.Module = getattr(transformers, build["architecture"])(config)
    model.niwaki_journal = records[:1]  # type: ignore[assignment]
    return replay(model, records).eval()


def _load_plain(source: str, labels: list[str] | None, allow_pickle: bool, trust_remote_code: bool) -> nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    extra: dict[str, Any] = {}
    if labels is not None:
        names = dict(enumerate(labels))
        extra = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    try:
        with _hushed():
            config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
            writes = labels is None and any(name.endswith("ForCausalLM") for name in config.architectures or ())
            if labels is not None and config.pad_token_id is None:  # where a decoder's classifier finds a text's end
                extra["pad_token_id"] = load_tokenizer(source).pad_token_id
            kind: Any = AutoModelForCausalLM if writes else AutoModelForSequenceClassification
            model, report = kind.from_pretrained(
                source,
                dtype=torch.float32,
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **extra,
            )
    except (OSError, ValueError) as error:
        raise NiwakiError(
            f"no model could be loaded from {source!r}: {str(error).splitlines()[0]}",
            expected="a folder with config.json and model.safetensors, or a hub id",
            fix="niwaki.load(..., allow_pickle=True).save_pretrained(...), if the weights are a pickle you trust",
        ) from error
    if report["missing_keys"] and labels is None:
        raise NiwakiError(
            f"{source} has no fine-tuned {'language' if writes else 'classification'} head "
            f"(missing: {', '.join(sorted(report['missing_keys']))})",
            expected="a model fine-tuned on the task",
            fix=f"niwaki finetune {source} --data YOUR_DATA --out base",
        )
    module: nn.Module = model.eval()
    return module


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Keep Transformers from telling about missing heads and drawing bars; what matters is said by us."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def load_tokenizer(source: str | Path) -> Any:
    """Load the tokenizer that stands beside a model."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(source))
    except (OSError, ValueError) as error:
        raise NiwakiError(
            f"no tokenizer could be loaded from {str(source)!r}: {str(error).splitlines()[0]}",
            expected="tokenizer.json beside the model",
        ) from error


def tokenizer_record(tokenizer: Any) -> dict[str, Any]:
    """Return a tokenizer as the JSON of the library `tokenizers` describes it.

    Raises:
        NiwakiError: the tokenizer is none of that library's.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NiwakiError(
            f"the tokenizer is a {type(tokenizer).__name__}, written in Python",
            expected="one of the library tokenizers, with a tokenizer.json",
        )
    record: dict[str, Any] = json.loads(backend.to_str())
    return record


def narrow_tokenizer(tokenizer: Any, tokens: Sequence[int]) -> Any:
    """Return the tokenizer with these tokens alone, numbered from 0 in their order; the one given is left as it was.

    It takes the way over files that every reader of the saved folder takes, so none can read other ids.

    Args:
        tokenizer: of Transformers, on the library `tokenizers`.
        tokens: ids that stay, ascending.

    Raises:
        NiwakiError: the class of the tokenizer does not build what the file says.
    """
    cut = narrowed(tokenizer_record(tokenizer), tokens)
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        (Path(folder) / "tokenizer.json").write_text(json.dumps(cut, ensure_ascii=False), encoding="utf-8")
        with _hushed():
            again = load_tokenizer(folder)
    if again.get_vocab() != ids_of(cut):
        raise NiwakiError(
            f"a {type(tokenizer).__name__} with {len(tokens)} tokens reloads with others",
            expected="a tokenizer that is what its tokenizer.json says",
        )
    again.name_or_path = tokenizer.name_or_path
    return again


def reaching(tokenizer: Any, tokens: int) -> Any:
    """Return the tokenizer that cuts texts at so many tokens, if it cut them shorter; the one given stays as it was."""
    if tokenizer.model_max_length >= tokens:
        return tokenizer
    longer = copy.deepcopy(tokenizer)
    longer.model_max_length = tokens
    return longer


def model_hash(model: nn.Module, weights: str | None = None) -> str:
    """Return what tells a model from any other: the sha256 of its weights, and of its edits where there are some.

    Two models of the same weights differ where an edit moved none, as thresholds of exits do.

    Args:
        model: with or without weights.
        weights: their hash, where it is known.
    """
    weights = weights or weights_hash(model)
    edits = journal_of(model)[1:]
    return hashlib.sha256(f"{weights}{json.dumps(edits, sort_keys=True)}".encode()).hexdigest() if edits else weights


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a model's tensors, names, shapes and types, in name order."""
    return digest_of(sorted(model.state_dict().items()))


def digest_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the sha256 of tensors, names, shapes and types, in the order given."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
