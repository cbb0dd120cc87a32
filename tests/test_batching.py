"""Batches of like length: every row once, and none larger than what is said, however long its rows are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from niwaki.batching import TOKENS, in_row_order, length_sorted

lengths_of = st.lists(st.integers(1, 2 * TOKENS) | st.integers(1, 64), max_size=60).map(np.array)


@given(lengths_of, st.integers(1, 20))
def test_every_row_is_in_one_batch_and_batches_are_as_small_as_is_said(lengths: np.ndarray, batch_size: int) -> None:
    batches = length_sorted(lengths, batch_size)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert 1 <= len(batch) <= batch_size
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= TOKENS
    ends = [int(lengths[batch].max()) for batch in batches]
    assert ends == sorted(ends)


@given(lengths_of.filter(len), st.integers(1, 20))
def test_what_was_computed_in_batches_comes_back_in_the_order_of_rows(lengths: np.ndarray, batch_size: int) -> None:
    batches = length_sorted(lengths, batch_size)
    assert np.array_equal(in_row_order(batches, [lengths[batch] for batch in batches]), lengths)


def test_short_rows_fill_batches() -> None:
    assert [len(batch) for batch in length_sorted(np.full(130, 25), 64)] == [64, 64, 2]


def test_no_rows_make_no_batches() -> None:
    assert length_sorted(np.array([], dtype=np.int64), 8) == []
