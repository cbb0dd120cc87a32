"""The documentation keeps its word: pages are there, code runs, commands parse, links lead somewhere."""

from __future__ import annotations

import inspect
import json
import re
import runpy
import shlex
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

import niwaki
from niwaki import dialect, techniques
from niwaki.parameters import default_of
from niwaki.recipe import Recipe
from niwaki.train import Train

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
RECIPES = sorted((ROOT / "src" / "niwaki" / "recipes").glob("*.yaml"))
HEADINGS = (
    "What it does",
    "Formula",
    "Parameters",
    "When to use",
    "What it costs and pays",
    "Composes with",
    "Limits",
    "References",
)
FENCE = re.compile(r"^(?P<mark><!-- run -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(language: str) -> list[Any]:
    """Return each fenced block of a language as (page, line, text, whether it is to be run)."""
    found = []
    for page in PAGES:
        content = page.read_text("utf-8")
        for match in FENCE.finditer(content):
            if match["language"] == language:
                line = content[: match.start()].count("\n") + 1
                values = (page, line, match["text"], bool(match["mark"]))
                found.append(pytest.param(*values, id=f"{name_of(page)}:{line}"))
    return found


def verbs() -> list[str]:
    """Return the public functions: each is a verb."""
    return [name for name in niwaki.__all__ if inspect.isfunction(getattr(niwaki, name))]


def navigation() -> set[str]:
    """Return the pages that the site leads to."""

    def leaves(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for child in node.values() if isinstance(node, dict) else node:
                yield from leaves(child)

    return set(leaves(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]))


# Pages


def test_every_verb_has_a_page() -> None:
    assert {f"verbs/{verb}.md" for verb in verbs()} <= navigation()


def test_every_technique_has_a_card() -> None:
    assert {f"techniques/{name}.md" for name in techniques.names()} <= navigation()


def test_every_page_is_in_the_navigation() -> None:
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} == navigation()


def test_every_public_name_is_in_the_reference() -> None:
    told = set(re.findall(r"^::: (\S+)", "\n".join(page.read_text("utf-8") for page in PAGES), re.MULTILINE))
    public = [getattr(niwaki, name) for name in niwaki.__all__ if name != "__version__"]
    homes = {f"{value.__module__}.{value.__qualname__}" for value in public}
    also = {f"{home.rpartition('.')[0]}" for home in homes}  # a whole module tells all of its names
    missing = {home for home in homes if home not in told and home.rpartition(".")[0] not in told & also}
    assert not missing


# Techniques


@pytest.mark.parametrize("name", techniques.names())
def test_card_has_the_fixed_headings(name: str) -> None:
    text = (DOCS / "techniques" / f"{name}.md").read_text("utf-8")
    assert tuple(re.findall(r"^## (.+)$", text, re.MULTILINE)) == HEADINGS
    assert text.startswith(f"# {name}\n")


@pytest.mark.parametrize("name", techniques.names())
def test_docstring_names_its_references(name: str) -> None:
    assert "References:" in (inspect.getdoc(techniques.get(name)) or "")


@pytest.mark.parametrize("name", [*techniques.names(), "train"])
def test_table_of_parameters_is_right(name: str) -> None:
    model: type[BaseModel] = Train if name == "train" else techniques.get(name)
    page = DOCS / "techniques" / ("index.md" if name == "train" else f"{name}.md")
    text = page.read_text("utf-8").partition("## Train" if name == "train" else "## Parameters")[2]
    table = re.search(r"^\| parameter \|.*\n\|.*\n(?P<rows>(?:\|.*\n)+)", text, re.MULTILINE)
    assert table is not None
    rows = [[cell.strip() for cell in row.split(" | ")] for row in table["rows"].splitlines()]
    told = {row[0].removeprefix("| "): dialect.load(row[1]) for row in rows}
    right = {field: dialect.load(default_of(info) or "(needed)") for field, info in model.model_fields.items()}
    assert told == right


# Code


@pytest.mark.parametrize(("page", "line", "text", "run"), blocks("python"))
def test_python_compiles(page: Path, line: int, text: str, run: bool) -> None:
    compile(text, f"{page}:{line}", "exec")


@pytest.mark.slow
@pytest.mark.parametrize(("page", "line", "text", "run"), [block for block in blocks("python") if block.values[3]])
def test_python_runs(
    page: Path,
    line: int,
    text: str,
    run: bool,
    saved_base: Callable[..., Path],
    toy_data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Run a block where `runs/base` is a tiny model and `reviews/` holds toy data."""
    monkeypatch.chdir(tmp_path)
    saved_base("bert", folder=tmp_path / "runs" / "base")
    toy_data(tmp_path / "reviews")
    module = types.ModuleType("documented")  # pydantic looks types up in the module of a class
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(text, f"{page}:{line}", "exec"), module.__dict__)


@pytest.mark.parametrize(("page", "line", "text", "run"), blocks("yaml"))
def test_recipes_of_the_pages_parse(page: Path, line: int, text: str, run: bool) -> None:
    recipe = Recipe.parse(text, f"{page}:{line}")
    assert Recipe.parse(recipe.dump()) == recipe


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_parse(path: Path) -> None:
    assert Recipe.read(path.stem) == Recipe.read(path)
    assert path.read_text("utf-8").startswith("# "), "the head says what was measured with it"


def test_there_is_a_shipped_recipe() -> None:
    assert RECIPES


def command_lines() -> list[Any]:
    """Return (page:line, words) of each command that the pages show."""
    return [
        pytest.param(shlex.split(command.removeprefix("$ "), comments=True), id=f"{block.id}+{number}")
        for block in blocks("console")
        for number, command in enumerate(block.values[2].splitlines(), start=1)
        if command.startswith("$ ")
    ]


@pytest.mark.parametrize("words", command_lines())
def test_command_parses(words: list[str]) -> None:
    """Parse a command of ours with the options it shows, without running it; a make target must exist."""
    import typer

    from niwaki.cli import app

    words = words[: words.index(">")] if ">" in words else words
    if words[0] == "niwaki":
        verb = typer.main.get_command(app).commands[words[1]]  # type: ignore[attr-defined]
        verb.make_context(words[1], words[2:])
    elif words[0] == "make" and len(words) > 1:
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        assert words[1] in targets
    else:
        assert words[0] in ("make", "pip")


# Links and figures


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text("utf-8"))
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [link for link in links if not re.match(r"https?://", link)]
    broken = [link for link in inside if not leads(page, link)]
    assert not broken


def leads(page: Path, link: str) -> bool:
    """Say whether a relative link has its file, and the file its heading."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if not target.is_file() or not anchor:
        return target.is_file()
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", target.read_text("utf-8")), re.MULTILINE)
    return anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_no_text_names_a_machine() -> None:
    folders = ("root", "home", "Users", "opt", "work")
    paths = re.compile(r"(?<![\w.~/-])/(?:" + "|".join(folders) + r")/(?!me/)\w|file:/{2}")
    texts = [
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
        ROOT / "mkdocs.yml",
        ROOT / "constraints.txt",
        *PAGES,
    ]
    for folder, kinds in (("src", (".py", ".yaml", ".j2")), ("benchmarks", (".py", ".yaml", ".json", ".md"))):
        texts += [path for path in (ROOT / folder).rglob("*") if path.suffix in kinds and "runs" not in path.parts]
    named = {name_of(path): found for path in texts if (found := paths.findall(path.read_text("utf-8")))}
    assert not named


# Results are made, not typed


RESULTS = runpy.run_path(str(DOCS / "make_results.py"))


def test_results_are_those_of_the_benchmarks() -> None:
    assert RESULTS["main"](["--check"]) == 0, "write: python docs/make_results.py"


def test_results_tell_figures_rows_and_conditions(tmp_path: Path) -> None:
    row = {
        "name": "small",
        "runtime": "onnxruntime",
        "size_bytes": 9_500_000,
        "latency_seconds": {"median": 0.00081, "p90": 0.0012},
        "quality": {"value": 90.25, "difference": -0.57, "interval": [-1.6, 0.46], "p_value": 0.33},
        "conditions": {"threads": 2, "device": "a processor", "load_average": None},
    }
    result = {
        "figures": {"size_ratio": 9.57, "rows": 872, "parents": [{"parent": "six", "size_ratio": 2.5}]},
        "records": {"comparison": {"base": "base", "rows": [row]}},
        "conditions": {"recipe": "steps:\n- quantize: {bits: 8}\n"},
    }
    case = tmp_path / "case-one" / "result.json"
    case.parent.mkdir()
    case.write_text(json.dumps(result), "utf-8")
    text = RESULTS["results"]([case])
    assert "| size ratio | 9.57 |" in text
    assert "| parents | size ratio |" in text and "| six | 2.5 |" in text
    assert "| small | onnxruntime | 9.5 MB | 0.81 ms | 1.20 ms | – | – | – | 90.25 |" in text
    assert "| -0.57 (-1.60 .. +0.46) | 0.33 |" in text
    assert "**Conditions.** threads: 2; device: a processor." in text
    assert "```yaml\nsteps:\n- quantize: {bits: 8}\n```" in text


@pytest.mark.parametrize(
    "content", ["", "{", "{}", '{"figures": {}}', '{"rows": []}', '{"records": {"notes": "none"}}']
)
def test_results_cope_with_what_is_missing(content: str, tmp_path: Path) -> None:
    case = tmp_path / "case-two" / "result.json"
    case.parent.mkdir()
    case.write_text(content, "utf-8")
    assert "## case-two" in RESULTS["results"]([case])


def test_results_without_any_case() -> None:
    assert "No benchmark has left a result yet" in RESULTS["results"]([])
