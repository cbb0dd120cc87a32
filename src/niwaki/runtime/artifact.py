"""Open an artifact as a callable from integer arrays to logits: torch, ONNX Runtime, OpenVINO."""

# B batch, T tokens, C classes

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError, closest
from niwaki.runtime.chain import SUFFIX, ChainFile, open_chain
from niwaki.runtime.graphs import OPENERS, import_runtime
from niwaki.runtime.one_file import EXITS, in_one_file
from niwaki.runtime.rule import Exits

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
RUNTIMES: tuple[str, ...] = ("torch", *OPENERS)
PRECISIONS = {"f32": "f32", "fp32": "f32", "bf16": "bf16"}


@dataclass(frozen=True)
class Artifact:
    """Hold an opened artifact; call it with a batch to get logits, float32: (B, C), of a language model (B, T, V).

    Attributes:
        path: the file or folder that was opened.
        runtime: one of `RUNTIMES`.
        inputs: names of the inputs it declares; nothing else is fed to it.
        precision: the floating-point precision in force: "f32", "bf16", or "as in the file".
        run: from prepared inputs to logits (B, C); this call alone is what a clock should see.
        convert: from an int64 array to what the runtime takes.
        rows_independent: whether a row's logits are known not to depend on the other rows of its batch, which
            dynamic quantization makes them do. False means unknown.
        exits: of an artifact whose rows may leave early; else None.
    """

    path: Path
    runtime: str
    inputs: tuple[str, ...]
    precision: str
    run: Callable[[dict[str, Any]], Array]
    convert: Callable[[Array], Any] = lambda array: array
    rows_independent: bool = False
    exits: Exits | None = None

    def prepare(self, batch: Batch) -> dict[str, Any]:
        """Return the declared inputs of `batch` (B, T) in the runtime's own type.

        A missing attention mask becomes ones, missing token types become zeros, as the models assume.

        Raises:
            NiwakiError: the artifact declares an input that is none of the three.
        """
        arrays = dict(batch)
        arrays.setdefault("attention_mask", np.ones_like(arrays["input_ids"]))
        arrays.setdefault("token_type_ids", np.zeros_like(arrays["input_ids"]))
        unknown = [name for name in self.inputs if name not in arrays]
        if unknown:
            raise NiwakiError(
                f"the artifact wants an input {unknown[0]!r}",
                expected=f"no inputs but {', '.join(INPUTS)}",
                place=str(self.path),
            )
        return {name: self.convert(np.ascontiguousarray(arrays[name], dtype=np.int64)) for name in self.inputs}

    def __call__(self, batch: Batch) -> Array:
        """Return the logits (B, C) of a padded batch of integer arrays (B, T)."""
        return self.run(self.prepare(batch))

    def classify(self, batch: Batch) -> tuple[Array, Array]:
        """Return the logits (B, C), and at which exit each row left, (B,), 0 for the earliest.

        A row that stayed to the end has the number of exits; so without exits every row has 0.
        """
        inputs = self.prepare(batch)
        if self.exits is None:
            return self.run(inputs), np.zeros(len(batch["input_ids"]), np.int64)
        return self.exits.classify(inputs)


def open_artifact(
    path: str | Path, runtime: str, threads: int, precision: str | None = None, alone: bool = False
) -> Artifact:
    """Open an artifact with a fixed number of threads.

    Args:
        path: a model folder or hub id for torch, an .onnx file for onnxruntime, an .xml file for openvino; of a
            model with exits, the chain.json of either.
        runtime: one of `RUNTIMES`.
        threads: of one inference, 1 or more.
        precision: "f32" or "bf16" (torch, openvino); None leaves it to the runtime. OpenVINO's own choice is
            bf16 wherever the processor has it, which changes results in silence, so `Artifact.precision` says
            what is in force.
        alone: nothing else in this process is to use the runtime. A chain is faster then, on two threads and more: in
            ONNX Runtime its segments have their threads in common, and sessions with threads of their own are refused.

    Raises:
        NiwakiError: the runtime is unknown or not installed, the path is not there, or the precision means
            nothing here.
    """
    if runtime not in RUNTIMES:
        near = closest(runtime, RUNTIMES)
        raise NiwakiError(f"there is no runtime {runtime!r}", expected=f"one of {', '.join(RUNTIMES)}", fix=near)
    if precision is not None and precision not in PRECISIONS:
        raise NiwakiError(f"precision is {precision!r}", expected="f32, bf16 or none", fix="precision: f32")
    path = Path(path)
    if not path.exists() and runtime != "torch":  # for torch it may be a hub id, and `load` knows
        raise NiwakiError(f"{path} does not exist", expected=f"an artifact for {runtime}", fix="niwaki export RUN")
    precision = PRECISIONS[precision] if precision else None
    if runtime == "torch":
        return _open_torch(path, threads, precision)
    return _open_graph(path, runtime, threads, precision, alone)


def installed() -> tuple[str, ...]:
    """Return the runtimes whose package is here, torch first."""
    return tuple(name for name in RUNTIMES if importlib.util.find_spec(name))


def _open_torch(path: Path, threads: int, precision: str | None) -> Artifact:
    """Open a model folder in eager PyTorch."""
    torch = import_runtime("torch", "")
    from niwaki.checkpoint import load
    from niwaki.layers.exits import exits_of
    from niwaki.layers.linear import QuantizedLinear
    from niwaki.runtime.torch_exits import TorchExits, rule_of

    torch.set_num_threads(threads)
    with contextlib.suppress(RuntimeError):  # can be set only once in a process
        torch.set_num_interop_threads(1)
    model = load(path).eval()
    if precision is not None:
        model = model.to({"f32": torch.float32, "bf16": torch.bfloat16}[precision])
    accepted = inspect.signature(model.forward).parameters
    settings = {"use_cache": False} if "use_cache" in accepted else {}  # keys and values are kept for more to come

    def run(inputs: dict[str, Any]) -> Array:
        with torch.inference_mode():
            logits_BC: Array = model(**inputs, **settings).logits.float().numpy()
        return logits_BC

    own = exits_of(model)
    exits = None if own is None else TorchExits(model, rule_of(own))
    floats = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    in_force = "bf16" if torch.bfloat16 in floats else "f32"
    inputs = tuple(name for name in INPUTS if name in accepted)
    packed = any(isinstance(module, QuantizedLinear) for module in model.modules())
    return Artifact(
        path,
        "torch",
        inputs,
        in_force,
        run if exits is None else lambda inputs: exits.classify(inputs)[0],
        torch.from_numpy,
        rows_independent=not packed,
        exits=exits,
    )


def _open_graph(path: Path, runtime: str, threads: int, precision: str | None, alone: bool) -> Artifact:
    """Open a graph of ONNX Runtime or OpenVINO, or a chain of them."""
    if path.suffix == SUFFIX:
        chain, file = open_chain(path, runtime, threads, precision, alone)
        first = chain.graphs[0]
        return Artifact(
            path,
            runtime,
            first.inputs,
            first.precision,
            lambda inputs: chain.classify(inputs)[0],
            rows_independent=file.rows_independent,
            exits=chain,
        )
    graph = OPENERS[runtime](path, threads, precision, ("logits", EXITS), "own")
    exits, run = in_one_file(graph, str(path)), lambda inputs: graph.run(inputs)[0]
    return Artifact(path, runtime, graph.inputs, graph.precision, run, exits=exits)


def _cached(hub_id: str) -> Path:
    """Return the folder where a model of the hub lies on this machine."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    if not isinstance(config, str):
        raise NiwakiError(f"there is no model at {hub_id}", expected="a folder or a hub id that was loaded before")
    return Path(config).parent


def size_on_disk(path: str | Path, runtime: str) -> int:
    """Return the bytes of all files the runtime needs to run the model; the tokenizer is apart.

    For torch these are the weights, `config.json` and `journal.jsonl`; for onnxruntime the file and its
    external data; for openvino .xml and .bin; for a chain all that of every segment, and chain.json.
    """
    path = Path(path)
    if path.suffix == SUFFIX:
        segments = ChainFile.read(path).segments
        return path.stat().st_size + sum(size_on_disk(path.with_name(name), runtime) for name in segments)
    if runtime == "torch":
        path = path if path.exists() else _cached(path.as_posix())
        files = [*path.glob("*.safetensors"), path / "config.json", path / "journal.jsonl"]
        if not list(path.glob("*.safetensors")):
            files += path.glob("pytorch_model*.bin")
    elif runtime == "openvino" and path.suffix == ".xml":
        files = [path, path.with_suffix(".bin")]
    else:
        # where exporters put weights beside the graph
        beside = (f"{path.name}.data", f"{path.name}_data", f"{path.stem}.data")
        files = [path, *(path.with_name(name) for name in beside)]
    return sum(file.stat().st_size for file in set(files) if file.is_file())
