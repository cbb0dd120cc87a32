"""Parts are removed for a moment: as surgery would, and without a trace."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import predict
from niwaki.checkpoint import weights_hash
from niwaki.removal import Part, leave_one_out, parts_of, predict_without
from niwaki.surgery import journal_of, keep_layers, narrow_heads
from niwaki.task import Encoded, Task

Tiny = Callable[..., nn.Module]


@pytest.fixture
def rows(family: str, toy_task: Task, tiny_tokenizer: Callable[..., Any]) -> Encoded:
    """Return 48 rows for the family of the test."""
    return toy_task.encode(tiny_tokenizer(family), 64).validation


def test_parts_from_input_to_output(tiny_model: Tiny) -> None:
    layer = [Part("layer", 0), Part("attention", 0), Part("feed-forward", 0)]
    assert parts_of(tiny_model("bert", layers=1), heads=False) == layer
    assert parts_of(tiny_model("bert", layers=1, heads=2)) == [*layer, Part("head", 0, 0), Part("head", 0, 1)]
    model = narrow_heads(tiny_model("bert", layers=2), layer=1, heads=[0, 2, 3])
    assert [part.head for part in parts_of(model) if part.kind == "head"] == [0, 1, 2, 3, 0, 1, 2]


def cut(part: Part, model: nn.Module) -> nn.Module:
    """Remove a part for good, by other means than those under test."""
    layers = anatomy_of(model).layers
    layer = layers[part.layer]
    if part.kind == "layer":
        return keep_layers(model, layers=[other.index for other in layers if other.index != part.layer])
    if part.kind == "head":
        return narrow_heads(model, layer=part.layer, heads=[head for head in range(layer.heads) if head != part.head])
    nn.init.zeros_(layer.part("output" if part.kind == "attention" else "down").weight)
    return model


def test_a_part_is_removed_as_surgery_would(family: str, tiny_model: Tiny, rows: Encoded) -> None:
    """Each part, in the first, a middle and the last layer; and the parts differ from the whole and from each other."""
    model = tiny_model(family, layers=3, heads=2)
    before, modules = weights_hash(model), list(anatomy_of(model).layer_list)
    whole, without = predict_without(model, rows, parts_of(model), batch_size=10)
    np.testing.assert_allclose(whole, predict(model, rows, batch_size=10), atol=1e-6)
    for part, logits in without.items():
        gone = predict(cut(part, tiny_model(family, layers=3, heads=2)), rows, batch_size=10)
        np.testing.assert_allclose(logits, gone, atol=1e-5, err_msg=str(part))
        assert np.abs(logits - whole).max() > 1e-3, part
    # nothing is left of it
    assert weights_hash(model) == before and list(anatomy_of(model).layer_list) == modules
    assert len(journal_of(model)) == 1 and not model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_failure_leaves_the_model_as_it_was(tiny_model: Tiny, toy_task: Task, tiny_tokenizer: Any) -> None:
    model = tiny_model("bert", layers=2).train()
    modules = list(anatomy_of(model).layer_list)
    rows = toy_task.encode(tiny_tokenizer("bert"), 64).validation
    passes: list[str] = []

    def interrupt(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        passes.append("one")
        if len(passes) == 2:  # the head is gone by now
            raise KeyboardInterrupt

    head = anatomy_of(model).head
    assert head is not None
    handle = head.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_without(model, rows, [Part("head", 1, 0)])
    handle.remove()
    assert list(anatomy_of(model).layer_list) == modules and model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_shares_of_the_work_add_up(tiny_model: Tiny, toy_task: Task, tiny_tokenizer: Any) -> None:
    """Two batches; a part of layer l runs the layers from l on: of 2 layers, 2 for the whole, 2 and 1 for the parts."""
    rows = toy_task.encode(tiny_tokenizer("bert"), 64).validation
    shares: list[float] = []
    parts = [Part("layer", 0), Part("attention", 1)]
    predict_without(tiny_model("bert", layers=2), rows, parts, batch_size=24, advance=shares.append)
    assert len(shares) == 6 and sum(shares) == pytest.approx(1.0)
    assert shares[1] == pytest.approx(shares[0]) and shares[2] == pytest.approx(shares[0] / 2)


def test_leave_one_out_goes_round_by_round(tiny_model: Tiny, toy_task: Task, tiny_tokenizer: Any) -> None:
    """The judge wants the first logit of the first row to be great: the rounds are checked against keep_layers."""
    rows = toy_task.encode(tiny_tokenizer("bert"), 64).validation.select([0, 1])

    def worth(layers: list[int]) -> float:
        return float(predict(keep_layers(tiny_model("bert", layers=4), layers=layers), rows)[0, 0])

    told: list[tuple[list[int], list[tuple[float, ...]]]] = []
    model = tiny_model("bert", layers=4)
    kept = leave_one_out(model, rows, 2, lambda logits: (float(logits[0, 0]),), lambda *round: told.append(round))
    rest = max(([i for i in range(4) if i != gone] for gone in range(4)), key=worth)
    assert kept == max(([i for i in rest if i != gone] for gone in rest), key=worth)
    assert [layers for layers, _ in told] == [[0, 1, 2, 3], rest]
    for layers, values in told:
        for layer, (value,) in zip(layers, values, strict=True):
            assert value == pytest.approx(worth([other for other in layers if other != layer]), abs=1e-5)
    assert anatomy_of(model).num_layers == 4
    assert torch.is_inference_mode_enabled() is False


def test_later_numbers_break_ties(tiny_model: Tiny, toy_task: Task, tiny_tokenizer: Any) -> None:
    rows = toy_task.encode(tiny_tokenizer("bert"), 64).validation.select([0])
    turns = iter([(1.0, -3.0), (1.0, -2.0), (0.0, -1.0)])
    assert leave_one_out(tiny_model("bert", layers=3), rows, 2, lambda logits: next(turns)) == [0, 2]
