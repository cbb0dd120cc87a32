"""How long a layer takes at each size, by the clock of this machine, in the runtime and data type it is made for."""

# B batch, T tokens, D hidden, S subjects, R rounds, I inputs of a round

from __future__ import annotations

import copy
import gc
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from niwaki.anatomy import UNITS, Layer, anatomy_of, rows_of
from niwaki.checkpoint import write_text
from niwaki.export.onnx_file import write_onnx
from niwaki.export.openvino_file import write_openvino
from niwaki.export.prepare import LeanLayer
from niwaki.measure.conditions import machine, versions
from niwaki.measure.timing import Clocked, time_in_turns
from niwaki.runtime import default_threads, installed, open_artifact
from niwaki.runtime.artifact import Batch
from niwaki.runtime.worker import settle, time_calls
from niwaki.surgery import narrow_heads, narrow_neurons, quantize_linear
from niwaki.technique import Context
from niwaki.techniques.prune.plan import Costs

#: Layers in a timed stack: enough that the clock sees them, with weights of their own, as in a model.
COPIES = 3
#: Sizes of a kind that are timed; those between are interpolated.
TIMED_SIZES = 6
ROUNDS, REPEATS, WARM = 7, 20, 5
WORDS = 16
Table = dict[str, dict[int, float]]


def latency_costs(
    model: nn.Module, context: Context, sizes: Mapping[str, list[list[int]]], length: int, runtime: str, bits: int
) -> Costs:
    """Return the seconds of each block at each size, at batch 1 and `length` tokens.

    What an attention block costs at h heads is the time of a layer with h heads and the fewest neurons (none, where
    none is a size); what a feed-forward costs at n neurons is the time they add to it. The last layer of an exported
    model, which computes the first token alone, has a table of its own.
    """
    if runtime not in installed():
        context.log({"event": "note", "note": f"{runtime} is not installed: the latency table is PyTorch's"})
        runtime, bits = "torch", 32
    layers = anatomy_of(model).layers
    special = runtime != "torch"
    tables = {
        place: timed(model, context, sizes, length, runtime, bits, place) for place in ("layer", "last")[: 1 + special]
    }
    costs: dict[str, list[dict[int, float]]] = {kind: [] for kind in UNITS}
    for layer in layers:
        table = tables["last" if special and layer.index == len(layers) - 1 else "layer"]
        for kind in UNITS:
            wanted = sizes[kind][layer.index]
            known = sorted(table[kind])
            seconds = np.interp(wanted, known, [table[kind][size] for size in known])
            costs[kind].append(dict(zip(wanted, map(float, seconds), strict=True)))
    return costs


def timed(
    model: nn.Module,
    context: Context,
    sizes: Mapping[str, list[list[int]]],
    length: int,
    runtime: str,
    bits: int,
    place: str,
) -> Table:
    """Return the seconds by kind and size, from the cache where this machine has timed such a layer before."""
    wanted = {kind: _spread(sorted({size for block in sizes[kind] for size in block})) for kind in UNITS}
    threads = min(torch.get_num_threads(), default_threads())
    conditions = _conditions(model, wanted, length, runtime, bits, place, threads)
    key = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:20]
    file = context.cache / "latency" / f"{key}.json"
    if not file.is_file():
        busy = machine()["load_average"] or 0.0
        if busy > default_threads():
            context.log({"event": "note", "note": f"the machine is busy (load {busy}): the latency table may be off"})
        table = _measured(model, wanted, length, runtime, bits, place, threads)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps({"conditions": conditions, "seconds": table}, indent=2) + "\n")
    seconds = json.loads(file.read_text(encoding="utf-8"))["seconds"]
    context.log({"event": "latency-table", "file": str(file), "runtime": runtime, "length": length, "seconds": seconds})
    return {kind: {int(size): float(value) for size, value in seconds[kind].items()} for kind in UNITS}


def _measured(
    model: nn.Module, wanted: Mapping[str, list[int]], length: int, runtime: str, bits: int, place: str, threads: int
) -> Table:
    """Time stacks of layers of every size, in turns; only one is in memory at a time."""
    fewest, most = wanted["neurons"][0], wanted["heads"][-1]
    shapes = [(size, fewest) for size in wanted["heads"]] + [(most, size) for size in wanted["neurons"]]
    shapes = list(dict.fromkeys(shapes))
    batch = {"input_ids": np.ones((1, length), np.int64), "attention_mask": np.ones((1, length), np.int64)}
    with tempfile.TemporaryDirectory() as folder:
        clocks = [
            _clock(model, shape, bits, place, Path(folder) / f"{index}.onnx", runtime, threads)
            for index, shape in enumerate([None, *shapes])
        ]
        gc.freeze()  # each block of timings collects garbage first, and a process with models in it holds much
        try:
            seconds_SRI = time_in_turns(clocks, [[[batch] * REPEATS] * ROUNDS] * len(clocks), seed=0, warm=WARM)
        finally:
            gc.unfreeze()
    seconds_S = seconds_SRI.min(axis=(1, 2))  # whatever else runs on the machine only adds
    layer_seconds = dict(zip(shapes, ((seconds_S[1:] - seconds_S[0]) / COPIES).clip(min=1e-9), strict=True))
    heads = _isotonic(np.array([layer_seconds[size, fewest] for size in wanted["heads"]]))
    neurons = _isotonic(np.array([layer_seconds[most, size] for size in wanted["neurons"]]))
    return {
        kind: dict(zip(wanted[kind], map(float, values), strict=True))
        for kind, values in (("heads", heads), ("neurons", neurons - neurons[0]))
    }


class Stack(nn.Module):
    """Run layers one after another, or, of last layers, side by side; from token ids to vectors, as a model does."""

    def __init__(self, words: nn.Module, layers: Sequence[Layer], place: str) -> None:
        super().__init__()
        self.words, self.place = words, place
        self.layers = nn.ModuleList(LeanLayer(layer, first_token=place == "last") for layer in layers)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the first token's vectors (B, D)."""
        hidden_BTD: Tensor = self.words(input_ids)
        mask_B11T = attention_mask.to(torch.bool)[:, None, None, :]
        if self.place == "last":
            total = hidden_BTD[:, :1]
            for layer in self.layers:
                total = total + layer(hidden_BTD, mask_B11T)
            return total[:, 0]
        mask_B1TT = mask_B11T.expand(-1, -1, input_ids.shape[1], -1)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, mask_B1TT)
        return hidden_BTD[:, 0]


def _stack(model: nn.Module, shape: tuple[int, int] | None, bits: int, place: str) -> Stack:
    """Build layers of so many heads and neurons, with random weights; without these, what stands around them."""
    config: Any = copy.deepcopy(model.config)
    family = anatomy_of(model).family
    setattr(config, family.config_layers, COPIES)
    config.vocab_size = WORDS
    with torch.random.fork_rng():
        built = type(model)(config).eval()
        words = nn.Embedding(WORDS, rows_of(anatomy_of(built).layers[0].part("output")))
    anatomy = anatomy_of(built)
    for layer in anatomy.layers:
        if shape is not None:
            narrow_heads(built, layer=layer.index, heads=list(range(shape[0])))
            narrow_neurons(built, layer=layer.index, neurons=list(range(shape[1])))
    for name in anatomy.linear_names() if bits == 8 else ():
        if cast(Tensor, built.get_submodule(name).weight).numel():  # none where no neurons are a size
            quantize_linear(built, module=name, bits=8, activations="dynamic")
    return Stack(words, anatomy.layers if shape else [], place).eval().requires_grad_(False)


def _clock(
    model: nn.Module, shape: tuple[int, int] | None, bits: int, place: str, file: Path, runtime: str, threads: int
) -> Clocked:
    """Return what times a stack of this shape."""
    stack = _stack(model, shape, bits, place)
    if runtime == "torch":
        return _TorchClock(stack)
    file = file.with_suffix(".xml") if runtime == "openvino" else file
    sample = {"input_ids": torch.ones(2, 8, dtype=torch.int64), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    sample["attention_mask"][1, 5:] = 0
    with sdpa_kernel(SDPBackend.MATH):
        (write_openvino if runtime == "openvino" else write_onnx)(stack, sample, file)
    return _FileClock(file, runtime, threads)


class _FileClock:
    """Open an artifact each time it is to be timed, and let it go."""

    def __init__(self, file: Path, runtime: str, threads: int) -> None:
        self.file, self.runtime, self.threads = file, runtime, threads

    def time(self, batches: Sequence[Batch], warm: Sequence[Batch] = ()) -> list[float]:
        """Return the seconds of each batch."""
        artifact = open_artifact(self.file, self.runtime, self.threads)
        prepared, before = ([artifact.prepare(batch) for batch in some] for some in (batches, warm))
        seconds = time_calls(artifact.run, prepared, before)
        settle()
        return seconds


class _TorchClock:
    """Time a stack in PyTorch."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def time(self, batches: Sequence[Batch], warm: Sequence[Batch] = ()) -> list[float]:
        """Return the seconds of each batch."""
        prepared, before = (
            [{name: torch.from_numpy(value) for name, value in batch.items()} for batch in some]
            for some in (batches, warm)
        )
        with torch.inference_mode():
            return time_calls(lambda batch: self.stack(**batch), prepared, before)


def _spread(sizes: list[int]) -> list[int]:
    """Return at most `TIMED_SIZES` of the sizes, evenly spread, both ends among them; and 0, where it is a size.

    A block that is gone spares what any block costs, so nothing between 0 and the smallest is interpolated.

    >>> _spread(list(range(13)))
    [0, 1, 3, 5, 8, 10, 12]
    """
    some = [size for size in sizes if size]
    places = np.linspace(0, len(some) - 1, min(TIMED_SIZES, len(some)))
    return [0] * (0 in sizes) + [some[round(place)] for place in places]


def _isotonic(values: np.ndarray) -> np.ndarray:
    """Return the nearest values, in squares, that never fall: neighbours that do are pooled.

    >>> _isotonic(np.array([1.0, 4.0, 2.0, 5.0])).tolist()
    [1.0, 3.0, 3.0, 5.0]
    """
    pools: list[list[float]] = []
    for value in values:
        pools.append([float(value)])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return np.array([np.mean(pool) for pool in pools for _ in pool])


def _conditions(
    model: nn.Module, wanted: Mapping[str, list[int]], length: int, runtime: str, bits: int, place: str, threads: int
) -> dict[str, Any]:
    """Return all the seconds depend on."""
    layer = anatomy_of(model).layers[0]
    found, packages = machine(), versions()
    return {
        "device": found["device"],
        "instruction_sets": list(found["instruction_sets"]),
        "packages": {name: packages.get(name) for name in ("niwaki", "torch", runtime)},
        "runtime": runtime,
        "bits": bits,
        "threads": threads,
        "length": length,
        "place": place,
        "family": layer.family.name,
        "hidden": rows_of(layer.part("output")),
        "head_size": layer.head_size,
        "sizes": dict(wanted),
    }
