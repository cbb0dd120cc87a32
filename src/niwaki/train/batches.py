"""Which rows stand in which batch."""

from __future__ import annotations

import numpy as np


def length_bucketed(lengths: np.ndarray, batch_size: int, seed: int, epoch: int, buckets: int = 64) -> list[np.ndarray]:
    """Return one epoch's batches: rows shuffled, sorted by length in chunks of `buckets` batches, batches shuffled.

    Every row stands in exactly one batch, and the order depends on `seed` and `epoch` alone.
    """
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    batches: list[np.ndarray] = []
    for start in range(0, len(order), batch_size * buckets):
        chunk = order[start : start + batch_size * buckets]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches.extend(chunk[low : low + batch_size] for low in range(0, len(chunk), batch_size))
    return [batches[index] for index in generator.permutation(len(batches))]
