"""Join a chain into one ONNX file whose later segments stand in branches that run only while a row stays.

No runner is needed: ONNX Runtime itself asks, after each exit, whether all rows of the batch have left. At batch 1 that
saves what the chain saves, and a call for each segment. In a batch it saves less: rows that have left keep their
answer, but are computed on until the last one leaves. The file gives `logits` (B, C), and `exits` (B,), where each row
left.
"""

# B batch, C classes, E exits

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.export.onnx_file import LARGEST_FILE_BYTES
from niwaki.runtime.chain import HANDED_ON, MASK, TAKEN, ChainFile
from niwaki.runtime.one_file import EXITS
from niwaki.runtime.rule import Rule

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

OUTPUTS = ("logits", EXITS)


def write_one_file(chain: Path, path: Path) -> None:
    """Write the segments of a chain as one file.

    Args:
        chain: chain.json of segments for ONNX Runtime.
        path: the .onnx file.

    Raises:
        NiwakiError: it would be more than a protocol buffer holds.
    """
    import onnx

    file = ChainFile.read(chain)
    segments = [chain.with_name(name) for name in file.segments]
    size = sum(segment.stat().st_size for part in segments for segment in part.parent.glob(f"{part.name}*"))
    if size > LARGEST_FILE_BYTES:
        raise NiwakiError(
            f"the segments have {size / 1e9:.1f} GB together",
            expected="2 GB at most",
            fix="chain.json",
            place=str(path),
        )
    models = [onnx.load(segment) for segment in segments]
    first = models[0]
    graph = _Stages(file.rule, [model.graph for model in models]).graph()
    joined = onnx.helper.make_model(graph, opset_imports=_domains(models), ir_version=first.ir_version)
    onnx.helper.set_model_props(joined, {EXITS: json.dumps(file.rule.record())})
    onnx.save(joined, path)


def _domains(models: Sequence[ModelProto]) -> list[Any]:
    """Return the operator sets of all models, each once."""
    return list({domain.domain: domain for model in models for domain in model.opset_import}.values())


def _hold_once(segments: Sequence[GraphProto]) -> None:
    """Take tensors out of segments that one before them holds; a branch sees what stands outside of it.

    Layers that share weights, or run again and again, are then in the file as often as in the model: once.
    """
    held: dict[bytes, str] = {}
    for segment in segments:
        renamed = {}
        for tensor in segment.initializer:
            name, tensor.name = tensor.name, ""
            first = held.setdefault(hashlib.sha256(tensor.SerializeToString(deterministic=True)).digest(), name)
            tensor.name = name
            if first != name:
                renamed[name] = first
        for at in reversed(range(len(segment.initializer))):
            if segment.initializer[at].name in renamed:
                del segment.initializer[at]
        for node in segment.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]


@dataclass
class _Graph:
    """Gather what a graph, or a branch, is made of."""

    nodes: list[Any] = field(default_factory=list)
    tensors: list[Any] = field(default_factory=list)

    def node(self, kind: str, inputs: Sequence[str], output: str, **settings: Any) -> str:
        """Add a node and return its output's name."""
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **settings))
        return output

    def constant(self, name: str, value: Any) -> str:
        """Add a tensor and return its name."""
        from onnx import numpy_helper

        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name


@dataclass(frozen=True)
class _Before:
    """Name what is known before a segment: its states, which rows have left, with what, and how heads agreed."""

    states: str = ""
    left_B: str = ""
    logits_BC: str = ""
    exits_B: str = ""
    class_B: str = ""
    agreeing_B: str = ""


class _Stages:
    """Build the graph of a chain: a segment, the question who leaves, and in a branch the rest."""

    def __init__(self, rule: Rule, graphs: Sequence[GraphProto]) -> None:
        from onnx import compose

        self.rule = rule
        self.source = graphs[0]
        self.classes = graphs[0].output[0].type.tensor_type.shape.dim[1].dim_value
        self.segments = [compose.add_prefix_graph(graph, f"segment-{at}/") for at, graph in enumerate(graphs)]
        _hold_once(self.segments)

    def graph(self) -> GraphProto:
        """Return the whole graph."""
        from onnx import TensorProto, helper

        whole = _Graph()
        logits, exits = self._stage(0, _Before(), whole)
        whole.node("Identity", [logits], OUTPUTS[0])
        whole.node("Identity", [exits], OUTPUTS[1])
        outputs = [
            helper.make_tensor_value_info(OUTPUTS[0], TensorProto.FLOAT, ["batch", self.classes]),
            helper.make_tensor_value_info(OUTPUTS[1], TensorProto.INT64, ["batch"]),
        ]
        return helper.make_graph(whole.nodes, "exits", list(self.source.input), outputs, whole.tensors)

    def _stage(self, at: int, before: _Before, into: _Graph) -> tuple[str, str]:
        """Add a segment and all that follows it; return the names of the logits and exits of all rows."""
        segment, mine = self.segments[at], f"exit-{at}/"
        for port in segment.input:  # what the segment calls its inputs, from what they are called outside
            name = port.name.removeprefix(f"segment-{at}/")
            into.node("Identity", [before.states if name == TAKEN else name], port.name)
        into.nodes.extend(segment.node)
        into.tensors.extend(segment.initializer)
        logits_BC = f"segment-{at}/logits"
        rows = into.node("Shape", [MASK], f"{mine}rows", start=0, end=1)
        exits_B = into.node("Expand", [into.constant(f"{mine}number", np.array([at])), rows], f"{mine}exits")
        if at > 0:  # rows that have left keep what they left with
            column = into.constant(f"{mine}column", np.array([1]))
            left_B1 = into.node("Unsqueeze", [before.left_B, column], f"{mine}left_before_column")
            exits_B = into.node("Where", [before.left_B, before.exits_B, exits_B], f"{mine}exits_of_all")
            kept_BC = into.node("Where", [left_B1, before.logits_BC, logits_BC], f"{mine}logits_of_all")
        else:
            kept_BC = logits_BC
        if at == len(self.rule.thresholds):
            return kept_BC, exits_B
        sure_B, class_B, agreeing_B = self._sureness(logits_BC, rows, before, into, mine)
        threshold = into.constant(f"{mine}threshold", np.float32(self.rule.thresholds[at]))
        left_B = into.node("GreaterOrEqual", [sure_B, threshold], f"{mine}leaves")
        left_B = into.node("Or", [left_B, before.left_B], f"{mine}left") if at > 0 else left_B
        states = f"segment-{at}/{HANDED_ON}"
        after = _Before(states, left_B, kept_BC, exits_B, class_B, agreeing_B)
        return self._branch(at, after, into, mine)

    def _branch(self, at: int, after: _Before, into: _Graph, mine: str) -> tuple[str, str]:
        """Add the question whether all rows have left, and the rest behind it; return the names of what comes of it."""
        from onnx import TensorProto, helper

        as_numbers = into.node("Cast", [after.left_B], f"{mine}left_as_numbers", to=TensorProto.INT32)
        least = into.node("ReduceMin", [as_numbers], f"{mine}least", keepdims=0)
        all_left = into.node("Cast", [least], f"{mine}all_left", to=TensorProto.BOOL)
        done, rest = _Graph(), _Graph()
        done.node("Identity", [after.logits_BC], f"{mine}done_logits")
        done.node("Identity", [after.exits_B], f"{mine}done_exits")
        logits, exits = self._stage(at + 1, after, rest)
        branches = {
            name: helper.make_graph(
                branch.nodes,
                f"{mine}{name}",
                [],
                [
                    helper.make_tensor_value_info(ends[0], TensorProto.FLOAT, ["batch", self.classes]),
                    helper.make_tensor_value_info(ends[1], TensorProto.INT64, ["batch"]),
                ],
                branch.tensors,
            )
            for name, branch, ends in (
                ("then_branch", done, (f"{mine}done_logits", f"{mine}done_exits")),
                ("else_branch", rest, (logits, exits)),
            )
        }
        ends = [f"{mine}logits_in_the_end", f"{mine}exits_in_the_end"]
        into.nodes.append(helper.make_node("If", [all_left], ends, name=f"{mine}if", **branches))
        return ends[0], ends[1]

    def _sureness(self, logits_BC: str, rows: str, before: _Before, into: _Graph, mine: str) -> tuple[str, str, str]:
        """Add how sure the heads are; return its name, and of patience those of the classes and how many agreed."""
        from onnx import TensorProto

        last = into.constant(f"{mine}last", np.array([-1]))
        if self.rule.by == "probability":
            probabilities = into.node("Softmax", [logits_BC], f"{mine}probabilities", axis=-1)
            return into.node("ReduceMax", [probabilities, last], f"{mine}sureness", keepdims=0), "", ""
        if self.rule.by == "entropy":
            logs = into.node("LogSoftmax", [logits_BC], f"{mine}log_probabilities", axis=-1)
            probabilities = into.node("Exp", [logs], f"{mine}probabilities")
            parts = into.node("Mul", [probabilities, logs], f"{mine}parts")
            negative = into.node("ReduceSum", [parts, last], f"{mine}negative_entropy", keepdims=0)
            most = into.constant(f"{mine}most", np.float32(np.log(self.classes)))
            share = into.node("Div", [negative, most], f"{mine}share")
            one = into.constant(f"{mine}one", np.float32(1))
            return into.node("Add", [share, one], f"{mine}sureness"), "", ""
        class_B = into.node("ArgMax", [logits_BC], f"{mine}class", axis=-1, keepdims=0)
        one = into.constant(f"{mine}one", np.array([1.0], np.float32))
        if not before.class_B:
            agreeing = into.node("Expand", [one, rows], f"{mine}agreeing")
        else:
            same_B = into.node("Equal", [class_B, before.class_B], f"{mine}same")
            same_B = into.node("Cast", [same_B], f"{mine}same_as_number", to=TensorProto.FLOAT)
            counted = into.node("Mul", [same_B, before.agreeing_B], f"{mine}counted")
            agreeing = into.node("Add", [counted, one], f"{mine}agreeing")
        return agreeing, class_B, agreeing
