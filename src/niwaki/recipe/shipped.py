"""Find the recipes that come with niwaki, by name."""

from __future__ import annotations

from importlib.resources import files

_FOLDER = files("niwaki") / "recipes"


def names() -> tuple[str, ...]:
    """Return the names of the shipped recipes, sorted."""
    if not _FOLDER.is_dir():
        return ()
    found = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml")))


def text(name: str) -> str:
    """Return the YAML of a shipped recipe."""
    return (_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def headline(name: str) -> str:
    """Return the first comment line of a shipped recipe: what it was measured to do."""
    for line in text(name).splitlines():
        if line.startswith("#"):
            return line.lstrip("# ").rstrip()
    return ""
