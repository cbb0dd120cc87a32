"""Rows of text to encoded rows, with the count of the texts that had to be cut."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.task.encoded import Encoded
from niwaki.task.task import TextRows
from niwaki.task.windows import Pool, windows_of

# Bounds of one call: enough rows for a fast tokenizer to share among cores, and never so much text that its
# lists (about 100 bytes a token) fill the memory.
CHUNK_ROWS = 4096
CHUNK_CHARACTERS = 2_000_000


def encode_rows(rows: TextRows, tokenizer: Any, max_length: int) -> Encoded:
    """Tokenize a split, cut what is longer than `max_length` tokens, and count how many texts that were.

    Args:
        rows: texts or pairs.
        tokenizer: a tokenizer of Transformers; its special tokens are added and are never cut.
        max_length: tokens a row may have, special tokens included. Of a pair the longer text is cut first.
    """
    parts = [
        _encode(tokenizer, rows.texts[start:end], rows.pairs and rows.pairs[start:end], max_length)
        for start, end in _chunks(rows)
    ]
    lengths = np.concatenate([part.lengths for part in parts])
    types = [part.types for part in parts if part.types is not None]
    return Encoded(
        name=rows.name,
        tokens=np.concatenate([part.tokens for part in parts]),
        types=np.concatenate(types) if types else None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=rows.labels,
        truncated=sum(part.truncated for part in parts),
        pad=int(tokenizer.pad_token_id),
    )


def encode_in_windows(rows: TextRows, tokenizer: Any, max_length: int, pool: Pool) -> Encoded:
    """Tokenize a split of single texts whole; those longer than `max_length` tokens will be read in windows."""
    if rows.pairs is not None:
        raise NiwakiError("long texts in windows, of pairs", expected="single texts", fix='long="truncate"')
    windows = windows_of(tokenizer, rows.texts, max_length, pool)
    return replace(encode_rows(rows, tokenizer, sys.maxsize), windows=windows)


def packed(rows: Encoded, length: int) -> Encoded:
    """Join all rows in their order and cut the whole into rows of `length` tokens; the last may be shorter."""
    offsets = np.append(np.arange(0, len(rows.tokens), length), len(rows.tokens)).astype(np.int64)
    return replace(rows, offsets=offsets, truncated=0)


def truncation_note(encoded: Encoded, max_length: int) -> str:
    """Say how many texts were cut, or return an empty string when none was."""
    if not encoded.truncated:
        return ""
    share = 100 * encoded.truncated / len(encoded)
    counted = f"{encoded.truncated:,} of {len(encoded):,} {encoded.name} texts ({share:.1f}%)"
    return f"{counted} were cut to {max_length} tokens"


def windows_note(encoded: Encoded, max_length: int) -> str:
    """Say how many texts are read in windows, or return an empty string when none is."""
    long = int((encoded.lengths > max_length).sum())
    if encoded.windows is None or not long:
        return ""
    counted = f"{long:,} of {len(encoded):,} {encoded.name} texts ({100 * long / len(encoded):.1f}%)"
    return f"{counted} were read in windows of {max_length} tokens, the {encoded.windows.pool} of their logits taken"


def check_tokenizer(tokenizer: Any, max_length: int, pairs: bool) -> None:
    """Refuse a tokenizer that cannot pad, and a length that its special tokens alone would fill."""
    if tokenizer.pad_token_id is None:
        raise NiwakiError(
            "the tokenizer has no padding token",
            expected="a token that fills the short rows of a batch",
            fix="tokenizer.pad_token = tokenizer.eos_token",
        )
    special = int(tokenizer.num_special_tokens_to_add(pair=pairs))
    if max_length <= special + int(pairs):
        raise NiwakiError(
            f"max_length is {max_length}, and the tokenizer adds {special} special tokens to each row",
            expected="room for some text",
            fix="max_length=128",
        )


def longest_first(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of two texts stay when both must fit into `room`, the longer cut first.

    Texts that are still too long when equal share the room; the odd token goes to the one that was longer, or
    to the second of two equal ones. This is the rule of the library `tokenizers`.

    >>> longest_first(10, 3, 8), longest_first(10, 30, 9), longest_first(5, 0, 3)
    ((5, 3), (4, 5), (3, 0))
    """
    if first + second <= room:
        return first, second
    short = min(first, second)
    kept = (short, room - short) if 2 * short <= room else (room // 2, room - room // 2)
    return (kept[1], kept[0]) if first > second else kept


@dataclass(frozen=True, eq=False)
class _Part:
    """Hold the tokens of some rows, flat, and how many of the rows were cut."""

    tokens: np.ndarray
    types: np.ndarray | None
    lengths: np.ndarray
    truncated: int


def _chunks(rows: TextRows) -> Iterator[tuple[int, int]]:
    """Yield the bounds of stretches of rows that are tokenized in one call."""
    start = characters = 0
    for end in range(len(rows)):
        size = len(rows.texts[end]) + (0 if rows.pairs is None else len(rows.pairs[end]))
        if end > start and (end - start >= CHUNK_ROWS or characters + size > CHUNK_CHARACTERS):
            yield start, end
            start, characters = end, 0
        characters += size
    yield start, len(rows)


def _encode(tokenizer: Any, texts: list[str], pairs: list[str] | None, max_length: int) -> _Part:
    """Tokenize rows whole and cut the long ones here.

    Fast tokenizers asked to truncate build every combination of the overflowing pieces of a pair: a hundred
    pairs of 2,100 tokens each took 7 GB. Cutting here is one pass, counts exactly, and gives the same tokens.
    """
    settings = {"padding": False, "return_attention_mask": False, "verbose": False}
    whole = tokenizer(texts, pairs, truncation=False, **settings)
    tokens: list[list[int]] = whole["input_ids"]
    types: list[list[int]] | None = whole.get("token_type_ids") if pairs is not None else None
    long = [row for row, ids in enumerate(tokens) if len(ids) > max_length]
    from_left = tokenizer.truncation_side == "left"
    for row in long:
        if whole.encodings is None:  # a tokenizer written in Python does not say where its special tokens are
            limit = {"truncation": "longest_first", "max_length": max_length}
            cut = tokenizer(texts[row], pairs and pairs[row], **limit, **settings)
            tokens[row], kept_types = cut["input_ids"], cut.get("token_type_ids")
        else:
            kept = _kept(whole.encodings[row].sequence_ids, max_length, from_left)
            tokens[row] = [tokens[row][place] for place in kept]
            kept_types = None if types is None else [types[row][place] for place in kept]
        if types is not None:
            types[row] = kept_types
    lengths = np.fromiter(map(len, tokens), np.int64, len(tokens))
    total = int(lengths.sum())
    flat_types = None if types is None else np.fromiter(chain.from_iterable(types), np.int8, total)
    return _Part(np.fromiter(chain.from_iterable(tokens), np.int32, total), flat_types, lengths, len(long))


def _kept(sequences: Sequence[int | None], max_length: int, from_left: bool) -> np.ndarray:
    """Return the places that stay of a row; `sequences` has each token's text, 0 or 1, or None if special."""
    text_T = np.array([-1 if sequence is None else sequence for sequence in sequences])
    first, second = np.flatnonzero(text_T == 0), np.flatnonzero(text_T == 1)
    special = np.flatnonzero(text_T == -1)
    keep_first, keep_second = longest_first(len(first), len(second), max_length - len(special))
    if from_left:
        first, second = first[len(first) - keep_first :], second[len(second) - keep_second :]
    return np.sort(np.concatenate([special, first[:keep_first], second[:keep_second]]))
