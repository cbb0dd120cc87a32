"""Write a prepared model as OpenVINO IR, its weights int8 in the .bin file.

OpenVINO knows two forms of an integer product. A constant that is widened and scaled before a product is a compressed
weight: it stays int8 in the file. The same behind a `FakeQuantize`, which rounds to a known range, runs on integers.
There is no operator for a range taken at run time, so inputs with dynamic ranges stay floats here: the weights are the
saved integers, the activations are finer than the model's own.
"""

# I inputs, O outputs

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.export.quiet import quiet
from niwaki.layers.dropping import MOST_TOKENS
from niwaki.layers.packed import Packed


def write_openvino(
    prepared: nn.Module, sample: dict[str, Tensor], path: Path, outputs: Sequence[str] = ("logits",)
) -> None:
    """Trace a prepared model, or a segment of one, and write it as `path` (.xml) and the .bin beside it.

    Args:
        prepared: from the inputs of `sample`, in their order, to logits (B, C), and of a segment to hidden states
            (B, T, D).
        sample: 2 rows or more, at least one of them padded.
        path: the .xml file.
        outputs: their names.
    """
    import openvino

    dynamic = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with quiet(), torch.no_grad():
        extensions = [_fake_quantize(), _to_front(), *_packed(prepared)]
        program = torch.export.export(prepared, tuple(sample.values()), dynamic_shapes=(dynamic,) * len(sample))
        model = openvino.convert_model(program.run_decompositions(_decompositions()), extension=extensions)
        for port, name in zip(model.inputs, sample, strict=True):
            port.get_tensor().set_names({name})
        for port, name in zip(model.outputs, outputs, strict=True):
            port.get_tensor().set_names({name})
        if not any(getattr(module, "activations", "") == "dynamic" for module in prepared.modules()):
            # Else the runtime rounds the inputs of every compressed weight of its own accord.
            model.set_rt_info("0", ["runtime_options", "DYNAMIC_QUANTIZATION_GROUP_SIZE"])
        openvino.save_model(model, path, compress_to_fp16=False)


def _decompositions() -> dict[Any, Any]:
    """Return what each operator of `niwaki.layers.integer` is in plain operators.

    The rounding operators return floats that lie on the integer grid; so the product that follows needs neither scale
    nor zero point.
    """
    operators = torch.ops.niwaki

    def quantize_dynamic(hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return hidden, hidden.new_ones(()), hidden.new_zeros(())

    def linear_int8(
        hidden: Tensor, scale: Tensor, zero: Tensor, weight_OI: Tensor, weight_scale_O: Tensor, bias_O: Tensor | None
    ) -> Tensor:
        return linear_weight_only(hidden.to(torch.float32), weight_OI, weight_scale_O, bias_O)

    def linear_weight_only(hidden: Tensor, weight_OI: Tensor, weight_scale_O: Tensor, bias_O: Tensor | None) -> Tensor:
        wide_OI = weight_OI.to(torch.float32) * weight_scale_O[:, None]
        return nn.functional.linear(hidden, wide_OI, bias_O)

    return {
        operators.quantize_dynamic.default: quantize_dynamic,
        operators.linear_int8.default: linear_int8,
        operators.linear_weight_only.default: linear_weight_only,
    }


def _fake_quantize() -> Any:
    """Return the frontend extension that makes `niwaki::quantize_static` a FakeQuantize of 256 levels."""
    from openvino import Type, opset15
    from openvino.frontend import ConversionExtension

    def convert(node: Any) -> Any:
        hidden, scale, zero = (node.get_input(index) for index in range(3))
        zero = opset15.convert(zero, Type.f32)
        low = opset15.multiply(opset15.negative(zero), scale)
        high = opset15.multiply(opset15.subtract(opset15.constant(255.0, Type.f32), zero), scale)
        return opset15.fake_quantize(hidden, low, high, low, high, 256).outputs()

    return ConversionExtension("niwaki.quantize_static.default", convert)


def _to_front() -> Any:
    """Return the frontend extension that makes `niwaki::to_front` a TopK of as many as the longest row keeps."""
    from openvino import Type, opset15
    from openvino.frontend import ConversionExtension

    def convert(node: Any) -> Any:
        zero, one = (opset15.constant(number, Type.i32) for number in (0, 1))
        wide = opset15.convert(node.get_input(0), Type.i32)
        longest = opset15.reduce_max(opset15.reduce_sum(wide, one), zero)
        tokens = opset15.gather(opset15.shape_of(wide, Type.i32), one, zero)
        place = opset15.range(zero, tokens, one, Type.i32)
        order = opset15.subtract(opset15.multiply(wide, opset15.constant(MOST_TOKENS, Type.i32)), place)
        return [opset15.topk(order, longest, 1, "max", "value", index_element_type=Type.i64).output(1)]

    return ConversionExtension("niwaki.to_front.default", convert)


def _packed(prepared: nn.Module) -> list[Any]:
    """Return the frontend extensions that make packed integers constants of 4 or 8 bits, widened where they are read.

    The layer is known by its packed bytes: what the frontend hands over of it are they.
    """
    from openvino import Type, opset15
    from openvino.frontend import ConversionExtension

    layers = {_key(module.weight.numpy()): module for module in prepared.modules() if isinstance(module, Packed)}

    def weights(node: Any) -> Any:
        packed = layers[_key(node.get_input(1).get_node().get_data())]
        grid, width = packed.grid, packed.width
        kind = Type.u4 if grid.bits <= 4 else Type.u8
        integers = packed.integers().unflatten(1, (-1, grid.columns(width))).numpy()
        zero = torch.full_like(packed.scale, grid.middle) if packed.zero is None else packed.zero
        is_whole = grid.zero != "float"
        middle = opset15.constant(zero[:, :, None].numpy(), kind if is_whole else Type.f32)
        wide = opset15.convert(opset15.constant(integers, kind), Type.f32)
        wide = opset15.subtract(wide, opset15.convert(middle, Type.f32) if is_whole else middle)
        wide = opset15.multiply(wide, opset15.constant(packed.scale[:, :, None].numpy()))
        return opset15.reshape(wide, opset15.constant([len(integers), width]), special_zero=False)

    def product(node: Any) -> Any:
        return opset15.matmul(node.get_input(0), weights(node), False, True).outputs()

    def rows(node: Any) -> Any:
        return opset15.gather(weights(node), node.get_input(0), opset15.constant(0)).outputs()

    named = {"niwaki.linear_packed.default": product, "niwaki.rows_packed.default": rows}
    return [ConversionExtension(name, convert) for name, convert in named.items()]


def _key(packed: np.ndarray) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(packed).tobytes()).digest()
