"""The techniques: one file each, and the file name is the registry."""

from __future__ import annotations

import importlib
import pkgutil

from niwaki.errors import NiwakiError, closest
from niwaki.technique import Technique


def names() -> tuple[str, ...]:
    """Return the names of all techniques, sorted."""
    return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__)))


def get(name: str) -> type[Technique]:
    """Return the technique of this name; file `prune.py` holds class `Prune`, `drop_tokens.py` `DropTokens`."""
    if name not in names():
        near = closest(name, names())
        raise NiwakiError(f"there is no technique {name!r}", expected=f"one of {', '.join(names())}", fix=near)
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    technique: type[Technique] = getattr(module, "".join(word.capitalize() for word in name.split("-")))
    return technique
