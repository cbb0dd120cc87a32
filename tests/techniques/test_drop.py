"""`drop` keeps what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import block_influence
from niwaki.errors import NiwakiError
from niwaki.surgery import journal_of
from niwaki.task import Task
from niwaki.techniques.drop import Drop
from niwaki.testing import fresh, make_context


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


def test_too_many_layers(saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    with pytest.raises(NiwakiError, match="a model that has 2"):
        Drop(keep_layers=3).check(context.base)
    for wrong in (0, (), (1, 0), (1, 1), (-1,)):
        with pytest.raises(NiwakiError, match="ascending"):
            Drop(keep_layers=wrong)
