"""Run a chain: one graph a segment, each with an exit, and after each only the rows that stay go on.

`chain.json` names the files of the segments, the earliest first, and tells by what rule rows leave; whoever moves a
threshold there moves it for the artifact. Nothing here imports torch.
"""

# B rows of the batch, R rows that are still here, T tokens, D hidden, C classes, E exits

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError
from niwaki.runtime.graphs import OPENERS, Graph, Pool, common_threads
from niwaki.runtime.rule import Rule

Array = npt.NDArray[Any]

#: What a chain is known by.
SUFFIX = ".json"
#: Hidden states as a segment gives them, and as the next one takes them; one graph cannot use a name for both.
HANDED_ON, TAKEN = "next_hidden_states", "hidden_states"
MASK = "attention_mask"


@dataclass(frozen=True)
class ChainFile:
    """Hold what `chain.json` says.

    Attributes:
        rule: by which rows leave.
        segments: names of the graph files beside it, one more than there are exits.
        rows_independent: whether a row's logits do not depend on the other rows of its batch.
    """

    rule: Rule
    segments: tuple[str, ...]
    rows_independent: bool

    @classmethod
    def read(cls, path: Path) -> ChainFile:
        """Read a chain's file.

        Raises:
            NiwakiError: it is no chain, or names a file that is not there.
        """
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise NiwakiError(f"{error}", expected="the JSON of a chain of segments", place=str(path)) from error
        if not isinstance(record, dict):
            raise NiwakiError(f"it holds a {type(record).__name__}", expected="a chain of segments", place=str(path))
        rule, names = Rule.read(record, str(path)), record.get("segments")
        if not isinstance(names, list) or len(names) != len(rule.layers) + 1 or not all(map(_is_name, names)):
            raise NiwakiError(
                f"segments is {names!r}",
                expected=f"the names of {len(rule.layers) + 1} files, one for each exit and one for the end",
                place=str(path),
            )
        if absent := [name for name in names if not path.with_name(name).is_file()]:
            raise NiwakiError(
                f"{absent[0]} is not there", expected="every segment", fix="niwaki export RUN", place=str(path)
            )
        return cls(rule, tuple(names), record.get("rows_independent") is True)

    def write(self, path: Path) -> None:
        """Write the file."""
        record = {**self.rule.record(), "segments": self.segments, "rows_independent": self.rows_independent}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _is_name(value: object) -> bool:
    """Say whether a value names a file of the same folder."""
    return isinstance(value, str) and Path(value).name == value


@dataclass(frozen=True)
class Chain:
    """Hold the opened segments of a chain, and run batches through them."""

    rule: Rule
    graphs: tuple[Graph, ...]

    def classify(self, inputs: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return logits (B, C), in the order of the rows, and at which exit each left, (B,); E for the end."""
        rows_R, mask_RT = np.arange(len(inputs[MASK])), inputs[MASK]
        exits_B = np.full(len(rows_R), len(self.rule.layers))
        seen: list[Array] = []
        logits_RC, hidden_RTD = self._first(inputs)
        logits_BC = logits_RC.copy()
        for exit, graph in enumerate(self.graphs[1:]):
            seen.append(logits_RC)
            leaves_R = self.rule.leaves(seen)
            exits_B[rows_R[leaves_R]] = exit
            if leaves_R.all():
                break
            if leaves_R.any():
                stays_R = ~leaves_R
                rows_R, seen = rows_R[stays_R], [logits[stays_R] for logits in seen]
                mask_RT, hidden_RTD = _without_padding(mask_RT[stays_R], hidden_RTD[stays_R])
            logits_RC, hidden_RTD = self._next(graph, hidden_RTD, mask_RT)
            logits_BC[rows_R] = logits_RC
        return logits_BC, exits_B

    def every(self, inputs: Mapping[str, Array]) -> Array:
        """Return the logits (E + 1, B, C) of every exit and of the end: no row leaves."""
        logits_BC, hidden_BTD = self._first(inputs)
        found = [logits_BC]
        for graph in self.graphs[1:]:
            logits_BC, hidden_BTD = self._next(graph, hidden_BTD, inputs[MASK])
            found.append(logits_BC)
        return np.stack(found)

    def _first(self, inputs: Mapping[str, Array]) -> Sequence[Array]:
        """Return logits and hidden states of the first exit."""
        graph = self.graphs[0]
        return graph.run({name: inputs[name] for name in graph.inputs})

    def _next(self, graph: Graph, hidden_RTD: Array, mask_RT: Array) -> Sequence[Array]:
        """Return logits and hidden states of a later exit; of the end the former, and nothing to go on with."""
        outputs = graph.run({TAKEN: hidden_RTD, MASK: mask_RT})
        return outputs if len(outputs) == 2 else (*outputs, hidden_RTD)


def _without_padding(mask_RT: Array, hidden_RTD: Array) -> tuple[Array, Array]:
    """Drop the tokens at the end that are padding in every row that is left."""
    length = int(np.flatnonzero(mask_RT.any(axis=0)).max(initial=0)) + 1
    if length == mask_RT.shape[1]:
        return mask_RT, hidden_RTD
    return np.ascontiguousarray(mask_RT[:, :length]), np.ascontiguousarray(hidden_RTD[:, :length])


def open_chain(path: Path, runtime: str, threads: int, precision: str | None, alone: bool) -> tuple[Chain, ChainFile]:
    """Open every segment of a chain in one runtime, with the same number of threads.

    Args:
        path: `chain.json`.
        runtime: "onnxruntime" or "openvino".
        threads: of one inference.
        precision: as for a graph.
        alone: nothing else in this process uses the runtime, and the segments may have their threads in common.

    Raises:
        NiwakiError: the file is no chain, or a segment takes or gives other than its place asks for.
    """
    file = ChainFile.read(path)
    wanted = ("logits", HANDED_ON)
    if alone and runtime == "onnxruntime":
        common_threads(threads)
    pool: Pool = "common" if alone else "resting"
    graphs = tuple(OPENERS[runtime](path.with_name(name), threads, precision, wanted, pool) for name in file.segments)
    for index, (name, graph) in enumerate(zip(file.segments, graphs, strict=True)):
        outputs = wanted if index < len(graphs) - 1 else wanted[:1]
        if graph.outputs != outputs or (index > 0 and sorted(graph.inputs) != [MASK, TAKEN]):
            raise NiwakiError(
                f"{name} takes {', '.join(graph.inputs)} and gives {', '.join(graph.outputs)}",
                expected=f"segment {index} of a chain, which gives {' and '.join(outputs)}",
                fix="niwaki export RUN",
                place=str(path),
            )
    return Chain(file.rule, graphs), file
