"""ALBERT as a base: one layer that runs again and again is cut, packed and exported once; the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.artifacts import FORMATS, examples_of, write_artifact
from niwaki.calibrate import cross_products, input_products, inputs_of
from niwaki.checkpoint import load, save
from niwaki.errors import NiwakiError
from niwaki.export.prepare import LeanClassifier, prepare
from niwaki.measure.counting import count_macs_per_token, count_parameters, module_table
from niwaki.removal import parts_of
from niwaki.surgery import keep_layers, narrow_heads
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.cluster import Cluster
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop import Drop
from niwaki.techniques.factor import Factor
from niwaki.techniques.prune import Prune
from niwaki.techniques.quantize import Quantize
from niwaki.techniques.replace import Replace
from niwaki.techniques.share import Share
from niwaki.techniques.trim import Trim
from niwaki.testing import fresh, logits, make_context, short_train

USES = 3
#: Weights of the matrices of the layer: 4 of 32 x 32 and 2 of 32 x 64.
MATRICES = 4 * 32 * 32 + 2 * 32 * 64


@pytest.fixture
def context(saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("albert", layers=USES), toy_task, tmp_path)


def test_every_role_is_found_once(context: Context) -> None:
    anatomy = anatomy_of(context.base)
    (layer,) = anatomy.layers
    assert (anatomy.num_layers, anatomy.uses) == (1, USES)
    assert (layer.heads, layer.head_size, layer.neurons) == (4, 8, 64)
    assert [tuple(layer.part(role).weight.shape) for role in ("query", "output", "up", "down")] == [
        (32, 32), (32, 32), (64, 32), (32, 64),
    ]  # fmt: skip
    assert all(isinstance(layer.part(role), nn.LayerNorm) for role in ("attention_norm", "output_norm"))
    assert isinstance(anatomy.pooler, nn.Linear) and isinstance(anatomy.head, nn.Linear)
    assert len(list(anatomy.linear_names())) == 6
    batch = {name: torch.ones(1, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    rows = {row["module"]: row for row in module_table(context.base, batch)}
    attention = rows["layer 0 attention"]["macs_per_token"] + rows["layer 0 feed-forward"]["macs_per_token"]
    assert attention == USES * (MATRICES + 2 * 8 * 32)
    assert rows["layer 0 attention"]["parameters"] == 4 * 32 * 33 + 2 * 32


def test_products_of_inputs_are_those_of_all_uses(context: Context) -> None:
    model, (layer,) = fresh(context), anatomy_of(context.base).layers
    name = layer.name_of("up")
    read: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    batch = next(iter(context.calibration_batches(8)))
    with torch.inference_mode():
        model.eval()(**inputs_of(batch))
    handle.remove()
    assert len(read) == USES
    real_PI = torch.cat([states[batch["attention_mask"].bool()] for states in read])
    wanted = (real_PI.T @ real_PI).double()
    torch.testing.assert_close(input_products(model, [name], [batch])[name], wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cross_products(model, model, [name], [batch])[name], wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("step", "exports"),
    [
        (Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8, examples=32), ("onnx",)),
        (Prune(keep_hidden=0.5, multiple_of=8, examples=32), ()),
        (Prune(keep_weights=0.5, by="wanda", examples=32), ()),
        (Factor(keep=0.5, embedding=4, examples=32), ("onnx",)),
        (Cluster(bits=4), ()),
        (Quantize(activations="static", examples=32), ("onnx", "openvino")),
        (Quantize(preset="int4-gptq", group=16, examples=32), ()),
        (Trim(), ()),
    ],
    ids=repr,
)
def test_what_is_cut_or_packed_is_so_in_every_use(
    step: Any, exports: tuple[str, ...], context: Context, tmp_path: Path
) -> None:
    model = step.apply(fresh(context), context)
    reading = context.as_read_by(model)
    again = load(save(model, tmp_path / "small", reading.tokenizer))
    assert torch.equal(logits(again, context), logits(model, context))
    for to in exports:
        write_artifact(again, to, tmp_path / FORMATS[to][0], examples_of(again, reading.data.evaluation, 16))


def test_training_teaches_all_uses_and_prunes_them(context: Context, tmp_path: Path) -> None:
    together = (Distill(), Prune(keep_heads=0.5, keep_neurons=0.5, multiple_of=8))
    model = short_train(together, context).run(fresh(context), context)
    (layer,) = anatomy_of(model).layers
    assert (layer.heads, layer.neurons) == (2, 32)
    batch = {name: torch.ones(1, 8, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    spared = count_macs_per_token(context.base, batch) - count_macs_per_token(model, batch)
    assert spared == USES * (MATRICES // 2 + 8 * 32)
    assert torch.equal(logits(load(save(model, tmp_path / "small")), context), logits(model, context))
    learnt = Prune(by="hard-concrete", keep={"parameters": 0.4}, multiple_of=8)
    cut = short_train((learnt,), context).run(fresh(context), context)
    assert count_parameters(cut) < count_parameters(context.base)


def test_the_rewritten_model_is_the_same_function(context: Context) -> None:
    """The layer runs as often as it did, at last for the first token alone, and stands in the rewriting once."""
    prepared = prepare(context.base, token_types=False)
    assert isinstance(prepared, LeanClassifier)
    widths: list[int] = []
    for up in {layer.up for layer in prepared.layers}:  # type: ignore[union-attr]
        up.register_forward_hook(lambda module, inputs, output: widths.append(inputs[0].shape[1]))
    batch = next(iter(context.calibration_batches(8)))
    mask = batch["attention_mask"]
    with torch.no_grad():
        found = prepared(batch["input_ids"], mask)
        wanted = context.base(**inputs_of(batch)).logits
    assert torch.allclose(found, wanted, atol=1e-5)
    assert widths[:USES] == [mask.shape[1]] * (USES - 1) + [1]
    assert count_parameters(prepared) <= count_parameters(context.base)


def test_a_file_holds_the_layer_once(context: Context, tmp_path: Path) -> None:
    examples = examples_of(context.base, context.data.evaluation, 8)
    held = 4 * count_parameters(context.base)
    for to in ("onnx", "openvino"):
        write_artifact(fresh(context), to, tmp_path / FORMATS[to][0], examples)
    # the graph takes less than a second copy of the layer would
    assert (tmp_path / FORMATS["onnx"][0]).stat().st_size < held + 4 * MATRICES
    assert (tmp_path / FORMATS["openvino"][0]).with_suffix(".bin").stat().st_size < held + MATRICES


@pytest.mark.parametrize(
    "technique",
    [
        Drop(keep_layers=1),
        Share(groups="all"),
        Replace(keep_neurons=0.5),
        Prune(keep_neurons=0.5, by="mask-search"),
        Prune(keep_neurons=0.5, by="second-order"),
    ],
    ids=repr,
)
def test_what_takes_layers_apart_is_refused(technique: Any, context: Context) -> None:
    with pytest.raises(NiwakiError, match="an albert runs one layer 3 times"):
        technique.check(context.base)


def test_edits_and_measures_of_single_layers_are_refused(
    context: Context, tiny_model: Callable[..., nn.Module]
) -> None:
    refused: list[Callable[[], object]] = [
        lambda: keep_layers(fresh(context), layers=[0]),
        lambda: parts_of(context.base),
        lambda: Distill(hidden=1.0).accompany(fresh(context), context),
        lambda: Distill(relations=1.0).accompany(fresh(context), context),
    ]
    for refuse in refused:
        with pytest.raises(NiwakiError, match="an albert runs one layer 3 times"):
            refuse()
    with pytest.raises(NiwakiError, match="one or more"):  # its attention adds and normalises, and cannot go
        narrow_heads(fresh(context), layer=0, heads=[])
    model: Any = tiny_model("albert")
    model.config.num_hidden_groups = 2
    with pytest.raises(NiwakiError, match="an albert with 2 groups of layers"):
        anatomy_of(model)
