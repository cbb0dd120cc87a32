"""Time several artifacts fairly: same inputs, in turns, in an order that chance decides."""

# S subjects, R rounds, I inputs of a round, N rows

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from niwaki.runtime.artifact import Array, Batch

if TYPE_CHECKING:
    from niwaki.task import Encoded

Floats = npt.NDArray[np.float64]


class Clocked(Protocol):
    """Anything that can time batches: a worker, or a stand-in in a test."""

    def time(self, batches: Sequence[Batch], warm: Sequence[Batch] = ()) -> list[float]:
        """Return the seconds of each batch, after `warm` unrecorded ones."""
        ...


def draw_rows(lengths: npt.NDArray[np.integer[Any]], rounds: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw rows (rounds, count) so that every round has the length distribution of the split.

    Rows are sorted by length and cut into `count` strata of equal size; a round takes one row of each, in
    random order. Plain sampling would be as unbiased, but rounds would differ by their luck with long rows.
    Splits smaller than `count` repeat.
    """
    generator = np.random.default_rng(seed)
    by_length_N = np.argsort(lengths, kind="stable")
    quantiles = (np.arange(count) + generator.random((rounds, count))) / count
    positions = np.minimum((quantiles * len(lengths)).astype(np.int64), len(lengths) - 1)
    rows = by_length_N[positions]
    return generator.permuted(rows, axis=1)


def shuffled_orders(subjects: int, rounds: int, seed: int) -> list[list[int]]:
    """Return the order of subjects in each round: every subject once, by chance, repeatable by `seed`."""
    generator = np.random.default_rng(seed)
    return [generator.permutation(subjects).tolist() for _ in range(rounds)]


def time_in_turns(
    workers: Sequence[Clocked],
    batches_of_subjects: Sequence[Sequence[Sequence[Batch]]],
    seed: int,
    warm: int = 3,
    tick: Callable[[], None] = lambda: None,
) -> Floats:
    """Time all workers on the same texts, round after round; return seconds (S, R, I).

    Slow drifts of the machine (clock, heat, neighbours) then fall on all subjects alike. Only one worker runs
    at a time.

    Args:
        workers: one a subject.
        batches_of_subjects: for each worker, in its own token ids, R lists of I batches.
        seed: of the order within rounds.
        warm: how many of a round's batches are first run unrecorded, for caches, clock and sleeping threads.
        tick: called after each block.
    """
    shape = (len(workers), len(batches_of_subjects[0]), len(batches_of_subjects[0][0]))
    seconds_SRI = np.zeros(shape)
    for number, order in enumerate(shuffled_orders(len(workers), shape[1], seed)):
        for subject in order:
            batches = batches_of_subjects[subject][number]
            seconds_SRI[subject, number] = workers[subject].time(batches, warm=batches[-warm:] if warm else ())
            tick()
    return seconds_SRI


def summarize_seconds(seconds: Floats) -> dict[str, float]:
    """Return median, p10, p90 and p99 of seconds of any shape, linear between ranks."""
    median, p10, p90, p99 = np.percentile(seconds, [50, 10, 90, 99])
    return {"median": float(median), "p10": float(p10), "p90": float(p90), "p99": float(p99)}


def ratio_over_rounds(base_RI: Floats, this_RI: Floats, mean: bool = False) -> dict[str, float]:
    """Return median, p10 and p90 over rounds of (base's median in the round) / (this median in the round).

    Args:
        base_RI: seconds of the base.
        this_RI: of this artifact, on the same inputs.
        mean: take the mean of a round in the place of its median.
    """
    middle = np.mean if mean else np.median
    ratios_R = middle(base_RI, axis=1) / middle(this_RI, axis=1)
    median, p10, p90 = np.percentile(ratios_R, [50, 10, 90])
    return {"median": float(median), "p10": float(p10), "p90": float(p90)}


def pad_rows(rows: Encoded, indices: Sequence[int] | npt.NDArray[np.integer[Any]]) -> dict[str, Array]:
    """Return rows as arrays (B, T), int64, padded on the right: `Encoded.batch` without torch.

    Rows that are read in windows come as these; "mean_of" or "max_of", (B,), says which row each belongs to.
    """
    if rows.windows is not None:
        cut, owners = rows.in_windows(indices)
        return {**pad_rows(cut, range(len(cut))), f"{rows.windows.pool}_of": owners}
    lengths_B = rows.lengths[np.asarray(indices)]
    shape = (len(lengths_B), int(lengths_B.max()))
    filled_BT = np.arange(shape[1]) < lengths_B[:, None]
    input_ids = np.full(shape, rows.pad, dtype=np.int64)
    input_ids[filled_BT] = np.concatenate([rows.tokens_of(int(index)) for index in indices])
    batch = {"input_ids": input_ids, "attention_mask": filled_BT.astype(np.int64)}
    if rows.types is not None:
        types_BT = np.zeros(shape, dtype=np.int64)
        spans = [rows.types[rows.offsets[index] : rows.offsets[index + 1]] for index in indices]
        types_BT[filled_BT] = np.concatenate(spans)
        batch["token_type_ids"] = types_BT
    return batch


def batches_by_length(rows: Encoded, indices: npt.NDArray[np.integer[Any]], size: int) -> list[dict[str, Array]]:
    """Cut rows, sorted by length, into padded batches, as a server does that buckets its queue."""
    ordered = indices[np.argsort(rows.lengths[indices], kind="stable")]
    return [pad_rows(rows, ordered[start : start + size]) for start in range(0, len(ordered), size)]
