"""Equal layers: which combinations plain Transformers reads, and what is said of the others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import save
from niwaki.errors import NiwakiError
from niwaki.layers.channels import PooledGates
from niwaki.surgery import is_plain, narrow_neurons, narrow_pooler
from niwaki.task import Task
from niwaki.techniques.prune import Prune
from niwaki.testing import fresh, logits, make_context, short_train

Bases = Callable[..., Path]
Models = Callable[..., nn.Module]
#: base, what is kept, and why the result is not plain; nothing where it is
COMBINATIONS = [
    ("bert", {"keep_neurons": 0.5}, ""),
    ("bert", {"keep_heads": 0.5}, "2 heads of 8 make 16, and the hidden width is 32"),
    ("bert", {"keep_hidden": 0.5}, "4 heads of 8 make 32, and the hidden width is 16"),
    ("bert", {"keep_heads": 0.5, "keep_hidden": 0.5}, ""),
    ("roberta", {"keep_heads": 0.5, "keep_hidden": 0.5, "keep_neurons": 0.25}, ""),
    ("distilbert", {"keep_heads": 0.75, "keep_hidden": 0.75}, ""),
    ("llama", {"keep_heads": 0.5, "keep_neurons": 0.5}, ""),
    ("llama", {"keep_hidden": 0.5}, ""),
    ("qwen2", {"keep_hidden": 0.75, "keep_heads": 0.5, "keep_neurons": 0.5}, ""),
]


@pytest.mark.parametrize(("base", "keep", "why"), COMBINATIONS, ids=str)
def test_equal_layers_are_plain_where_the_config_can_say_so(
    base: str, keep: dict[str, float], why: str, saved_base: Bases, toy_task: Task, toy_data: Bases, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    decoder = base in ("llama", "qwen2")
    task = Task("language-modelling", data=str(toy_data())) if decoder else toy_task
    events: list[dict[str, Any]] = []
    context = replace(make_context(saved_base(base), task, tmp_path), log=events.append)
    prune = Prune(by="magnitude", even=True, multiple_of=8, **keep)
    prune.check(context.base)
    model = prune.apply(fresh(context), context)
    save(model, tmp_path / "run")
    kind = AutoModelForCausalLM if decoder else AutoModelForSequenceClassification
    told = events[-1]["note"]
    assert is_plain(model) == (not why) == ("is a plain Transformers model" in told)
    if why:
        assert why in told and "keep_heads and keep_hidden of one share would be plain" in told
    else:
        assert torch.equal(logits(kind.from_pretrained(tmp_path / "run"), context), logits(model, context))
        model.config.num_attention_heads *= 2  # of half the size: matrices of the same shapes
        assert not is_plain(model)


def test_in_training_the_pooling_linear_narrows_with_the_channels(
    saved_base: Bases, toy_task: Task, tmp_path: Path
) -> None:
    context = make_context(saved_base("bert"), toy_task, tmp_path)
    prune = Prune(keep_heads=0.5, keep_hidden=0.5, even=True, multiple_of=8)
    model = short_train([prune], context).run(fresh(context), context)
    assert is_plain(model) and anatomy_of(model).pooler.weight.shape == (16, 16)  # type: ignore[union-attr]


def test_closed_outputs_of_the_pooling_linear_are_as_good_as_gone(
    family: str, tiny_model: Models, batch: dict[str, Tensor]
) -> None:
    model = tiny_model(family)
    kept = [0, 3, 5, 30]
    narrow = narrow_pooler(copy.deepcopy(model), outputs=kept)
    gates = PooledGates(model)
    with torch.inference_mode():
        gates.close([kept])
        torch.testing.assert_close(narrow(**batch).logits, model(**batch).logits, atol=1e-5, rtol=0)
        gates.take_down()
        assert (narrow(**batch).logits - model(**batch).logits).abs().max() > 1e-3


def test_layers_that_cannot_become_equal_are_refused(tiny_model: Models) -> None:
    """Of 64 and 16 neurons, half are 40: equal layers would have 20, and one has 16."""
    model = narrow_neurons(tiny_model("bert"), layer=1, neurons=list(range(16)))
    for by in ("first-order", "mask-search"):
        with pytest.raises(NiwakiError, match=r"have 64, 16 neurons(?s:.*)keep_neurons: 0\.4"):
            Prune(keep_neurons=0.5, even=True, multiple_of=1, by=by).check(model)
        Prune(keep_neurons=0.4, even=True, multiple_of=1, by=by).check(model)


@pytest.mark.parametrize("even", [True, False])
def test_shares_that_rounding_makes_whole_are_refused(even: bool, tiny_model: Models) -> None:
    model = tiny_model("bert")
    with pytest.raises(NiwakiError, match="nothing to remove"):
        Prune(keep_neurons=0.9, even=even, multiple_of=64).check(model)
    Prune(keep_neurons=0.9, even=even, multiple_of=8).check(model)
