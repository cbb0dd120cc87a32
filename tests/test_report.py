"""Reports are read from folders: sample runs are written here by hand, as a run would leave them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from niwaki.errors import NiwakiError
from niwaki.measure.records import Measurement
from niwaki.report import card, picture, report
from niwaki.report.card import markdown
from niwaki.report.curves import trainings
from niwaki.report.folders import read_runs
from niwaki.report.headline import Headline, headline, loss_of, significant
from niwaki.report.journal import plain_words
from niwaki.report.log import durations, kept_records
from niwaki.report.shares import shares_of
from niwaki.report.tables import comparison, heads, notes
from niwaki.report.usage import snippets

HOSTILE = "<script>alert('$x_{1}$')</script> 木 </title> | `a`"
RECIPE = """\
steps:
- train:
    together:
    - distill: {temperature: 4.0, teacher: null}
    - drop: {keep_layers: [0, 2, 4]}
    epochs: 3.0
- quantize: {bits: 8}
"""
CONDITIONS = {
    "device": "Some Processor",
    "instruction_sets": ["avx2", "vnni"],
    "cores": 2,
    "threads": 1,
    "precision": "f32",
    "os": "Linux",
    "date": "2026-11-22T10:03:11+00:00",
    "load_average": 0.2,
    "lengths": {"mean": 25.0, "p50": 24.0, "p90": 42.0, "max": 66},
    "latency_batch": 1,
    "throughput_batch": 32,
    "rounds": 10,
    "repeats": 25,
    "throughput_rows": 256,
    "throughput_rounds": 3,
    "memory_baseline_bytes": 40_000_000,
    "versions": {"python": "3.11.7", "torch": "2.13.0", "onnxruntime": "1.31.1"},
    "seed": 0,
}


def record(name: str, runtime: str, size: int, seconds: float, *, base: str = "base", **quality: Any) -> dict[str, Any]:
    """Write one measurement record; the base takes 12 ms in torch."""
    values = {"metric": "accuracy", "value": 91.5, "difference": 0.0, "interval": [0.0, 0.0], "p_value": 1.0}
    return {
        "name": name,
        "runtime": runtime,
        "parameters": 22_700_000,
        "macs_per_token": 10.6e6,
        "size_bytes": size,
        "latency_seconds": {
            "median": seconds,
            "p10": 0.9 * seconds,
            "p90": 1.2 * seconds,
            "p99": 2 * seconds,
        },
        "latency_ratio": {
            "base": base,
            "base_runtime": "torch",
            "median": 0.012 / seconds,
            "p10": 0.0118 / seconds,
            "p90": 0.0122 / seconds,
        },
        "throughput_per_second": 10 / seconds,
        "memory_peak_bytes": 250_000_000,
        "quality": {**values, "changed": 0.034, "count": 872, "split": "validation", **quality},
        "parity": None if runtime == "torch" else {"agreement": 1.0, "largest_difference": 3e-6, "count": 64},
        "conditions": CONDITIONS,
    }


def rows_of(name: str = "small", base: str = "base", **quality: Any) -> list[dict[str, Any]]:
    """Write base and run in two runtimes: 6x smaller, and in ONNX Runtime 8x faster (12x against torch)."""
    worse = {"value": 90.9, "difference": -0.6, "interval": [-1.8, 0.6], "p_value": 0.44, **quality}
    return [
        record(base, "torch", 90_000_000, 0.012, base=base),
        record(base, "onnxruntime", 90_000_000, 0.008, base=base),
        record(name, "torch", 16_000_000, 0.004, base=base, **worse),
        record(name, "onnxruntime", 15_000_000, 0.001, base=base, **worse),
    ]


def modules_of(layers: int, bits: int) -> list[dict[str, Any]]:
    layer = [("attention", 590_000), ("feed-forward", 1_180_000)]
    parts = [("embeddings", 11_900_000, 0)]
    parts += [(f"layer {index} {part}", count, count) for index in range(layers) for part, count in layer]
    return [
        {"module": part, "parameters": count, "bytes": count * bits // 8, "macs_per_token": float(macs)}
        for part, count, macs in parts
    ]


def train_rows(step: str = "00-train", count: int = 40, per_epoch: int = 20) -> list[dict[str, Any]]:
    return [
        {
            "time": 1000.0 + index,
            "step": step,
            "event": "train",
            "optimizer_step": index * 25,
            "steps": count * 25,
            "epoch": index / per_epoch,
            "loss": 4.0 / index,
            "parts": {"task": 1.0 / index, "distill.logits": 3.0 / index},
            "learning_rate": 5e-5 * (1 - index / count),
            "examples_per_second": 400.0,
        }
        for index in range(1, count + 1)
    ]


def write_run(folder: Path, rows: list[dict[str, Any]] | None = None, base: str = "base", **origin: Any) -> Path:
    """Write a whole run folder."""
    (folder / "artifacts" / "openvino").mkdir(parents=True)
    write = {
        "measurement.json": {
            "base": base,
            "rows": rows or rows_of(folder.name, base),
            "modules": {"base": modules_of(6, 32), "run": modules_of(3, 8)},
        },
        "base.json": {
            "model": "/home/someone/models/minilm",
            "family": "bert",
            "labels": ["negative", "positive"],
            "parameters": 22_700_000,
            "task": {
                "kind": "text-classification",
                "metric": "accuracy",
                "max_length": None,
                "text_pair": None,
            },
            "data": {"source": "reviews/", "rows": {"train": 1000, "validation": 872, "test": None}},
            **origin,
        },
        "config.json": {"model_type": "bert", "max_position_embeddings": 64},
    }
    for name, value in write.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    begin = {"time": 1000.0, "step": "00-train", "event": "step-begin"}
    end = {"time": 1083.0, "step": "00-train", "event": "step-end"}
    matrix = {"module": "a.layer.0.query", "rank": 96, "break_even": 192.0, "lost": 0.125}
    told = [{"event": "note", "note": "8 texts are cut"}, {"event": "factor", "by": "svd", "matrices": [matrix]}]
    log = [begin, *train_rows(), end, *told]
    (folder / "log.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in log) + '{"event": "tr', encoding="utf-8"
    )
    (folder / "journal.jsonl").write_text("".join(json.dumps(row) + "\n" for row in JOURNAL), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    (folder / "artifacts" / "model.onnx").write_text("")
    (folder / "artifacts" / "openvino" / "model.xml").write_text("")
    return folder


JOURNAL: list[dict[str, Any]] = [
    {
        "edit": "build",
        "architecture": "BertForSequenceClassification",
        "config": {"num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    },
    {"edit": "keep_layers", "layers": [0, 2, 4]},
    {"edit": "narrow_heads", "layer": 1, "heads": [0, 1, 5, 7, 8, 11]},
    {"edit": "narrow_neurons", "layer": 1, "neurons": list(range(768))},
    {"edit": "quantize_linear", "module": "a", "bits": 8, "activations": "dynamic"},
    {"edit": "quantize_linear", "module": "b", "bits": 8, "activations": "dynamic"},
    {"edit": "quantize_embedding", "module": "c", "bits": 8},
]


class Page(HTMLParser):
    """Gather what a browser would see: tags, ids, and everything that could leave the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")


def test_sample_records_are_what_measure_writes():
    for row in rows_of():
        Measurement.model_validate(row)


def test_headline_says_ratios_and_that_a_small_difference_proves_nothing():
    line = headline(rows_of(), "base", rows_of()[2:])
    assert line.good is True
    assert line.verdict == "smaller and faster, at most 1.80 points lost (95%)"
    assert "is 6.0× smaller than base (15.0 MB instead of 90.0 MB)" in line.sentence
    assert "8.0× faster in ONNX Runtime (1.00 ms instead of 8.00 ms at batch 1)" in line.sentence
    assert "and 12× faster than base in PyTorch" in line.sentence
    assert "Accuracy falls by 0.60 points, 91.50 to 90.90" in line.sentence
    assert "not a significant difference, though a loss of up to 1.80 points is not ruled out" in line.sentence
    assert "3.4% of its predictions" in line.sentence


def test_headline_names_a_significant_loss():
    rows = rows_of(value=88.5, difference=-3.0, interval=[-4.2, -1.8], p_value=0.0001)
    line = headline(rows, "base", rows[2:])
    assert line.good is None
    assert line.verdict == "smaller and faster, at a cost in accuracy"
    assert "McNemar p < 0.001" in line.sentence and line.sentence.count("significant") == 1


def test_headline_says_when_nothing_is_gained():
    rows = [record("base", "torch", 90, 0.01), record("big", "torch", 180, 0.03)]
    line = headline(rows, "base", rows[1:])
    assert (line.good, line.verdict) == (False, "no gain: larger and slower")
    assert "is 2.0× larger than base" in line.sentence and "3.0× slower in PyTorch" in line.sentence
    alike = headline([rows[0], record("same", "torch", 90, 0.0101)], "base", [record("same", "torch", 90, 0.0101)])
    assert "about the same size as base" in alike.sentence and "about as fast in PyTorch" in alike.sentence
    assert alike.verdict == "no gain"


def test_headline_of_a_bare_record_claims_nothing():
    line = headline([{"name": "x", "runtime": "torch"}], "base", [{"name": "x", "runtime": "torch"}])
    assert line.good is None
    assert line.sentence == "was measured without the base beside it. Its quality was not measured."


def test_headline_tells_that_an_artifact_disagrees_with_its_model():
    row = {**rows_of()[3], "parity": {"agreement": 0.9996, "largest_difference": 0.1}}
    assert "in 99.96% of the checked examples" in headline([*rows_of()[:3], row], "base", [row]).sentence


@pytest.mark.parametrize(
    ("quality", "expected"),
    [
        ({"metric": "accuracy", "p_value": 0.04, "interval": [-2, 1]}, True),
        ({"metric": "f1", "p_value": 0.04, "interval": [-2, 1]}, False),  # McNemar speaks of accuracy only
        ({"metric": "mcc", "interval": [-2, -1]}, True),
        ({"metric": "f1", "p_value": 0.04}, None),
    ],
)
def test_significance(quality: dict[str, Any], expected: bool | None):
    assert significant(quality) is expected


def test_journal_counts_layers_as_the_base_does():
    assert plain_words(JOURNAL) == [
        "layers 0, 2, 4 kept, of 6",
        "layer 2: 6 of 12 heads, 768 of 1,536 neurons",
        "2 linear layers in 8 bits (dynamic activations)",
        "1 embedding table in 8 bits",
    ]
    everywhere = [
        JOURNAL[0],
        *({"edit": "narrow_heads", "layer": index, "heads": [0, 1]} for index in range(6)),
    ]
    assert plain_words(everywhere) == ["every layer: 2 of 12 heads"]
    trimmed = {"edit": "narrow_vocabulary", "tokens": list(range(1500))}
    build = {"edit": "build", "config": {"vocab_size": 30522}}
    assert plain_words([build, trimmed]) == ["1,500 of 30,522 tokens kept"]
    pair = {"edit": "factor_embedding", "module": "lm.embed", "rank": 128, "head": "lm_head"}
    assert plain_words([pair]) == ["1 embedding table and the tied head as a pair of rank 128"]
    assert plain_words([{"edit": "turn_around", "layer": 1, "kind": "linear"}]) == ["turn around: layer 1, kind linear"]


def test_page_is_whole_self_contained_and_well_formed(tmp_path: Path):
    text = report(write_run(tmp_path / "small"), tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 1_500_000
    page = Page(text)
    assert not {"script", "iframe", "img", "object", "embed"} & set(page.tags)
    assert all(link.startswith(("#", "data:")) for link in page.links)
    assert "url(http" not in text and "@import" not in text
    assert len(page.ids) == len(set(page.ids))
    drawings = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(drawings) == 4  # quality against latency and size, losses, bytes and work
    for drawing in drawings:
        tree = ElementTree.fromstring(drawing)
        assert tree.attrib["role"] == "img" and tree.find("title") is not None
        assert tree.iter("text") and "<path" in drawing
    for said in (
        "6.0× smaller",
        "layers 0, 2, 4 kept, of 6",
        "00-train took 1 min 23 s",
        "8 texts are cut",
        "−1.80 to +0.60",
        "keep_layers: [0, 2, 4]",
        "InferenceSession",
        "Some Processor (avx2, vnni) · 1 thread · batch 1 · 25 tokens on average",
        "multiply-accumulates stand in for it",
        "vs PyTorch",
    ):
        assert said in text, said
    assert "/home/someone" not in text


def test_a_hostile_name_is_only_a_name(tmp_path: Path):
    folder = write_run(tmp_path / "small", rows_of(HOSTILE, HOSTILE + "2"), HOSTILE + "2", model=HOSTILE)
    (folder / "recipe.yaml").write_text(f"# {HOSTILE}\n{RECIPE}", encoding="utf-8")
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write("\n" + json.dumps({"event": "note", "note": HOSTILE}) + "\n")
    text = report(folder, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "script" not in Page(text).tags and Page(text).tags.count("title") >= 5
    assert text.count("</html>") == 1
    outside_code = re.sub(r"```.*?```", "", card(folder).read_text(encoding="utf-8"), flags=re.DOTALL)
    assert "<script" not in outside_code and markdown(HOSTILE) in outside_code
    assert "<script" not in picture(folder, tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_a_folder_of_runs_stands_in_one_page(tmp_path: Path):
    write_run(tmp_path / "runs" / "one")
    write_run(tmp_path / "runs" / "two")
    later = [{**row, "size_bytes": row["size_bytes"] + 1} for row in rows_of("three")]
    write_run(tmp_path / "runs" / "three", later)
    (tmp_path / "runs" / "base").mkdir()
    runs = read_runs([tmp_path / "runs"])
    groups = comparison(runs)
    assert [group.title for group in groups] == [
        "one and two",
        "three",
    ]  # two sessions, by their base's records
    assert [line.cells[0] for line in groups[0].lines] == ["base", "base", "one", "one", "two", "two"]
    assert "one session" in notes(groups, runs)[0]
    text = report([tmp_path / "runs"], tmp_path / "report.html").read_text(encoding="utf-8")
    assert "3 runs against their base" in text
    assert len(Page(text).ids) == len(set(Page(text).ids))


def test_many_runs_stay_under_the_limit(tmp_path: Path):
    for index in range(14):
        folder = write_run(tmp_path / "runs" / f"run-{index}")
        if index < 3:
            rows = train_rows(count=3000, per_epoch=1000)
            (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            (folder / "log.jsonl").unlink()
    page = report(tmp_path / "runs", tmp_path / "report.html")
    assert page.stat().st_size < 1_500_000
    assert "Not told in full: run-8, run-9." in page.read_text(encoding="utf-8")  # in the order of their names


def test_a_bare_comparison_is_enough(tmp_path: Path):
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps({"base": "base", "rows": [{"name": "base", "runtime": "torch"}, *rows_of()[3:]]}))
    text = report(file, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "How it was made" not in text and "Where the bytes" not in text and "90.90" in text
    alone = tmp_path / "alone.json"
    alone.write_text(json.dumps({"base": "base", "rows": rows_of()[:1]}))
    assert "Only the base was measured" in report(alone, tmp_path / "alone.html").read_text(encoding="utf-8")


def test_folders_without_a_measurement_are_named(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(NiwakiError, match=r"no measured run among: .*empty(?s:.*)measurement\.json"):
        report(tmp_path / "empty", tmp_path / "report.html")
    with pytest.raises(NiwakiError, match="there is no folder .*missing"):
        report([tmp_path / "missing"])
    with pytest.raises(NiwakiError, match="no folder was given"):
        report([])
    measured = write_run(tmp_path / "small")
    assert [run.name for run in read_runs([tmp_path / "empty", measured])] == ["small"]
    (measured / "measurement.json").write_text("{}")
    with pytest.raises(NiwakiError, match="has no measurement records"):
        report(measured)
    (measured / "measurement.json").write_text("{")
    with pytest.raises(NiwakiError, match="is not JSON"):
        report(measured)


def test_the_page_is_the_same_for_the_same_folder(tmp_path: Path):
    folder = write_run(tmp_path / "small")
    first = report(folder, tmp_path / "one.html").read_bytes()
    assert report(folder, tmp_path / "two.html").read_bytes() == first


def test_a_resumed_log_counts_each_step_once():
    rows = train_rows(count=4)
    again = {**rows[2], "loss": 9.0}
    kept = kept_records([*rows, again])
    assert [row["optimizer_step"] for row in kept] == [25, 50, 75] and kept[-1]["loss"] == 9.0
    begin, end = {"event": "step-begin", "step": "a"}, {"event": "step-end", "step": "a"}
    log = [{**begin, "time": 0}, {"event": "train", "step": "a", "time": 5}]  # killed at 5
    assert durations(log) == []
    log += [{**begin, "time": 100}, {**end, "time": 107}]
    assert durations(log) == [("a", "12.0 s")]
    log += [{**begin, "time": 200}, {**end, "time": 203}]  # another recipe
    assert durations(log) == [("a", "3.00 s")]


def test_a_log_without_epochs_or_parts_is_drawn():
    rows = [
        {"event": "train", "optimizer_step": index, "loss": 1.0 / index, "learning_rate": float("nan")}
        for index in range(1, 4)
    ]
    (training,) = trainings(rows, "name")
    assert "optimizer step" in training.svg and "learning rate" not in training.svg
    assert trainings(rows[:1], "name") == []


def test_time_by_module_is_time_only_where_it_was_measured():
    modules = {"base": modules_of(6, 32), "run": modules_of(3, 8)}
    shares = shares_of(modules, "name", "base", "small")
    assert shares is not None and not shares.measured
    assert shares.head == ("part", "base: bytes", "small: bytes", "base: MACs/token", "small: MACs/token")
    assert shares.table[0] == ("embeddings", "47.6 MB", "11.9 MB", "–", "–")
    assert shares.table[1] == ("attention", "14.2 MB", "1.77 MB", "3.54 M", "1.77 M")
    assert shares.table[-1] == ("all", "90.1 MB", "17.2 MB", "10.6 M", "5.31 M")
    timed = {key: [{**row, "seconds": 0.001} for row in rows] for key, rows in modules.items()}
    timed_shares = shares_of(timed, "name", "base", "small")
    assert timed_shares is not None and timed_shares.measured and "where the time goes" in timed_shares.svg
    assert shares_of({}, "name", "base", "small") is None


def test_one_label_for_points_of_one_name_that_lie_together(tmp_path: Path):
    text = report(write_run(tmp_path / "small"), tmp_path / "report.html").read_text(encoding="utf-8")
    size_plot = re.findall(r"<svg.*?</svg>", text, re.DOTALL)[1]
    assert size_plot.count(">base<") == 1


def test_picture(tmp_path: Path):
    folder = write_run(tmp_path / "small")
    text = picture(folder, tmp_path / "docs" / "picture.svg").read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text)
    words = " ".join(part.strip() for part in tree.itertext())
    assert "small: 6.0× smaller, 8.0× faster in ONNX Runtime, −0.60 points" in words
    assert "Some Processor" in words and "Bubble area: bytes on disk" in words
    assert picture([folder], tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(NiwakiError, match=r"picture\.jpeg"):
        picture(folder, tmp_path / "picture.jpeg")
    (folder / "measurement.json").write_text(json.dumps({"base": "b", "rows": [{"name": "b", "runtime": "torch"}]}))
    with pytest.raises(NiwakiError, match="both a latency and a quality"):
        picture(folder, tmp_path / "picture.svg")


def test_card(tmp_path: Path):
    folder = write_run(tmp_path / "small", model="owner/minilm")
    text = card(folder).read_text(encoding="utf-8")
    matter = yaml.safe_load(text.split("---")[1])
    assert matter["library_name"] == "niwaki" and matter["base_model"] == "owner/minilm"
    assert matter["pipeline_tag"] == "text-classification" and matter["metrics"] == ["accuracy"]
    assert {"niwaki", "distill", "drop", "quantize", "onnx", "openvino"} <= set(matter["tags"])
    for heading in ("Numbers", "How it was made", "How to use it", "Limits", "Credits"):
        assert f"\n## {heading}\n" in text
    assert "| small | ONNX Runtime | 15.0 MB | 6.0× | 1.00 ms | 8.0× | 12× |" in text
    assert "1. train with distill (temperature 4) and drop (keep layers 0, 2, 4) together: epochs 3" in text
    assert "- layers 0, 2, 4 kept, of 6" in text
    assert "- layer 0, query: rank 96 (pays below 192), 12.5% lost" in text
    assert "$ niwaki compress owner/minilm --task text-classification --data reviews/" in text
    assert "3.4% of its predictions differ" in text
    assert re.search(r"- distill: Hinton.*2015", text) and re.search(r"- quantize: Jacob.*2018", text)
    assert "\n\n\n" not in text
    given = card(folder, credits={"drop": ["A paper."], "unused": ["Another."]}).read_text(encoding="utf-8")
    assert given.split("## Credits")[1].strip().splitlines()[-1] == "- drop: A paper." and "Hinton" not in given


def test_card_is_read_by_the_hub_and_names_no_path_of_this_machine(tmp_path: Path):
    from huggingface_hub import ModelCard

    read = ModelCard.load(card(write_run(tmp_path / "small")))
    assert read.data.library_name == "niwaki" and read.data.base_model is None
    assert "/home/someone" not in str(read) and str(tmp_path) not in str(read)


def test_card_of_an_unmeasured_run_says_so(tmp_path: Path):
    folder = tmp_path / "fresh"
    folder.mkdir()
    with pytest.raises(NiwakiError, match="is no run folder"):
        card(folder)
    with pytest.raises(NiwakiError, match="there is no folder"):
        card(tmp_path / "missing")
    (folder / "recipe.yaml").write_text(RECIPE)
    text = card(folder).read_text(encoding="utf-8")
    assert "Not measured yet" in text and "Its quality has not been measured." in text
    assert "niwaki export" in text


def test_the_snippet_for_onnxruntime_runs(
    tmp_path: Path, tiny_tokenizer: Callable[..., Any], capsys: pytest.CaptureFixture[str]
):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder = write_run(tmp_path / "small", labels=[f"label {index}" for index in range(3)])
    tiny_tokenizer("bert").save_pretrained(folder)
    config = {
        "model_type": "bert",
        "max_position_embeddings": 64,
        "id2label": {str(i): f"l{i}" for i in range(3)},
    }
    (folder / "config.json").write_text(json.dumps(config))
    # logits (B, 3): the padded length, the sum of the mask, and a constant
    helper, INT64, FLOAT = onnx.helper, onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["sum"], keepdims=1),
        helper.make_node("Concat", ["sum", "sum", "sum"], ["three"], axis=1),
        helper.make_node("Mul", ["three", "weights"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["logits"], to=FLOAT),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("attention_mask", INT64, ["batch", "length"])],
        [helper.make_tensor_value_info("logits", FLOAT, ["batch", 3])],
        [helper.make_tensor("one", INT64, [1], [1]), helper.make_tensor("weights", INT64, [1, 3], [1, 3, 2])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "artifacts" / "model.onnx")
    for labels, expected in (
        ([0, 1, 2], "['1', '1']"),
        ([*range(9)], "['l1', 'l1']"),
    ):  # many names: from the config
        origin = json.loads((folder / "base.json").read_text())
        (folder / "base.json").write_text(json.dumps({**origin, "labels": labels}))
        ((title, code), *_) = snippets(read_runs([folder])[0], str(folder))
        assert "ONNX Runtime" in title
        exec(compile(code, "snippet", "exec"), {})
        assert capsys.readouterr().out.strip() == expected


def test_missing_matplotlib_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = write_run(tmp_path / "small")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NiwakiError, match=r'pip install "niwaki\[report\]"'):
        report(folder, tmp_path / "report.html")
    assert card(folder).is_file()  # a card has no plots


def test_importing_the_report_loads_nothing_heavy():
    heavy = ("torch", "matplotlib", "jinja2", "numpy")
    code = f"import sys, niwaki.report; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_columns_name_the_first_runtime_and_explain_themselves(tmp_path: Path):
    runs = read_runs([write_run(tmp_path / "small")])
    assert "vs PyTorch" in [title for title, _ in heads(runs)]
    assert all(told for _, told in heads(runs))


def test_less_surprise_is_better() -> None:
    """Of a language model a rise is the loss, in nats with four decimals, and never in points."""
    worse = {"metric": "nats", "higher_is_better": False, "value": 1.45, "difference": 0.0977, "p_value": 0.0002}
    worse |= {"interval": [0.09, 0.1054], "count": 200, "split": "validation"}
    assert loss_of(worse, 0.0977) == 0.0977 and loss_of({"metric": "accuracy"}, -1.0) == 1.0

    def told(quality: dict[str, Any]) -> Headline:
        rows = [
            {"name": "base", "runtime": "torch", "size_bytes": 1000},
            {"name": "small", "runtime": "torch", "size_bytes": 500, "quality": quality},
        ]
        return headline(rows, "base", rows[1:])

    found = told(worse)
    assert "Surprise rises by 0.0977 nats, 1.3523 to 1.4500" in found.sentence
    assert "permutation p < 0.001" in found.sentence and "points" not in found.sentence
    assert found.verdict == "smaller, at a cost in nats" and found.good is None
    assert "better nats" in told(worse | {"difference": -0.0977, "interval": [-0.1, -0.09]}).verdict
    even = told(worse | {"difference": 0.001, "interval": [-0.002, 0.004], "p_value": 0.5})
    assert "at most 0.0040 nats lost (95%)" in even.verdict and even.good is True
    open_still = told(worse | {"difference": 0.001, "interval": [-0.002, 0.04], "p_value": 0.5})
    assert open_still.good is None
