"""Artifacts opened here and in processes of their own, and how their deaths are told."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from niwaki.errors import NiwakiError
from niwaki.runtime import default_threads, open_artifact, open_worker, size_on_disk
from niwaki.runtime.process import _ending
from niwaki.runtime.worker import peak_memory_bytes, time_calls

onnx = pytest.importorskip("onnx")

# Logits of a row are the sum of its tokens' rows in this table, padding left out; token 3 has no number.
TABLE_VC = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [np.nan, 0.0]], dtype=np.float32)
BATCH = {"input_ids": np.array([[1, 2, 2], [1, 0, 0]]), "attention_mask": np.array([[1, 1, 1], [1, 0, 0]])}
LOGITS_BC = [[1.0, 4.0], [1.0, 0.0]]


def write_onnx(path: Path, inputs: tuple[str, ...] = ("input_ids", "attention_mask")) -> Path:
    """Write the graph logits_BC = sum_T mask_BT * table_VC[input_ids_BT]; other inputs stay unused."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows_BTC"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_BT"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_BT", "last"], ["mask_BT1"]),
        helper.make_node("Mul", ["rows_BTC", "mask_BT1"], ["kept_BTC"]),
        helper.make_node("ReduceSum", ["kept_BTC", "tokens"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(TABLE_VC, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "table.onnx")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_graph_gives_the_logits_worked_out_by_hand(table, runtime):
    pytest.importorskip(runtime)
    artifact = open_artifact(table, runtime, threads=1)
    assert artifact.inputs == ("input_ids", "attention_mask")
    short = {name: array[1:, :1] for name, array in BATCH.items()}
    np.testing.assert_array_equal(artifact(short), LOGITS_BC[1:])
    np.testing.assert_array_equal(artifact(BATCH), LOGITS_BC)  # a longer shape after a shorter one


def test_openvino_says_which_precision_is_in_force(table):
    pytest.importorskip("openvino")
    assert open_artifact(table, "openvino", 1, precision="fp32").precision == "f32"
    assert open_artifact(table, "openvino", 1).precision in {"f32", "bf16", "f16"}


def test_openvino_logits_are_not_overwritten_by_the_next_call(table):
    pytest.importorskip("openvino")
    artifact = open_artifact(table, "openvino", threads=1)
    first = artifact(BATCH)
    artifact({name: np.ones((2, 3), dtype=np.int64) for name in BATCH})
    np.testing.assert_array_equal(first, LOGITS_BC)


def test_only_declared_inputs_are_fed_and_missing_ones_are_filled(tmp_path):
    pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "types.onnx", inputs=("input_ids", "attention_mask", "token_type_ids"))
    artifact = open_artifact(path, "onnxruntime", threads=1)
    prepared = artifact.prepare({"input_ids": np.ones((1, 2), dtype=np.int32), "labels": np.zeros(1)})
    assert list(prepared) == ["input_ids", "attention_mask", "token_type_ids"]
    assert prepared["attention_mask"].tolist() == [[1, 1]]
    assert prepared["token_type_ids"].tolist() == [[0, 0]]
    assert {array.dtype for array in prepared.values()} == {np.dtype(np.int64)}


def test_an_input_of_unknown_name_is_refused(tmp_path):
    pytest.importorskip("onnxruntime")
    path = write_onnx(tmp_path / "odd.onnx", inputs=("input_ids", "attention_mask", "pixels"))
    with pytest.raises(NiwakiError, match="wants an input 'pixels'"):
        open_artifact(path, "onnxruntime", threads=1)(BATCH)


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_torch_folder_gives_the_models_own_logits(saved_base, tiny_model, name):
    import torch

    artifact = open_artifact(saved_base(name), "torch", threads=1)
    assert ("token_type_ids" in artifact.inputs) == (name == "bert")
    assert artifact.precision == "f32"
    assert artifact.rows_independent
    with torch.no_grad():
        expected = tiny_model(name)(**{key: torch.from_numpy(array) for key, array in BATCH.items()}).logits
    np.testing.assert_allclose(artifact(BATCH), expected.numpy(), atol=1e-6)


def test_torch_in_bf16(saved_base):
    artifact = open_artifact(saved_base(), "torch", threads=1, precision="bf16")
    assert artifact.precision == "bf16"
    assert artifact(BATCH).dtype == np.float32


def test_mistakes_are_told(table, tmp_path):
    with pytest.raises(NiwakiError, match="write: onnxruntime"):
        open_artifact(table, "onnxruntim", threads=1)
    with pytest.raises(NiwakiError, match="precision is 'int3'"):
        open_artifact(table, "openvino", threads=1, precision="int3")
    with pytest.raises(NiwakiError, match="ONNX Runtime computes in the types of the file"):
        open_artifact(table, "onnxruntime", threads=1, precision="bf16")
    with pytest.raises(NiwakiError, match=r"nothing\.onnx does not exist"):
        open_artifact(tmp_path / "nothing.onnx", "onnxruntime", threads=1)
    with pytest.raises(NiwakiError, match="no model could be loaded"):
        open_artifact(tmp_path / "nothing", "torch", threads=1)


@pytest.mark.parametrize(("runtime", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_package_names_the_extra(table, monkeypatch, runtime, extra):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(NiwakiError, match=rf"pip install 'niwaki\[{extra}\]'"):
        open_artifact(table, runtime, threads=1)


def test_size_counts_what_the_runtime_needs(tmp_path):
    for name, size in {
        "model.safetensors": 100,
        "config.json": 10,
        "journal.jsonl": 5,
        "tokenizer.json": 999,
        "graph.onnx": 7,
        "graph.onnx.data": 70,
        "graph.xml": 3,
        "graph.bin": 30,
    }.items():
        (tmp_path / name).write_bytes(b"0" * size)
    assert size_on_disk(tmp_path, "torch") == 115
    assert size_on_disk(tmp_path / "graph.onnx", "onnxruntime") == 77
    assert size_on_disk(tmp_path / "graph.xml", "openvino") == 33


def test_a_worker_computes_and_never_imports_torch(table):
    pytest.importorskip("onnxruntime")
    with open_worker(table, "onnxruntime", threads=1) as worker:
        np.testing.assert_array_equal(worker.run([BATCH])[0], LOGITS_BC)
        seconds = worker.time([BATCH] * 4, warm=[BATCH])
        assert len(seconds) == 4 and min(seconds) > 0
        assert worker.peak_memory() >= worker.memory_loaded_bytes >= worker.memory_baseline_bytes > 1e6
        modules = worker.modules()
    assert "onnxruntime" in modules
    assert not {"torch", "transformers", "scipy", "sklearn", "pydantic"} & set(modules)
    assert worker.process.returncode == 0


def test_an_error_inside_a_worker_names_artifact_and_runtime(tmp_path):
    pytest.importorskip("onnxruntime")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    with pytest.raises(NiwakiError, match=r"broken\.onnx in onnxruntime: \w+"):
        open_worker(broken, "onnxruntime", threads=1)


def test_a_worker_killed_at_work_is_an_error_that_names_the_signal(table):
    pytest.importorskip("onnxruntime")
    with open_worker(table, "onnxruntime", threads=1) as worker:
        os.kill(worker.process.pid, signal.SIGFPE)
        with pytest.raises(NiwakiError, match=r"table\.onnx: the onnxruntime process was killed by SIGFPE") as caught:
            worker.run([BATCH])
    assert "running a batch" in str(caught.value)


def test_a_worker_that_dies_while_loading_leaves_its_last_words(table):
    suicide = "import os, signal; os.write(2, b'bye'); os.kill(os.getpid(), signal.SIGKILL)"
    with pytest.raises(NiwakiError, match=r"(?s)killed by SIGKILL .*being loaded.*bye"):
        open_worker(table, "openvino", threads=1, command=[sys.executable, "-c", suicide])


def test_a_worker_that_never_answers_is_ended(table):
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(NiwakiError, match=r"gave no answer in 0\.2 seconds"):
        open_worker(table, "onnxruntime", threads=1, start_seconds=0.2, command=sleeper)


def test_what_a_library_prints_does_not_reach_the_protocol(table):
    pytest.importorskip("onnxruntime")
    noisy = """
import os, niwaki.runtime.worker as worker
from niwaki.runtime import Artifact

def open_artifact(*arguments, **named):
    print("hello")
    os.write(1, b"hello")
    return Artifact("path", "runtime", (), "f32", None)

worker.open_artifact = open_artifact
worker.main()
"""
    with open_worker(table, "onnxruntime", threads=1, command=[sys.executable, "-c", noisy]) as worker:
        assert worker.precision == "f32"


def test_endings_in_words():
    assert _ending(-11) == "was killed by SIGSEGV"
    assert _ending(1) == "ended with exit code 1"
    assert _ending(None) == "closed its pipe"


def test_time_calls_runs_warm_inputs_first_and_does_not_record_them():
    seen: list[int] = []
    assert len(time_calls(seen.append, [1, 2], warm=[9])) == 2
    assert seen == [9, 1, 2]


def test_this_machine_has_threads_and_memory():
    assert default_threads() >= 1
    assert peak_memory_bytes() > 1e6


def test_threads_reach_the_environment_of_a_worker(table):
    pytest.importorskip("onnxruntime")
    echo = "import os, sys; sys.stderr.write('pools ' + os.environ['OMP_NUM_THREADS']); sys.exit(7)"
    with pytest.raises(NiwakiError, match=r"(?s)exit code 7.*pools 3"):
        open_worker(table, "onnxruntime", threads=3, command=[sys.executable, "-c", echo])
