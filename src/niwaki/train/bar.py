"""The bar that a training draws."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar_of(is_shown: bool, done: int, steps: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Draw a bar with the loss and the time left, on stderr; yield what tells it how many steps are done."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[losses]}"),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as progress:
        bar = progress.add_task("train", total=steps, completed=done, losses="")

        def advance(done: int, parts: dict[str, float]) -> None:
            progress.update(bar, completed=done)
            if parts:
                progress.update(bar, losses="  ".join(f"{name} {value:.3f}" for name, value in parts.items()))

        yield advance
