"""Audit an artifact's weights: every row of integers in the model stands in the file, and runs as integers there.

Quantizers have been known to skip layers in silence, and then only bytes or time tell. The audit reads the file back
and looks for the saved integers row by row, one row an output, so that it does not matter which products were merged.
"""

# I inputs, O outputs, V vocabulary, D width

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from niwaki.errors import MismatchError
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear

Array = npt.NDArray[Any]


@dataclass
class Weights:
    """Hold the integer rows of products, and the integer tables rows are gathered from."""

    rows: Counter[bytes] = field(default_factory=Counter)
    tables: Counter[bytes] = field(default_factory=Counter)

    def add_product(self, weight_OI: Array) -> None:
        """Add the rows of one product's weight."""
        self.rows.update(row.tobytes() for row in np.ascontiguousarray(weight_OI))

    def add_table(self, table_VD: Array) -> None:
        """Add one embedding table."""
        self.tables[np.ascontiguousarray(table_VD).tobytes()] += 1


def audit(model: nn.Module, found: Weights, place: str) -> None:
    """Compare the integers of a model with those found in its artifact.

    Raises:
        MismatchError: integers of the model are missing in the file, with the names of the layers they belong to.
    """
    unfound = Counter(found.rows)
    missing = []
    for name, linear in _quantized_linears(model):
        rows = Counter(row.tobytes() for row in linear.weight.numpy())
        if rows - unfound:
            missing.append(name)
        unfound -= rows
    missing += [name for name, table in _word_tables(model) if table.weight.numpy().tobytes() not in found.tables]
    if missing or unfound:
        what = (
            f"{', '.join(missing)} not found as integers" if missing else f"{unfound.total()} rows of integers too many"
        )
        raise MismatchError(
            f"the artifact does not hold the model's integers: {what}",
            expected="every quantized layer as int8 in the file",
            place=place,
        )


def _quantized_linears(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear]]:
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedLinear):
            yield name, module


def _word_tables(model: nn.Module) -> Iterator[tuple[str, QuantizedEmbedding]]:
    """Yield the quantized tables except that of token types, of which a single row may be all that is used."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding) and not name.endswith("token_type_embeddings"):
            yield name, module


def weights_in_onnx(path: Path) -> Weights:
    """Read the int8 weights of an ONNX file: (I, O) behind a product, (V, D) behind a lookup."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    arrays = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    widened = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    found = Weights()
    for node in graph.node:
        name = node.input[1] if node.op_type in ("MatMul", "MatMulInteger") else ""
        name = widened.get(name, name) if node.op_type == "MatMul" else name
        if name in arrays:
            found.add_product(numpy_helper.to_array(arrays[name]).T)
        elif node.op_type in ("Gather", "Slice") and node.input[0] in arrays:
            found.add_table(numpy_helper.to_array(arrays[node.input[0]]))
    return found


def weights_in_openvino(path: Path) -> Weights:
    """Read the int8 weights of an OpenVINO IR: (O, I) widened and scaled before a product, (V, D) before a lookup."""
    import openvino

    found = Weights()
    for node in openvino.Core().read_model(path).get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Gather", "Slice"):
            continue
        source = node.input_value(1 if kind == "MatMul" else 0).get_node()
        while source.get_type_name() in ("Convert", "Multiply") and kind == "MatMul":
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant" or source.get_element_type() != openvino.Type.i8:
            continue
        if kind == "MatMul":
            transposed = node.get_attributes()["transpose_b"]
            found.add_product(source.data if transposed else source.data.T)
        else:
            found.add_table(source.data)
    return found
