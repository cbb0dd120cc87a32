"""Open one graph in one file, for ONNX Runtime or OpenVINO, with a fixed number of threads."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Graph:
    """Hold an opened graph.

    Attributes:
        inputs: names of the inputs it declares.
        outputs: names of the outputs that `run` gives, in their order.
        precision: the floating-point precision in force: "f32", "bf16", or "as in the file".
        notes: what the file tells of itself, by name.
        run: from arrays by their name to the outputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    precision: str
    notes: Mapping[str, str]
    run: Callable[[Mapping[str, Any]], Sequence[Array]]


#: Whose threads a graph computes on: its own; its own, which rest as soon as a call has ended; or those that all graphs
#: of the process have in common. Threads of ONNX Runtime spin for a while after a call, and would take the cores from
#: the graph that is next: a chain of three is four times slower then.
Pool = Literal["own", "resting", "common"]


def common_threads(threads: int) -> None:
    """Make the threads that all graphs of ONNX Runtime in this process compute on; none may have its own then."""
    import_runtime("onnxruntime", "onnx").set_global_thread_pool_sizes(threads, 1)


def open_onnxruntime(
    path: Path, threads: int, precision: str | None, wanted: Sequence[str], pool: Pool = "own"
) -> Graph:
    """Open an ONNX file on ONNX Runtime's own CPU kernels.

    Args:
        path: the .onnx file.
        threads: of one inference.
        precision: None; the runtime computes in the types of the file.
        wanted: outputs that are to be given where the graph has them; its first output where it has none of them.
        pool: whose threads it computes on; for "common" after `common_threads`.

    Raises:
        NiwakiError: a precision is given, or ONNX Runtime cannot be imported.
    """
    onnxruntime = import_runtime("onnxruntime", "onnx")
    if precision is not None:
        raise NiwakiError(
            f"precision is {precision!r}",
            expected="none: ONNX Runtime computes in the types of the file",
            fix="precision: null",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.use_per_session_threads = pool != "common"
    if pool == "resting":
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # Spinning between operators stays on, as in a deployment that changes no defaults. The worker waits for
    # its end after each block instead (see `worker.settle`).
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    given = [name for name in wanted if name in names] or names[:1]
    inputs = tuple(declared.name for declared in session.get_inputs())
    notes = dict(session.get_modelmeta().custom_metadata_map)

    def run(arrays: Mapping[str, Any]) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(given, arrays)
        return outputs

    return Graph(inputs, tuple(given), "as in the file", notes, run)


def open_openvino(path: Path, threads: int, precision: str | None, wanted: Sequence[str], pool: Pool = "own") -> Graph:
    """Open an OpenVINO IR (or ONNX) file on OpenVINO's CPU device, one stream; else as `open_onnxruntime`.

    Args:
        path: the .xml file.
        threads: of one inference.
        precision: "f32", "bf16", or None for the runtime's own choice.
        wanted: as for ONNX Runtime.
        pool: makes no difference, the graphs of a process have their threads in common.
    """
    openvino = import_runtime("openvino", "openvino")
    # LATENCY means one stream with all the threads: what one request at a time is served best by.
    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision is not None:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    ports = {name: port for port in compiled.outputs for name in port.get_names()}
    given = [name for name in wanted if name in ports]
    outputs = [ports[name] for name in given] or [compiled.output(0)]
    request = compiled.create_infer_request()

    def run(arrays: Mapping[str, Any]) -> Sequence[Array]:
        # Sharing spares two copies. Every call shares: a copying one after it would fail on a bigger shape.
        results = request.infer(dict(arrays), share_inputs=True, share_outputs=True)
        return [np.array(results[port]) for port in outputs]  # the next call overwrites what is shared

    inputs = tuple(port.get_any_name() for port in compiled.inputs)
    in_force = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    return Graph(inputs, tuple(given), in_force, {}, run)


#: What opens the graphs of each runtime.
OPENERS: dict[str, Callable[[Path, int, str | None, Sequence[str], Pool], Graph]] = {
    "onnxruntime": open_onnxruntime,
    "openvino": open_openvino,
}


def import_runtime(package: str, extra: str) -> Any:
    """Import a runtime's package, or say how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise NiwakiError(
            f"{package} cannot be imported ({error})",
            expected=f"{package} beside niwaki",
            fix=f"pip install 'niwaki[{extra}]'" if extra else f"pip install {package}",
        ) from error
