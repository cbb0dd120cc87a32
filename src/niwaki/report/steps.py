"""Tell how a run was made: its steps in words, and the papers behind them."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from niwaki.report import units

TOLD_OF_TRAIN = ("epochs", "learning_rate", "batch_size")
TECHNIQUES = Path(__file__).parents[1] / "techniques"


def steps_of(recipe: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return (name, parameters) of each step of a recipe's YAML; what is no recipe has none.

    >>> steps_of("steps: [train: {epochs: 3}, quantize]")
    [('train', {'epochs': 3}), ('quantize', {})]
    """
    import yaml

    try:
        read = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return []
    steps = read.get("steps") if isinstance(read, Mapping) else read
    return list(_named(steps))


def techniques_of(recipe: str) -> list[str]:
    """Return the names of the techniques in a recipe, in the order they stand.

    >>> techniques_of("steps: [train: {together: [distill: {}, prune: {}]}, quantize: {bits: 8}]")
    ['distill', 'prune', 'quantize']
    """
    names: list[str] = []
    for name, parameters in steps_of(recipe):
        names += [inner for inner, _ in _named(parameters.get("together"))] if name == "train" else [name]
    return list(dict.fromkeys(names))


def steps_in_words(recipe: str) -> list[str]:
    """Return one sentence a step.

    >>> steps_in_words("[train: {epochs: 3, together: [distill: {by: 4}, prune: {}]}, quantize: {bits: 8}]")
    ['train with distill (by 4) and prune together: epochs 3', 'quantize: bits 8']
    """
    sentences = []
    for name, parameters in steps_of(recipe):
        inner = [f"{one}{_bracketed(values)}" for one, values in _named(parameters.get("together"))]
        together = f" with {units.listed(inner)}{' together' if len(inner) > 1 else ''}" if inner else ""
        kept = TOLD_OF_TRAIN if name == "train" else parameters
        own = _settings({key: value for key, value in parameters.items() if key in kept and key != "together"})
        sentences.append(f"{name}{together}{': ' if own else ''}{own}")
    return sentences


def credits_of(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the references that each technique's docstring names; those without any are left out."""
    found = ((name, references(docstring_of(name))) for name in names)
    return {name: papers for name, papers in found if papers}


def docstring_of(name: str) -> str:
    """Return the docstring of a technique's class without importing it, so that nothing heavy is loaded."""
    places = (TECHNIQUES / f"{name}.py", TECHNIQUES / name / "technique.py")
    path = next((place for place in places if name.isidentifier() and place.is_file()), None)
    if path is None:
        return ""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.lower() == name]
    docstrings = [*(ast.get_docstring(node) or "" for node in classes), ast.get_docstring(tree) or ""]
    return next((text for text in docstrings if "References:" in text), next(filter(None, docstrings), ""))


def references(docstring: str) -> tuple[str, ...]:
    r"""Return the entries of a docstring's section `References`.

    An entry begins with a dash, or where the line before ended with a full stop.

    >>> references("Do.\n\nReferences:\n    Hinton 2015, a long\n    title.\n    Wang 2021, b.\n\nNotes:")
    ('Hinton 2015, a long title.', 'Wang 2021, b.')
    """
    lines = inspect.cleandoc(docstring).splitlines()
    start = next((index for index, line in enumerate(lines) if line.strip() == "References:"), len(lines))
    entries: list[str] = []
    for line in lines[start + 1 :]:
        if line and not line[0].isspace():
            break
        text = line.strip()
        if not text:
            continue
        if not entries or text.startswith(("- ", "* ")) or entries[-1].endswith("."):
            entries.append(text.removeprefix("- ").removeprefix("* "))
        else:
            entries[-1] += f" {text}"
    return tuple(entries)


def _named(steps: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, str):
            yield step, {}
        elif isinstance(step, Mapping):
            for name, parameters in step.items():
                yield str(name), parameters if isinstance(parameters, Mapping) else {}


def _settings(parameters: Mapping[str, Any]) -> str:
    """Write parameters as words; nothing is told of what is not set, or is none of it."""
    return ", ".join(
        f"{units.words(str(key))} {_value(value)}" for key, value in parameters.items() if value or value == ""
    )


def _bracketed(parameters: Mapping[str, Any]) -> str:
    settings = _settings(parameters)
    return f" ({settings})" if settings else ""


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, Mapping):
        return "; ".join(f"{key} {_value(item)}" for key, item in value.items())
    return "on" if value is True else f"{value:g}" if isinstance(value, float) else str(value)
