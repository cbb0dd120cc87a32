"""What of a model's time lies outside of attention, whatever attention is, by the profile of ONNX Runtime.

What exact attention costs over what that costs alone bounds how many times faster any other attention makes the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

#: Operators that attention has none of.
OUTSIDE = {"BiasGelu", "Gelu", "LayerNormalization", "SkipLayerNormalization"}


def share_outside(path: Path, batch: dict[str, Any], *, threads: int, repeats: int = 8) -> float:
    """Return the share of an ONNX model's time, in floats, in products with weights, activations and norms."""
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(repeats):
            session.run(None, batch)
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    return sum(event["dur"] for event in kernels if is_outside(event["args"])) / sum(event["dur"] for event in kernels)


def is_outside(operator: Any) -> bool:
    """The runtime packs weights beforehand, and of a product with them tells one shape; in attention it tells two."""
    with_weights = operator["op_name"] == "MatMul" and len(operator["input_type_shape"]) == 1
    return with_weights or operator["op_name"] in OUTSIDE
