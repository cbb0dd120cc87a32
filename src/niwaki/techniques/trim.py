"""`trim`: keep the vocabulary that the user's texts use."""

# N rows, P tokens of all rows, V vocabulary

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import narrow_tokenizer, tokenizer_record
from niwaki.errors import NiwakiError
from niwaki.surgery import fixed_tokens, narrow_vocabulary, word_table
from niwaki.task import Encoded
from niwaki.technique import Context, Grain, Technique
from niwaki.vocabulary import closed, ids_of, parts_of, staying

#: More tokens than any text has: the counted texts are read whole.
WHOLE = 10**9


class Trim(Technique):
    """Keep the tokens that the texts of the task use, and remove the others from tokenizer and word table.

    A model for many topics or languages knows tens of thousands of tokens; a task uses a part of them. The table of a
    small encoder is half of its bytes, and no time goes with it: fewer rows make the file smaller, not faster.

    Tokens are counted on the training texts, read whole. Special and added tokens, bytes and single characters always
    stay; so do, in a BPE, the parts that a kept token is joined from. A removed token is read as smaller kept ones.
    A text whose tokens all stay is read as before, in new numbers: checked on every counted text, before anything is
    cut. With the default setting these are all counted texts, so that the model answers as it did on all of them.

    Args:
        keep_tokens: "used" keeps what occurs on the counted texts; a number in (0, 1] is the share of the vocabulary
            that stays, the most frequent tokens first.
        min_count: with "used", how often a token occurs at least. 1 to 5; above 1 some counted texts change too.
        corpus: text files, one text a line, to count on beside the training texts: what the model will meet.
        head: how an output head that shares its weights with the word table follows: "tied" narrows both as one.
            Classifiers have none.

    Raises:
        NiwakiError: every token is used; the tokenizer is no WordPiece, BPE or Unigram of the library tokenizers; the
            table is packed; a head shares the table and `head` does not say how it follows.

    Composes with: everything, as a step before quantize. A teacher keeps its vocabulary and is given the ids it knows.

    References:
        Abdaoui, Pradel and Sigel 2020, Load What You Need: Smaller Versions of Multilingual BERT.
        Yang, Cui and Chen 2022, TextPruner: A Model Pruning Toolkit for Pre-Trained Language Models (vocabulary
        pruning).

    Example:
        >>> Trim(min_count=2).keep_tokens
        'used'
    """

    grain: ClassVar[Grain] = Grain.UNIT

    keep_tokens: Literal["used"] | float = "used"
    min_count: int = Field(1, ge=1)
    corpus: tuple[str, ...] = ()
    head: Literal["tied"] | None = None

    @field_validator("keep_tokens")
    @classmethod
    def _a_share(cls, value: Literal["used"] | float) -> Literal["used"] | float:
        if value != "used" and not 0 < value <= 1:
            raise ValueError("keep_tokens is used, or a share in (0, 1]")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> Trim:
        if self.keep_tokens != "used" and self.min_count > 1:
            raise ValueError(f"min_count is {self.min_count}, expected 1 where keep_tokens is a share")
        return self

    def cuts_tied(self, *, meanwhile: bool = False, in_train: bool = False) -> bool:
        """Say that the layers stay as they are."""
        return not meanwhile

    def check(self, model: nn.Module) -> None:
        """Refuse a packed table, a head that nothing is said of, and files that are not there."""
        table, head = word_table(model), anatomy_of(model).vocabulary_head
        shared = head is not None and getattr(head, "weight", None) is table.weight
        if shared and self.head is None:
            raise NiwakiError(
                "the output head shares its weights with the word table",
                expected="a word on how the head follows",
                fix="head: tied",
                place=self.name,
            )
        if self.head and not shared:
            raise NiwakiError(
                f"head is {self.head!r}",
                expected="null: no head shares the word table",
                fix="head: null",
                place=self.name,
            )
        for file in self.corpus:
            if not Path(file).is_file():
                raise NiwakiError(f"corpus has {file!r}", expected="a text file, one text a line", place=self.name)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Count, check that the counted texts are read as before, and remove the other tokens now."""
        self.check(model)
        if self.keep_tokens == 1.0:
            return model
        size = word_table(model).num_embeddings
        before, validation = self.counted(context, context.tokenizer)
        counts_V = np.bincount(np.concatenate([rows.tokens for rows in before]), minlength=size)
        tokens = self.choose(model, context.tokenizer, counts_V)
        if len(tokens) == size:
            raise NiwakiError(
                f"all {size} tokens of the vocabulary are used",
                expected="tokens that can go",
                fix="min_count: 2" if self.keep_tokens == "used" else "a smaller keep_tokens",
                place=self.name,
            )
        after, _ = self.counted(context, narrow_tokenizer(context.tokenizer, tokens))
        for old, new in zip(before, after, strict=True):
            check_same(old, new, np.array(tokens), size)
        told = coverage(validation, tokens, set(context.tokenizer.all_special_ids))
        saved = (size - len(tokens)) * word_table(model).weight[0].nbytes
        note = "tokens of the vocabulary; the shares are of the validation texts that are read as before"
        context.log({"event": "note", "note": note, "kept": len(tokens), "of": size, "saved_bytes": saved, **told})
        return narrow_vocabulary(model, tokens=tokens)

    def counted(self, context: Context, tokenizer: Any) -> tuple[list[Encoded], Encoded]:
        """Return the texts that tokens are counted on, and the validation texts, as a tokenizer reads them, whole."""
        task = context.task.model_copy(update={"max_length": None})
        data = task.encode(tokenizer, WHOLE, list(context.data.labels))
        rows = [] if data.train is None else [data.train]
        for file in self.corpus:
            lines = [line for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            rows.append(encode_lines(file, lines, tokenizer))
        return rows or [context.train], data.validation

    def choose(self, model: nn.Module, tokenizer: Any, counts_V: np.ndarray) -> list[int]:
        """Return the ids that stay, ascending."""
        record = tokenizer_record(tokenizer)
        parts = parts_of(record)
        kept = closed(staying(record) | fixed_tokens(model) | set(tokenizer.all_special_ids), parts)
        known, size = sorted(ids_of(record).values()), word_table(model).num_embeddings
        if known[-1] >= size:
            raise NiwakiError(
                f"the tokenizer has token {known[-1]}",
                expected=f"ids below {size}, the rows of the word table",
                place=self.name,
            )
        if self.keep_tokens == "used":
            return sorted(kept | closed(np.flatnonzero(counts_V >= self.min_count).tolist(), parts))
        room = round(self.keep_tokens * size)
        if len(kept) > room:
            raise NiwakiError(
                f"keep_tokens is {self.keep_tokens}, {room} of {size} tokens",
                expected=f"room for the {len(kept)} special tokens, bytes and single characters, which always stay",
                fix=f"keep_tokens: {math.ceil(100 * len(kept) / size) / 100}",
                place=self.name,
            )
        for token in sorted(known, key=lambda one: -counts_V[one]):
            more = closed([token], parts) - kept
            if len(kept) + len(more) > room:
                break
            kept |= more
        return sorted(kept)


def encode_lines(name: str, lines: Sequence[str], tokenizer: Any) -> Encoded:
    """Return texts that have no labels, whole, as encoded rows."""
    from niwaki.task.task import TextRows
    from niwaki.task.tokens import encode_rows

    if not lines:
        raise NiwakiError(f"{name} has no text", expected="one text a line", place="trim")
    return encode_rows(TextRows(name, list(lines), None, np.zeros(len(lines), np.int64)), tokenizer, WHOLE)


def unchanged_rows(rows: Encoded, stays_V: np.ndarray) -> np.ndarray:
    """Return which rows (N,) have only tokens that stay."""
    gone = np.concatenate([[0], np.cumsum(~stays_V[rows.tokens])])
    return np.asarray(gone[rows.offsets[1:]] == gone[rows.offsets[:-1]])


def check_same(old: Encoded, new: Encoded, tokens: np.ndarray, size: int) -> None:
    """Refuse a trimmed tokenizer that reads a text otherwise whose tokens all stay.

    Args:
        old: texts as the whole tokenizer reads them.
        new: the same texts as the trimmed one does.
        tokens: (V after,) the old id of each new one.
        size: of the old vocabulary.
    """
    rows = np.flatnonzero(unchanged_rows(old, np.isin(np.arange(size), tokens)))
    before, after = old.select(rows), new.select(rows)
    if np.array_equal(before.offsets, after.offsets) and np.array_equal(before.tokens, tokens[after.tokens]):
        return
    wrong = next(row for row in range(len(rows)) if list(before.tokens_of(row)) != list(tokens[after.tokens_of(row)]))
    raise NiwakiError(
        f"text {rows[wrong]} of {old.name} is read otherwise, though all of its tokens stay",
        expected="a tokenizer whose answer hangs on the text and its vocabulary alone",
        place="trim",
    )


def coverage(rows: Encoded, tokens: Sequence[int], special: set[int]) -> dict[str, float]:
    """Return the shares of tokens and of rows that are read as before; special tokens are not counted."""
    stays_V = np.isin(np.arange(int(rows.tokens.max(initial=0)) + 1), tokens)
    text_P = rows.tokens[~np.isin(rows.tokens, list(special))]
    return {
        "covered_tokens": float(stays_V[text_P].mean()) if len(text_P) else 1.0,
        "covered_rows": float(unchanged_rows(rows, stays_V).mean()),
    }
