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
import torch
from torch import nn

from niwaki.anatomy import anatomy_of, uses_of
from niwaki.bits import unpack_bits
from niwaki.errors import MismatchError
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear
from niwaki.layers.packed import PackedEmbedding, PackedLinear

Array = npt.NDArray[Any]


@dataclass
class Weights:
    """Hold the integer rows of products, and the integer tables rows are gathered from."""

    rows: Counter[bytes] = field(default_factory=Counter)
    tables: Counter[bytes] = field(default_factory=Counter)

    def add_product(self, weight_OI: Array) -> None:
        """Add the rows of one product's weight."""
        self.rows.update(row.tobytes() for row in np.ascontiguousarray(weight_OI))

    def update(self, others: Weights) -> None:
        """Add those of another file."""
        self.rows.update(others.rows)
        self.tables.update(others.tables)

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
    for name, integers in _products(model):
        rows = Counter(row.tobytes() for row in integers)
        if rows - unfound:
            missing.append(name)
        unfound -= rows
    missing += [name for name, table in _word_tables(model) if table.tobytes() not in found.tables]
    if missing or unfound:
        what = (
            f"{', '.join(missing)} not found as integers" if missing else f"{unfound.total()} rows of integers too many"
        )
        raise MismatchError(
            f"the artifact does not hold the model's integers: {what}",
            expected="every quantized layer as integers in the file",
            place=place,
        )


def _products(model: nn.Module) -> Iterator[tuple[str, Array]]:
    """Yield the integers (O, I) of each quantized linear, around 0 where they are stored so, once for each product."""
    uses = uses_of(model)
    repeated = tuple(f"{layer.path}." for layer in anatomy_of(model).layers) if uses > 1 else ()
    for name, module in model.named_modules(remove_duplicate=False):
        times = uses if name.startswith(repeated) else 1
        if isinstance(module, QuantizedLinear):
            yield from [(name, module.weight.numpy())] * times
        elif isinstance(module, PackedLinear):
            yield from [(name, module.integers().numpy())] * times


def _word_tables(model: nn.Module) -> Iterator[tuple[str, Array]]:
    """Yield the quantized tables except that of token types, of which a single row may be all that is used."""
    for name, module in model.named_modules():
        if name.endswith("token_type_embeddings"):
            continue
        if isinstance(module, QuantizedEmbedding):
            yield name, module.weight.numpy()
        elif isinstance(module, PackedEmbedding):
            yield name, (module.integers().to(torch.int16) - module.grid.middle).to(torch.int8).numpy()


def weights_in_onnx(path: Path) -> Weights:
    """Read the integers of an ONNX file: (I, O) behind a product, (V, D) behind a lookup, or packed in blocks."""
    import onnx
    from onnx import numpy_helper

    graphs = list(_with_branches(onnx.load(path).graph))
    nodes = [node for graph in graphs for node in graph.node]
    kinds = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    arrays = {tensor.name: tensor for graph in graphs for tensor in graph.initializer if tensor.data_type in kinds}
    widened = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Cast"}
    found = Weights()
    for node in nodes:
        name = node.input[1] if node.op_type in ("MatMul", "MatMulInteger") else ""
        name = widened.get(name, name) if node.op_type == "MatMul" else name
        if name in arrays:
            found.add_product(numpy_helper.to_array(arrays[name]).T)
        elif node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
            packed = numpy_helper.to_array(arrays[node.input[1 if node.op_type == "MatMulNBits" else 0]])
            settings = {attribute.name: attribute.i for attribute in node.attribute}
            _add_blocks(found, packed, settings["bits"], settings.get("K"))
        elif node.op_type in ("Gather", "Slice") and node.input[0] in arrays:
            found.add_table(numpy_helper.to_array(arrays[node.input[0]]))
    return found


def _with_branches(graph: Any) -> Iterator[Any]:
    """Yield a graph and those inside its nodes."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("g"):
            yield from _with_branches(attribute.g)


def _add_blocks(found: Weights, packed: Array, bits: int, width: int | None) -> None:
    """Add integers that stand packed in blocks: of a product (O, G, P), or of a table (V, P) around its middle."""
    flat = torch.from_numpy(packed.copy()).flatten(1)
    integers = unpack_bits(flat, bits, width or flat.shape[1] * 8 // bits)
    if width is not None:
        found.add_product(integers.numpy())
    else:
        found.add_table((integers.to(torch.int16) - 2 ** (bits - 1)).to(torch.int8).numpy())


def weights_in_openvino(path: Path) -> Weights:
    """Read the integers of an OpenVINO IR: (O, I) widened and scaled before a product, (V, D) before a lookup."""
    import openvino

    found = Weights()
    model = openvino.Core().read_model(path)  # held: the constants' data goes with it
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in ("MatMul", "Gather", "Slice"):
            continue
        source = node.input_value(1 if kind == "MatMul" else 0).get_node()
        middle = 0
        while source.get_type_name() in ("Reshape", "Multiply", "Subtract", "Convert"):
            if source.get_type_name() == "Subtract" and kind != "MatMul":
                middle = int(_integers(_constant(source.input_value(1).get_node())).flat[0])
            source = source.input_value(0).get_node()
        if source.get_type_name() != "Constant" or source.get_element_type().to_string() not in ("i8", "u4", "u8"):
            continue
        integers = _integers(source)
        if kind == "MatMul":
            transposed = node.get_attributes()["transpose_b"]
            found.add_product(integers if transposed else integers.T)
        elif middle:
            found.add_table((integers.astype(np.int16) - middle).astype(np.int8))
        else:
            found.add_table(integers)
    return found


def _constant(node: Any) -> Any:
    """Return the constant that a node is, or widens."""
    return node.input_value(0).get_node() if node.get_type_name() == "Convert" else node


def _integers(constant: Any) -> Array:
    """Return the integers of a constant by row, (O, I); those of 4 bits stand two in a byte."""
    shape = tuple(constant.shape)  # of one number: ()
    integers: Array = constant.data
    if constant.get_element_type().to_string() == "u4":
        integers = unpack_bits(torch.from_numpy(integers.copy()), 4, int(np.prod(shape))).numpy()
    return integers.reshape(*shape[:1], -1)
