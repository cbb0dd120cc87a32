"""Write a prepared model as ONNX, with the integer operators ONNX Runtime has its fast kernels for.

`DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul -> Add` is what ONNX Runtime turns, when it loads the file, into
one node with scale and bias (`DynamicQuantizeMatMul`, or `MatMulIntegerToFloat` where products share an input). The
file itself holds standard operators only.
"""

# I inputs, O outputs

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from niwaki.export.packed import InBlocks, replaced
from niwaki.export.quiet import quiet
from niwaki.layers.dropping import MOST_TOKENS

if TYPE_CHECKING:
    import onnx_ir

#: Attention is one node from 23 on, GELU from 20 on.
OPSET = 23
#: A protocol buffer ends at 2 GB; bigger weights go to a file beside.
LARGEST_FILE_BYTES = 2**31 - 2**20


def write_onnx(
    prepared: nn.Module, sample: dict[str, Tensor], path: Path, outputs: Sequence[str] = ("logits",)
) -> None:
    """Trace a prepared model, or a segment of one, and write it.

    Args:
        prepared: from the inputs of `sample`, in their order, to logits (B, C), and of a segment to hidden states
            (B, T, D).
        sample: 2 rows or more, at least one of them padded: a size of 1 or a mask of ones would be taken for a
            constant.
        path: the .onnx file.
        outputs: their names.
    """
    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            replaced(prepared, InBlocks),
            tuple(sample.values()),
            input_names=list(sample),
            output_names=list(outputs),
            dynamic_shapes=(dynamic,) * len(sample),
            opset_version=OPSET,
            custom_translation_table=_translations(),
            dynamo=True,
            optimize=False,
            verbose=False,
        )
        assert program is not None
        _optimize(program.model)
        _keep_norms_apart(program.model)
        _hold_once(program.model)
        _forget_tracing(program.model)
        size = sum(value.const_value.nbytes for value in program.model.graph.initializers.values() if value.const_value)
        program.save(path, external_data=size > LARGEST_FILE_BYTES)


def _translations() -> dict[Any, Any]:
    """Return what each operator of `niwaki.layers` becomes in ONNX."""
    from onnxscript import FLOAT, INT64
    from onnxscript import opset23 as op

    def linear_int8(quantized: Any, scale: Any, zero: Any, weight: Any, weight_scale: Any, bias: Any = None) -> Any:
        total = op.MatMulInteger(quantized, op.Transpose(weight, perm=[1, 0]), zero)
        result = op.Mul(op.Cast(total, to=FLOAT.dtype), op.Mul(scale, weight_scale))
        return result if bias is None else op.Add(result, bias)

    def linear_weight_only(hidden: Any, weight: Any, weight_scale: Any, bias: Any = None) -> Any:
        # The runtime widens the weight once, when it loads the file.
        wide = op.Cast(op.Transpose(weight, perm=[1, 0]), to=FLOAT.dtype)
        result = op.Mul(op.MatMul(hidden, wide), weight_scale)
        return result if bias is None else op.Add(result, bias)

    def to_front(stays: Any) -> Any:
        # Any: the types of the operators leave open that numbers here are whole
        zero: Any = op.Constant(value_int=0)
        one: Any = op.Constant(value_int=1)
        along: Any = op.Constant(value_ints=[1])
        most: Any = op.Constant(value_int=MOST_TOKENS)
        wide: Any = op.Cast(stays, to=INT64.dtype)
        counts: Any = op.ReduceSum(wide, along, keepdims=0)
        longest: Any = op.Reshape(op.ReduceMax(counts, keepdims=0), along)
        tokens: Any = op.Gather(op.Shape(stays), one)
        place: Any = op.Range(zero, tokens, one)
        scaled: Any = op.Mul(wide, most)
        order: Any = op.Sub(scaled, place)
        _, index = op.TopK(order, longest)
        return index

    operators = torch.ops.niwaki
    return {
        operators.to_front.default: to_front,
        operators.quantize_dynamic.default: lambda hidden: op.DynamicQuantizeLinear(hidden),
        operators.quantize_static.default: lambda hidden, scale, zero: op.QuantizeLinear(hidden, scale, zero),
        operators.linear_int8.default: linear_int8,
        operators.linear_weight_only.default: linear_weight_only,
    }


def _optimize(model: onnx_ir.Model) -> None:
    """Fold constants, weights' transpositions among them, but never widen an integer weight."""
    import onnx_ir
    from onnxscript import optimizer

    def should_fold(node: onnx_ir.Node) -> bool | None:
        source = node.inputs[0] if node.inputs else None
        widens = node.op_type == "Cast" and source is not None and source.dtype == onnx_ir.DataType.INT8
        return False if widens else None

    optimizer.optimize_ir(model, should_fold=should_fold)


def _hold_once(model: onnx_ir.Model) -> None:
    """Let equal tensors be one, as the weights are that several layers share: tracing and folding gave each its own."""
    held: dict[tuple[Any, ...], Any] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is not None and not value.is_graph_output():
            digest = hashlib.sha256(tensor.tobytes()).digest()
            first = held.setdefault((tensor.dtype, tuple(tensor.shape), digest), value)
            if first is not value:
                value.replace_all_uses_with(first)
                del model.graph.initializers[name]


def _forget_tracing(model: onnx_ir.Model) -> None:
    """Name the free dimensions; drop stack traces, which tell of this machine, and inner shapes, which go stale."""
    import onnx_ir

    for part in (model, model.graph, *model.graph):
        part.metadata_props.clear()
        part.doc_string = None
    for value in (value for node in model.graph for value in node.outputs):
        value.metadata_props.clear()
        if not value.is_graph_output():
            value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        assert value.shape is not None
        free = ["batch"] if value.name == "logits" else ["batch", "length"]
        value.shape = onnx_ir.Shape([*free, *value.shape[len(free) :]])


def _keep_norms_apart(model: onnx_ir.Model) -> None:
    """Write the addition before a layer norm as Sum, so that ONNX Runtime leaves the two apart.

    Its fused SkipLayerNormalization is not vectorised: 44 us against 4 + 9 us for 25 tokens of width 384 (ONNX Runtime
    1.31, one thread), a quarter of a small model's whole time.
    """
    for node in model.graph:
        source = node.inputs[0].producer() if node.op_type == "LayerNormalization" and node.inputs[0] else None
        if source is not None and source.op_type == "Add":
            source.op_type = "Sum"
