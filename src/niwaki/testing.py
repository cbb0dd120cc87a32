"""The contract of a technique as a public test: `check_technique` runs on ours and on anyone's.

```python
from niwaki.testing import check_technique

def test_mine(tiny_base, toy_task, tmp_path):
    check_technique(Mine(keep=0.5), neutral=Mine(keep=1.0), base=tiny_base, task=toy_task, folder=tmp_path)
```
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of, label_names, longest_input
from niwaki.artifacts import examples_of, place_of, write_artifact
from niwaki.checkpoint import WEIGHTS, load, load_tokenizer, save, weights_hash
from niwaki.errors import NiwakiError
from niwaki.recipe import Recipe
from niwaki.surgery import journal_of
from niwaki.task import Task
from niwaki.technique import Context, Technique
from niwaki.train import Train

#: Steps of the short trainings of the contract.
STEPS = 2


def check_technique(
    technique: Technique,
    *,
    base: str | Path,
    task: Task,
    folder: Path,
    neutral: Technique | None = None,
    smaller: bool = True,
    beside: Sequence[Technique] = (),
    before: Sequence[Technique] = (),
    exports: Sequence[str] = ("onnx",),
) -> None:
    """Check everything a user relies on of one technique; raise AssertionError with what is broken.

    Args:
        technique: the technique with parameters that change a tiny model.
        base: folder of a tiny fine-tuned model.
        task: a toy task.
        folder: an empty folder to work in.
        neutral: the same technique with parameters that keep everything, where there are such.
        smaller: whether the technique promises fewer bytes on disk.
        beside: other techniques it may stand with inside one `train`.
        before: techniques that must have trained before this one can stand as a step of its own.
        exports: formats the result must export to, in agreement with the model.
    """
    context = make_context(base, task, folder)
    check_parameters(technique)
    check_docstring(type(technique))
    if neutral is not None:
        check_neutral(neutral, context)
    if technique.can_apply:
        steps = (*((short_train(before, context),) if before else ()), technique)
        check_result(technique, Steps(steps), context, folder / "apply", smaller, exports)
    if technique.can_accompany:
        together = (technique,)
        check_result(technique, short_train(together, context), context, folder / "train", smaller, exports)
    for other in beside:
        check_together(technique, other, context)


def make_context(base: str | Path, task: Task, folder: Path) -> Context:
    """Return a context on a base folder, with everything it may write below `folder`."""
    model = load(base).requires_grad_(False)
    tokenizer = load_tokenizer(base)
    data = task.encode(tokenizer, longest_input(model, tokenizer, task.max_length), label_names(model))
    workspace = folder / "workspace"
    workspace.mkdir(parents=True, exist_ok=True)
    return Context(task, data, tokenizer, model, seed=0, workspace=workspace, cache=folder / "cache")


def fresh(context: Context) -> nn.Module:
    """Return the context's base, to be changed."""
    return copy.deepcopy(context.base).requires_grad_(True)


def short_train(together: Sequence[Technique], context: Context) -> Train:
    """Return a training of `STEPS` steps."""
    return Train(together=tuple(together), epochs=STEPS * 8 / len(context.train), batch_size=8, learning_rate=1e-3)


class Steps:
    """Run several steps, one after the other, as one."""

    def __init__(self, steps: Sequence[Any]) -> None:
        self.steps = steps

    def run(self, model: nn.Module, context: Context) -> nn.Module:
        """Run them all."""
        for step in self.steps:
            model = step.run(model, context)
        return model


def check_parameters(technique: Technique) -> None:
    """Parameters survive Python -> YAML -> Python, cannot be changed, and unknown ones are refused."""
    step = technique if technique.can_apply else Train(together=(technique,))
    recipe = Recipe([step])
    assert Recipe.parse(recipe.dump()).steps == recipe.steps, f"{technique.name}: YAML changed the parameters"
    _expect(NiwakiError, lambda: type(technique)(**{**technique.model_dump(), "no_such_parameter": 1}))
    name = next(iter(type(technique).model_fields))
    _expect(ValidationError, lambda: setattr(technique, name, getattr(technique, name)))
    text = recipe.dump().replace(f"{name}:", "no_such_parameter:", 1)
    message = str(_expect(NiwakiError, lambda: Recipe.parse(text)))
    assert "no_such_parameter" in message and name in message, f"the error does not help: {message}"


def check_docstring(technique: type[Technique]) -> None:
    """The docstring is the paper in small."""
    text = inspect.getdoc(technique) or ""
    for heading in ("Args:", "Composes with:", "References:", "Example:"):
        assert heading in text, f"{technique.name}: the docstring has no {heading!r}"
    for name in technique.model_fields:
        assert name in text, f"{technique.name}: the docstring does not explain {name}"


def check_neutral(neutral: Technique, context: Context) -> None:
    """Keeping everything changes outputs by less than 1e-5."""
    before = logits(context.base, context)
    steps: list[Any] = [neutral] if neutral.can_apply else []
    for step in steps:
        difference = (logits(step.run(fresh(context), context), context) - before).abs().max()
        assert difference < 1e-5, f"{neutral}: the neutral setting changes logits by {difference}"
    if neutral.can_accompany:
        still = Train(together=(neutral,), epochs=8 / len(context.train), batch_size=8, learning_rate=1e-12)
        difference = (logits(still.run(fresh(context), context), context) - before).abs().max()
        assert difference < 1e-5, f"{neutral} in train: the neutral setting changes logits by {difference}"


def check_result(
    technique: Technique, step: Any, context: Context, folder: Path, smaller: bool, exports: Sequence[str]
) -> None:
    """One step: the caller's base is untouched, the same seed gives the same weights, it saves, loads and exports."""
    untouched = weights_hash(context.base)
    model = step.run(fresh(context), context)
    again = step.run(fresh(context), context)
    assert weights_hash(model) == weights_hash(again), f"{technique.name}: the same seed gave other weights"
    assert weights_hash(context.base) == untouched, f"{technique.name}: the caller's model was changed"
    check_no_scaffolding(model, technique)
    reading = context.as_read_by(model)
    save(model, folder, reading.tokenizer)
    assert load_tokenizer(folder).get_vocab() == reading.tokenizer.get_vocab(), f"{technique.name}: another tokenizer"
    loaded = load(folder)
    assert journal_of(loaded)[1:] == journal_of(model)[1:], f"{technique.name}: the journal did not survive"
    assert torch.equal(logits(loaded, context), logits(model, context)), f"{technique.name}: reloads with other outputs"
    if smaller:
        base_folder = save(fresh(context), folder / "base")
        now, before = ((place / WEIGHTS).stat().st_size for place in (folder, base_folder))
        assert now < before, f"{technique.name}: {now} bytes on disk, the base has {before}"
    for to in exports:
        write_artifact(loaded, to, place_of(loaded, to, folder), examples_of(loaded, reading.data.evaluation, 16))


def check_no_scaffolding(model: nn.Module, technique: Technique) -> None:
    """Nothing of a training is left: no hooks, no companions, no foreign modules beside what surgery knows."""
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks) + len(module._forward_pre_hooks)
        assert not hooks, f"{technique.name}: {hooks} hooks are left on {name or 'the model'}"
        home = type(module).__module__
        known = home.startswith(("torch.", "transformers.", "niwaki.layers."))
        assert known, f"{technique.name}: {name} is a {home}.{type(module).__name__}"
    assert anatomy_of(model).num_layers >= 1


def check_together(technique: Technique, other: Technique, context: Context) -> None:
    """Two techniques train two steps beside each other, finish, reload, equal."""
    pair = sorted((technique, other), key=lambda one: -one.cuts if one.cuts else 1)
    model = short_train(pair, context).run(fresh(context), context)
    check_no_scaffolding(model, technique)
    folder = context.workspace.parent / f"{technique.name}-{other.name}"
    save(model, folder)
    assert torch.equal(logits(load(folder), context), logits(model, context)), f"{pair}: reloads with other outputs"


def logits(model: nn.Module, context: Context) -> Tensor:
    """Return the logits of the first rows of the evaluation split, in one padded batch."""
    rows = context.as_read_by(model).data.evaluation
    batch = rows.batch(range(min(8, len(rows))))
    batch.pop("labels")
    with torch.inference_mode():
        result: Tensor = model.eval()(**batch).logits
    return result.clone()


def _expect(kind: type[Exception], call: Any) -> Exception:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")
