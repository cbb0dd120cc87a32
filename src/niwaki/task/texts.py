"""What kinds of task share about their texts: reading a column, holding rows out, telling what is in two splits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.task.encoded import stratified_rows
from niwaki.task.tables import Table
from niwaki.task.task import TextRows

# Of data without a validation split, this share is held out; the same rows whatever a run's seed is.
HELD_OUT = 0.1
HELD_OUT_SEED = 0


def read_texts(table: Table, name: str) -> list[str]:
    """Read a column of texts, none of them missing, empty or something else."""
    values = table.read(name)
    strange = [row for row, value in enumerate(values) if value is not None and not isinstance(value, str)]
    if strange:
        value = values[strange[0]]
        raise NiwakiError(
            f'"{name}" is {str(value)[:60]!r}, a {type(value).__name__}',
            expected="a text",
            fix='text="..."  (the column that the texts are in)',
            place=table.place(strange[0]),
        )
    empty = [row for row, value in enumerate(values) if value is None or not value.strip()]
    if empty:
        more = f", and {len(empty) - 1:,} more of {len(values):,} rows" if len(empty) > 1 else ""
        raise NiwakiError(
            f'"{name}" is {"missing" if values[empty[0]] is None else "empty"} here{more}',
            expected="a text in each row",
            fix="remove these rows, or fill them in",
            place=table.place(empty[0]),
        )
    for row, value in enumerate(values):
        if not value.isascii():
            _check_unicode(value, name, table, row)
    return values


def _check_unicode(value: str, name: str, table: Table, row: int) -> None:
    r"""Refuse half characters: JSON can spell one half of a surrogate pair ("\ud83d"), tokenizers cannot."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NiwakiError(
            f'"{name}" holds half a character, {value[error.start]!a}, at position {error.start}',
            expected="whole characters",
            fix="cut texts by character before writing them as JSON",
            place=table.place(row),
        ) from None


def arrange(splits: dict[str, TextRows], notes: list[str]) -> None:
    """See to it that there is a validation split."""
    if "validation" in splits:
        return
    if "train" not in splits:
        splits["validation"] = replace(splits.pop("test"), name="validation")
        notes.append("the data have a test split alone; it stands as validation")
        return
    whole = splits["train"]
    held = stratified_rows(whole.labels, round(HELD_OUT * len(whole)), HELD_OUT_SEED)
    if not len(held):
        raise NiwakiError(
            f"the data have no validation split, and no row of train ({len(whole)}) can be held out as one",
            expected="a class with two rows at least",
            fix="add rows, or a validation.csv",
        )
    rest = np.setdiff1d(np.arange(len(whole)), held)
    splits["train"], splits["validation"] = whole.select(rest, "train"), whole.select(held, "validation")
    proportion = ", the classes in proportion" if len(np.unique(whole.labels)) > 1 else ""
    notes.append(
        f"the data have no validation split: {len(held):,} of {len(whole):,} rows were held out as one "
        f"(seed {HELD_OUT_SEED}{proportion})"
    )


def overlaps(splits: dict[str, TextRows]) -> list[str]:
    """Return notes on texts that were learnt and are judged by."""
    if "train" not in splits:
        return []
    notes = []
    seen = set(_keys(splits["train"]))
    for split in (splits[name] for name in ("validation", "test") if name in splits):
        if known := sum(key in seen for key in _keys(split)):
            share = 100 * known / len(split)
            notes.append(f"{known:,} of {len(split):,} {split.name} texts ({share:.1f}%) are in train too")
    return notes


def _keys(split: TextRows) -> list[tuple[str, str]]:
    """Return what makes two rows the same to a model."""
    return list(zip(split.texts, split.pairs or [""] * len(split), strict=True))
