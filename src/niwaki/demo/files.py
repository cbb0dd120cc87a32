"""Write the generated reviews as the two files that a task reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from niwaki.demo.grammar import LABELS, Review, reviews

TRAIN_ROWS = 4800
VALIDATION_ROWS = 1000


def as_csv(rows: Sequence[Review]) -> str:
    """Return rows as CSV with the columns text and label.

    >>> print(as_csv([Review("Not bad at all, this film.", 1, "film", "negation")]), end="")
    text,label
    "Not bad at all, this film.",positive
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerows([("text", "label"), *((row.text, LABELS[row.label]) for row in rows)])
    return stream.getvalue()


def write_reviews(
    folder: Path, *, train_rows: int = TRAIN_ROWS, validation_rows: int = VALIDATION_ROWS, seed: int = 0
) -> Path:
    """Write train.csv and validation.csv; a file that already says the same is left alone.

    Args:
        folder: made where it is not there.
        train_rows: how many, above 0.
        validation_rows: how many, above 0.
        seed: of the grammar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    splits = {
        "train": reviews(train_rows, seed=seed),
        "validation": reviews(validation_rows, validation=True, seed=seed),
    }
    for name, rows in splits.items():
        write(folder / f"{name}.csv", as_csv(rows))
    return folder


def write(path: Path, text: str) -> None:
    """Write a file aside and rename it, unless it says the same already."""
    if path.is_file() and path.read_bytes() == text.encode():
        return
    aside = path.with_name(f".{path.name}.writing")
    aside.write_bytes(text.encode())
    aside.replace(path)
