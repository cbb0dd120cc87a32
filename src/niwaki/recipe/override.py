"""Set single values of a recipe's data: `steps[0].train.epochs=2`."""

from __future__ import annotations

import re
from typing import Any

from niwaki import dialect
from niwaki.errors import NiwakiError, closest

_EXAMPLE = "steps[0].train.epochs=2"


def assign(data: Any, assignment: str) -> Any:
    """Set one value in `data` and return it; the path must lead somewhere, the value is read as YAML.

    >>> assign({"steps": [{"train": {"epochs": 3}}]}, "steps.0.train.epochs=2")
    {'steps': [{'train': {'epochs': 2}}]}
    """
    target, key, text = _place(data, assignment)
    target[key] = dialect.load(text)
    return data


def has_place(data: Any, assignment: str) -> bool:
    """Say whether the path of an assignment leads somewhere in `data`.

    >>> has_place({"steps": [{"train": {"epochs": 3}}]}, "steps[0].drop.keep_layers=3")
    False
    """
    try:
        _place(data, assignment)
    except NiwakiError:
        return False
    return True


def _place(data: Any, assignment: str) -> tuple[Any, Any, str]:
    """Return what an assignment sets a value in, under which key, and the value's text."""
    path, equals, text = assignment.partition("=")
    parts = re.findall(r"[^.\[\]\s]+", path)
    if not equals or not parts:
        raise NiwakiError("this sets nothing", expected="a path, an equals sign and a value", fix=_EXAMPLE)
    target = data
    for part in parts[:-1]:
        target = target[_key(target, part)]
    return target, _key(target, parts[-1], new=True), text


def _key(target: Any, part: str, new: bool = False) -> Any:
    """Return the key or index that `part` names; a `new` key may be missing: the steps' check judges it."""
    if isinstance(target, list):
        if part.isdecimal() and int(part) < len(target):
            return int(part)
        raise NiwakiError(f"there is no [{part}]", expected=f"a number from 0 to {len(target) - 1}", fix=_EXAMPLE)
    if not isinstance(target, dict):
        raise NiwakiError(f'there is nothing below which "{part}" could stand', fix=_EXAMPLE)
    if part not in target and not new:
        fix = closest(part, [str(key) for key in target])
        raise NiwakiError(f'there is no "{part}"', expected="one of " + ", ".join(map(str, target)), fix=fix)
    return part
