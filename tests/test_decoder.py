"""Decoders: norms first, gated feed-forward, grouped-query attention, a head tied to the word table."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import block_influence
from niwaki.checkpoint import WEIGHTS, load, save, tensors_of, weights_hash
from niwaki.errors import NiwakiError
from niwaki.layers.gates import Gates
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear
from niwaki.surgery import (
    is_plain,
    keep_layers,
    narrow_heads,
    narrow_neurons,
    quantize_embedding,
    quantize_linear,
)

Models = Callable[..., nn.Module]
DECODERS = ("llama", "mistral", "qwen2")


@pytest.fixture(params=DECODERS)
def family(request: pytest.FixtureRequest) -> str:
    """Run the test once for each family of decoders."""
    return str(request.param)


@pytest.fixture
def ids_BT() -> Tensor:
    """Return token ids of two rows."""
    return torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(0))


def logits(model: nn.Module, ids_BT: Tensor) -> Tensor:
    with torch.inference_mode():
        return model.eval()(ids_BT, attention_mask=torch.ones_like(ids_BT)).logits.clone()


def test_every_role_is_found(family: str, tiny_model: Models) -> None:
    model = tiny_model(family, layers=3)
    anatomy = anatomy_of(model)
    assert anatomy.num_layers == 3 and anatomy.family.pre_norm
    assert anatomy.head is anatomy.language_head is model.lm_head
    assert anatomy.tied_names == ("lm_head", "model.embed_tokens")
    assert list(anatomy.embedding_names()) == ["model.embed_tokens"]
    names = list(anatomy.linear_names())
    assert len(names) == 3 * 7
    assert {*names, "lm_head"} == {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for layer in anatomy.layers:
        assert (layer.heads, layer.key_value_heads, layer.group_size, layer.head_size) == (4, 2, 2, 8)
        assert layer.neurons == 64 and layer.heads_of([1]) == [2, 3]
        assert layer.part("key").weight.shape == (16, 32)
        assert layer.part("attention_norm").weight.shape == layer.part("output_norm").weight.shape == (32,)
    assert model.get_submodule(anatomy.prefix + anatomy.family.final_norm).weight.shape == (32,)


def test_a_head_of_its_own_is_not_tied(tiny_model: Models) -> None:
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(tiny_model("llama").config)
    config.tie_word_embeddings = False
    assert anatomy_of(AutoModelForCausalLM.from_config(config)).tied_names is None


def test_removed_units_were_the_only_change(family: str, tiny_model: Models, ids_BT: Tensor) -> None:
    """A narrowed model equals the whole one with the outgoing weights of the removed units at zero."""
    whole = tiny_model(family)
    narrowed = copy.deepcopy(whole)
    layer = anatomy_of(whole).layers[1]
    layer.part("output").weight.data[:, :16] = 0  # heads 0 and 1, which share a key and value head
    layer.part("down").weight.data[:, [0, 63]] = 0
    narrow_heads(narrowed, layer=1, heads=[2, 3])
    narrow_neurons(narrowed, layer=1, neurons=list(range(1, 63)))
    torch.testing.assert_close(logits(narrowed, ids_BT), logits(whole, ids_BT), atol=1e-5, rtol=0)
    left = anatomy_of(narrowed).layers[1]
    assert (left.heads, left.key_value_heads, left.group_size, left.neurons) == (2, 1, 2, 62)
    assert {role: tuple(left.part(role).weight.shape) for role in ("query", "key", "value", "output", "gate")} == {
        "query": (16, 32), "key": (8, 32), "value": (8, 32), "output": (32, 16), "gate": (62, 32),
    }  # fmt: skip


def test_neutral_edits_change_nothing(family: str, tiny_model: Models, ids_BT: Tensor) -> None:
    whole = tiny_model(family)
    same = copy.deepcopy(whole)
    keep_layers(same, layers=[0, 1])
    narrow_heads(same, layer=0, heads=[0, 1, 2, 3])
    narrow_neurons(same, layer=0, neurons=list(range(64)))
    assert torch.equal(logits(same, ids_BT), logits(whole, ids_BT))
    assert is_plain(same)


@pytest.mark.parametrize("heads", [[0], [1, 2], [0, 1, 3]])
def test_parts_of_a_group_are_refused_and_nothing_changes(heads: list[int], tiny_model: Models) -> None:
    model = tiny_model("llama")
    before = weights_hash(model)
    with pytest.raises(NiwakiError, match="whole groups of 2 heads"):
        narrow_heads(model, layer=0, heads=heads)
    assert weights_hash(model) == before


def test_kept_layers_find_their_own_keys_again(family: str, tiny_model: Models, ids_BT: Tensor) -> None:
    """Writing token by token with a cache gives the logits of the whole text, so no layer reads another's keys."""
    model = keep_layers(tiny_model(family, layers=4), layers=[0, 2, 3])
    assert len(model.config.layer_types) == 3 if hasattr(model.config, "layer_types") else True
    narrow_heads(model, layer=1, heads=[2, 3])
    narrow_heads(model, layer=0, heads=[])  # the layer that a decoder asks how many tokens there were
    whole_BTV = logits(model, ids_BT)
    cache = None
    with torch.inference_mode():
        for place in range(ids_BT.shape[1]):
            output = model(ids_BT[:, place : place + 1], past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            torch.testing.assert_close(output.logits[:, 0], whole_BTV[:, place], atol=1e-4, rtol=1e-4)


def test_uneven_and_packed_models_reload_bit_equal(
    family: str, tiny_model: Models, ids_BT: Tensor, tmp_path: Path
) -> None:
    model = keep_layers(tiny_model(family, layers=3), layers=[0, 2])
    narrow_heads(model, layer=0, heads=[2, 3])
    narrow_neurons(model, layer=1, neurons=list(range(0, 64, 2)))
    quantize_linear(model, module=anatomy_of(model).layers[0].name_of("gate"))
    assert not is_plain(model)
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(logits(again, ids_BT), logits(model, ids_BT))
    assert weights_hash(again) == weights_hash(model)
    assert again.lm_head.weight is again.model.embed_tokens.weight


def test_even_cuts_load_in_plain_transformers(family: str, tiny_model: Models, ids_BT: Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = keep_layers(tiny_model(family, layers=3), layers=[0, 2])
    for layer in (0, 1):
        narrow_heads(model, layer=layer, heads=[0, 1])
        narrow_neurons(model, layer=layer, neurons=list(range(10, 42)))
    assert is_plain(model)
    save(model, tmp_path / "run")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "run").eval()
    assert torch.equal(logits(plain, ids_BT), logits(model, ids_BT))


def test_a_number_of_heads_that_transformers_refuses_is_still_ours(
    tiny_model: Models, ids_BT: Tensor, tmp_path: Path
) -> None:
    """Three pairs of heads do not divide a width of 64, which Transformers wants of a config."""
    model = tiny_model("llama", hidden=64, heads=8)
    for layer in (0, 1):
        narrow_heads(model, layer=layer, heads=[0, 1, 2, 3, 6, 7])
    assert not is_plain(model) and model.config.num_attention_heads == 8
    save(model, tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run"), ids_BT), logits(model, ids_BT))


def test_a_tied_head_stays_tied_in_integers(tiny_model: Models, ids_BT: Tensor, tmp_path: Path) -> None:
    model = tiny_model("llama")
    before, floats = logits(model, ids_BT), (save(model, tmp_path / "base") / WEIGHTS).stat().st_size
    quantize_linear(model, module="lm_head")
    quantize_embedding(model, module="model.embed_tokens")
    assert isinstance(model.lm_head, QuantizedLinear) and isinstance(model.model.embed_tokens, QuantizedEmbedding)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in tensors_of(model)
    assert (save(model, tmp_path / "run") / WEIGHTS).stat().st_size < floats - 200 * 32 * 2
    again = load(tmp_path / "run")
    assert torch.equal(logits(again, ids_BT), logits(model, ids_BT))
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert float((logits(model, ids_BT) - before).abs().max()) < 0.1 * float(before.abs().max())


def test_a_head_packed_alone_leaves_its_table(tiny_model: Models, ids_BT: Tensor, tmp_path: Path) -> None:
    model = quantize_linear(tiny_model("llama"), module="lm_head")
    assert model.model.embed_tokens.weight.dtype == torch.float32
    save(model, tmp_path / "run")
    assert torch.equal(logits(load(tmp_path / "run"), ids_BT), logits(model, ids_BT))


def test_a_gate_stands_before_a_group_of_heads(family: str, tiny_model: Models, ids_BT: Tensor) -> None:
    """|dL/dg| of a group is the slope of the loss when all its outgoing weights are scaled; closed, it is gone."""
    model = tiny_model(family).double()
    gates = {kind: Gates(model, kind) for kind in ("heads", "neurons")}
    assert [len(gate) for gate in gates["heads"].importances()] == [2, 2]
    model(ids_BT).logits.square().mean().backward()
    layer = anatomy_of(model).layers[1]
    importances = {kind: gate.importances()[1] for kind, gate in gates.items()}
    step = 1e-2  # wide: these norms compute in single precision
    for kind, role, columns, unit in (("heads", "output", slice(16, 32), 1), ("neurons", "down", slice(7, 8), 7)):
        weight = layer.part(role).weight
        kept, ends = weight.data[:, columns].clone(), []
        for factor in (1 + step, 1 - step):
            weight.data[:, columns] = kept * factor
            with torch.no_grad():
                ends.append(float(model(ids_BT).logits.square().mean()))
        weight.data[:, columns] = kept
        assert float(importances[kind][unit]) == pytest.approx(abs(ends[0] - ends[1]) / (2 * step), rel=1e-2)
    gates["heads"].close([[0, 1], [0]])
    masked = logits(model, ids_BT)
    for gate in gates.values():
        gate.take_down()
    torch.testing.assert_close(logits(narrow_heads(model, layer=1, heads=[0, 1]), ids_BT), masked)


def test_a_layer_that_adds_nothing_has_no_influence(family: str, tiny_model: Models, ids_BT: Tensor) -> None:
    model = tiny_model(family, layers=3)
    for role in ("output", "down"):
        for parameter in anatomy_of(model).layers[1].part(role).parameters():
            nn.init.zeros_(parameter)
    influence = block_influence(model, [{"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}])
    assert influence[1] == pytest.approx(0.0, abs=1e-6) and min(influence[0], influence[2]) > 0.01


def test_a_base_without_its_head_is_no_language_model(tiny_model: Models, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = tiny_model("llama")
    model.config.tie_word_embeddings = False
    model.save_pretrained(tmp_path / "base")
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    tensors.pop("lm_head.weight", None)
    save_file(tensors, tmp_path / "base" / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(NiwakiError, match="no fine-tuned language head"):
        load(tmp_path / "base")
