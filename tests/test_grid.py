"""The grids that weights are rounded to."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.grid import Grid, fit, nearest, to_floats

ZEROS = ("middle", "integer", "float")


@given(
    st.sampled_from([2, 3, 4, 6, 8]),
    st.sampled_from([4, 8, 5, "channel", "tensor"]),
    st.sampled_from(ZEROS),
    st.integers(0, 2**31),
)
def test_the_nearest_is_within_half_a_step(bits: int, group: int | str, zero: str, seed: int) -> None:
    weight_OI = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))
    grid = Grid(bits, group, zero)  # type: ignore[arg-type]
    rounded = nearest(weight_OI, grid)
    assert int(rounded.integers.max()) <= grid.highest and int(rounded.integers.min()) >= grid.lowest
    assert rounded.scale.shape == (3, grid.groups(16))
    columns = grid.columns(16)
    step_OI = rounded.scale.repeat_interleave(columns, dim=1)[:, :16]
    # a zero point that is rounded moves the range by half a step
    most = 1.0 if zero == "integer" else 0.5
    assert bool(((rounded.floats(grid) - weight_OI).abs() <= step_OI * (most + 1e-4)).all())
    if group == "tensor":
        assert len(rounded.scale.unique()) == 1


def test_a_group_by_hand() -> None:
    """Groups of 2: steps 7/7 and 1.4/7 around the middle; from 0 to 15 the steps are 10/15 and 1.5/15."""
    weight_OI = torch.tensor([[-7.0, 3.0, 1.4, 0.4]])
    rounded = nearest(weight_OI, Grid(4, 2))
    assert rounded.integers.tolist() == [[1, 11, 15, 10]]
    torch.testing.assert_close(rounded.scale, torch.tensor([[1.0, 0.2]]))
    scale_OG, zero_OG = fit(torch.tensor([[-7.0, 3.0, 1.5, 0.4]]), Grid(4, 2, "integer"))
    torch.testing.assert_close(scale_OG, torch.tensor([[10 / 15, 0.1]]))
    assert zero_OG is not None and zero_OG.tolist() == [[10, 0]]


def test_zeros_stay_zero() -> None:
    """Pruned weights stay pruned wherever the grid has an integer for 0."""
    weight_OI = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    weight_OI[:, ::3] = 0.0
    weight_OI[2] = 0.0
    for zero in ("middle", "integer"):
        grid = Grid(4, 8, zero)  # type: ignore[arg-type]
        rounded = nearest(weight_OI, grid)
        assert not bool(to_floats(rounded.integers, rounded.scale, rounded.zero, grid)[weight_OI == 0].any())


@pytest.mark.parametrize("zero", ZEROS)
def test_shapes_are_known_without_numbers(zero: str) -> None:
    grid = Grid(3, 8, zero)  # type: ignore[arg-type]
    scale_OG, zero_OG = fit(torch.ones(2, 24), grid)
    assert scale_OG.shape == (2, grid.groups(24))
    assert (None if zero_OG is None else zero_OG.dtype) == grid.zero_type
