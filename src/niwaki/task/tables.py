"""Rows as named columns that know where each row stands, for messages."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from niwaki.errors import NiwakiError


@dataclass(frozen=True, eq=False)
class Table:
    """Hold named columns that are read when asked for.

    Attributes:
        source: the file or hub split, as the user knows it.
        columns: names of the columns.
        num_rows: how many rows, at least 1.
        read: give the values of a column, one a row.
        lines: the line of the file on which each row begins, counted from 1, for files made of lines.
        classes: names of the classes of a column that holds numbers, where the file knows them.
    """

    source: str
    columns: tuple[str, ...]
    num_rows: int
    read: Callable[[str], list[Any]]
    lines: Sequence[int] | None = None
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def place(self, row: int) -> str:
        """Name a row by file, number (from 1, the header not counted) and line."""
        line = f" (line {self.lines[row]})" if self.lines is not None else ""
        return f"{self.source}, row {row + 1}{line}"


def joined(tables: Sequence[Table]) -> Table:
    """Return the shards of one split as one table whose rows still know their file."""
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table in tables[1:]:
        if set(table.columns) != set(first.columns):
            raise NiwakiError(
                f"the columns are {', '.join(table.columns)}",
                expected=f"those of {first.source}: {', '.join(first.columns)}",
                place=table.source,
            )
    return _Joined(
        source=first.source,
        columns=first.columns,
        num_rows=sum(table.num_rows for table in tables),
        read=lambda name: [value for table in tables for value in table.read(name)],
        classes=first.classes,
        parts=tuple(tables),
    )


@dataclass(frozen=True, eq=False)
class _Joined(Table):
    """Hold several tables end to end."""

    parts: tuple[Table, ...] = ()

    def place(self, row: int) -> str:
        """Name a row by the file that it stands in."""
        ends = list(accumulate(part.num_rows for part in self.parts))
        part = bisect.bisect_right(ends, row)
        return self.parts[part].place(row - (ends[part] - self.parts[part].num_rows))
