"""The bar that is drawn while something long is measured or computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(description: str, is_shown: bool) -> Iterator[Callable[[float], None]]:
    """Draw a bar on standard error, with the time that is left; yield what advances it by a share of the whole."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown, transient=True) as bar:
        task = bar.add_task(description, total=1.0)
        yield lambda share: bar.advance(task, share)
