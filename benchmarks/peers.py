"""What ONNX Runtime and OpenVINO make of a model without niwaki, by their own recommended recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import runs_folder
from torch import nn

from niwaki.anatomy import label_names, longest_input
from niwaki.artifacts import artifact_of
from niwaki.checkpoint import load, load_tokenizer
from niwaki.measure import Measurement, Subject, count_macs_per_token, count_parameters, measure_subjects
from niwaki.runtime import default_threads
from niwaki.task import Encoded, Task

#: The runtime of each export.
RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino"}
INPUTS = ("input_ids", "attention_mask")


def beside_peers(
    base: Path, runs: Mapping[str, Path], task: Task, exports: Sequence[str] = tuple(RUNTIMES), rounds: int = 12
) -> list[Measurement]:
    """Measure base, peers and runs, in each runtime, in one session, interleaved; the base in PyTorch is the first."""
    model, tokenizer = load(base), load_tokenizer(base)
    data = task.encode(tokenizer, longest_input(model, tokenizer), label_names(model))
    subjects = [Subject(name="base", runtime="torch", path=base, **counted(base, data.evaluation))]
    subjects += peer_subjects(base, data.train, runs_folder("peers"), counted(base, data.evaluation))
    for name, folder in runs.items():
        for to in exports:
            path, parity = artifact_of(folder, to, data.evaluation, folder / "artifacts")
            counts = counted(folder, data.evaluation)
            subjects.append(Subject(name=name, runtime=RUNTIMES[to], path=path, parity=parity, **counts))
    return measure_subjects(subjects, data.evaluation, task.metric, threads=default_threads(), rounds=rounds)


def counted(folder: Path, rows: Encoded) -> dict[str, Any]:
    model = load(folder)
    return {"parameters": count_parameters(model), "macs_per_token": count_macs_per_token(model, rows)}


def peer_subjects(base: Path, train: Encoded | None, folder: Path, counts: dict[str, Any]) -> list[Subject]:
    """Make every form of the base that ONNX Runtime and OpenVINO offer."""
    assert train is not None
    model = load(base)
    rows = np.random.default_rng(0).permutation(len(train))[:300]
    batch = train.batch(rows[:4])
    calibration = [{name: train.batch([row])[name].numpy() for name in INPUTS} for row in rows]
    fp32 = folder / "base-fp32.onnx"
    dynamic, static = folder / "base-dynamic-int8.onnx", folder / "base-static-int8.onnx"
    ir, int8_ir = folder / "openvino" / "base.xml", folder / "openvino" / "base-int8.xml"
    made_once(fp32, lambda: plain_onnx(model, batch, fp32))
    made_once(dynamic, lambda: onnx_dynamic_int8(fp32, dynamic))
    made_once(static, lambda: onnx_static_int8(fp32, calibration, static))
    made_once(ir, lambda: save_openvino(plain_openvino(model, batch), ir))
    made_once(int8_ir, lambda: save_openvino(openvino_int8(plain_openvino(model, batch), calibration), int8_ir))
    return [
        Subject(name="onnxruntime fp32", runtime="onnxruntime", path=fp32, **counts),
        Subject(name="onnxruntime dynamic int8", runtime="onnxruntime", path=dynamic, **counts),
        Subject(name="onnxruntime static int8", runtime="onnxruntime", path=static, **counts),
        Subject(name="openvino own precision", runtime="openvino", path=ir, **counts),
        Subject(name="openvino int8 (nncf)", runtime="openvino", path=int8_ir, **counts),
    ]


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
