"""Ask a worker about rows, some at a time, in batches where neighbours play no part."""

# N rows

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from niwaki.batching import in_row_order, length_sorted
from niwaki.measure.timing import pad_rows
from niwaki.runtime.artifact import Array, Batch

if TYPE_CHECKING:
    from niwaki.task import Encoded

BATCH = 32
MESSAGE_ROWS = 64
Tick = Callable[[str], None]


class Asked(Protocol):
    """What is asked: a worker, or a stand-in in a test."""

    @property
    def rows_independent(self) -> bool:
        """Say whether a row's answer is known not to depend on the other rows of its batch."""


def ask_in_batches(
    worker: Asked,
    rows: Encoded,
    chosen: npt.NDArray[np.integer[Any]],
    ask: Callable[[Sequence[Batch]], Sequence[Array]],
    tick: Tick = lambda what: None,
) -> Array:
    """Return what is answered about the chosen rows, (N, ...), in their order.

    Artifacts are asked row by row: a dynamically quantized one takes its activation range from the whole
    batch, so its answer would depend on the neighbours. Where the neighbours are known to play no part (torch
    in floats) rows go in batches of like length, of at most 32.

    Args:
        worker: who is asked.
        rows: as the model reads them.
        chosen: their numbers.
        ask: from batches to an answer (B, ...) each.
        tick: called after each message.
    """
    size = BATCH if worker.rows_independent else 1
    order = np.argsort(rows.lengths[chosen], kind="stable")
    messages = [order[start : start + MESSAGE_ROWS] for start in range(0, len(order), MESSAGE_ROWS)]
    parts = []
    for message in messages:
        batches = [message[indices] for indices in length_sorted(rows.lengths[chosen[message]], size)]
        parts.append(np.concatenate(list(ask([pad_rows(rows, chosen[indices]) for indices in batches]))))
        tick("quality")
    return in_row_order(messages, parts)
