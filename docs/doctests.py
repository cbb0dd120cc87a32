"""Show the doctests of docstrings as code in the reference: they become an Examples section of their own."""

from __future__ import annotations

import re
from typing import Any

import griffe

BARE = re.compile(r"^>>> ", re.MULTILINE)


class Doctests(griffe.Extension):
    """Give bare doctests a heading; without one, Markdown takes `>>>` for a quotation, a list for a link."""

    def on_object(self, *, obj: griffe.Object, **arguments: Any) -> None:
        """Rewrite the docstring of each object as it is read."""
        if obj.docstring is not None:
            obj.docstring.value = with_heading(obj.docstring.value)


def with_heading(text: str) -> str:
    """Return the docstring with the lines from its first bare doctest on as an Examples section."""
    first = BARE.search(text)
    if first is None:
        return text
    examples = text[first.start() :].replace("\n", "\n    ")
    return f"{text[: first.start()]}Examples:\n    {examples}"
