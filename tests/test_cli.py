"""The command line: what it hands to the verbs, what it prints where, and what its exit codes mean."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import niwaki
from niwaki.cli import app
from niwaki.cli.app import ORDER, kept_lines, listed
from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe
from niwaki.task import Task

VERBS = ("finetune", "compress", "measure", "compare", "race", "ablate", "export", "report", "explain", "demo")
HEAVY = (
    "torch",
    "transformers",
    "accelerate",
    "onnx",
    "onnxruntime",
    "openvino",
    "sklearn",
    "scipy",
    "pandas",
)
RECIPE = "steps:\n  - quantize: {bits: 8}\n"


@dataclass
class Comparison:
    """Stand for what compare returns: the small model is 9 MB and loses 1.5 points."""

    base: str = "base"
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        base = {"name": "base", "runtime": "onnxruntime", "size_bytes": 90_000_000}
        quality = {"value": 90.5, "difference": -1.5}
        self.rows = [base, base | {"name": "small", "size_bytes": 9_000_000, "quality": quality}]

    def to_json(self) -> str:
        return json.dumps({"base": self.base, "rows": self.rows})

    def __str__(self) -> str:
        return "the table"


@dataclass
class Run:
    """Stand for a run that compress or finetune made."""

    folder: Path = Path("runs/small")
    is_measured = True

    @property
    def members(self) -> list[Run]:
        return [self]

    @property
    def comparison(self) -> Comparison:
        return Comparison()


@dataclass
class Calls:
    """Hold the calls of one stand-in for a verb."""

    arguments: list[dict[str, Any]] = field(default_factory=list)

    @property
    def last(self) -> dict[str, Any]:
        return self.arguments[-1]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Calls]:
    """Put a stand-in in place of a verb; it accepts what the real verb accepts, and nothing else."""

    def put(name: str, does: Any = None) -> Calls:
        calls = Calls()
        home = importlib.import_module(f"niwaki.{niwaki._HOME[name]}")
        signature = inspect.signature(getattr(home, name))

        def verb(*arguments: Any, **named: Any) -> Any:
            calls.arguments.append(dict(signature.bind(*arguments, **named).arguments))
            if isinstance(does, BaseException):
                raise does
            return does() if callable(does) else does

        monkeypatch.setitem(niwaki.__dict__, name, verb)
        return calls

    return put


@pytest.fixture
def recipe_file(tmp_path: Path) -> str:
    file = tmp_path / "small.yaml"
    file.write_text(RECIPE)
    return str(file)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, list(words))


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


# Help


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str):
    result = run(verb, "--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert f"\n    niwaki {verb}" in result.stdout
    assert "Exit codes: 0 done" in result.stdout
    assert "\b" not in result.stdout


def test_help_lists_the_verbs_in_the_order_of_use():
    shown = lines(run("--help").stdout.partition("Commands:")[2])
    assert [line.split()[0] for line in shown] == list(VERBS) == list(ORDER)
    assert not any(line.endswith("...") for line in shown)
    assert run().stdout + run().stderr  # without a word the help is shown


def test_kept_lines_marks_examples_and_codes():
    assert kept_lines("Do.\n\nExamples:\n  a\n\nExit codes: 0") == "Do.\n\n\b\nExamples:\n  a\n\n\b\nExit codes: 0"


# What is handed to the verbs


def test_finetune(stand_in: Callable[..., Calls], tmp_path: Path):
    calls = stand_in("finetune", Run(tmp_path))
    options = "--data reviews --text t --metric f1 --max-length 64 --out runs/base --epochs 1.5"
    more = "--learning-rate 1e-4 --batch-size 8 --seed 3 -q"
    result = run("finetune", "model", *options.split(), *more.split())
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path}\n"
    expected = {
        "model": "model",
        "out": Path("runs/base"),
        "epochs": 1.5,
        "learning_rate": 1e-4,
        "batch_size": 8,
        "seed": 3,
    }
    assert expected.items() <= calls.last.items()
    assert calls.last["task"] == Task("text-classification", data="reviews", text="t", metric="f1", max_length=64)
    assert calls.last["progress"] is False


def test_compress(stand_in: Callable[..., Calls], recipe_file: str):
    calls = stand_in("compress", Run())
    options = (
        "--data reviews --out runs/small --export onnx,openvino --threads 2 "
        "--no-measure -s steps[0].quantize.examples=64"
    )
    result = run("compress", "base", "--recipe", recipe_file, *options.split())
    assert result.exit_code == 0, result.output
    assert result.stdout == "runs/small\n"
    assert calls.last["recipe"] == Recipe.parse("steps: [{quantize: {bits: 8, examples: 64}}]")
    assert calls.last["export"] == ("onnx", "openvino")
    assert calls.last["threads"] == 2
    assert calls.last["progress"] is True


def test_compress_prints_json(stand_in: Callable[..., Calls], recipe_file: str):
    stand_in("compress", Run())
    result = run("compress", "b", "--recipe", recipe_file, "--data", "d", "--out", "o", "--json", "--no-measure")
    assert json.loads(result.stdout) == {"run": "runs/small"}


def test_compress_measures_unless_told_otherwise(stand_in: Callable[..., Calls], recipe_file: str):
    calls = stand_in("compress", Run())
    words = ["compress", "base", "--recipe", recipe_file, "--data", "d", "--out", "o"]
    assert run(*words).stdout == "the table\n\nruns/small/README.md\n"
    assert calls.last["measure"] is True and calls.last["runtimes"] is None
    assert json.loads(run(*words, "--json", "--runtimes", "torch").stdout)["base"] == "base"
    assert calls.last["runtimes"] == ("torch",)


@pytest.mark.parametrize(("budget", "code"), [("size=10MB quality=-2pt", 0), ("size=10MB quality=-1pt", 1)])
@pytest.mark.parametrize("as_json", [False, True])
def test_compress_holds_its_budget(
    stand_in: Callable[..., Calls], recipe_file: str, budget: str, code: int, as_json: bool
):
    made = stand_in("compress", Run())
    words = ["compress", "base", "--recipe", recipe_file, "--data", "d", "--out", "o", "--budget", budget]
    result = run(*words, *(["--json"] if as_json else []))
    assert result.exit_code == code
    assert made.last["measure"] is True
    assert ("budget missed: small: quality is -1.50 points" in result.stderr) == bool(code)
    if as_json:
        assert json.loads(result.stdout)["base"] == "base"
    else:
        assert result.stdout.startswith("the table\n")


def test_a_bad_budget_or_recipe_stops_before_the_work(stand_in: Callable[..., Calls], recipe_file: str):
    calls = stand_in("compress", Run())
    words = ["compress", "base", "--data", "d", "--out", "o", "--recipe"]
    assert run(*words, recipe_file, "--budget", "size=10").exit_code == 2
    assert run(*words, "no-such-recipe").exit_code == 2
    assert run(*words, recipe_file, "--set", "steps[0].quantize.bits=3").exit_code == 2
    assert not calls.arguments


def test_measure_and_compare(stand_in: Callable[..., Calls]):
    measured, compared = stand_in("measure", Comparison()), stand_in("compare", Comparison())
    assert (
        run("measure", "m", "--data", "d", "--runtimes", "torch,openvino", "--runtimes", "onnxruntime").stdout
        == "the table\n"
    )
    assert measured.last["runtimes"] == ("torch", "openvino", "onnxruntime")
    result = run("compare", "base", "runs/a", "runs/b", "--data", "d", "--quick", "--seed", "7", "--json")
    assert json.loads(result.stdout)["rows"][1]["name"] == "small"
    assert (compared.last["base"], compared.last["runs"], compared.last["quick"]) == (
        "base",
        ("runs/a", "runs/b"),
        True,
    )
    assert compared.last["runtimes"] is None


def test_compare_misses_its_budget(stand_in: Callable[..., Calls]):
    stand_in("compare", Comparison())
    result = run("compare", "base", "small", "--data", "d", "--budget", "latency=1ms")
    assert result.exit_code == 1
    assert result.stdout == "the table\n"
    assert lines(result.stderr) == ["budget missed: small: latency is not measured, the budget is at most 1 ms"]


@dataclass
class Race:
    """Stand for what race returns."""

    winner: Any = "large"

    def to_json(self) -> str:
        return json.dumps({"winner": self.winner})

    def __str__(self) -> str:
        return "the table"


@pytest.mark.parametrize(("winner", "code"), [("large", 0), (None, 1)])
def test_race(stand_in: Callable[..., Calls], recipe_file: str, winner: str | None, code: int):
    calls = stand_in("race", Race(winner))
    words = (
        f"large=runs/l half=runs/l:keep_layers=3 --data d --budget latency=2ms --out o --recipe {recipe_file}".split()
    )
    result = run("race", *words)
    assert (result.exit_code, result.stdout) == (code, "the table\n\no\n")
    assert [(one.name, one.model, one.keep_layers) for one in calls.last["parents"]] == [
        ("large", "runs/l", None),
        ("half", "runs/l", 3),
    ]
    recipe = Recipe.parse(RECIPE)
    assert calls.last["recipes"] == {"large": [recipe], "half": [recipe]}
    assert (calls.last["budget"], calls.last["out"], calls.last["training"]) == ("latency=2ms", Path("o"), None)
    more = f"--recipe half={recipe_file} --strengths steps[0].quantize.examples=64,32 -s steps[0].quantize.by=nearest"
    result = run("race", *words, *more.split(), *"--epochs 1.5 --average 0.99 --runtimes torch --json -q".split())
    assert json.loads(result.stdout) == {"winner": winner}
    several = [
        Recipe.parse(f"steps: [{{quantize: {{bits: 8, by: nearest, examples: {count}}}}}]") for count in (64, 32)
    ]
    assert calls.last["recipes"] == {"large": several, "half": several}
    assert (calls.last["training"].epochs, calls.last["training"].average) == (1.5, 0.99)
    assert calls.last["runtimes"] == ("torch",) and calls.last["progress"] is False


def test_race_stops_before_the_work(stand_in: Callable[..., Calls], recipe_file: str):
    calls = stand_in("race", Race())
    words = ["race", "--data", "d", "--budget", "latency=2ms", "--out", "o", "--recipe", recipe_file]
    assert run(*words, "runs/a").exit_code == 2
    assert run(*words, "runs/a", "b/a").exit_code == 2
    assert run(*words, "runs/a", "runs/b", "--strengths", "steps[0].quantize.bits=8,no").exit_code == 2
    assert not calls.arguments


def test_ablate(stand_in: Callable[..., Calls]):
    calls = stand_in("ablate", Comparison())
    assert run("ablate", "m", "--data", "d").stdout == "the table\n"
    assert calls.last["heads"] is True and calls.last["out"] is None and calls.last["split"] == "selection"
    options = "--data d --no-heads --examples 64 --split evaluation --out r.svg --threads 2 --json"
    assert json.loads(run("ablate", "m", *options.split()).stdout)["base"] == "base"
    expected = {"heads": False, "examples": 64, "split": "evaluation", "out": Path("r.svg"), "threads": 2}
    assert expected.items() <= calls.last.items()


def test_export(stand_in: Callable[..., Calls]):
    calls = stand_in("export", Path("runs/small/artifacts/model.onnx"))
    assert run("export", "runs/small").stdout == "runs/small/artifacts/model.onnx\n"
    assert (calls.last["run"], calls.last["to"], calls.last["task"]) == (Path("runs/small"), "onnx", None)
    result = run("export", "runs/small", "--to", "openvino", "--data", "reviews", "--json")
    assert json.loads(result.stdout) == {"artifact": "runs/small/artifacts/model.onnx", "to": "openvino"}
    assert calls.last["task"] == Task("text-classification", data="reviews")


def test_report(stand_in: Callable[..., Calls]):
    calls = stand_in("report", Path("report.html"))
    assert run("report", "runs/a", "runs/b").stdout == "report.html\n"
    assert calls.last == {"folders": [Path("runs/a"), Path("runs/b")], "out": Path("report.html")}


def test_demo(stand_in: Callable[..., Calls]):
    calls = stand_in("demo", Comparison())
    assert run("demo").stdout == "the table\n"
    assert calls.last["out"] == Path("runs/demo")
    assert json.loads(run("demo", "--out", "x", "--json").stdout)["base"] == "base"


def test_explain():
    assert "prune" in run("explain").stdout
    assert "keep_neurons" in run("explain", "prune").stdout
    assert json.loads(run("explain", "--schema").stdout)["title"] == "niwaki recipe"
    result = run("explain", "prun")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "niwaki explain prune" in result.stderr


# What goes wrong


def test_a_mistake_is_told_plainly(stand_in: Callable[..., Calls]):
    stand_in("demo", NiwakiError("epochs is -1", expected="a number above 0", fix="epochs: 3", place="small.yaml"))
    result = run("demo")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: small.yaml: epochs is -1\n  expected: a number above 0\n  write: epochs: 3\n"


@pytest.mark.parametrize("words", [("--debug", "demo"), ("demo", "--debug")])
def test_debug_shows_the_traceback(stand_in: Callable[..., Calls], words: tuple[str, ...]):
    stand_in("demo", NiwakiError("epochs is -1"))
    result = run(*words)
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: epochs is -1" in result.stderr


def test_an_error_may_carry_its_own_code(stand_in: Callable[..., Calls]):
    class Disagreement(NiwakiError):
        exit_code = 1

    stand_in("export", Disagreement("the artifact does not agree with its model"))
    assert run("export", "runs/small").exit_code == 1


def test_a_fault_shows_where_it_is(stand_in: Callable[..., Calls]):
    stand_in("demo", ZeroDivisionError("by nothing"))
    result = run("demo")
    assert result.exit_code == 3
    assert "ZeroDivisionError: by nothing" in result.stderr


@pytest.mark.parametrize(("verb", "resumes"), [("demo", True), ("report", False)])
def test_an_interruption_says_how_to_go_on(stand_in: Callable[..., Calls], verb: str, resumes: bool):
    stand_in(verb, KeyboardInterrupt())
    result = run(verb, *(["runs"] if verb == "report" else []))
    assert result.exit_code == 130
    assert ("run the same command to resume" in result.stderr) == resumes


@pytest.mark.parametrize(
    "words",
    [
        ("compress",),
        ("prune",),
        ("compare", "base", "--data", "d"),
        ("measure", "m", "--data", "d", "--threads", "0"),
        ("measure", "m", "--data", "d", "--metric", "auc"),
        ("measure", "m", "--data", "d", "--task", "chess"),
        ("finetune", "m", "--data", "d", "--out", "o", "--epochs", "many"),
        ("demo", "--no-such-option"),
    ],
)
def test_wrong_words_end_in_two(words: tuple[str, ...]):
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert result.stderr
    assert "Traceback" not in result.stderr


# stdout and stderr, in processes of their own


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_json_stands_alone_on_stdout():
    done = python(
        "import os, sys, niwaki\n"
        "class Comparison:\n"
        '    def to_json(self): return \'{"base": "b"}\'\n'
        "def demo(out, progress):\n"
        "    print('a note'); os.write(1, b'a note of C++\\n')\n"
        "    return Comparison()\n"
        "niwaki.__dict__['demo'] = demo\n"
        "from niwaki.cli import main\n"
        "sys.argv = ['niwaki', 'demo', '--json']\n"
        "main()\n"
    )
    assert done.stdout == '{"base": "b"}\n'
    assert "a note\n" in done.stderr and "a note of C++\n" in done.stderr
    assert done.returncode == 0


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["compress", "--help"], ["demo", "--no-such-option"]])
def test_light_words_load_nothing_heavy(words: list[str]):
    done = python(
        "import sys\n"
        f"sys.argv = ['niwaki', *{words!r}]\n"
        "from niwaki.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        f"    print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)\n"
    )
    assert lines(done.stderr)[-1] == "[]", done.stderr
    assert done.returncode == (2 if "--no-such-option" in words else 0)


def test_the_command_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "niwaki", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert "niwaki compress" in done.stdout


def test_completion_offers_the_verbs():
    words = {"_NIWAKI_COMPLETE": "complete_bash", "COMP_WORDS": "niwaki co", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "niwaki"], capture_output=True, text=True, env=os.environ | words, timeout=120
    )
    assert set(done.stdout.split()) == {"compress", "compare"}


def test_lists_split_at_commas():
    assert listed(["torch, openvino", "onnxruntime"]) == ("torch", "openvino", "onnxruntime")
    assert listed(["none"]) == listed([""]) == ()
