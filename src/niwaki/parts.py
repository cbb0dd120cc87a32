"""Where a model's weights are while a step works: all in memory, or on disk, one part in memory at a time."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from niwaki.anatomy import FAMILIES, anatomy_of
from niwaki.checkpoint import JOURNAL, WEIGHTS, describe, digest_of, empty_run, is_run, load, weights_hash
from niwaki.errors import NiwakiError
from niwaki.shards import Shards, TensorFile
from niwaki.surgery import tied_names

#: Share of the free memory that a model in 32 bits may take before its blocks are read from disk one by one. In memory
#: stand the base, the copy that is changed and, for a moment, what is written.
SHARE = 0.25
#: The number that glibc knows its setting by, from malloc.h.
M_MMAP_THRESHOLD = -3


class Kept(Protocol):
    """Hold values in order, as a list does."""

    def append(self, value: Any) -> None:
        """Put a value behind the others."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...
    def __setitem__(self, index: int, value: Any) -> None: ...


class Parts:
    """Have the whole model in memory, as usual; what a step asks for is there already.

    Attributes:
        has_weights: whether weights can be looked at, and rows run through them.
    """

    has_weights = True

    def held(self, model: nn.Module, *names: str, changed: bool = True) -> contextlib.AbstractContextManager[None]:
        """Have the weights of these modules in memory while the block lasts, and those of others perhaps not.

        Args:
            model: that the modules belong to.
            names: dotted names of modules.
            changed: whether the block leaves them as they shall stay; a part may be changed once.
        """
        return contextlib.nullcontext()

    def kept(self, name: str) -> Kept:
        """Return an empty list for what is gathered between two parts: hidden states, for one."""
        return []

    def weights_hash(self, model: nn.Module) -> str:
        """Return what `checkpoint.weights_hash` gives for the whole model."""
        return weights_hash(model)

    def load(self, folder: Path) -> nn.Module:
        """Return the model in the folder of a finished step."""
        return load(folder)


class Plan(Parts):
    """Have no weights at all: a step does its edits on a model on the meta device, and so tells what will be stored."""

    has_weights = False


class OnDisk(Parts):
    """Read a decoder's parts from its shards when they are needed, write what they became, and let them go.

    Args:
        source: the folder of a decoder, or its hub id.

    Raises:
        NiwakiError: the model is no decoder of a known family, or was changed by niwaki before.
    """

    def __init__(self, source: str | Path) -> None:
        self.source, self.shards = str(source), Shards(source)
        self.file: TensorFile | None = None
        self.workspace = Path()
        self._digest = ""

    def open(self) -> nn.Module:
        """Return the model without weights."""
        import transformers
        from accelerate import init_empty_weights

        _return_memory()
        _require_decoder(self.source)
        config = transformers.AutoConfig.from_pretrained(self.source)
        with init_empty_weights(include_buffers=False):
            model: nn.Module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _tie_empty(model)
        return model.eval()

    def lay_out(self, planned: nn.Module, workspace: Path) -> None:
        """Begin the file of a model of the shapes of this one, in a folder that hidden states may wait in too."""
        self.workspace = workspace
        self.file = TensorFile(workspace / WEIGHTS, layout_of(planned), {"format": "pt"})

    @contextlib.contextmanager
    def held(self, model: nn.Module, *names: str, changed: bool = True) -> Iterator[None]:
        """Read the weights of these modules; write, where `changed`, what became of them; let them go."""
        for name, module in _modules(model, names):
            _put(module, self._read(model, [f"{name}.{leaf}" for leaf in module.state_dict()]), f"{name}.")
        yield
        for name, module in _modules(model, names):
            if changed:
                self._write({f"{name}.{leaf}": tensor for leaf, tensor in module.state_dict().items()})
            _put(module, {leaf: tensor.to("meta") for leaf, tensor in module.state_dict().items()})
        _tie_empty(model)

    def kept(self, name: str) -> Kept:
        """Return a list whose values wait in files."""
        return Spool(self.workspace / name)

    def weights_hash(self, model: nn.Module) -> str:
        """Return the hash of the weights in the shards, read one by one."""
        if not self._digest:
            names = sorted(model.state_dict())
            self._digest = digest_of((name, self._read(model, [name])[name]) for name in names)
        return self._digest

    def load(self, folder: Path) -> nn.Module:
        """Return the model in the folder of a finished step, without weights."""
        return empty_run(folder)

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write what no step held, and make the folder that of a run."""
        assert self.file is not None
        for name in sorted(self.file.left):
            self._write(self._read(model, [name]))
        self.file.close()
        describe(model, folder)
        self.file.path.replace(folder / WEIGHTS)

    def _read(self, model: nn.Module, names: list[str]) -> dict[str, Tensor]:
        """Return weights of the base; those of a tied head are the word table's, one tensor."""
        homes = {name: _home(model, name) for name in names}
        tensors = self.shards.read(dict.fromkeys(homes.values()))
        return {name: tensors[home] for name, home in homes.items()}

    def _write(self, tensors: Mapping[str, Tensor]) -> None:
        assert self.file is not None
        for name, tensor in tensors.items():
            if name in self.file.left:
                self.file.write(name, tensor)


class Spool:
    """Keep values in files, one each, and none in memory.

    Args:
        folder: made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, value: Any) -> None:
        """Put a value behind the others."""
        self.count += 1
        self[self.count - 1] = value

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return torch.load(self.folder / f"{index}.pt", weights_only=True)

    def __setitem__(self, index: int, value: Any) -> None:
        torch.save(value, self.folder / f"{index}.pt")


def is_large(source: str | Path) -> bool:
    """Say whether a decoder's weights, in 32 bits, take more than `SHARE` of the memory that is free."""
    import psutil

    return 4 * Shards(source).count > SHARE * psutil.virtual_memory().available


def can_stream(source: str | Path) -> bool:
    """Say whether `OnDisk` knows the model and finds its weights."""
    try:
        _require_decoder(str(source))
        return bool(Shards(source).files)
    except NiwakiError:
        return False


def layout_of(model: nn.Module) -> dict[str, Tensor]:
    """Return by name what a file of a model without weights will hold: of a tied head nothing that the table has."""
    tensors = dict(model.state_dict())
    head, table = tied_names(model) or ("", "")
    shared = [name for name in tensors if name.startswith(f"{head}.") and _alike(tensors, name, head, table)]
    return {name: tensor for name, tensor in tensors.items() if name not in shared}


def _alike(tensors: Mapping[str, Tensor], name: str, head: str, table: str) -> bool:
    other = tensors.get(table + name.removeprefix(head))
    return other is not None and (other.shape, other.dtype) == (tensors[name].shape, tensors[name].dtype)


def _return_memory() -> None:
    """Have pieces of a megabyte and more given back to the system when they are free, where the C library is glibc.

    By itself it keeps pieces of up to 32 megabytes for later, in between what is in use: some eighty megabytes a block.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)


def _require_decoder(source: str) -> None:
    """Refuse what is no decoder of a family whose layers are known, or was changed before."""
    import transformers

    if is_run(source):
        raise NiwakiError(
            f"{source} was changed by niwaki before ({JOURNAL} is there)",
            expected="a folder that Transformers wrote",
            fix="--no-stream",
        )
    try:
        config = transformers.AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise NiwakiError(
            f"no model could be opened from {source!r}: {str(error).splitlines()[0]}",
            expected="a folder with config.json and safetensors, or a hub id",
        ) from error
    known = sorted(name for name, family in FAMILIES.items() if family.language_head)
    writes = any(name.endswith("ForCausalLM") for name in config.architectures or ())
    if config.model_type not in known or not writes:
        raise NiwakiError(
            f"{source} is a {', '.join(config.architectures or [config.model_type])}",
            expected=f"a causal language model of the family {', '.join(known)}, whose blocks can be read one by one",
            fix="--no-stream",
        )


def _home(model: nn.Module, name: str) -> str:
    """Return the name under which the shards hold a weight."""
    head, table = _tied(model)
    return table + name.removeprefix(head) if head and name.startswith(f"{head}.") else name


def _tied(model: nn.Module) -> tuple[str, str]:
    """Return head and word table where the config ties them, whatever they have become by now."""
    anatomy = anatomy_of(model)
    tied = getattr(model.config, "tie_word_embeddings", False)
    names = (anatomy.family.language_head, anatomy.prefix + anatomy.family.word_embeddings)
    return names if tied else ("", "")


def _modules(model: nn.Module, names: tuple[str, ...]) -> list[tuple[str, nn.Module]]:
    return [(name, model.get_submodule(name)) for name in names]


def _put(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Give a module tensors, in the places of its own."""
    module.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, assign=True)


def _tie_empty(model: nn.Module) -> None:
    """Let head and table be one tensor where neither has numbers, so that it counts once."""
    names = tied_names(model)
    if names is not None:
        head, table = (model.get_submodule(name) for name in names)
        own = head.state_dict(keep_vars=True)
        for name, tensor in table.state_dict(keep_vars=True).items():
            if name in own and own[name].is_meta and tensor.is_meta and own[name].shape == tensor.shape:
                setattr(head, name, tensor)
