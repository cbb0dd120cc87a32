"""A race: who takes part, which recipes are tried, what is measured together, and what the verdict says."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

import niwaki
from niwaki.anatomy import anatomy_of
from niwaki.budget import Budget
from niwaki.calibrate import predict
from niwaki.checkpoint import load
from niwaki.comparison import Comparison
from niwaki.errors import NiwakiError
from niwaki.measure import Measurement, Session, paired_quality
from niwaki.measure.conditions import machine
from niwaki.measure.records import Conditions, Latency, Lengths, Quality
from niwaki.race import Entrant, Parent, Race, Trial, read_parents, read_recipes
from niwaki.race.recipes import strengths_of
from niwaki.race.standing import standings
from niwaki.recipe import Recipe
from niwaki.report import report
from niwaki.report.folders import read_run
from niwaki.runtime import size_on_disk
from niwaki.task import Task
from niwaki.techniques.drop import Drop
from niwaki.techniques.quantize import Quantize
from niwaki.train import Train

Base = Callable[..., Path]
verb = importlib.import_module("niwaki.race.verb")


# Who takes part


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("runs/base", ("base", "runs/base", None)),
        ("owner/large", ("large", "owner/large", None)),
        ("big=owner/large", ("big", "owner/large", None)),
        ("runs/base:keep_layers=3", ("base-3-layers", "runs/base", 3)),
        ("half=runs/base:keep_layers=12", ("half", "runs/base", 12)),
        ("half=../a=b/base:keep_layers=1", ("half", "../a=b/base", 1)),
    ],
)
def test_words_for_a_parent(text: str, expected: tuple[Any, ...]) -> None:
    parent = Parent.read(text)
    assert (parent.name, parent.model, parent.keep_layers) == expected


def test_a_folder_that_is_there_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a=b").mkdir()
    with pytest.raises(NiwakiError, match="is no parent"):  # no name for files can be made of it
        Parent.read("a=b")
    assert Parent.read("c=a=b").model == "a=b"


@given(
    some.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True),
    some.from_regex(r"[a-z]{1,5}/[a-z]{1,5}", fullmatch=True),
    some.one_of(some.none(), some.integers(1, 48)),
)
def test_what_is_written_is_read(name: str, model: str, layers: int | None) -> None:
    written = f"{name}={model}" + (f":keep_layers={layers}" if layers else "")
    assert Parent.read(written) == Parent(name=name, model=model, keep_layers=layers)


@pytest.mark.parametrize("text", ["runs/base:keep_layers=0", "runs/base:keep_layers=x", "runs/two words"])
def test_words_that_name_no_parent(text: str) -> None:
    with pytest.raises(NiwakiError, match="is no parent"):
        Parent.read(text)


def test_two_or_more_and_each_by_its_name() -> None:
    with pytest.raises(NiwakiError, match="1 parent takes part"):
        read_parents(["runs/base"])
    with pytest.raises(NiwakiError, match='two parents are called "base"'):
        read_parents(["runs/base", "other/base"])
    assert list(read_parents(["runs/base", "other=other/base"])) == ["base", "other"]


# Which recipes they try


MILD, STRONG = Recipe([Quantize(bits=8)]), Recipe([Drop(keep_layers=1), Quantize(bits=8)])


def test_recipes_for_all_and_for_each() -> None:
    assert strengths_of(["a", "b"], MILD) == {"a": [MILD], "b": [MILD]}
    assert strengths_of(["a", "b"], [MILD, STRONG])["b"] == [MILD, STRONG]
    assert strengths_of(["a", "b"], {"a": STRONG, "b": [MILD, STRONG]})["a"] == [STRONG]
    family = Recipe.parse("steps: [{prune: {by: second-order, keep: {latency: [0.75, 0.5]}}}]")
    assert strengths_of(["a"], [MILD, family])["a"] == [MILD, *family.family().values()]


@pytest.mark.parametrize(
    ("recipes", "message"),
    [
        ({"a": MILD}, "b has no recipe"),
        ({"a": MILD, "b": MILD, "c": MILD}, 'a recipe is for "c"'),
        ([], "there is no recipe"),
        ({"a": MILD, "b": []}, "there is no recipe"),
        ("no-such-recipe", "no recipe"),
    ],
)
def test_recipes_that_are_missing(recipes: Any, message: str) -> None:
    with pytest.raises(NiwakiError, match=message):
        strengths_of(["a", "b"], recipes)


def test_recipes_in_words(tmp_path: Path) -> None:
    mild, cut = tmp_path / "mild.yaml", tmp_path / "cut.yaml"
    mild.write_text(MILD.dump())
    cut.write_text(STRONG.dump())
    found = read_recipes([str(mild), f"large={cut}", f"large={mild}"], ["large", "base", "half"])
    assert found == {"large": [STRONG, MILD], "base": [MILD], "half": [MILD]}
    several = read_recipes([str(cut)], ["a"], ["steps[1].quantize.examples=64"], "steps[0].drop.keep_layers=6,4,3")["a"]
    assert several == [Recipe([Drop(keep_layers=layers), Quantize(bits=8, examples=64)]) for layers in (6, 4, 3)]
    assert read_recipes([f"large={cut}"], ["large", "base"]) == {"large": [STRONG]}


def test_strengths_go_where_there_is_a_place_for_them(tmp_path: Path) -> None:
    mild, cut = tmp_path / "mild.yaml", tmp_path / "cut.yaml"
    mild.write_text(MILD.dump())
    cut.write_text(STRONG.dump())
    words, names = [f"large={cut}", f"small={mild}"], ["large", "small"]
    found = read_recipes(words, names, (), "steps[0].drop.keep_layers=4,3")
    assert found == {
        "large": [Recipe([Drop(keep_layers=layers), Quantize(bits=8)]) for layers in (4, 3)],
        "small": [MILD],
    }
    for nowhere, message in (
        ("steps[0].trim.rows=4,3", 'no "trim"'),
        ("steps[0].drop.keep=4,3", 'no parameter "keep"'),
    ):
        with pytest.raises(NiwakiError, match=message):
            read_recipes(words, names, (), nowhere)


# What is tried: only misses are looked at


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_the_mildest_that_fits_is_found_by_halving(count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    mildest = 0

    def trial(self: Any, name: str, source: str, recipes: Any, number: int, beside: Any) -> Trial:
        assert len(beside) == len(calls)
        calls.append(number)
        return Trial(recipe=number, run=f"runs/{number}", misses=() if number >= mildest else ("too big",))

    monkeypatch.setattr(verb._Course, "trial", trial)
    course = verb._Course(tmp_path, None, Budget(), (), None, 0, False)
    for mildest in range(1, count + 2):
        calls.clear()
        trials = course.tried("a", "a", [MILD] * count)
        assert [one.recipe for one in trials] == sorted(calls)
        assert len(calls) <= count.bit_length()
        assert next((one.recipe for one in trials if not one.misses), count + 1) == mildest


# How finalists stand


def row(name: str, runtime: str, size: int, seconds: float, answers: list[int]) -> Measurement:
    value = 100 * float(np.mean(answers))
    quality = Quality(
        metric="accuracy", value=value, difference=0, interval=(0, 0), p_value=1, changed=0, count=8, split="test"
    )
    latency = Latency(median=seconds, p10=seconds, p90=seconds, p99=seconds)
    return Measurement(name=name, runtime=runtime, size_bytes=size, latency_seconds=latency, quality=quality)


def session_of(*rows: tuple[str, str, int, float, list[int]]) -> Session:
    """Return a session in which class 1 is right for every row."""
    return Session([row(*one) for one in rows], [np.array(one[4]) for one in rows], np.ones(8, dtype=int), seed=0)


def test_standings_by_hand() -> None:
    right = [1] * 8
    session = session_of(
        ("large", "torch", 90, 4.0, right),
        ("large", "onnxruntime", 90, 2.0, right),
        ("base", "torch", 45, 2.0, [1] * 7 + [0]),
        ("base", "onnxruntime", 45, 1.0, [1] * 6 + [0, 0]),
        ("small", "torch", 9, 0.9, [1] * 5 + [0] * 3),
        ("small", "onnxruntime", 9, 0.8, [1] * 5 + [0] * 3),
        ("large+", "torch", 10, 1.0, right),
        ("large+", "onnxruntime", 10, 0.5, [0] + [1] * 7),
        ("base+", "torch", 8, 0.4, [1] * 6 + [0, 0]),
        ("base+", "onnxruntime", 11, 0.1, [1] * 6 + [0, 0]),
        ("small+", "torch", 12, 0.4, right),
        ("small+", "onnxruntime", 12, 0.3, right),
    )
    finalists = {"small": "small+", "base": "base+", "large": "large+"}
    found = standings(session, Budget(size_bytes=10), finalists)
    assert list(found) == ["large", "base", "small"]  # small+ is right everywhere, and too big
    assert [one["runtime"] for one in found.values()] == ["onnxruntime", "torch", "onnxruntime"]
    assert [one["misses"] for one in found.values()] == [(), (), ("size is 12 B, the budget is at most 10 B",)]
    assert [one["parent_fits"] for one in found.values()] == [False, False, True]
    large, base = found["large"], found["base"]
    assert large["quality"].difference == 0 and large["lost"].difference == -12.5
    # 75 beside the 87.5 of the first, and beside the 87.5 that its parent has in PyTorch
    assert (base["quality"].difference, base["lost"].difference) == (-12.5, -12.5)
    expected = paired_quality(np.array([0] + [1] * 7), np.array([1] * 6 + [0, 0]), np.ones(8, dtype=int), "accuracy")
    assert base["quality"].interval == expected["interval"] and base["quality"].count == 8
    assert (base["parent_size_bytes"], base["parent_latency_seconds"]) == (45, 2.0)


def test_of_equals_the_faster_is_ahead() -> None:
    rows = [("a", "torch", 9, 1.0, [1] * 8), ("b", "torch", 9, 1.0, [1] * 8)]
    session = session_of(*rows, ("a+", "torch", 5, 0.4, [1] * 8), ("b+", "torch", 5, 0.3, [1] * 8))
    assert list(standings(session, Budget(size_bytes=5), {"a": "a+", "b": "b+"})) == ["b", "a"]


def test_of_surprise_less_is_ahead() -> None:
    """Row by row: nats and tokens; 8 rows of 2 tokens, at 1 and at 3 nats a row."""
    rows, answers = [], []
    for name, nats in (("a", 1.0), ("b", 1.0), ("a+", 3.0), ("b+", 1.0)):
        quality = row(name, "torch", 5, 0.1, [1] * 8).quality
        changed = {"metric": "nats", "value": nats / 2, "higher_is_better": False}
        rows.append(
            row(name, "torch", 5, 0.1, [1] * 8).model_copy(update={"quality": quality.model_copy(update=changed)})
        )
        answers.append(np.tile([nats, 2.0], (8, 1)))
    found = standings(Session(rows, answers, None, seed=0), Budget(size_bytes=5), {"a": "a+", "b": "b+"})
    assert list(found) == ["b", "a"]
    assert found["a"]["quality"].difference == pytest.approx(1.0) and not found["a"]["quality"].higher_is_better


def entrant(parent: str, difference: float = 0.0, reach: float = 0.5, **changed: Any) -> Entrant:
    quality = Quality(
        metric="accuracy",
        value=90 + difference,
        difference=difference,
        interval=(difference - reach, difference + reach),
        p_value=0.5,
        changed=0.1,
        count=100,
        split="test",
    )
    values = {
        "parent": parent,
        "model": f"runs/{parent}",
        "keep_layers": None,
        "recipes": 2,
        "trials": (Trial(recipe=2, run=f"runs/{parent}-recipe-2", misses=()),),
        "recipe": 2,
        "misses": (),
        "runtime": "torch",
        "size_bytes": 9_000_000,
        "quality": quality,
        "lost": quality,
        "parent_fits": False,
    }
    return Entrant(**(values | changed))


def result(*entrants: Entrant) -> Race:
    return Race(budget="size=10MB", seed=0, entrants=entrants, key="k")


MISSED = {"misses": ("size is 12 MB, the budget is at most 10 MB",), "recipe": None, "quality": None, "lost": None}


@pytest.mark.parametrize(
    ("entrants", "verdict"),
    [
        (
            (entrant("a"), entrant("b", -2.0)),
            "Start from a: at size=10MB it is ahead of b (-2.00, -2.50..-1.50).",
        ),
        (
            (entrant("a"), entrant("b", -0.25)),
            "Start from a: at size=10MB these rows cannot tell it from b (-0.25, -0.75..+0.25).",
        ),
        (
            (entrant("a"), entrant("b", -0.25), entrant("c", -2.0)),
            "Start from a: at size=10MB it is ahead of c (-2.00, -2.50..-1.50); these rows cannot tell it from "
            "b (-0.25, -0.75..+0.25).",
        ),
        (
            (entrant("a", parent_fits=True), entrant("b", **MISSED)),
            "Start from a: only it reaches size=10MB. b does not reach the budget. a fits as it is.",
        ),
        (
            (entrant("a", **MISSED), entrant("b", **MISSED)),
            "No parent reaches size=10MB: give stronger recipes, or a wider budget.",
        ),
    ],
)
def test_verdicts(entrants: tuple[Entrant, ...], verdict: str) -> None:
    assert result(*entrants).verdict == verdict


def test_the_table_and_the_record(tmp_path: Path) -> None:
    one = result(entrant("a"), entrant("b", -2.0), entrant("c", **MISSED))
    lines = str(one).splitlines()
    assert lines[1].split() == "a 2 of 2 torch 9 MB - - 90.00 - +0.00, -0.50..+0.50 fits".split()
    assert "-2.00, -2.50..-1.50" in lines[2]
    assert lines[3].endswith("size is 12 MB, the budget is at most 10 MB")
    assert lines[-1] == one.verdict
    file = tmp_path / "race.json"
    file.write_text(one.to_json())
    assert Race.read(file) == one
    assert json.loads(file.read_text())["winner"] == "a"
    assert one.entrants[0].run == "runs/a-recipe-2" and one.entrants[2].run is None


# The verb


LIGHT: dict[str, Any] = {"runtimes": ["torch"], "threads": 1, "progress": False}


@pytest.fixture
def base(saved_base: Base, tmp_path: Path) -> Path:
    return saved_base("bert", tmp_path / "base", layers=3)


def in_process(subjects: Any, evaluation: Any, metric: str, *, threads: int, seed: int, **others: Any) -> Session:
    """Measure as the real session does, but for the clock and the processes: a layer takes a millisecond."""
    predictions = [predict(load(one.path), one.rows).argmax(-1) for one in subjects]
    records = []
    for one, found in zip(subjects, predictions, strict=True):
        seconds = anatomy_of(load(one.path)).num_layers / 1000
        quality = paired_quality(predictions[0], found, evaluation.labels, metric, seed=seed)
        conditions = Conditions(
            **machine(),
            threads=threads,
            precision="f32",
            lengths=Lengths(mean=8, p50=8, p90=8, max=8),
            latency_batch=1,
            throughput_batch=32,
            rounds=1,
            repeats=1,
            throughput_rows=32,
            throughput_rounds=1,
            memory_baseline_bytes=0,
            versions={},
            seed=seed,
        )
        records.append(
            Measurement(
                name=one.name,
                runtime=one.runtime,
                parameters=one.parameters,
                size_bytes=size_on_disk(one.path, one.runtime),
                latency_seconds=Latency(median=seconds, p10=seconds, p90=seconds, p99=seconds),
                quality=Quality(split=evaluation.name, **quality),
                conditions=conditions,
            )
        )
    return Session(records, predictions, evaluation.labels, seed)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no processes to measure in."""
    monkeypatch.setattr("niwaki.comparison.measure_session", in_process)


def forbidden(*arguments: Any, **named: Any) -> Any:
    raise AssertionError("a finished race does its work again")


def test_a_race_end_to_end(
    base: Path, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    """Three layers and one of them, fine-tuned, to the time of two: the large is cut, the small is as it was."""
    cut = [Recipe([Drop(keep_layers=layers, by="uniform")]) for layers in (3, 2, 1)]
    recipes = {"large": cut, "small": Recipe([Quantize(bits=8)])}
    parents = [f"large={base}", f"small={base}:keep_layers=1"]
    training = Train(epochs=1, learning_rate=1e-3, batch_size=16)
    budget = "latency=2ms"
    out = tmp_path / "race"
    found = niwaki.race(parents, recipes, toy_task, budget, out, training=training, **LIGHT)
    by_name = {one.parent: one for one in found.entrants}
    assert [trial.recipe for trial in by_name["large"].trials] == [1, 2]  # halving begins in the middle
    assert by_name["large"].recipe == 2 and by_name["large"].fits
    assert by_name["small"].parent_fits and not by_name["large"].parent_fits
    assert anatomy_of(load(out / "parents" / "small")).num_layers == 1
    assert anatomy_of(load(out / by_name["large"].run)).num_layers == 2
    rows = Comparison.read(out / "measurement.json").rows
    assert [one.name for one in rows] == ["large", "small", "large, compressed", "small, compressed"]
    assert found.entrants[0].quality.difference == 0.0
    values = [one.quality.value for one in found.entrants]
    assert values == sorted(values, reverse=True)
    assert found.entrants[1].quality.difference == pytest.approx(values[1] - values[0])
    measured = {one.name: one.quality.value for one in rows}
    for one in found.entrants:
        assert one.quality.value == measured[f"{one.parent}, compressed"]
        assert one.lost.difference == pytest.approx(one.quality.value - measured[one.parent])
    with monkeypatch.context() as patch:
        patch.setattr(verb, "measure_together", forbidden)
        patch.setattr("niwaki.run.job.compare", forbidden)
        patch.setattr(Train, "run", forbidden)
        again = niwaki.race(parents, recipes, toy_task, budget, out, training=training, **LIGHT)
    assert again == found
    text = report(out, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Which parent to start from" in text and found.verdict in text
    assert read_run(out).race["winner"] == found.winner.parent


def test_an_interrupted_race_goes_on(
    base: Path, saved_base: Base, toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    other = saved_base("bert", tmp_path / "other", layers=2, seed=1)
    out = tmp_path / "race"
    words: tuple[Any, ...] = ([str(base), str(other)], MILD, toy_task, "size=1GB", out)

    def die(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verb, "measure_together", die)
        with pytest.raises(KeyboardInterrupt):
            niwaki.race(*words, **LIGHT)
    assert not (out / "race.json").exists()
    weights = (out / "runs" / "base-recipe-1" / "model.safetensors").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr("niwaki.run.job.compare", forbidden)
        found = niwaki.race(*words, **LIGHT)
    assert found.winner and (out / "race.json").is_file()
    assert (out / "runs" / "base-recipe-1" / "model.safetensors").stat().st_mtime_ns == weights
    assert {one.model for one in found.entrants} == {str(base), str(other)}
    assert not (base / "measurement.json").exists() and not (base / "artifacts").exists()


def test_steps_that_recipes_begin_with_are_done_once(base: Path, toy_task: Task, tmp_path: Path, quick: None) -> None:
    """Two layers are one millisecond too many; that recipe is tried second, and its only step is there already."""
    first = Drop(keep_layers=2, by="uniform")
    recipes = [Recipe([first]), Recipe([first, Drop(keep_layers=1)])]
    out = tmp_path / "race"
    found = niwaki.race([f"a={base}", f"b={base}:keep_layers=2"], recipes, toy_task, "latency=1ms", out, **LIGHT)
    assert [one.recipe for one in found.entrants] == [2, 2]
    assert all(one.trials[0].misses == ("latency is 2 ms, the budget is at most 1 ms",) for one in found.entrants)
    for name in ("a", "b"):
        notes = [log.read_text("utf-8") for log in sorted(out.glob(f"runs/{name}-recipe-*/log.jsonl"))]
        assert ["00-drop was done before" in note for note in notes] == [True, False]


def test_a_race_that_nobody_finishes(base: Path, toy_task: Task, tmp_path: Path, quick: None) -> None:
    parents = [str(base), f"{base}:keep_layers=2"]
    found = niwaki.race(parents, MILD, toy_task, "size=1kB", tmp_path / "race", **LIGHT)
    assert found.winner is None and found.verdict.startswith("No parent reaches size=1kB")
    assert all("size is" in one.misses[0] for one in found.entrants)
    assert not (tmp_path / "race" / "measurement.json").exists()


@pytest.mark.slow
def test_a_race_by_the_clock_on_exported_files(
    base: Path, toy_task: Task, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing stands in for anything: files of ONNX Runtime, in processes of their own."""
    pytest.importorskip("onnxruntime")
    out = tmp_path / "race"
    light = LIGHT | {"runtimes": ["onnxruntime"], "progress": True}
    found = niwaki.race([f"whole={base}", f"half={base}:keep_layers=1"], MILD, toy_task, "latency=1s", out, **light)
    assert found.winner and {one.runtime for one in found.entrants} == {"onnxruntime"}
    assert all(one.fits and one.parent_fits and one.latency_seconds > 0 for one in found.entrants)
    assert all(one.size_bytes < one.parent_size_bytes for one in found.entrants)
    assert (out / "runs" / "half-recipe-1" / "artifacts" / "model.onnx").is_file()
    told = capsys.readouterr()
    assert told.out == "" and "whole, recipe 1 of 1: fits" in told.err


def swapped(base: Path, folder: Path) -> Path:
    """Return a copy of a model whose classes have changed places."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    names = list(config["id2label"].values())[::-1]
    config |= {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"budget": "quality=-1pt"}, "quality is bounded"),
        ({"budget": "size=9MB quality=97%"}, "quality is bounded"),
        ({"budget": Budget()}, "the budget bounds nothing"),
        ({"budget": "speed=2"}, "is no bound"),
        ({"parents": ["a=BASE"]}, "1 parent takes part"),
        ({"parents": ["a=BASE", "b=BASE:keep_layers=4"]}, "b, drop: keep_layers is 4"),
        ({"parents": ["a=BASE", "b=nowhere/at/all"]}, "b: no model could be loaded"),
        ({"parents": ["a=BASE", "b=SWAPPED"]}, "b tells the classes"),
        ({"recipes": Recipe([Drop(keep_layers=2)])}, "half, recipe 1, drop: keep_layers is 2"),
        ({"recipes": {"a": MILD}}, "half has no recipe"),
        ({"runtimes": ["tensorflow"]}, "there is no runtime"),
    ],
)
def test_refused_before_any_work(
    changed: dict[str, Any], message: str, base: Path, toy_task: Task, tmp_path: Path
) -> None:
    places = {"BASE": str(base), "SWAPPED": str(swapped(base, tmp_path / "swapped"))}
    given: dict[str, Any] = {
        "parents": ["a=BASE", "half=BASE:keep_layers=1"],
        "recipes": MILD,
        "task": toy_task,
        "budget": "size=9MB",
        "out": tmp_path / "race",
        **LIGHT,
        **changed,
    }
    for word, place in places.items():
        given["parents"] = [one.replace(word, place) for one in given["parents"]]
    with pytest.raises(NiwakiError, match=message):
        niwaki.race(**given)
    assert not (tmp_path / "race").exists()


def test_other_content_is_left_alone(base: Path, toy_task: Task, tmp_path: Path) -> None:
    out = tmp_path / "race"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(NiwakiError, match="holds other files"):
        niwaki.race([str(base), f"{base}:keep_layers=1"], MILD, toy_task, "size=9MB", out, **LIGHT)
