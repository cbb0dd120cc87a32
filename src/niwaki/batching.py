"""Cut rows into batches of like length, and put what was computed batch by batch back into their order."""

# B batch, N rows

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Tokens of a batch at most, padding counted, so that what a layer computes of it fits into memory at any length.
TOKENS = 16_384


def length_sorted(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Return the indices of all rows in batches of like length, the short ones first.

    Args:
        lengths: tokens of each row, (N,).
        batch_size: rows of a batch at most. One of long rows has fewer: as many as make 16,384 tokens, or one.

    >>> [batch.tolist() for batch in length_sorted(np.array([7, 3, 5]), batch_size=2)]
    [[1, 2], [0]]
    >>> [len(batch) for batch in length_sorted(np.full(64, 1024), batch_size=40)]
    [16, 16, 16, 16]
    """
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        count = end - start
        if end == len(order) or count == batch_size or (count + 1) * lengths[order[end]] > TOKENS:
            batches.append(order[start:end])
            start = end
    return batches


def in_row_order(batches: Sequence[np.ndarray], parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return what was computed batch by batch (B, ...) as one array (N, ...) in the order of the rows."""
    values = np.concatenate(parts)
    result = np.empty_like(values)
    result[np.concatenate(batches)] = values
    return result
