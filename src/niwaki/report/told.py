"""A small table with a sentence below it, as a card and a page show them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Told:
    """Hold a small table; the first `words` columns hold words, the others numbers."""

    title: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    words: int
    below: str
