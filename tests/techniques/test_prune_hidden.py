"""Hidden channels: gates compute what the narrow model will, and all five measures cut."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.layers.channels import ChannelGates, gated_norm
from niwaki.residual import residual_of
from niwaki.surgery import narrow_hidden
from niwaki.task import Task
from niwaki.techniques.prune import Prune
from niwaki.techniques.prune.hidden import magnitude
from niwaki.testing import fresh, make_context, short_train

Bases = Callable[..., Path]
MEASURES = ("first-order", "fisher", "activation", "magnitude", "random")


def test_gated_norm_by_hand() -> None:
    """Of (1, 3, 100) the last channel is closed: mean 2, variance 1, so -1 and 1, times weight, plus bias."""
    norm = nn.LayerNorm(3, eps=0.0)
    norm.weight.data = torch.tensor([2.0, 3.0, 5.0])
    norm.bias.data = torch.tensor([0.5, 0.0, 7.0])
    gated = gated_norm(norm, torch.tensor([[1.0, 3.0, 100.0]]), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(gated, torch.tensor([[-1.5, 3.0, 0.0]]))


def test_gated_root_mean_square_norm_by_hand() -> None:
    """A norm without a mean: of (3, 4, 9) with the last closed the root mean square is 3.5355."""

    class RootMeanSquare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = nn.Parameter(torch.ones(3)), 0.0

    gated = gated_norm(RootMeanSquare(), torch.tensor([[3.0, 4.0, 9.0]]), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(gated, torch.tensor([[3 / 12.5**0.5, 4 / 12.5**0.5, 0.0]]))


def test_gated_model_equals_the_narrow_one(
    family: str, tiny_model: Callable[..., nn.Module], batch: dict[str, Tensor]
) -> None:
    model = tiny_model(family)
    kept = [0, 3, 4, 5, 9, 11, 12, 20, 21, 30, 31]
    narrow = narrow_hidden(copy.deepcopy(model), channels=kept)
    gates = ChannelGates(model)
    with torch.inference_mode():
        whole = model(**batch).logits
        gates.close([kept])
        gated = model(**batch).logits
        gates.take_down()
        torch.testing.assert_close(model(**batch).logits, whole, atol=1e-5, rtol=0)
        torch.testing.assert_close(narrow(**batch).logits, gated, atol=1e-5, rtol=0)
    assert (gated - whole).abs().max() > 0.01
    assert residual_of(narrow).width == len(kept)


def test_importance_is_the_derivative_by_a_gate(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context).double()
    batch = next(context.calibration_batches(8))
    gates = ChannelGates(model)
    gates.double()

    def loss() -> Tensor:
        return toy_task.loss(model(**inputs_of(batch)).logits, batch["labels"])

    loss().backward()
    ends = []
    for factor in (1 + 1e-5, 1 - 1e-5):
        gates.gates[0].data[7] = factor
        with torch.no_grad():
            ends.append(float(loss()))
    slope = abs(ends[0] - ends[1]) / 2e-5
    assert float(gates.importances()[0][7]) == pytest.approx(slope, rel=1e-3, abs=1e-8)


def test_magnitude_by_hand(tiny_model: Callable[..., nn.Module]) -> None:
    """Every reader has ones in one column: 3 x 32 rows of attention and 64 neurons a layer, 32 rows of the pooler."""
    model = tiny_model("bert")
    for name in residual_of(model).readers:
        model.get_submodule(name).weight.data[:, 5] = 1.0
    assert float(magnitude(model)[5]) == pytest.approx((2 * (3 * 32 + 64) + 32) ** 0.5)


@pytest.mark.parametrize("by", MEASURES)
def test_each_measure_cuts_the_width(by: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    model = Prune(keep_hidden=0.5, by=by, multiple_of=8).apply(fresh(context), context)
    assert residual_of(model).width == 16
    assert [(layer.heads, layer.neurons) for layer in anatomy_of(model).layers] == [(4, 64), (4, 64)]


def test_idle_channels_go_first(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Channels that every norm puts out as 0 have no activation."""
    context = make_context(saved_base(family), toy_task, tmp_path)
    model = fresh(context)
    idle = list(range(4, 20))
    for name in residual_of(model).norms:
        norm = model.get_submodule(name)
        norm.weight.data[idle], norm.bias.data[idle] = 0, 0
    kept = anatomy_of(model).layers[1].part("up").weight.data[:, [*range(4), *range(20, 32)]].clone()
    Prune(keep_hidden=0.5, by="activation", multiple_of=8, examples=16).apply(model, context)
    assert torch.equal(anatomy_of(model).layers[1].part("up").weight, kept)


def test_width_goes_little_by_little(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    prune = Prune(keep_hidden=0.5, keep_heads=0.5, keep_neurons=0.5, multiple_of=8, even=True)
    model = short_train([prune], context).run(fresh(context), context)
    assert residual_of(model).width == 16
    assert [(layer.heads, layer.neurons) for layer in anatomy_of(model).layers] == [(2, 32), (2, 32)]
