"""Statistics against numbers worked out by hand, counting against shapes, and measurements of tiny graphs."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import load_tokenizer
from niwaki.errors import NiwakiError
from niwaki.measure import (
    Measurement,
    Subject,
    count_macs_per_token,
    count_parameters,
    measure_subjects,
    module_table,
    paired_quality,
)
from niwaki.measure import subjects as subjects_module
from niwaki.measure.conditions import describe_lengths, machine, versions
from niwaki.measure.quality import bootstrap_interval, mcnemar, metric_of_draws
from niwaki.measure.timing import (
    batches_by_length,
    draw_rows,
    pad_rows,
    ratio_over_rounds,
    shuffled_orders,
    summarize_seconds,
    time_in_turns,
)
from niwaki.runtime import OUTCOMES
from niwaki.surgery import factor_embedding
from niwaki.task import Encoded, score
from niwaki.task.windows import Windows

TABLE_VC = np.array([[9.0, 9.0], [1.0, 0.0], [0.0, 2.0], [np.nan, 0.0]], dtype=np.float32)


def encoded(rows: list[list[int]], labels: list[int] | None = None, types: bool = False) -> Encoded:
    """Make a split of these rows of token ids."""
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    return Encoded(
        name="validation",
        tokens=tokens,
        types=(tokens % 2).astype(np.int8) if types else None,
        offsets=np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        labels=np.array(labels or [0] * len(rows), dtype=np.int64),
        pad=0,
    )


def write_table(path: Path, table_VC: np.ndarray) -> Path:
    """Write the ONNX graph whose logits are the sum of the table's rows of the tokens of a row."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows_BTC"]),
        helper.make_node("Cast", ["attention_mask"], ["mask_BT"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask_BT", "last"], ["mask_BT1"]),
        helper.make_node("Mul", ["rows_BTC", "mask_BT1"], ["kept_BTC"]),
        helper.make_node("ReduceSum", ["kept_BTC", "tokens"], ["logits"], keepdims=0),
    ]
    inputs = ("input_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "table",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in inputs],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(table_VC, "table"),
            numpy_helper.from_array(np.array([2]), "last"),
            numpy_helper.from_array(np.array([1]), "tokens"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


# Quality


def test_paired_quality_by_hand():
    labels = np.array([0, 0, 1, 1, 1])
    base = np.array([0, 0, 1, 1, 0])  # 4 of 5 right
    this = np.array([0, 1, 1, 1, 1])  # 4 of 5 right, other ones
    found = paired_quality(base, this, labels, "accuracy")
    assert found["value"] == 80.0
    assert found["difference"] == 0.0
    assert found["changed"] == 0.4
    assert found["count"] == 5
    assert found["p_value"] == 1.0  # 1 lost, 1 won
    low, high = found["interval"]
    assert low < 0 < high
    assert low == -high  # losses and gains are equally many


def test_mcnemar_by_hand():
    right = np.ones(10, dtype=bool)
    wrong_8 = np.array([True] * 2 + [False] * 8)
    assert mcnemar(right, wrong_8) == pytest.approx(2 / 2**8)  # 8 to 0
    assert mcnemar(right, right) == 1.0
    # 3 to 1: two-sided, all outcomes as unlikely: 1 - P(2 of 4) = 1 - 6/16
    base = np.array([True, True, True, False])
    assert mcnemar(base, ~base) == pytest.approx(0.625)


def test_the_base_against_itself_is_no_change():
    labels = np.array([0, 1, 1, 0])
    found = paired_quality(labels, labels, labels, "mcc")
    assert found["difference"] == 0.0
    assert found["interval"] == (0.0, 0.0)
    assert (found["p_value"], found["changed"], found["value"]) == (1.0, 0.0, 100.0)


def test_interval_agrees_with_the_normal_approximation():
    # 1000 examples, 60 lost and 30 won: difference -3 points, its variance (60 + 30 - 30^2 / 1000) / 1000^2
    labels = np.zeros(1000, dtype=int)
    base, this = np.zeros(1000, dtype=int), np.zeros(1000, dtype=int)
    this[:60] = 1
    base[60:90] = 1
    low, high = bootstrap_interval((base, this, labels), "accuracy", 2, resamples=20_000, seed=0)
    half = 196 * np.sqrt(60 + 30 - 30**2 / 1000) / 1000
    assert low == pytest.approx(-3 - half, abs=0.1)
    assert high == pytest.approx(-3 + half, abs=0.1)


def test_interval_is_repeatable_and_follows_the_seed():
    rng = np.random.default_rng(0)
    examples = tuple(rng.integers(0, 3, 50) for _ in range(3))
    intervals = [bootstrap_interval(examples, "f1", 3, resamples=500, seed=seed) for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30),
    st.sampled_from(["accuracy", "f1", "mcc"]),
    st.sampled_from([2, 4]),
)
@settings(deadline=None, max_examples=60)
def test_the_bootstrap_scores_as_the_task_does(pairs, metric, classes):
    predictions, labels = (np.array(column) % classes for column in zip(*pairs, strict=True))
    ones = np.ones((1, len(labels)), dtype=np.int64)
    found = metric_of_draws(metric, ones, predictions, labels, classes)
    assert found[0] == pytest.approx(score(metric, predictions, labels, classes), abs=1e-9)


# Timing


def test_percentiles_by_hand():
    seconds = np.arange(101) / 100  # 0.00, 0.01, ..., 1.00: percentile p is p / 100
    found = summarize_seconds(seconds)
    assert found == pytest.approx({"median": 0.5, "p10": 0.1, "p90": 0.9, "p99": 0.99})


def test_ratio_is_of_medians_within_a_round():
    base = np.array([[2.0, 4.0, 99.0], [8.0, 8.0, 8.0], [3.0, 3.0, 3.0]])  # medians 4, 8, 3
    this = np.array([[1.0, 2.0, 3.0], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])  # medians 2, 2, 1
    found = ratio_over_rounds(base, this)  # ratios 2, 4, 3
    assert found == pytest.approx({"median": 3.0, "p10": 2.2, "p90": 3.8})


def test_every_round_has_every_subject_in_a_seeded_order():
    orders = shuffled_orders(4, rounds=20, seed=3)
    assert all(sorted(order) == [0, 1, 2, 3] for order in orders)
    assert orders == shuffled_orders(4, rounds=20, seed=3) != shuffled_orders(4, rounds=20, seed=4)
    assert len({order[0] for order in orders}) == 4  # nobody always goes first


def test_workers_are_timed_in_turns_on_the_same_inputs():
    calls: list[tuple[str, list, list]] = []

    class Clock:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def time(self, batches, warm=()):
            calls.append((self.name, list(batches), list(warm)))
            return [self.seconds] * len(batches)

    rounds = [[{"n": number}, {"n": number + 10}] for number in range(3)]
    ticks: list[int] = []
    seconds = time_in_turns(
        [Clock("a", 1.0), Clock("b", 2.0)], [rounds, rounds], 0, warm=1, tick=lambda: ticks.append(1)
    )
    assert seconds.tolist() == [[[1.0, 1.0]] * 3, [[2.0, 2.0]] * 3]
    expected = ["ab"[subject] for order in shuffled_orders(2, 3, 0) for subject in order]
    assert [name for name, _, _ in calls] == expected
    for number in range(3):
        assert calls[2 * number][1:] == calls[2 * number + 1][1:] == (rounds[number], rounds[number][-1:])
    assert len(ticks) == 6


def test_drawn_rounds_have_the_length_distribution_of_the_split():
    lengths = np.arange(1000) % 100
    drawn = draw_rows(lengths, rounds=8, count=25, seed=0)
    assert drawn.shape == (8, 25)
    ordered = np.sort(lengths[drawn], axis=1)
    assert (ordered // 4 == np.arange(25)).all()  # one of every 25th part of the distribution
    assert not (lengths[drawn] == ordered).all()  # in no order
    assert (drawn == draw_rows(lengths, rounds=8, count=25, seed=0)).all()


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_draws_stay_inside_any_split(rows, count, seed):
    drawn = draw_rows(np.ones(rows, dtype=int), rounds=2, count=count, seed=seed)
    assert drawn.min() >= 0 and drawn.max() < rows


@pytest.mark.parametrize("types", [False, True])
def test_rows_are_padded_as_the_task_pads_them(types):
    rows = encoded([[5, 6], [7], [8, 9, 4]], types=types)
    found, expected = pad_rows(rows, [2, 1]), rows.batch([2, 1])
    del expected["labels"]
    assert found.keys() == expected.keys()
    for name, array in found.items():
        assert array.tolist() == expected[name].tolist()
        assert array.dtype == np.int64


def test_batches_are_cut_by_length():
    rows = encoded([[1] * 3, [1], [1] * 4, [1] * 2, [1] * 5])
    batches = batches_by_length(rows, np.arange(5), size=2)
    assert [batch["input_ids"].shape for batch in batches] == [(2, 2), (2, 4), (1, 5)]


# Counting


def test_parameters_of_tied_tensors_count_once():
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(3, 2), "second": torch.nn.Linear(3, 2)})
    assert count_parameters(model) == 16
    model["second"].weight = model["first"].weight
    assert count_parameters(model) == 10


def macs_of_encoder(tokens: int, hidden: int, neurons: int, layers: int, head: int) -> float:
    """Return the multiply-accumulates per token of an encoder: 4 D^2 + 2 D N + 2 T D a layer, and a head."""
    return layers * (4 * hidden**2 + 2 * hidden * neurons + 2 * tokens * hidden) + head / tokens


@pytest.mark.parametrize(
    ("name", "head"),
    [("bert", 32 * 32 + 32 * 2), ("roberta", 32 * 32 + 32 * 2), ("distilbert", 32 * 32 + 32 * 2)],
)
def test_operations_of_an_encoder_by_hand(tiny_model, name, head):
    batch = {"input_ids": torch.full((1, 7), 5), "attention_mask": torch.ones(1, 7, dtype=torch.int64)}
    model = tiny_model(name)
    expected = macs_of_encoder(tokens=7, hidden=32, neurons=64, layers=2, head=head)
    assert count_macs_per_token(model, batch) == pytest.approx(expected)
    assert not model.training


def test_a_word_table_in_two_factors_adds_one_narrow_product(tiny_model, family):
    model, rows = tiny_model(family), encoded([[5] * 7])
    before = count_macs_per_token(model, rows)
    anatomy = anatomy_of(model)
    width = anatomy.word_embeddings.embedding_dim
    factor_embedding(model, module=anatomy.prefix + anatomy.family.word_embeddings, rank=8)
    # nothing for the product of the factors, which is the weight that the table tells
    assert count_macs_per_token(model, rows) == pytest.approx(before + 8 * width)


def test_eager_attention_counts_as_fused_attention_does(tiny_model):
    batch = {"input_ids": torch.full((1, 7), 5), "attention_mask": torch.ones(1, 7, dtype=torch.int64)}
    model = tiny_model("bert")
    fused = count_macs_per_token(model, batch)
    model.set_attn_implementation("eager")
    assert count_macs_per_token(model, batch) == fused


def test_operations_are_taken_at_the_mean_length(tiny_model):
    rows = encoded([[5] * 3, [5] * 7, [5] * 12])  # mean 7.3
    expected = macs_of_encoder(tokens=7, hidden=32, neurons=64, layers=2, head=32 * 32 + 32 * 2)
    assert count_macs_per_token(tiny_model("bert"), rows) == pytest.approx(expected)


def test_the_table_of_parts_adds_up(tiny_model, family):
    model, rows = tiny_model(family), encoded([[5] * 6])
    table = module_table(model, rows)
    assert [row["module"] for row in table] == [
        "embeddings",
        "layer 0 attention",
        "layer 0 feed-forward",
        "layer 1 attention",
        "layer 1 feed-forward",
        "head",
    ]
    assert sum(row["parameters"] for row in table) == count_parameters(model)
    assert sum(row["macs_per_token"] for row in table) == pytest.approx(count_macs_per_token(model, rows))
    stored = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}.values()
    assert sum(row["bytes"] for row in table) == sum(tensor.nbytes for tensor in stored)
    by_name = {row["module"]: row for row in table}
    norm = 2 * 32
    assert by_name["layer 0 attention"]["parameters"] == 4 * (32 * 32 + 32) + norm
    assert by_name["layer 0 feed-forward"]["parameters"] == 32 * 64 + 64 + 64 * 32 + 32 + norm
    assert by_name["layer 0 attention"]["macs_per_token"] == 4 * 32 * 32 + 2 * 6 * 32
    assert by_name["layer 0 feed-forward"]["macs_per_token"] == 2 * 32 * 64


def test_eight_bits_take_a_quarter_of_the_bytes_and_the_same_operations(tiny_model):
    from niwaki.surgery import quantize_linear

    model, rows = tiny_model("bert"), encoded([[5] * 6])
    parameters, macs = count_parameters(model), count_macs_per_token(model, rows)
    quantize_linear(model, module="bert.encoder.layer.0.intermediate.dense")
    assert count_parameters(model) == parameters
    assert count_macs_per_token(model, rows) == macs
    part = {row["module"]: row for row in module_table(model, rows)}["layer 0 feed-forward"]
    scales, bias, down_and_norm = 64 * 4, 64 * 4, 4 * (64 * 32 + 32 + 2 * 32)
    assert part["bytes"] == 32 * 64 + scales + bias + down_and_norm


# Conditions


def test_the_machine_is_read_from_cpuinfo(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: fast\n"
        "flags\t\t: fpu avx2 avx512f avx512_vnni amx_bf16\n\n"
        "processor\t: 1\nmodel name\t: Another\nflags\t\t: sve\n"
    )
    found = machine(file)
    assert found["device"] == "Some CPU @ 2 GHz: fast"
    assert found["instruction_sets"] == ("avx2", "avx512", "vnni", "amx", "bf16")
    assert found["cores"] >= 1


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path):
    found = machine(tmp_path / "none")
    assert found["device"]
    assert found["instruction_sets"] == ()


def test_versions_and_lengths():
    assert versions()["torch"].startswith(torch.__version__.split("+")[0])
    assert describe_lengths(np.array([2, 4, 6])) == pytest.approx({"mean": 4.0, "p50": 4.0, "p90": 5.6, "max": 6})


def test_importing_measure_needs_no_torch():
    code = "import sys, niwaki.measure; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Whole measurements


@pytest.fixture
def rows() -> Encoded:
    """Return 12 rows; the table's answer is class 1 where token 2 occurs, and the last label is wrong."""
    return encoded([[1] * n for n in range(1, 7)] + [[2] * n for n in range(1, 7)], [0] * 6 + [1] * 5 + [0])


def test_measure_onnx_subjects(tmp_path, rows):
    pytest.importorskip("onnxruntime")
    base = write_table(tmp_path / "base.onnx", TABLE_VC)
    flipped = write_table(tmp_path / "flipped.onnx", TABLE_VC[:, ::-1].copy())
    subjects = [
        Subject(name="flipped", runtime="onnxruntime", path=flipped, size_bytes=5),
        Subject(
            name="base",
            runtime="onnxruntime",
            path=base,
            parameters=8,
            macs_per_token=1.5,
            parity={"agreement": 1.0, "largest_difference": 1e-6, "count": 4},
        ),
    ]
    found = measure_subjects(
        subjects, rows, "accuracy", base=1, threads=1, rounds=2, seed=0, quick=True, progress=False
    )
    assert [record.name for record in found] == ["flipped", "base"]
    first, second = found
    assert second.quality.value == pytest.approx(100 * 11 / 12)
    assert second.quality.difference == 0.0
    assert first.quality.difference == pytest.approx(-100 * 10 / 12)
    assert first.quality.changed == 1.0
    assert first.quality.split == "validation"
    assert second.latency_ratio.median == 1.0
    assert (first.latency_ratio.base, first.latency_ratio.base_runtime) == ("base", "onnxruntime")
    assert first.size_bytes == 5
    assert second.size_bytes == base.stat().st_size
    assert second.parity.count == 4
    for record in found:
        assert 0 < record.latency_seconds.p10 <= record.latency_seconds.median <= record.latency_seconds.p99
        assert record.throughput_per_second > 0
        assert record.memory_peak_bytes > record.conditions.memory_baseline_bytes > 0
        assert record.conditions.threads == 1
        assert record.conditions.precision == "as in the file"
        assert record.conditions.lengths.max == 6
        assert Measurement.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(("pool", "right"), [("mean", [1, 0, 0]), ("max", [1, 1, 0]), (None, [0, 0, 0])])
def test_texts_in_windows_are_judged_by_all_of_them(tmp_path, pool, right):
    """Windows of 4 that begin 3 apart, of a text of four 1 and five 2: logits (4, 0), (1, 6) and (0, 8).

    Of one of thirteen 1 and four 2: four times (4, 0), then (1, 6) and (0, 8), means (17, 14) / 6.
    """
    pytest.importorskip("onnxruntime")
    subject = Subject(name="table", runtime="onnxruntime", path=write_table(tmp_path / "table.onnx", TABLE_VC))
    texts = [[1] * 4 + [2] * 5, [1] * 13 + [2] * 4, [1, 1]]
    windows = Windows(size=4, before=0, after=0, pool=pool) if pool else None
    rows = encoded([text if pool else text[:4] for text in texts], right)
    (found,) = measure_subjects([subject], replace(rows, windows=windows), "accuracy", threads=1, quick=True)
    assert found.quality.value == 100.0 and found.quality.count == 3
    assert found.conditions.lengths.max == (17 if pool else 4)


def test_an_artifact_reads_long_texts_in_windows(saved_base, toy_data):
    """From the task to the file: what the model says of each window, the largest logit of each class taken."""
    pytest.importorskip("onnxruntime")
    import niwaki

    base, task = (
        saved_base("roberta"),
        niwaki.Task("text-classification", data=str(toy_data()), max_length=7, long="max"),
    )
    (found,) = niwaki.measure(base, task, runtimes=["onnxruntime"], quick=True, progress=False).rows
    model, data = niwaki.load(base), task.encode(load_tokenizer(base), 64)
    rows = data.validation
    assert (rows.lengths > 7).sum() > 10
    right = 0
    for row in range(len(rows)):
        batch = rows.batch([row])
        labels = batch.pop("labels")
        assert batch["input_ids"].shape[1] <= 7
        right += int(model(**batch).logits.amax(0).argmax() == labels[0])
    assert found.quality.value == pytest.approx(100 * right / len(rows))
    assert found.conditions.lengths.max == rows.lengths.max() > 7


@pytest.mark.slow  # a process that imports torch
def test_the_first_torch_subject_is_the_base(tmp_path, rows, saved_base):
    pytest.importorskip("onnxruntime")
    table = write_table(tmp_path / "table.onnx", TABLE_VC)
    subjects = [
        Subject(name="table", runtime="onnxruntime", path=table),
        Subject(name="model", runtime="torch", path=saved_base(), precision="f32"),
    ]
    found = measure_subjects(subjects, rows, "accuracy", threads=1, quick=True, progress=False)
    assert found[0].latency_ratio.base_runtime == "torch"
    assert found[1].quality.changed == 0.0
    assert found[1].conditions.precision == "f32"
    assert found[0].memory_peak_bytes < found[1].memory_peak_bytes  # no torch in it


def test_nan_is_an_error_that_names_the_artifact(tmp_path):
    pytest.importorskip("onnxruntime")
    path = write_table(tmp_path / "sick.onnx", TABLE_VC)
    subject = Subject(name="sick", runtime="onnxruntime", path=path)
    with pytest.raises(NiwakiError, match=r"sick\.onnx in onnxruntime: logits are NaN"):
        measure_subjects([subject], encoded([[1, 3]]), "accuracy", threads=1, quick=True, progress=False)


def test_an_output_that_is_no_logits_is_refused():
    batch = {"input_ids": np.ones((1, 2), int), "attention_mask": np.ones((1, 2), int)}
    for kind, shape in (("classes", (1, 2, 3)), ("classes", (2, 3)), ("surprises", (1, 3)), ("surprises", (1, 3, 4))):
        with pytest.raises(NiwakiError, match=re.escape(f"the output has shape {shape}")):
            OUTCOMES[kind](np.zeros(shape), batch)


def test_artifacts_are_asked_row_by_row_and_answers_keep_their_place():
    class Worker:
        rows_independent = False
        sizes: list[int] = []

        def outcomes(self, batches, kind):
            self.sizes += [len(batch["input_ids"]) for batch in batches]
            return [OUTCOMES[kind](np.eye(2)[batch["input_ids"][:, 0]], batch) for batch in batches]

    rows, worker = encoded([[1, 1], [0], [1], [0, 0, 0]]), Worker()
    chosen = np.array([0, 1, 3])
    assert subjects_module._predict(worker, rows, chosen, "classes", lambda _: None).tolist() == [1, 0, 0]
    assert worker.sizes == [1, 1, 1]
    worker.rows_independent = True
    assert subjects_module._predict(worker, rows, chosen, "classes", lambda _: None).tolist() == [1, 0, 0]
    assert worker.sizes[3:] == [3]


def test_nothing_to_measure_is_an_error(tmp_path):
    subject = Subject(name="a", runtime="onnxruntime", path=tmp_path)
    with pytest.raises(NiwakiError, match="nothing to measure"):
        measure_subjects([], encoded([[1]]), "accuracy", progress=False)
    with pytest.raises(NiwakiError, match="validation split is empty"):
        measure_subjects([subject], encoded([]), "accuracy", progress=False)
    with pytest.raises(NiwakiError, match="rounds is 0"):
        measure_subjects([subject], encoded([[1]]), "accuracy", rounds=0, progress=False)
    with pytest.raises(NiwakiError, match="base is 3"):
        measure_subjects([subject], encoded([[1]]), "accuracy", base=3, progress=False)
