"""Texts longer than a model reads, read in overlapping windows: what a model that reads further has to beat."""

# T tokens of a text

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from niwaki.errors import NiwakiError

Pool = Literal["mean", "max"]
#: The share of a window that the one before it has read already.
OVERLAP = 0.25


@dataclass(frozen=True)
class Windows:
    """Say how a long text is cut into windows, and what becomes of their logits.

    Attributes:
        size: tokens of a window, special ones included.
        before, after: special tokens at the beginning and at the end of a text; each window has them too.
        pool: "mean" or "max" over the logits of a text's windows, class by class.
    """

    size: int
    before: int
    after: int
    pool: Pool

    def cut(self, tokens_T: np.ndarray) -> list[np.ndarray]:
        """Return the windows of a text, of `size` tokens each; a text that is no longer is its own window.

        The last window ends where the text does.

        >>> windows = Windows(size=6, before=1, after=1, pool="mean")  # four tokens of text, of which one is read twice
        >>> [window.tolist() for window in windows.cut(np.array([101, 1, 2, 3, 4, 5, 6, 102]))]
        [[101, 1, 2, 3, 4, 102], [101, 3, 4, 5, 6, 102]]
        """
        end = len(tokens_T) - self.after
        head, text, tail = tokens_T[: self.before], tokens_T[self.before : end], tokens_T[end:]
        room = self.size - self.before - self.after
        if len(text) <= room:
            return [tokens_T]
        step = max(1, room - round(OVERLAP * room))
        starts = [min(start, len(text) - room) for start in range(0, len(text) - room + step, step)]
        return [np.concatenate([head, text[start : start + room], tail]) for start in starts]


def windows_of(tokenizer: Any, texts: Sequence[str], size: int, pool: Pool) -> Windows:
    """Return windows with the special tokens that a tokenizer puts around the first text that is not blank."""
    settings = {"return_special_tokens_mask": True, "truncation": False, "verbose": False}
    for text in texts:
        mask = tokenizer(text, **settings)["special_tokens_mask"]
        plain = np.flatnonzero(np.array(mask) == 0)
        if len(plain):
            return Windows(size, int(plain[0]), len(mask) - 1 - int(plain[-1]), pool)
    raise NiwakiError(
        f"the tokenizer finds no token in any of {len(texts)} texts", expected="a text with a token of its own"
    )
