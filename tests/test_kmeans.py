"""k-means on the values of a matrix: numbers by hand, stable, and zeros that stay alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from niwaki.errors import NiwakiError
from niwaki.kmeans import codebooks
from niwaki.layers.codebook import look_up


def looked_up(weight: Tensor, bits: int, group_rows: int | None = None, keep_zeros: bool | None = None) -> Tensor:
    centroids, codes = codebooks(weight, bits, group_rows, keep_zeros)
    return look_up(centroids, codes, torch.arange(len(weight)) // (group_rows or len(weight)))


def test_by_hand() -> None:
    """From 0 and 10: {0, 1, 2} and {9, 10}; from 1 and 9.5 nothing moves."""
    weight = torch.tensor([[0.0, 9.0, 1.0], [10.0, 2.0, 2.0]])
    centroids, codes = codebooks(weight, bits=1)
    assert centroids.tolist() == [[1.25, 9.5]]
    assert codes.tolist() == [[0, 1, 0], [1, 0, 0]] and codes.dtype == torch.uint8


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=40), st.integers(1, 3))
def test_it_is_stable(numbers: list[int], bits: int) -> None:
    """Each value is with the nearest centroid, a centroid is the mean of its values, and none idles that could help."""
    weight = torch.tensor([numbers], dtype=torch.float32)
    centroids, codes = codebooks(weight, bits, keep_zeros=False)
    distances = (weight[..., None] - centroids[:, None]).abs()
    assert torch.equal(distances.gather(-1, codes.long()[..., None])[..., 0], distances.amin(-1))
    for code in codes.unique().tolist():
        assert float(weight[codes == code].mean()) == pytest.approx(float(centroids[0, code]), abs=1e-4)
    assert len(codes.unique()) == min(2**bits, len(set(numbers)))


@given(st.integers(1, 8), st.integers(1, 9), st.integers(1, 12), st.integers(1, 4), st.integers(0, 99))
def test_twice_is_once(bits: int, rows: int, columns: int, group_rows: int, seed: int) -> None:
    """What is clustered is what its table says, bit for bit; so a matrix of few values keeps them."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    once = looked_up(weight, bits, group_rows)
    assert torch.equal(looked_up(once, bits, group_rows), once)
    groups = once.split(group_rows)
    assert all(len(group.unique()) <= 2**bits for group in groups)
    if columns * group_rows <= 2**bits:
        assert torch.equal(once, weight)


@given(st.integers(1, 4), st.integers(0, 99), st.integers(0, 100))
def test_zeros_stay_alone(bits: int, seed: int, share: int) -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))
    weight[torch.rand(8, 16, generator=torch.Generator().manual_seed(seed)) < share / 100] = 0
    centroids, codes = codebooks(weight, bits, group_rows=4, keep_zeros=True)
    assert torch.equal(codes == 0, weight == 0) and not centroids[:, 0].any()
    assert not looked_up(weight, bits, 4, keep_zeros=True)[weight == 0].any()


def test_zeros_of_a_pruned_matrix_are_kept() -> None:
    weight = torch.linspace(-1, 1, 101)[None].clone()
    assert (looked_up(weight, 3)[weight == 0] == 0).sum() <= 1
    weight[0, 30:60] = 0
    assert torch.equal(looked_up(weight, 3) == 0, weight == 0)


def test_no_centroid_is_wasted() -> None:
    """One value far out leaves most of the equal steps empty; they move to where the values are."""
    weight = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.tensor([1000.0])])[None]
    centroids, codes = codebooks(weight, bits=4)
    assert len(codes.unique()) == 16
    assert float((looked_up(weight, 4) - weight).square().mean()) < 0.013  # 0.0115 is best for 15 of a normal


def test_groups_are_matrices_of_their_own() -> None:
    weight = torch.randn(10, 40, generator=torch.Generator().manual_seed(1))
    together = looked_up(weight, 2, group_rows=4)
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert torch.equal(together[rows], looked_up(weight[rows], 2))


def test_shapes_without_numbers() -> None:
    centroids, codes = codebooks(torch.empty(10, 40, device="meta"), bits=3, group_rows=4)
    assert centroids.is_meta and centroids.shape == (3, 8) and codes.shape == (10, 40) and codes.dtype == torch.uint8


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(NiwakiError, match="not finite"):
        codebooks(torch.tensor([[1.0, float("nan")]]), bits=2)
