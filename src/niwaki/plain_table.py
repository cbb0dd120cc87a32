"""Set cells in columns of plain text."""

from __future__ import annotations

import io
from collections.abc import Sequence


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]], words: int = 0) -> list[str]:
    """Return the lines of a table; the first `words` columns stand flush left, the others flush right.

    >>> plain_table(["model", "size"], [["base", "90 MB"], ["small", "9 MB"]], words=1)
    ['model   size', 'base   90 MB', 'small   9 MB']
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for index, title in enumerate(titles):
        table.add_column(title, justify="left" if index < words else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console(width=1000, record=True, file=io.StringIO())
    console.print(table)
    return [line.rstrip() for line in console.export_text().splitlines()]
