"""`drop` keeps what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import angular_distances, block_influence, predict
from niwaki.errors import NiwakiError
from niwaki.removal import Given, standing
from niwaki.surgery import journal_of
from niwaki.task import Encoded, Task
from niwaki.techniques.drop import Drop
from niwaki.testing import fresh, logits, make_context


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        (Drop(keep_layers=3, by="uniform"), [1, 3, 5]),
        (Drop(keep_layers=2, by="uniform"), [2, 5]),
        (Drop(keep_layers=4, by="uniform"), [1, 2, 3, 5]),
        (Drop(keep_layers=2, by="first"), [0, 1]),
        (Drop(keep_layers=2, by="last"), [4, 5]),
        (Drop(keep_layers=(0, 4)), [0, 4]),
    ],
)
def test_positions(
    drop: Drop, kept: list[int], saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path
) -> None:
    context = make_context(saved_base("bert", layers=6), toy_task, tmp_path)
    model = drop.apply(fresh(context), context)
    assert journal_of(model)[-1] == {"edit": "keep_layers", "layers": kept}
    assert anatomy_of(model).num_layers == len(kept) == model.config.num_hidden_layers


def test_influence_finds_the_idle_layer(
    family: str, saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path
) -> None:
    """A layer whose outgoing weights are 0 only normalises again, so it goes first."""
    context = make_context(saved_base(family, layers=3), toy_task, tmp_path)
    model = fresh(context)
    layer = anatomy_of(model).layers[1]
    for role in ("output", "down"):
        for parameter in layer.part(role).parameters():
            torch.nn.init.zeros_(parameter)
    for role in ("attention_norm", "output_norm"):
        torch.nn.init.ones_(layer.part(role).weight)
        torch.nn.init.zeros_(layer.part(role).bias)
    influence = block_influence(model, context.calibration_batches(32))
    assert min(influence) == influence[1] < 0.05 < influence[0]
    assert Drop(keep_layers=2).choose(model, context) == [0, 2]


def make_identity(model: nn.Module, index: int) -> None:
    """Let a layer give back what it gets: it adds nothing, and normalises what is normal already."""
    below, layer = anatomy_of(model).layers[index - 1 : index + 1]
    for role in ("output", "down"):
        for parameter in layer.part(role).parameters():
            torch.nn.init.zeros_(parameter)
    for norm in (below.part("output_norm"), layer.part("attention_norm"), layer.part("output_norm")):
        torch.nn.init.ones_(norm.weight)
        torch.nn.init.zeros_(norm.bias)


@pytest.mark.parametrize("by", ["influence", "angular", "leave-one-out"])
def test_an_identity_goes_first(
    by: Any, family: str, saved_base: Callable[..., Path], toy_data: Callable[..., Path], tmp_path: Path
) -> None:
    task = Task("text-classification", data=str(toy_data(test=16)))  # selection rows are then the validation rows
    context = make_context(saved_base(family, layers=4), task, tmp_path)
    model = fresh(context)
    make_identity(model, 2)
    rows = context.data.validation
    with torch.no_grad():  # both classes are said, and the labels are what the model says: whoever changes it loses
        anatomy_of(model).head.bias.sub_(torch.from_numpy(np.median(predict(model, rows), axis=0)))
    rows.labels[:] = predict(model, rows).argmax(-1)
    before = logits(model, context)
    smaller = Drop(keep_layers=3, by=by, examples=48).apply(model, context)
    assert journal_of(smaller)[-1] == {"edit": "keep_layers", "layers": [0, 1, 3]}
    assert (logits(smaller, context) - before).abs().max() < 1e-4


def test_angular_distances_of_states_made_by_hand(tiny_model: Callable[..., nn.Module]) -> None:
    """Layers put in by hand turn the plane of the first two axes by 90, 0 and 45 degrees."""
    model = tiny_model("bert", layers=3)
    start = torch.zeros(2, 3, 32)
    start[..., 0] = 2.0
    start[1, 2] = torch.randn(32)  # padding, which does not count
    with standing(model, [Given(start), Turn(90), Turn(0), Turn(45)]):
        ids = torch.tensor([[2, 70, 3], [2, 3, 0]])
        batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
        for length, degrees in ((1, [90, 0, 45]), (2, [90, 45]), (3, [135])):
            # the first of the four modules stands for the embeddings: runs that begin there are not looked at
            found = angular_distances(model, [batch], length)[1:]
            assert found == pytest.approx([angle / 180 for angle in degrees], abs=1e-6)


class Turn(nn.Module):
    """Turn the first two axes of a hidden state."""

    def __init__(self, degrees: float) -> None:
        super().__init__()
        angle = torch.tensor(degrees * torch.pi / 180)
        self.matrix = torch.eye(32)
        self.matrix[:2, :2] = torch.stack(
            [torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])]
        )

    def forward(self, state: torch.Tensor, *others: Any, **named: Any) -> torch.Tensor:
        return state @ self.matrix.T


@pytest.mark.parametrize(
    ("distances", "kept"),
    [([0.3, 0.1, 0.2], [0, 3]), ([0.1, 0.3, 0.2], [2, 3]), ([0.3, 0.2, 0.1], [0, 1])],
)
def test_angular_removes_one_run(
    distances: list[float],
    kept: list[int],
    saved_base: Callable[..., Path],
    toy_task: Task,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 4 layers 2 go: a run of 2 begins at layer 0, 1 or 2."""
    monkeypatch.setattr("niwaki.techniques.drop.angular_distances", lambda model, batches, length: distances)
    context = make_context(saved_base("bert", layers=4), toy_task, tmp_path)
    assert Drop(keep_layers=2, by="angular").choose(context.base, context) == kept


def test_leave_one_out_looks_at_selection_rows_alone(
    saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(saved_base("bert", layers=3), toy_task, tmp_path)
    selection = context.data.selection(context.seed)[1]
    seen: list[Encoded] = []

    def watch(model: nn.Module, rows: Encoded, keep: int, judge: Any, told: Any) -> list[int]:
        seen.append(rows)
        right = np.eye(2)[rows.labels]
        assert judge(right * 20) == pytest.approx((100.0, 0.0), abs=1e-6)
        assert judge(right * 0)[1] == pytest.approx(-np.log(2))  # the same logit for both classes
        return [0]

    monkeypatch.setattr("niwaki.techniques.drop.leave_one_out", watch)
    drop = Drop(keep_layers=1, by="leave-one-out", examples=3)
    assert drop.choose(context.base, context) == [0]
    (rows,) = seen
    texts = {tuple(selection.tokens_of(row)) for row in range(len(selection))}
    assert len(rows) == 3 and {tuple(rows.tokens_of(row)) for row in range(3)} <= texts


def test_too_many_layers(saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    with pytest.raises(NiwakiError, match="a model that has 2"):
        Drop(keep_layers=3).check(context.base)
    for wrong in (0, (), (1, 0), (1, 1), (-1,)):
        with pytest.raises(NiwakiError, match="ascending"):
            Drop(keep_layers=wrong)
