"""The house has floors, and imports run only down: read every import statement and draw the arrows."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "niwaki"

# The room of a module is its first name under niwaki; "" is the package itself, the public API on one screen.
# A room may import rooms of lower floors, and rooms of its own floor as long as no circle comes of it.
FLOORS: dict[str, int] = {
    "": 8,
    "__main__": 8,
    "cli": 8,
    "search": 7,
    "advise": 7,
    "report": 5,
    "demo": 7,
    "testing": 7,
    "explain": 7,
    "race": 7,
    "run": 6,
    "artifacts": 6,
    "comparison": 6,
    "ablation": 6,
    "finetune": 6,
    "recipe": 5,
    "budget": 5,
    "train": 4,
    "techniques": 4,
    "technique": 3,
    "swapping": 3,
    "calibrate": 3,
    "walk": 3,
    "exiting": 3,
    "token_shares": 3,
    "limit": 3,
    "trade_off": 3,
    "teacher": 3,
    "removal": 3,
    "measure": 3,
    "export": 3,
    "runtime": 3,
    "surgery": 2,
    "checkpoint": 2,
    "parts": 2,
    "task": 2,
    "anatomy": 1,
    "bar": 1,
    "batching": 1,
    "bits": 1,
    "kmeans": 1,
    "entropy": 1,
    "packable": 1,
    "dialect": 1,
    "parameters": 1,
    "layers": 1,
    "residual": 1,
    "losses": 1,
    "schedules": 1,
    "moving_average": 1,
    "dropout": 1,
    "grid": 1,
    "exit_rule": 1,
    "hessian": 1,
    "sparse": 1,
    "shards": 1,
    "vocabulary": 1,
    "plain_table": 1,
    "errors": 1,
}

# Arrows that would run down or level, and are forbidden all the same.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "techniques": ("train", "techniques"),
    "measure": ("technique", "techniques"),
    "export": ("technique", "techniques"),
    "surgery": ("technique", "techniques"),
    "report": ("train", "surgery", "checkpoint", "techniques"),
}

# Rooms that open before any model does: what takes seconds to import loads inside their functions.
LIGHT = ("niwaki", "niwaki.errors", "niwaki.task", "niwaki.runtime", "niwaki.measure", "niwaki.cli")
LIGHT += ("niwaki.budget", "niwaki.report", "niwaki.demo")
HEAVY = (
    "torch transformers accelerate tokenizers datasets pandas pyarrow onnx onnxscript onnxruntime openvino "
    "nncf sklearn scipy matplotlib"
).split()


def module_name(path: Path) -> str:
    """Return the dotted name of a source file, without the leading niwaki."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    return module.split(".")[0]


def own(module: str, target: str) -> bool:
    """Say whether the target is the module's own room or, of a technique that is a folder, a file of that folder."""
    return target == room(module) or module.split(".")[:2] == target.split(".")[:2]


def floor(module: str) -> int:
    return FLOORS.get(room(module), 0)


def sources() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


MODULES = sources()


def imported(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, absolute name) of all that is imported, inside functions too; `from a import b` is a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports in full, from niwaki"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def arrows(module: str) -> Iterator[tuple[int, str]]:
    """Yield (line, module) for each import of our own."""
    for line, name in imported(MODULES[module]):
        if name.split(".")[0] != "niwaki":
            continue
        target = name.removeprefix("niwaki").removeprefix(".")
        while target not in MODULES:  # a class or a function: its module
            target = target.rpartition(".")[0]
        yield line, target


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor(module: str) -> None:
    assert room(module) in FLOORS, f"niwaki.{module} is new: give {room(module)!r} a floor here"


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down(module: str) -> None:
    here = room(module)
    upward = [
        f"niwaki.{module}, line {line}: floor {floor(module)} imports {target} of floor {floor(target)}"
        for line, target in arrows(module)
        if floor(target) > floor(module) or (room(target) in FORBIDDEN.get(here, ()) and not own(module, target))
    ]
    assert not upward, "\n".join(upward)


def test_there_is_no_circle() -> None:
    edges = {module: {target for _, target in arrows(module)} for module in MODULES}
    rooms: dict[str, set[str]] = {}
    for module, targets in edges.items():
        rooms.setdefault(room(module), set()).update({room(target) for target in targets} - {room(module)})
    for graph in (edges, rooms):
        circle = find_circle(graph)
        assert not circle, "imports run in a circle: " + " -> ".join(circle)


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """Return the nodes of one circle, or an empty list.

    >>> find_circle({"a": {"b"}, "b": {"a"}})
    ['a', 'b', 'a']
    """
    done: set[str] = set()

    def visit(node: str, way: list[str]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        done.add(node)
        return next((circle for target in sorted(graph[node]) if (circle := visit(target, [*way, node]))), [])

    return next((circle for node in sorted(graph) if (circle := visit(node, []))), [])


def test_the_circle_finder_finds() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert find_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_light_rooms_load_no_heavy_library() -> None:
    code = f"import sys; [__import__(name) for name in {LIGHT!r}]; print(*{{*{HEAVY!r}}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
