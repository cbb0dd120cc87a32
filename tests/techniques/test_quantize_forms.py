"""Which form of integers: within a limit on the loss, by the clock, and for the processor at hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import niwaki
from niwaki.anatomy import anatomy_of
from niwaki.calibrate import predict
from niwaki.checkpoint import load, save
from niwaki.errors import NiwakiError
from niwaki.grid import Grid, nearest
from niwaki.layers.linear import QuantizedLinear
from niwaki.layers.packed import PackedEmbedding
from niwaki.limit import Limit
from niwaki.measure.conditions import adds_in_16_bits, instruction_sets
from niwaki.measure.records import Latency, Measurement
from niwaki.measure.subjects import Session
from niwaki.report.folders import RunFolder
from niwaki.report.precision import told_of
from niwaki.surgery import journal_of
from niwaki.task import Encoded, Task
from niwaki.technique import Context
from niwaki.techniques.quantize import Quantize, measured, reduced
from niwaki.techniques.quantize.measured import Tried, choose
from niwaki.techniques.quantize.sensitivity import Part, fewest, kept_after, parts_of, promotions
from niwaki.techniques.quantize.technique import FORMS
from niwaki.testing import fresh, logits, make_context

Bases = Callable[..., Path]
Events = list[dict[str, Any]]
Clocked = Callable[[dict[tuple[str, str], float], dict[str, int]], None]
#: All but the first feed-forward and the head.
MOST = ("*attention*", "*embeddings*", "*layer.1*")
OLD, NEW = ("avx2", "avx512"), ("avx2", "avx512", "vnni")


@pytest.fixture
def context(saved_base: Bases, toy_data: Callable[..., Path], tmp_path: Path) -> Context:
    """Return a context with 48 selection rows, whose labels are the answers of the base: any change is a loss."""
    task = Task("text-classification", data=str(toy_data(train=64, validation=48, test=16)))
    made = make_context(saved_base("bert"), task, tmp_path)
    own = predict(made.base, made.data.validation).argmax(-1)
    return replace(made, data=replace(made.data, validation=replace(made.data.validation, labels=own)))


def logging(context: Context) -> tuple[Context, Events]:
    events: Events = []
    return replace(context, log=events.append), events


def of(events: Events, kind: str) -> dict[str, Any]:
    return next(event for event in events if event["event"] == kind)


def fragile(context: Context) -> str:
    """Give the first up projection one input per row whose weight is huge and whose value is always 0 but for noise.

    The step of its rows then is so wide that even in 8 bits all other weights round to a step or none.
    """
    name = anatomy_of(context.base).layers[0].name_of("up")
    linear = context.base.get_submodule(name)
    norm = anatomy_of(context.base).layers[0].module.attention.output.LayerNorm
    with torch.no_grad():
        norm.weight[3], norm.bias[3] = 0.0, 0.0
        linear.weight[:, 3] = 40.0
    return name


def accurate(context: Context) -> Context:
    own = predict(context.base, context.data.validation).argmax(-1)
    return replace(context, data=replace(context.data, validation=replace(context.data.validation, labels=own)))


def test_the_fragile_module_is_found_and_kept(context: Context) -> None:
    name = fragile(context)
    context, events = logging(accurate(context))
    step = Quantize(activations="none", embeddings=False, skip=("*layer.1.*", "*attention*"), allowed_drop=2.5)
    model = step.apply(fresh(context), context)
    costs = of(events, "sensitivity")["modules"]
    assert costs[0]["modules"] == (name,) and costs[0]["divergence"] > 5 * costs[1]["divergence"]
    limit = of(events, "allowed-drop")
    assert limit["tries"][0]["drop"] > 2.5 and limit["kept"] == {name: 32}
    assert type(model.get_submodule(name)) is nn.Linear
    packed = [part for part, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert sorted([*packed, name]) == sorted(cost["modules"][0] for cost in costs)
    rows = context.data.validation
    right = float((predict(model, rows, 32).argmax(-1) == rows.labels).mean())
    assert 100 * right - 100 == pytest.approx(limit["difference"]) and limit["difference"] >= -2.5


def test_what_loses_little_stays_as_asked(context: Context) -> None:
    context, events = logging(context)
    plain = Quantize().apply(fresh(context), context)
    same = Quantize(allowed_drop=100.0).apply(fresh(context), context)
    assert torch.equal(logits(plain, context), logits(same, context)) and journal_of(plain) == journal_of(same)
    assert of(events, "allowed-drop")["kept"] == {} and len(of(events, "allowed-drop")["tries"]) == 1
    assert len(of(events, "sensitivity")["modules"]) == len(journal_of(plain)) - 1


def test_nothing_within_the_limit_is_an_error(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels no quantized model can give: the difference is the float model's whole accuracy."""
    from niwaki.techniques.quantize import sensitivity

    real = sensitivity.answers

    def wrong(model: nn.Module, rows: Encoded, task: Task) -> Any:
        found = real(model, rows, task)
        is_packed = any(isinstance(module, QuantizedLinear) for module in model.modules())
        return replace(found, outcome=1 - found.outcome) if is_packed else found

    monkeypatch.setattr(sensitivity, "answers", wrong)
    context, events = logging(context)
    with pytest.raises(NiwakiError, match="nothing can be packed within allowed_drop 1"):
        Quantize(allowed_drop=1.0, embeddings=False, skip=("*attention*",)).apply(fresh(context), context)
    limit = of(events, "allowed-drop")
    assert (
        set(limit["kept"].values()) == {32}
        and "difference" not in limit
        and all(t["drop"] == 100 for t in limit["tries"])
    )


def test_calibration_never_sees_selection_rows(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Without a test split the selection rows come out of train."""
    base = make_context(saved_base("bert"), toy_task, tmp_path)
    seen: list[int] = []
    rest, held = base.data.selection(base.seed)

    class Watched(Context):
        def calibration_batches(self, count: int, batch_size: int = 32, length: int | None = None) -> Any:
            seen.append(len(self.train))
            return super().calibration_batches(count, batch_size, length)

    watched = Watched(**vars(base))
    only = ("*embeddings*", "*attention*", "*.layer.1.*", "*pooler*")
    Quantize(activations="static", allowed_drop=100.0, embeddings=False, skip=only).apply(fresh(base), watched)
    assert set(seen) == {len(rest)} and len(rest) + len(held) == len(base.train)


@pytest.mark.parametrize("needed", range(8))
def test_bisection_finds_the_fewest(needed: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= needed

    assert fewest(holds, 7) == needed and len(tried) <= 4 and 7 not in tried


def test_promotions_go_to_8_bits_first() -> None:
    steps = promotions([Part(("up",), 4), Part(("head", "words"), 4), Part(("down",), 8)])
    assert kept_after(steps, 2) == {"up": 8, "head": 8, "words": 8}
    assert kept_after(steps, 3) == {"up": 32, "head": 8, "words": 8}
    assert kept_after(steps, 5) == dict.fromkeys(("up", "head", "words", "down"), 32)


def test_a_decoder_keeps_its_tied_head_with_its_table(saved_base: Bases, tmp_path: Path) -> None:
    """The limit is in nats; the table and the head that is tied to it go together."""
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("train", "validation", "test"):
        (texts / f"{name}.csv").write_text("text\n" + "the film is good and the book was fresh\n" * 8, encoding="utf-8")
    task = Task("language-modelling", data=str(texts))
    context, events = logging(make_context(saved_base("llama", hidden=32), task, tmp_path))
    settings = Quantize(bits=2, embeddings=2, skip=("*layers*",), allowed_drop=0.001)
    names = settings.chosen(context.base)
    assert parts_of(settings, context.base) == [Part(("model.embed_tokens", "lm_head"), 2)] and len(names[0]) == 1
    model = settings.apply(fresh(context), context)
    assert of(events, "allowed-drop")["kept"] == {"model.embed_tokens": 8, "lm_head": 8}
    assert of(events, "sensitivity")["modules"][0]["divergence"] > 0.001
    words, head = (model.get_submodule(name) for name in ("model.embed_tokens", "lm_head"))
    assert torch.equal(words.weight, head.weight)


class Clock:
    """Stand for the clock: every form takes as long as told, and gets as many rows wrong as told."""

    def __init__(self, seconds: dict[tuple[str, str], float], wrong: dict[str, int]) -> None:
        self.seconds, self.wrong = seconds, wrong

    def __call__(self, subjects: Sequence[Any], rows: Encoded, metric: str, *, base: int, **rest: Any) -> Session:
        assert subjects[base].name == "floats" and all(subject.path.is_file() for subject in subjects)
        assert rows.labels is not None
        records, predictions = [], []
        for subject in subjects:
            seconds = self.seconds.get((subject.name, subject.runtime), 9.0)
            clocked = Latency(median=seconds, p10=seconds, p90=seconds, p99=seconds)
            records.append(
                Measurement(name=subject.name, runtime=subject.runtime, size_bytes=1000, latency_seconds=clocked)
            )
            is_wrong = np.arange(len(rows)) < self.wrong.get(subject.name, 0)
            predictions.append(np.where(is_wrong, 1 - rows.labels, rows.labels))
        return Session(records, predictions, rows.labels, seed=0)


def written(model: nn.Module, examples: Sequence[Any], path: Path) -> None:
    """Write a file without an exporter; of 4-bit tables none."""
    if any(isinstance(module, PackedEmbedding) for module in model.modules()):
        raise NiwakiError("tables of 4 bits have no file")
    path.write_bytes(b"")


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Clocked:
    """Put up a clock, with ONNX Runtime alone and files that nobody reads."""

    def put_up(seconds: dict[tuple[str, str], float], wrong: dict[str, int]) -> None:
        monkeypatch.setattr(measured, "measure_session", Clock(seconds, wrong))
        monkeypatch.setattr(measured, "installed", lambda: ("torch", "onnxruntime"))
        monkeypatch.setitem(measured.WRITERS, "onnxruntime", ("model.onnx", written))

    return put_up


def test_the_fastest_form_within_the_limit_is_packed(context: Context, clocked: Clocked) -> None:
    """Static is fastest and loses too much, and is slow with modules in floats; the weights are next."""
    seconds = {("int8 static", "onnxruntime"): 1.0, ("int8 weights", "onnxruntime"): 2.0}
    clocked(seconds, {"int8 static": 2})
    context, events = logging(context)
    model = Quantize(by="measured").apply(fresh(context), context)
    kinds = {module.activations for module in model.modules() if isinstance(module, QuantizedLinear)}
    assert kinds == {"none"}
    forms = of(events, "forms")["forms"]
    assert [form["form"] for form in forms] == ["floats", *FORMS, "int8 static, mixed"]
    assert [form["form"] for form in forms if form["refused"]] == ["int4"]
    assert [form["form"] for form in forms if form["chosen"]] == ["int8 weights"] and not of(events, "forms")[
        "repaired"
    ]
    assert not [event for event in events if "faster than the floats" in str(event.get("note"))]
    (table,) = told_of(events)
    assert table.lines[0][:2] == ("int8 static", "onnxruntime") and table.lines[1][2] == "chosen"


def test_a_faster_form_with_modules_in_floats_is_taken(context: Context, clocked: Clocked) -> None:
    """Static loses too much as it stands; with some modules in floats it does not, and is faster than the weights."""
    seconds = {(form, "onnxruntime"): at for form, at in (("int8 static", 1.0), ("int8 static, mixed", 1.5))}
    clocked(seconds, {"int8 static": 2})
    context, events = logging(context)
    model = Quantize(by="measured").apply(fresh(context), context)
    kinds = {module.activations for module in model.modules() if isinstance(module, QuantizedLinear)}
    assert kinds == {"static"} and of(events, "allowed-drop")["allowed"] == 1.0
    assert [form["form"] for form in of(events, "forms")["forms"] if form["chosen"]] == ["int8 static, mixed"]


def test_a_form_beyond_the_limit_is_repaired(
    context: Context, clocked: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    clocked({}, {"int8 dynamic": 2})
    monkeypatch.setattr("niwaki.techniques.quantize.technique.FORMS", {"int8 dynamic": {}})
    context, events = logging(context)
    Quantize(by="measured", allowed_drop=2.5, skip=MOST).apply(fresh(context), context)
    assert of(events, "forms")["repaired"] and of(events, "allowed-drop")["allowed"] == 2.5


def test_with_confidence_it_is_the_bound_that_counts(context: Context, clocked: Clocked) -> None:
    """One of 48 rows lost is 2.1 points, and with 90% confidence two rows, 4.2: of new rows that may be lost."""
    clocked({("int8 static", "onnxruntime"): 1.0}, {"int8 static": 1})
    taken = {}
    for confidence in (None, 0.9):
        told, events = logging(context)
        Quantize(by="measured", allowed_drop=2.5, confidence=confidence).apply(fresh(context), told)
        record = of(events, "forms")
        static = next(form for form in record["forms"] if form["form"] == "int8 static")
        taken[confidence] = static["chosen"]
        assert static["drop"] == pytest.approx(100 / 48) and record["confidence"] == confidence
        assert static["bound"] == (None if confidence is None else pytest.approx(200 / 48))
        assert ("90.0% confidence" in told_of(events)[0].below) == (confidence is not None)
    assert taken == {None: True, 0.9: False}


def test_modules_are_kept_until_the_bound_holds(context: Context) -> None:
    """The same modules lose the same; with confidence no more of them may."""
    fragile(context)
    context, events = logging(accurate(context))
    settings = {"activations": "none", "embeddings": False, "skip": ("*layer.1.*", "*attention*"), "allowed_drop": 2.5}
    Quantize(**settings, confidence=0.9).apply(fresh(context), context)
    limit = of(events, "allowed-drop")
    assert limit["bound"] <= 2.5 and all(one["bound"] >= one["drop"] for one in limit["tries"])
    assert "the bound is" in told_of(events)[0].below
    with pytest.raises(NiwakiError, match="confidence is that of allowed_drop"):
        Quantize(confidence=0.9)


def test_files_are_really_timed_and_scored(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are the answers of the floats, so the drop of a file is the share of rows that it answers otherwise."""
    monkeypatch.setattr(measured, "installed", lambda: ("torch", "onnxruntime"))
    monkeypatch.setattr(measured, "ROUNDS", 1)
    monkeypatch.setattr("niwaki.techniques.quantize.technique.FORMS", {"int8 dynamic": {}})
    context, events = logging(context)
    model = Quantize(by="measured", allowed_drop=100.0).apply(fresh(context), context)
    floats, form = of(events, "forms")["forms"]
    assert (floats["form"], floats["drop"]) == ("floats", 0.0) and form["chosen"] and not form["refused"]
    assert form["size_bytes"] < floats["size_bytes"] and min(form["seconds"], floats["seconds"]) > 0
    rows = context.data.validation
    wrong = float((predict(model, rows, 1).argmax(-1) != rows.labels).mean())
    assert form["drop"] == pytest.approx(100 * wrong, abs=100 / len(rows))


def test_a_form_that_no_file_holds_is_told() -> None:
    """The grid says so and goes on; where there is nothing else, that is the error."""
    forms = [Tried("a", "onnxruntime", refused="has 48 inputs"), Tried("b", "openvino", 2.0, 1, 0.2)]
    assert choose(forms, Limit(1.0)).form == "b"
    with pytest.raises(NiwakiError, match="has 48 inputs"):
        choose(forms[:1], Limit(1.0))
    both = [Tried("a", "openvino", 1.0, 1, 0.2), *forms]  # a is faster, and ONNX Runtime cannot hold it
    assert choose(both, Limit(1.0)).form == "b" and choose(both[:2], Limit(1.0)).form == "a"
    table = told_of([{"event": "forms", "metric": "accuracy", "forms": [vars(form) for form in forms]}])[0]
    assert table.lines[-1][2] == "has 48 inputs" and table.lines[-1][3] == "–"


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"bits": 4}, "leave them"),
        ({"activations": "static"}, "leave them"),
        ({"override": {"*": {"bits": 4}}}, "leave"),
    ],
)
def test_measured_takes_no_form_of_its_own(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(NiwakiError, match=match):
        Quantize(by="measured", **wrong)
    with pytest.raises(NiwakiError, match="a way to find integers"):
        Quantize(override={"*": {"by": "measured"}})


def test_without_a_runtime_nothing_is_measured(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "installed", lambda: ("torch",))
    with pytest.raises(NiwakiError, match="finds no runtime"):
        Quantize(by="measured").check(context.base)


def test_reduced_products_fit_16_bits() -> None:
    grid = Grid(reduced=True)
    rounded = nearest(torch.tensor([[-3.2, 0.05, 1.6]]), grid)
    assert (rounded.integers.int() - 128).tolist() == [[-64, 1, 32]]
    torch.testing.assert_close(rounded.floats(grid), torch.tensor([[-3.2, 0.05, 1.6]]))
    assert 2 * 255 * grid.reach < 2**15 <= 2 * 255 * (grid.reach + 1)
    assert [adds_in_16_bits(sets) for sets in (OLD, NEW, ("neon", "dotprod"), ())] == [True, False, False, False]


def test_instruction_sets_are_read(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nflags : fpu avx2 avx512f\n")
    assert instruction_sets(file) == OLD


@pytest.mark.parametrize("by", ["nearest", "gptq"])
@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_old_processors_get_a_reduced_range(
    activations: str, by: str, context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(reduced, "instruction_sets", lambda: OLD)
    context, events = logging(context)
    step = Quantize(activations=activations, by=by)
    model = step.apply(fresh(context), context)
    linears = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert linears and max(int(linear.weight.abs().max()) for linear in linears) == 64
    assert all(record["reduced"] for record in journal_of(model)[1:] if record["edit"] == "quantize_linear")
    assert "2 * 255 * 127 = 64,770 does not fit" in of(events, "note")["note"]
    again = load(save(model, tmp_path / "saved", context.tokenizer))
    assert torch.equal(logits(again, context), logits(model, context)) and journal_of(again) == journal_of(model)
    monkeypatch.setattr(reduced, "instruction_sets", lambda: NEW)  # made there, used here: what is saved counts
    assert torch.equal(logits(load(tmp_path / "saved"), context), logits(model, context))


def test_the_range_is_as_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without integer products there is nothing to reduce; with the user's word, it is kept, and its price told."""

    def widest(sets: tuple[str, ...], **settings: Any) -> tuple[int, Events]:
        monkeypatch.setattr(reduced, "instruction_sets", lambda: sets)
        here, events = logging(context)
        model = Quantize(**settings, embeddings=False, skip=("*layer.1*", "*attention*")).apply(fresh(here), here)
        found = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
        return max(int(linear.weight.abs().max()) for linear in found), events

    assert [note["event"] for note in widest(OLD, allowed_drop=100.0)[1]].count("note") == 1
    assert widest(NEW) == (127, []) and widest(OLD, activations="none") == (127, [])
    assert widest(NEW, reduce_range=True) == (64, [])
    wide, events = widest(OLD, reduce_range=False)
    assert wide == 127 and "saturate" in of(events, "note")["note"]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"bits": 4, "group": 8}, r"encoder\.layer\.0\..* has 32 inputs in groups of 8"),
        ({"bits": 6, "by": "hqq", "group": 16}, r"encoder\.layer\.0\..* has 6 bits and zero points between integers"),
    ],
)
def test_what_no_runtime_multiplies_is_refused_before_any_work(
    settings: dict[str, Any], match: str, saved_base: Bases, toy_task: Task, tmp_path: Path
) -> None:
    base, recipe = saved_base("bert"), niwaki.Recipe([Quantize(**settings, embeddings=False)])
    with pytest.raises(NiwakiError, match=match):
        niwaki.compress(base, recipe, toy_task, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
    model = load(base)
    Quantize(**settings, embeddings=False).check_export(model, ["openvino"])
    with pytest.raises(NiwakiError, match=match):
        niwaki.compress(
            base, recipe, toy_task, tmp_path / "run", export=(), runtimes=("torch", "onnxruntime"), progress=False
        )


def test_report_and_card_tell_where_it_was_lost(tmp_path: Path) -> None:
    cost = {"modules": ["layer.0.up"], "bits": 4, "divergence": 0.25, "loss": 0.03, "difference": -1.5}
    log: Events = [
        {"step": "00-quantize", "event": "sensitivity", "rows": 9, "metric": "accuracy", "modules": [cost] * 14},
        {"step": "00-quantize", "event": "allowed-drop", "allowed": 1.0, "rows": 99, "metric": "accuracy"}
        | {"kept": {"layer.0.up": 8}, "difference": -0.5, "interval": [-1.5, 0.5]},
    ]
    (table,) = told_of([*log[:1], *log])
    assert table.lines[0] == ("layer.0.up", "8 bits", "0.250", "0.0300", "−1.50") and len(table.lines) == 12
    assert "2 others" in table.below and "−0.50 (−1.50 to +0.50) on 99 rows" in table.below
    from niwaki.report.card import card_text

    text = card_text(RunFolder(tmp_path, "small", log=tuple(log), recipe="steps: [quantize]"), credits={})
    assert "### Where the accuracy was lost" in text and "| layer.0.up | 8 bits | 0.250 | 0.0300 | −1.50 |" in text
    assert "a loss of 1.00 points allowed" in text
