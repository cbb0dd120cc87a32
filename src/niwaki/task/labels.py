"""Labels as people write them to class ids, stable from one reading to the next."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.task.tables import Table

WHOLE = re.compile(r"-?(0|[1-9]\d*)")  # as Python writes it; 007 is a name
INTEGER = re.compile(r"[+-]?\d+")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf|nan", re.IGNORECASE)
UNNAMED = re.compile(r"(LABEL_)?\d+", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class LabelColumn:
    """Hold the labels of a split in one spelling: 1, "1" and " 1" are all "1"; None where a label is missing.

    Attributes:
        table: where they stand.
        name: of the column.
        values: one a row.
        classes: names of the classes in the order of their ids, where the file knows them.
    """

    table: Table
    name: str
    values: list[str | None]
    classes: tuple[str, ...] = ()

    @property
    def absent(self) -> bool:
        """Say whether no row has a label; -1 is how published test splits write that."""
        return all(value is None or value == "-1" for value in self.values)

    @property
    def distinct(self) -> list[str]:
        """Return the labels that occur, in the order of names."""
        return list(in_order({value for value in self.values if value is not None}))


def read_labels(table: Table, name: str) -> LabelColumn:
    """Read a column of labels: whole numbers, words, or true and false.

    Raises:
        NiwakiError: for labels that are lists or decimal numbers.
    """
    raw = table.read(name)
    classes = table.classes.get(name, ())
    values = [_spelled(value, row, table, classes) for row, value in enumerate(raw)]
    return LabelColumn(table, name, _without_decimals(values, table), classes)


def _spelled(value: Any, row: int, table: Table, classes: tuple[str, ...]) -> str | None:
    """Return one label as text, or None when it is missing."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        if classes and value == -1:  # how the hub writes that a label is not given away
            return None
        return classes[value] if 0 <= value < len(classes) else str(value)
    if isinstance(value, float):
        return None if math.isnan(value) else repr(value)
    raise NiwakiError(
        f"the label is {str(value)[:60]!r}, a {type(value).__name__}",
        expected="one label a row: a whole number or a word",
        place=table.place(row),
    )


def _without_decimals(values: list[str | None], table: Table) -> list[str | None]:
    """Refuse labels that are decimal numbers; among numbers, "nan" is a missing one."""
    distinct = {value for value in values if value is not None}
    if not all(NUMBER.fullmatch(value) for value in distinct):
        return values
    values = [None if value is None or value.lower() == "nan" else value for value in values]
    decimals = {value for value in distinct if not INTEGER.fullmatch(value) and value.lower() != "nan"}
    if None in values and all(value.endswith(".0") for value in decimals):
        # pandas makes whole numbers decimal when one is missing; the missing one is what to complain of.
        return [value and value.removesuffix(".0") for value in values]
    if decimals:
        row = next(row for row, value in enumerate(values) if value in decimals)
        raise NiwakiError(
            f"the label is {values[row]}, a decimal number",
            expected="classes, as whole numbers or words (scores on a scale are a matter of regression)",
            fix='frame["label"] = frame["label"].astype(int)   if they are whole',
            place=table.place(row),
        )
    return values


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Sort label names: by value if all are whole numbers, else as text.

    >>> in_order({"10", "9", "1"}), in_order({"no", "yes", "maybe"})
    (('1', '9', '10'), ('maybe', 'no', 'yes'))
    """
    names = set(labels)
    if all(WHOLE.fullmatch(name) for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def require_labels(column: LabelColumn) -> None:
    """Refuse a split in which some row has no label."""
    rows = [row for row, value in enumerate(column.values) if value is None]
    if not rows:
        return
    count = f"{len(rows):,} of {len(column.values):,} labels are missing" if len(rows) > 1 else "the label is missing"
    raise NiwakiError(
        f'{count} in column "{column.name}"',
        expected="a label in each row",
        fix="remove these rows or write their label",
        place=column.table.place(rows[0]),
    )


def names_of(column: LabelColumn) -> tuple[str, ...]:
    """Return the label names that these rows define: those the file knows, else those that occur, sorted.

    Raises:
        NiwakiError: when they are of a single class, or nearly all different.
    """
    counts = Counter(column.values)
    if len(counts) == 1:
        raise NiwakiError(
            f'all {len(column.values):,} labels are "{column.values[0]}"',
            expected="two classes or more",
            fix='label="..."  (the column that the labels are in)',
            place=f'{column.table.source}, column "{column.name}"',
        )
    if len(column.values) >= 100 and 2 * len(counts) > len(column.values):
        raise NiwakiError(
            f"{len(counts):,} different labels in {len(column.values):,} rows",
            expected="classes of several rows each",
            fix='label="..."  (the column that the labels are in)',
            place=f'{column.table.source}, column "{column.name}"',
        )
    return column.classes or in_order(value for value in counts if value is not None)


def ids_of(column: LabelColumn, names: Sequence[str], source: str) -> tuple[np.ndarray, str]:
    """Return the class id of each row, (N,) int64, and a note if ids were matched by number.

    A label is matched with `names` by name, without regard to case. Labels 0, 1, ... are ids if the names are
    words; classes that the file has words for are matched by number if the names say nothing (LABEL_0, ...).

    Args:
        column: labels, none missing.
        names: label names in the order of their ids.
        source: where the names come from, for messages ("the model", "train").

    Raises:
        NiwakiError: for a label that is none of the names.
    """
    ids, note = _by_name(column, names), ""
    if ids is None:
        ids, note = _by_number(column, names, source)
    if ids is None:
        raise _unknown(column, names, source)
    lookup = ids
    return np.fromiter((lookup[value or ""] for value in column.values), np.int64, len(column.values)), note


def _by_name(column: LabelColumn, names: Sequence[str]) -> dict[str, int] | None:
    """Return the id of each label by its name, or None when one has none."""
    exact = {name: index for index, name in enumerate(names)}
    folded = Counter(name.casefold() for name in names)
    loose = {name.casefold(): index for index, name in enumerate(names) if folded[name.casefold()] == 1}
    ids = {label: exact.get(label, loose.get(label.casefold(), -1)) for label in column.distinct}
    return None if -1 in ids.values() else ids


def _by_number(column: LabelColumn, names: Sequence[str], source: str) -> tuple[dict[str, int] | None, str]:
    """Return the id of each label by its number, or None when that would be a guess."""
    counted = all(WHOLE.fullmatch(name) for name in names)
    if column.classes:
        numbers = {name: index for index, name in enumerate(column.classes)}
        allowed = all(UNNAMED.fullmatch(name) for name in names) and len(column.classes) == len(names)
    else:
        numbers = {label: int(label) for label in column.distinct if WHOLE.fullmatch(label)}
        allowed = not counted and len(numbers) == len(column.distinct)
    if not allowed or not all(0 <= number < len(names) for number in numbers.values()):
        return None, ""
    pairs = ", ".join(f"{label} is {names[number]}" for label, number in list(numbers.items())[:5])
    more = ", ..." if len(numbers) > 5 else ""
    return numbers, f"labels were read as the ids of {source}: {pairs}{more}"


def _unknown(column: LabelColumn, names: Sequence[str], source: str) -> NiwakiError:
    """Name the first label that is none of the names."""
    known = {name.casefold() for name in names}
    row = next((row for row, value in enumerate(column.values) if (value or "").casefold() not in known), 0)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    missing = [label for label in column.distinct if label.casefold() not in known]
    others = f" (and {len(missing) - 1} more unknown labels)" if len(missing) > 1 else ""
    return NiwakiError(
        f'the label "{column.values[row]}" is none that {source} knows{others}',
        expected=f"one of {shown}"
        + ("" if all(WHOLE.fullmatch(n) for n in names) else f", or an id 0 to {len(names) - 1}"),
        fix=f"remove these rows, or write the label as {source} has it",
        place=column.table.place(row),
    )
