"""One error class for every mistake a user can mend, and how its message is built."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class NiwakiError(Exception):
    """Say what is wrong (with the value and its place), what was expected, and what to write instead.

    Args:
        wrong: what is wrong, naming the user's value.
        expected: what would have been right.
        fix: what to write or run instead.
        place: file, step or parameter the value stands in.

    >>> print(NiwakiError("epochs is -1", expected="a number above 0", fix="epochs: 3", place="small.yaml, steps[0]"))
    small.yaml, steps[0]: epochs is -1
      expected: a number above 0
      write: epochs: 3
    """

    #: What the command line exits with.
    exit_code: ClassVar[int] = 2

    def __init__(self, wrong: str, *, expected: str = "", fix: str = "", place: str = "") -> None:
        self.wrong, self.expected, self.fix, self.place = wrong, expected, fix, place
        head = f"{place}: {wrong}" if place else wrong
        lines = [head]
        if expected:
            lines.append(f"  expected: {expected}")
        if fix:
            lines.append(f"  write: {fix}")
        super().__init__("\n".join(lines))

    def at(self, place: str) -> NiwakiError:
        """Return the same error with `place` in front of the place it already names."""
        joined = f"{place}, {self.place}" if self.place else place
        return type(self)(self.wrong, expected=self.expected, fix=self.fix, place=joined)


class MismatchError(NiwakiError):
    """Say that an artifact does not do what the model does: nothing the user wrote is wrong, and nothing may ship."""

    exit_code: ClassVar[int] = 1


def closest(word: str, known: Iterable[str]) -> str:
    """Return the known word nearest to `word`, or an empty string when none is near.

    >>> closest("quantise", ["quantize", "prune"])
    'quantize'
    """
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else ""
