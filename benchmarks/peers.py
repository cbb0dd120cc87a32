"""What ONNX Runtime and OpenVINO make of a model without niwaki, by their own recommended recipes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

INPUTS = ("input_ids", "attention_mask")


class Logits(nn.Module):
    """Return the logits alone, from inputs by position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def sample(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(batch[name] for name in INPUTS)


def plain_onnx(model: nn.Module, batch: dict[str, torch.Tensor], path: Path, opset: int = 23) -> Path:
    """Export with PyTorch's own exporter, in fp32."""
    import onnx

    dynamic = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in INPUTS)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        Logits(model).eval(),
        sample(batch),
        str(path),
        dynamo=True,
        opset_version=opset,
        input_names=list(INPUTS),
        output_names=["logits"],
        dynamic_shapes=dynamic,
        external_data=False,
        verbose=False,
    )
    # The quantizers transpose Gemm weights in place and then stumble over the shapes noted for them.
    graph_model = onnx.load(path)
    del graph_model.graph.value_info[:]
    onnx.save(graph_model, path)
    return path


def onnx_dynamic_int8(fp32: Path, path: Path) -> Path:
    """Quantize with ONNX Runtime's `quantize_dynamic`, in the form that is fastest on x86 with VNNI or AMX."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        fp32,
        path,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )
    return path


def onnx_static_int8(fp32: Path, rows: list[dict[str, np.ndarray]], path: Path) -> Path:
    """Quantize with ONNX Runtime's `quantize_static` (matrix products alone: the mask's addition breaks otherwise)."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(rows)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.rows, None)

    quantize_static(
        fp32,
        path,
        Reader(),
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"MatMulConstBOnly": True},
    )
    return path


def plain_openvino(model: nn.Module, batch: dict[str, torch.Tensor]) -> Any:
    """Convert straight from `torch.export`, the faster of OpenVINO's two paths."""
    import openvino as ov

    dynamic = tuple({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC} for _ in INPUTS)
    with torch.inference_mode(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        program = torch.export.export(Logits(model).eval(), sample(batch), dynamic_shapes=dynamic)
    converted = ov.convert_model(program)
    for port, name in zip(converted.inputs, INPUTS, strict=True):
        port.get_tensor().set_names({name})
    return converted


def openvino_int8(converted: Any, rows: list[dict[str, np.ndarray]]) -> Any:
    """Quantize with NNCF's post-training quantization for transformers (SmoothQuant, fast bias correction)."""
    import nncf

    return nncf.quantize(
        converted, nncf.Dataset(rows), model_type=nncf.ModelType.TRANSFORMER, subset_size=min(300, len(rows))
    )


def save_openvino(converted: Any, path: Path) -> Path:
    import openvino as ov

    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(converted, str(path), compress_to_fp16=False)
    return path


def made_once(path: Path, make: Callable[[], Any]) -> Path:
    """Make an artifact unless it is there."""
    if not path.is_file():
        make()
    return path
