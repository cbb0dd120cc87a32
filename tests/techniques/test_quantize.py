"""`quantize` stores what it says, with a small and known error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import input_ranges
from niwaki.errors import NiwakiError
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear
from niwaki.surgery import journal_of, narrow_heads, narrow_neurons
from niwaki.task import Task
from niwaki.techniques.quantize import Quantize, affine
from niwaki.testing import fresh, logits, make_context

Bases = Callable[..., Path]


@pytest.mark.parametrize("activations", ["dynamic", "static", "none"])
def test_outputs_stay_close(activations: str, family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    before = logits(context.base, context)
    model = Quantize(activations=activations).apply(fresh(context), context)
    difference = (logits(model, context) - before).abs().mean()
    assert 0 < difference < 0.25 * before.std()  # random weights are steeper than trained ones
    packed = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    assert len(packed) >= 2 * 6
    assert all(module.weight.dtype == torch.int8 and module.activations == activations for module in packed)
    assert isinstance(anatomy_of(model).head, nn.Linear)


def test_weights_are_within_half_a_step(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = Quantize().apply(fresh(context), context)
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLinear | QuantizedEmbedding):
            weight = context.base.get_submodule(name).weight
            scale = module.scale.reshape(-1, 1)
            rows = weight.any(dim=1)  # the row of the padding token is 0, at any scale
            torch.testing.assert_close(scale.flatten()[rows], weight[rows].abs().amax(dim=1) / 127)
            assert ((module.weight * scale - weight).abs() <= scale / 2 * 1.001).all()


@given(st.floats(-50, 50), st.floats(0.01, 50))
def test_affine_holds_its_range(low: float, width: float) -> None:
    """Both ends, and 0, come back within half a step."""
    scale, zero_point = affine(low, low + width)
    assert 0 <= zero_point <= 255
    for value in (min(low, 0.0), max(low + width, 0.0), 0.0):
        integer = min(255, max(0, round(value / scale) + zero_point))
        assert abs((integer - zero_point) * scale - value) <= 1.01 * scale / 2 + 1e-9 or abs(value) > 0 == zero_point


def test_ranges_never_count_padding(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """One long row among short ones: padding's states must not widen the range."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = context.base
    name = anatomy_of(model).layers[0].name_of("query")
    rows = context.data.evaluation
    together = [rows.batch(range(len(rows)))]
    alone = [rows.batch([index]) for index in range(len(rows))]
    one, other = input_ranges(model, [name], together)[name], input_ranges(model, [name], alone)[name]
    assert one == pytest.approx(other, abs=1e-4)
    cut = input_ranges(model, [name], together, keep=0.9)[name]
    assert one[0] < cut[0] < cut[1] < one[1]


def test_skip_patterns(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = Quantize(skip=("*pooler*", "*.layer.0.*"), embeddings=False).apply(fresh(context), context)
    edits = [record["module"] for record in journal_of(model)[1:]]
    assert len(edits) == 6 and all(".layer.1." in name for name in edits)
    with pytest.raises(NiwakiError, match="matches no module"):
        Quantize(skip=("decoder*",)).apply(fresh(context), context)
    with pytest.raises(NiwakiError, match="nothing to pack"):
        Quantize(skip=("*",)).apply(fresh(context), context)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_what_is_empty_stays_empty(activations: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """A layer without heads and neurons has nothing to pack, and answers as before."""
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = narrow_neurons(narrow_heads(fresh(context), layer=0, heads=[]), layer=0, neurons=[])
    before = logits(model, context)
    packed = Quantize(activations=activations).apply(model, context)
    assert not any(isinstance(part, QuantizedLinear) for part in anatomy_of(packed).layers[0].module.modules())
    assert (logits(packed, context) - before).abs().mean() < 0.25 * before.std()
