"""`distill` learns from the teacher, and asks it once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of, predict
from niwaki.checkpoint import WEIGHTS
from niwaki.errors import NiwakiError
from niwaki.losses import scaled_squares
from niwaki.task import Task
from niwaki.teacher import LOGITS, hidden_name, relation_name, teacher_outputs
from niwaki.techniques.distill import Distill, nearest_layers
from niwaki.techniques.drop import Drop
from niwaki.testing import fresh, make_context, short_train
from niwaki.train import Train

Bases = Callable[..., Path]


def test_kept_outputs_are_the_teacher_s(family: str, saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base(family), toy_task, tmp_path)
    names = [LOGITS, hidden_name(1), hidden_name(2), relation_name("query", 2)]
    outputs = teacher_outputs(context.base, context.train, names, tmp_path / "cache")
    rows = torch.tensor([5, 0, 17])
    batch = context.train.batch(rows.numpy())
    mask = batch["attention_mask"].bool()
    with torch.inference_mode():
        expected = context.base(**inputs_of(batch), output_hidden_states=True)
        query = anatomy_of(context.base).layers[1].part("query")(expected.hidden_states[1])
    torch.testing.assert_close(outputs.logits(rows), expected.logits, atol=1e-4, rtol=1e-4)
    for layer in (1, 2):
        states = expected.hidden_states[layer][mask]
        torch.testing.assert_close(outputs.states(hidden_name(layer), rows), states, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(outputs.states(relation_name("query", 2), rows), query[mask], atol=2e-2, rtol=1e-2)


def test_the_teacher_is_asked_once(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    first, second = fresh(context), fresh(context)  # copies made now have no counter of their own
    calls: list[int] = []
    handle = context.base.register_forward_hook(lambda *arguments: calls.append(1))
    train = Train(together=(Distill(hidden=1),), epochs=2, batch_size=16)
    train.run(first, context)
    once = len(calls)
    train.run(second, context)
    handle.remove()
    assert once == len(calls) == -(-len(context.train) // 128)


def test_other_weights_are_another_teacher(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    first = teacher_outputs(context.base, context.train, [LOGITS], tmp_path / "cache")
    other = fresh(context)
    anatomy_of(other).head.bias.data += 1
    second = teacher_outputs(other, context.train, [LOGITS], tmp_path / "cache")
    np.testing.assert_allclose(second.arrays[LOGITS], first.arrays[LOGITS] + 1, atol=1e-5)


def test_a_student_comes_close_to_its_teacher(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """Half the layers, distilled: the answers agree more often than before."""
    context = make_context(saved_base("bert", layers=4), toy_task, tmp_path)
    rows = context.data.evaluation
    wanted = predict(context.base, rows)
    student = Drop(keep_layers=2, by="uniform").apply(fresh(context), context)
    before = np.abs(predict(student, rows) - wanted).mean()
    train = Train(together=(Distill(hidden=1.0, relations=1.0),), epochs=12, batch_size=16, learning_rate=2e-3)
    after = np.abs(predict(train.run(student, context), rows) - wanted).mean()
    assert after < 0.6 * before


def test_another_teacher_from_a_folder(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    wide = saved_base("bert", folder=tmp_path / "wide", hidden=64, layers=3, seed=1)
    distill = Distill(teacher=str(wide), hidden=1.0, relations=1.0, relation_heads=4)
    model = short_train([distill], context).run(fresh(context), context)
    names = {name for name, _ in model.named_parameters()}
    assert names == {name for name, _ in context.base.named_parameters()}  # the projections are gone
    with pytest.raises(NiwakiError, match="relation_heads is 3"):
        short_train([Distill(relations=1.0, relation_heads=3)], context).run(fresh(context), context)


def test_unfit_teachers_are_refused(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    stranger = saved_base("roberta", folder=tmp_path / "stranger")
    with pytest.raises(NiwakiError, match="another vocabulary"):
        Distill(teacher=str(stranger)).find_teacher(context.base, context)
    three = saved_base("bert", folder=tmp_path / "three", labels=3)
    with pytest.raises(NiwakiError, match="has labels"):
        Distill(teacher=str(three)).find_teacher(context.base, context)
    assert (three / WEIGHTS).is_file()
    with pytest.raises(NiwakiError, match="above 0"):
        Distill(logits=0)


def test_nearest_layers_by_hand() -> None:
    """The last teacher layer chooses among all; those before it only up to there, so that the order is kept."""
    students = [torch.tensor([[value]]) for value in (0.0, 3.0, 2.0)]
    assert nearest_layers(students, [torch.tensor([[1.9]]), torch.tensor([[2.9]])]) == [2, 2]
    assert nearest_layers(students, [torch.tensor([[2.9]]), torch.tensor([[1.9]])]) == [2, 3]
    assert nearest_layers(students, [torch.tensor([[0.2]]), torch.tensor([[0.1]])]) == [1, 1]


def test_nearest_layers_follow_the_student(saved_base: Bases, toy_task: Task, tmp_path: Path) -> None:
    """A student whose last layer is that of the teacher one before: it is matched with it, at no loss."""
    context = make_context(saved_base("bert", layers=4), toy_task, tmp_path)
    distill = Distill(hidden=1.0, hidden_layers="nearest")
    student = Drop(keep_layers=(0, 1, 2)).apply(fresh(context), context)
    assert distill.layer_pairs(3, 4) == [(1, 1), (2, 2), (2, 3), (3, 4)]
    companion = distill.accompany(student, context)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows = torch.arange(8)
    batch = context.train.batch(rows.numpy()) | {"rows": rows}
    output = student.train()(**inputs_of(batch))
    mask = batch["attention_mask"].bool()
    students = {name: states.clone() for name, states in companion.seen.items()}
    losses = companion.loss(output, batch)
    teachers = [companion.outputs.states(hidden_name(layer), rows) for layer in (1, 2, 3, 4)]
    matched = nearest_layers([students[hidden_name(layer)][mask] for layer in (1, 2, 3)], teachers)
    assert matched[:3] == [1, 2, 3]
    last = scaled_squares(students[hidden_name(matched[3])][mask], teachers[3])
    torch.testing.assert_close(losses["hidden"], last / 4, atol=1e-3, rtol=1e-3)  # the other three are the teacher's
    assert len(companion.projections) == 1
