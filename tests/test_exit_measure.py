"""Chains worked out by hand: where rows leave, what is right of them, and how records and reports tell it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from niwaki.budget import Budget
from niwaki.checkpoint import load, load_tokenizer, save
from niwaki.comparison import Comparison, measure
from niwaki.errors import NiwakiError
from niwaki.exit_rule import NEVER
from niwaki.export import one_file
from niwaki.export.one_file import write_one_file
from niwaki.measure import Measurement, Subject, measure_subjects
from niwaki.measure.exits import left_at
from niwaki.measure.records import Latency
from niwaki.measure.timing import ratio_over_rounds
from niwaki.report.folders import RunFolder, latency
from niwaki.report.left import exits_told
from niwaki.report.points import latency_of
from niwaki.report.usage import snippets
from niwaki.runtime import open_artifact, size_on_disk
from niwaki.runtime.rule import Rule
from niwaki.surgery import add_exit, set_thresholds
from niwaki.task import Encoded, Task
from niwaki.task.windows import Windows

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

# Token 1 is surely class 0; token 2 is class 1, but not so sure in six of them: p = 1 / (1 + exp(-0.6)) = 0.65.
TABLE_VC = np.array([[9.0, 9.0], [5.0, 0.0], [0.0, 0.1]], dtype=np.float32)
SWAP_CC = np.array([[0.0, 1.0], [1.0, 0.0]], dtype=np.float32)


def write_graph(path: Path, reads: str, gives: bool, swaps: bool) -> Path:
    """Write a graph: logits_BC are the sum over tokens of the table's rows, or of the states, swapped or not."""
    from onnx import TensorProto, helper, numpy_helper

    ids = reads == "input_ids"
    nodes = [
        helper.make_node("Gather", ["table", reads], ["next_hidden_states"])
        if ids
        else helper.make_node("Identity", [reads], ["next_hidden_states"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["mask_BT1"]),
        helper.make_node("Mul", ["next_hidden_states", "mask_BT1"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "tokens"], ["sums"], keepdims=0),
        helper.make_node("MatMul", ["sums", "swap"], ["logits"]),
    ]
    kind = TensorProto.INT64 if ids else TensorProto.FLOAT
    inputs = [
        helper.make_tensor_value_info(reads, kind, ["batch", "length", *([] if ids else [2])]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    if gives:
        outputs.append(helper.make_tensor_value_info("next_hidden_states", TensorProto.FLOAT, ["batch", "length", 2]))
    constants = {
        "table": TABLE_VC,
        "last": np.array([2]),
        "tokens": np.array([1]),
        "swap": SWAP_CC if swaps else np.eye(2, dtype=np.float32),
    }
    used = {name for node in nodes for name in node.input}
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "by-hand", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    """Write a chain with one exit: who is not sure there leaves at the end with the other class."""
    write_graph(tmp_path / "segment-0.onnx", "input_ids", gives=True, swaps=False)
    write_graph(tmp_path / "segment-1.onnx", "hidden_states", gives=False, swaps=True)
    record = {
        "by": "probability",
        "thresholds": [0.9],
        "layers": [1],
        "segments": ["segment-0.onnx", "segment-1.onnx"],
        "rows_independent": True,
    }
    (tmp_path / "chain.json").write_text(json.dumps(record))
    return tmp_path / "chain.json"


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return write_graph(tmp_path / "whole.onnx", "input_ids", gives=False, swaps=False)


@pytest.fixture
def rows() -> Encoded:
    """Return 12 rows, of token 1 and of token 2; the last label is wrong for the whole model."""
    texts = [[token] * length for token in (1, 2) for length in range(1, 7)]
    return Encoded(
        name="validation",
        tokens=np.concatenate(texts).astype(np.int32),
        types=None,
        offsets=np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64),
        labels=np.array([0] * 6 + [1] * 5 + [0]),
        pad=0,
    )


def test_rows_leave_as_worked_out_by_hand(chain: Path) -> None:
    artifact = open_artifact(chain, "onnxruntime", threads=1)
    batch = {
        "input_ids": np.array([[2, 2, 0], [1, 0, 0], [2, 2, 2]]),
        "attention_mask": np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1]]),
    }
    logits_BC, exits_B = artifact.classify(batch)
    assert exits_B.tolist() == [1, 0, 1]
    assert logits_BC == pytest.approx(np.array([[0.2, 0.0], [5.0, 0.0], [0.3, 0.0]]), abs=1e-6)
    assert artifact.rows_independent


def test_one_file_does_what_the_chain_does(chain: Path, tmp_path: Path) -> None:
    """By every rule, with rows that leave at the first exit, at the second, and at the end."""
    import onnxruntime

    write_graph(tmp_path / "segment-2.onnx", "hidden_states", gives=False, swaps=False)
    write_graph(tmp_path / "segment-1.onnx", "hidden_states", gives=True, swaps=True)
    batch = {
        "input_ids": np.array([[2, 2, 0], [1, 0, 0], [2, 2, 2], [1, 1, 2], [2, 0, 0]]),
        "attention_mask": np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1], [1, 0, 0]]),
    }
    cases = [("patience", pair) for pair in itertools.product((1, 2, NEVER), (1, 2, NEVER))]
    cases += [
        (by, pair) for by in ("probability", "entropy") for pair in itertools.product((0.005, 0.56, 0.9), repeat=2)
    ]
    met = set()
    for by, thresholds in cases:
        segments = [f"segment-{at}.onnx" for at in range(3)]
        record = {"by": by, "thresholds": thresholds, "layers": [0, 1], "segments": segments}
        chain.write_text(json.dumps(record))
        write_one_file(chain, tmp_path / "one.onnx")
        runner = open_artifact(chain, "onnxruntime", threads=1)
        session = onnxruntime.InferenceSession(tmp_path / "one.onnx", providers=["CPUExecutionProvider"])
        assert [port.name for port in session.get_outputs()] == ["logits", "exits"]
        for rows_of_batch in (slice(None), slice(1, 2), slice(4, 5)):
            asked = {name: values[rows_of_batch] for name, values in batch.items()}
            logits_BC, exits_B = session.run(None, asked)
            expected_BC, expected_B = runner.classify(asked)
            assert exits_B.tolist() == expected_B.tolist(), (by, thresholds)
            assert logits_BC == pytest.approx(expected_BC, abs=1e-6)
            met |= set(exits_B.tolist())
    assert met == {0, 1, 2}
    opened = open_artifact(tmp_path / "one.onnx", "onnxruntime", threads=1)
    assert opened.exits is not None and opened.exits.rule == Rule("entropy", (0.9, 0.9), (0, 1))
    assert (
        opened.classify(batch)[1].tolist() == open_artifact(chain, "onnxruntime", threads=1).classify(batch)[1].tolist()
    )
    with pytest.raises(NiwakiError, match=r"does not tell what every exit says[^$]*write: chain.json"):
        opened.exits.every(opened.prepare(batch))


def test_one_file_holds_later_segments_in_branches(chain: Path, tmp_path: Path) -> None:
    write_one_file(chain, tmp_path / "one.onnx")
    graph = onnx.load(tmp_path / "one.onnx").graph
    (choice,) = [node for node in graph.node if node.op_type == "If"]
    branches = {attribute.name: attribute.g for attribute in choice.attribute}
    assert sum(node.op_type == "MatMul" for node in graph.node) == 1
    assert sum(node.op_type == "MatMul" for node in branches["else_branch"].node) == 1
    assert [node.op_type for node in branches["then_branch"].node] == ["Identity", "Identity"]


def test_one_file_larger_than_a_protocol_buffer_is_refused(
    chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_file, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(NiwakiError, match=r"one.onnx: the segments have 0.0 GB together"):
        write_one_file(chain, tmp_path / "one.onnx")


def test_measured_with_exits(chain: Path, whole: Path, rows: Encoded) -> None:
    subjects = [
        Subject(name="whole", runtime="onnxruntime", path=whole),
        Subject(name="early", runtime="onnxruntime", path=chain),
    ]
    base, early = measure_subjects(subjects, rows, "accuracy", threads=1, quick=True, progress=False)
    assert early.exits is not None and base.exits is None
    first, end = early.exits.exits
    assert early.exits.by == "probability"
    assert (first.layer, first.threshold, first.share, first.count) == (1, 0.9, 0.5, 6)
    assert (first.value, first.base_value) == (100.0, 100.0)
    assert (end.layer, end.threshold, end.count) == (None, None, 6)
    assert end.value == pytest.approx(100 / 6)  # the end says class 0 of all
    assert end.base_value == pytest.approx(500 / 6)
    assert early.quality is not None and early.quality.difference == pytest.approx(-100 * 4 / 12)
    for record in (base, early):
        assert record.latency_seconds is not None and record.latency_seconds.mean is not None
        assert record.latency_seconds.typical == record.latency_seconds.mean
        assert record.conditions is not None and record.conditions.repeats == 40  # four times a quick plan's ten
        assert Measurement.model_validate_json(record.model_dump_json()) == record
    assert early.size_bytes == size_on_disk(chain, "onnxruntime")
    text = str(Comparison("whole", [base, early]))
    assert "early in onnxruntime: 50% after layer 1, 50% at the end." in text
    assert "Latency is the mean over rows" in text
    (table,) = exits_told([json.loads(record.model_dump_json()) for record in (base, early)])
    assert table.lines == (
        ("after layer 1", "0.900", "50.0%", "100.00", "100.00"),
        ("the end", "–", "50.0%", "16.67", "83.33"),
    )


def test_without_exits_a_record_is_what_it_was(whole: Path, rows: Encoded) -> None:
    subject = Subject(name="whole", runtime="onnxruntime", path=whole)
    (record,) = measure_subjects([subject], rows, "accuracy", threads=1, quick=True, progress=False)
    assert record.exits is None and record.latency_seconds is not None and record.latency_seconds.mean is None
    assert record.latency_seconds.typical == record.latency_seconds.median
    assert record.conditions is not None and record.conditions.repeats == 10
    assert "mean" not in str(Comparison("whole", [record]))
    assert exits_told([json.loads(record.model_dump_json())]) == []


def test_a_text_in_windows_leaves_in_parts(chain: Path, whole: Path) -> None:
    """Of three 1 and four 2 the windows are 1 1 1, 1 2 2 and 2 2 2; the last one is not sure, and goes to the end."""
    texts = [[1, 1, 1, 2, 2, 2, 2], [2], [1]]
    rows = Encoded(
        name="validation",
        tokens=np.concatenate(texts).astype(np.int32),
        types=None,
        offsets=np.array([0, 7, 8, 9]),
        labels=np.array([0, 1, 0]),
        windows=Windows(size=3, before=0, after=0, pool="mean"),
    )
    subjects = [
        Subject(name="whole", runtime="onnxruntime", path=whole),
        Subject(name="early", runtime="onnxruntime", path=chain),
    ]
    for pool in ("mean", "max"):
        windows = replace(rows.windows, pool=pool)
        _, early = measure_subjects(subjects, replace(rows, windows=windows), "accuracy", threads=1, quick=True)
        assert early.exits is not None and early.quality is not None
        first, end = early.exits.exits
        assert (first.share, end.share) == pytest.approx(((2 / 3 + 0 + 1) / 3, (1 / 3 + 1 + 0) / 3))
        assert (first.count, first.value, first.base_value) == (2, 100.0, 100.0)  # the first text and the last
        assert (end.count, end.value, end.base_value) == (2, 50.0, 100.0)  # the first text and the second
        assert early.quality.value == pytest.approx(200 / 3)


@pytest.mark.slow  # a process that imports torch
@pytest.mark.parametrize("runtime", ["torch", "onnxruntime", "openvino"])
def test_a_model_with_exits_reads_long_texts_in_windows(
    runtime: str, saved_base: Callable[..., Path], toy_data: Callable[..., Path], tmp_path: Path
) -> None:
    pytest.importorskip(runtime)
    model = load(saved_base("bert", layers=3))
    add_exit(model, layer=0)
    set_thresholds(model, by="probability", thresholds=[0.5])
    folder = save(model, tmp_path / "early")
    load_tokenizer(saved_base("bert", layers=3)).save_pretrained(folder)
    task = Task("text-classification", data=str(toy_data()), max_length=7, long="mean")
    found = measure(folder, task, runtimes=[runtime], quick=True, progress=False).rows[0]
    assert found.exits is not None and [exit.share for exit in found.exits.exits] == [1.0, 0.0]
    assert found.conditions is not None and found.conditions.lengths.max > 7


def test_an_exit_that_no_row_takes_has_no_quality() -> None:
    ids = np.array([0, 1, 1])
    left_NX = np.eye(3)[[1, 2, 2]]
    found = left_at(Rule("entropy", (NEVER, 0.5), (0, 2)), left_NX, ids, ids, ids, "accuracy")
    assert found is not None
    assert [(exit.count, exit.value) for exit in found.exits] == [(0, None), (1, 100.0), (2, 100.0)]
    assert left_at(None, None, ids, ids, ids, "accuracy") is None


def test_a_ratio_of_means_within_a_round() -> None:
    base_RI = np.array([[1.0, 1.0, 4.0], [3.0, 3.0, 3.0]])  # means 2, 3; medians 1, 3
    this_RI = np.array([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    assert ratio_over_rounds(base_RI, this_RI, mean=True)["median"] == 2.5
    assert ratio_over_rounds(base_RI, this_RI)["median"] == 2.0


def test_a_run_with_a_chain_shows_how_to_run_it() -> None:
    """The code compiles, opens the chain, and no segment is taken for the model."""
    for folder, runtime in (("artifacts", "onnxruntime"), ("artifacts/openvino", "openvino")):
        files = tuple(f"{folder}/{name}" for name in ("chain.json", "segment-0.onnx", "segment-0.xml"))
        run = RunFolder(path=Path("runs/early"), name="early", base="", rows=(), modules={}, artifacts=files)
        ((title, code),) = snippets(run, "runs/early")
        compile(code, title, "exec")
        assert f'open_artifact(f"{{folder}}/{folder}/chain.json", "{runtime}", threads=1)' in code


def test_budgets_and_reports_go_by_the_mean() -> None:
    seconds = {"median": 0.001, "p10": 0.001, "p90": 0.004, "p99": 0.005}
    early: dict[str, Any] = {"name": "early", "latency_seconds": {**seconds, "mean": 0.002}}
    plain: dict[str, Any] = {"name": "plain", "latency_seconds": seconds}
    budget = Budget.parse("latency=1.5ms")
    assert [miss.name for miss in budget.check(early)] == ["latency"] and not budget.check(plain)
    assert (latency(early), latency(plain)) == (0.002, 0.001)
    assert Latency(**early["latency_seconds"]).typical == 0.002
    titles = [
        latency_of([RunFolder(path=Path("runs"), name="run", base="plain", rows=rows, modules={})]).title
        for rows in ((plain,), (plain, early))
    ]
    assert titles == ["median latency at batch 1", "mean latency at batch 1"]
