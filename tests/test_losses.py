"""Losses and schedules against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from niwaki.losses import relation_divergence, relations, scaled_squares, soft_targets
from niwaki.schedules import cubic, warmup_linear


def test_soft_targets_by_hand() -> None:
    """Teacher (3/4, 1/4), student (1/2, 1/2) at T = 2: T^2 (3/4 ln(3/2) + 1/4 ln(1/2))."""
    teacher = 2 * torch.tensor([[math.log(3.0), 0.0]])
    loss = soft_targets(torch.zeros(1, 2), teacher, temperature=2.0)
    assert float(loss) == pytest.approx(4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5)), rel=1e-5)


def test_soft_targets_gradient_does_not_fade_with_temperature() -> None:
    """At high T the gradient tends to (z_s - z_t) / C of centred logits, whatever T (Hinton 2015, equation 4)."""
    teacher = torch.tensor([[1.0, -1.0]])
    for temperature in (20.0, 80.0):
        student = torch.zeros(1, 2, requires_grad=True)
        soft_targets(student, teacher, temperature).backward()
        torch.testing.assert_close(student.grad, torch.tensor([[-0.5, 0.5]]), atol=1e-3, rtol=0)


def test_scaled_squares_by_hand() -> None:
    teacher = torch.tensor([[0.0, 2.0]])  # variance 2
    assert float(scaled_squares(torch.tensor([[1.0, 2.0]]), teacher)) == pytest.approx(0.25)
    assert float(scaled_squares(100 * teacher, 100 * teacher)) == 0.0


def test_relations_by_hand() -> None:
    """One head of width 1, states 0 and 2: scores (0, 0) and (0, 4); a padded column has no weight."""
    states = torch.tensor([[[0.0], [2.0], [9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    found = relations(states, mask, relation_heads=1).exp()[0, 0]
    torch.testing.assert_close(found[0], torch.tensor([0.5, 0.5, 0.0]))
    high = math.exp(4.0) / (1.0 + math.exp(4.0))
    torch.testing.assert_close(found[1], torch.tensor([1 - high, high, 0.0]))


def test_relation_divergence_ignores_padding_and_width() -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 5, 8)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    wrong = states.clone()
    wrong[1, 3:] = 100.0
    assert float(relation_divergence(wrong, states, mask, 2)) == pytest.approx(0.0, abs=1e-6)
    wider = torch.cat([states.view(2, 5, 2, 4), states.view(2, 5, 2, 4)], dim=-1).view(2, 5, 16) / 2**0.25
    assert float(relation_divergence(wider, states, mask, 2)) == pytest.approx(0.0, abs=1e-5)
    assert float(relation_divergence(torch.zeros(2, 5, 8), states, mask, 2)) > 0.01


@given(st.floats(0, 1), st.floats(0, 0.9))
def test_warmup_linear_stays_in_bounds(progress: float, warmup: float) -> None:
    assert 0.0 <= warmup_linear(progress, warmup) <= 1.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_cubic_never_falls(first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert cubic(low, 0.1, 0.7) <= cubic(high, 0.1, 0.7)
    assert cubic(0.05, 0.1, 0.7) == 0.0 and cubic(0.7, 0.1, 0.7) == 1.0


def test_relations_are_the_same_in_a_mixed_precision_training() -> None:
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)) * 10
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = relations(states, mask, 2)
    assert torch.equal(mixed, relations(states, mask, 2))
