"""Edits change models for good, exactly, and the journal brings them back."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import JOURNAL, WEIGHTS, is_run, load, save, weights_hash
from niwaki.errors import NiwakiError
from niwaki.surgery import (
    is_plain,
    journal_of,
    keep_layers,
    narrow_heads,
    narrow_hidden,
    narrow_neurons,
    narrow_vocabulary,
    quantize_embedding,
    quantize_linear,
    vocabulary_of,
)

Models = Callable[..., nn.Module]


def logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return model.eval()(**batch).logits.clone()


def cut(model: nn.Module) -> nn.Module:
    """Make a model with another shape in each layer, partly packed."""
    keep_layers(model, layers=[0, 2])
    narrow_heads(model, layer=0, heads=[1, 3])
    narrow_heads(model, layer=1, heads=[2])
    narrow_neurons(model, layer=0, neurons=list(range(0, 64, 2)))
    narrow_neurons(model, layer=1, neurons=[5, 6, 7])
    narrow_hidden(model, channels=list(range(3, 31)))
    anatomy = anatomy_of(model)
    quantize_linear(model, module=anatomy.layers[0].name_of("query"), activations="dynamic")
    quantize_linear(model, module=anatomy.layers[1].name_of("up"), activations="static", scale=0.05, zero_point=120)
    quantize_embedding(model, module=next(iter(anatomy.embedding_names())))
    return model


def test_removed_units_were_the_only_change(family: str, tiny_model: Models, batch: dict[str, Tensor]) -> None:
    """A narrowed model equals the whole one with the outgoing weights of the removed units at zero."""
    whole = tiny_model(family)
    narrowed = copy.deepcopy(whole)
    layer = anatomy_of(whole).layers[1]
    layer.part("output").weight.data[:, 8:16] = 0  # head 1 of four, of width 8
    layer.part("down").weight.data[:, [0, 63]] = 0
    narrow_heads(narrowed, layer=1, heads=[0, 2, 3])
    narrow_neurons(narrowed, layer=1, neurons=list(range(1, 63)))
    torch.testing.assert_close(logits(narrowed, batch), logits(whole, batch), atol=1e-5, rtol=0)
    assert sum(p.numel() for p in narrowed.parameters()) < sum(p.numel() for p in whole.parameters())


def test_kept_layers_are_the_named_ones(family: str, tiny_model: Models, batch: dict[str, Tensor]) -> None:
    whole = tiny_model(family, layers=3)
    seen: list[Tensor] = []
    handle = (
        anatomy_of(whole)
        .layers[0]
        .module.register_forward_hook(
            lambda module, inputs, output: seen.append(output[0] if isinstance(output, tuple) else output)
        )
    )
    logits(whole, batch)
    handle.remove()
    first = keep_layers(copy.deepcopy(whole), layers=[0])
    anatomy = anatomy_of(first)
    assert anatomy.num_layers == 1
    states = first.get_submodule(anatomy.family.backbone)(**batch).last_hidden_state
    torch.testing.assert_close(states, seen[0], atol=1e-5, rtol=0)


def test_neutral_edits_change_nothing(family: str, tiny_model: Models, batch: dict[str, Tensor]) -> None:
    whole = tiny_model(family)
    same = copy.deepcopy(whole)
    keep_layers(same, layers=[0, 1])
    narrow_heads(same, layer=0, heads=[0, 1, 2, 3])
    narrow_neurons(same, layer=0, neurons=list(range(64)))
    narrow_hidden(same, channels=list(range(32)))
    narrow_vocabulary(same, tokens=list(range(200)))
    assert torch.equal(logits(same, batch), logits(whole, batch))


def test_cut_model_reloads_bit_equal(family: str, tiny_model: Models, batch: dict[str, Tensor], tmp_path: Path) -> None:
    model = cut(tiny_model(family, layers=3))
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert weights_hash(again) == weights_hash(model)
    assert journal_of(again) == journal_of(model)
    assert not any(tensor.is_meta for tensor in [*again.parameters(), *again.buffers()])
    assert [record["edit"] for record in journal_of(model)][:3] == ["build", "keep_layers", "narrow_heads"]


def test_even_cuts_load_in_plain_transformers(
    family: str, tiny_model: Models, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    model = keep_layers(tiny_model(family, layers=3), layers=[0, 2])
    assert is_plain(model)
    for layer in (0, 1):
        narrow_neurons(model, layer=layer, neurons=list(range(10, 42)))
    assert is_plain(model)
    save(model, tmp_path / "run")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    assert torch.equal(logits(plain, batch), logits(model, batch))
    assert not is_plain(narrow_heads(model, layer=0, heads=[0]))


def test_kept_tokens_answer_as_before(
    family: str, tiny_model: Models, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    whole = tiny_model(family)
    whole.config.sep_token_id = 5
    tokens = sorted({0, 1, 2, 5, *batch["input_ids"].unique().tolist()})
    narrowed = narrow_vocabulary(copy.deepcopy(whole), tokens=tokens)
    renumbered = {**batch, "input_ids": torch.searchsorted(torch.tensor(tokens), batch["input_ids"])}
    assert torch.equal(logits(narrowed, renumbered), logits(whole, batch))
    table = anatomy_of(narrowed).word_embeddings
    assert table.num_embeddings == len(tokens) == narrowed.config.vocab_size < 200
    assert narrowed.config.sep_token_id == tokens.index(5) and narrowed.config.pad_token_id == table.padding_idx
    assert is_plain(narrowed)
    narrow_vocabulary(narrowed, tokens=list(range(20)))
    save(narrowed, tmp_path / "run")
    assert weights_hash(load(tmp_path / "run")) == weights_hash(narrowed)
    assert load(tmp_path / "run").config.to_dict()["vocab_size"] == 20
    assert vocabulary_of(journal_of(narrowed)) == tokens[:20]
    assert vocabulary_of(journal_of(whole)) is None


def test_tokens_that_the_model_names_stay(tiny_model: Models) -> None:
    with pytest.raises(NiwakiError, match=r"tokens \[0\]"):
        narrow_vocabulary(tiny_model("bert"), tokens=[1, 2, 3])
    # RoBERTa counts positions from the padding, 1: without token 0 every position would move
    model = tiny_model("roberta")
    model.config.bos_token_id = None
    with pytest.raises(NiwakiError, match=r"tokens \[0\]"):
        narrow_vocabulary(model, tokens=[1, 2, 3])
    with pytest.raises(NiwakiError, match=r"0\.\.199"):
        narrow_vocabulary(model, tokens=[0, 1, 2, 200])
    packed = tiny_model("bert")
    quantize_embedding(packed, module="bert.embeddings.word_embeddings")
    with pytest.raises(NiwakiError, match="packed"):
        narrow_vocabulary(packed, tokens=[0, 1])


def test_an_output_head_is_narrowed_with_the_table(tiny_model: Models, batch: dict[str, Tensor]) -> None:
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    whole = BertForMaskedLM(tiny_model("bert").config).eval()
    nn.init.normal_(whole.cls.predictions.bias)
    tokens = sorted({0, 199, *batch["input_ids"].unique().tolist()})
    narrowed = narrow_vocabulary(copy.deepcopy(whole), tokens=tokens)
    renumbered = {**batch, "input_ids": torch.searchsorted(torch.tensor(tokens), batch["input_ids"])}
    torch.testing.assert_close(logits(narrowed, renumbered), logits(whole, batch)[..., tokens])
    head = narrowed.get_output_embeddings()
    assert head.weight is narrowed.bert.embeddings.word_embeddings.weight
    assert head.bias is narrowed.cls.predictions.bias and head.out_features == len(tokens)
    with torch.device("meta"):
        empty = BertForMaskedLM(whole.config)
    shapes = [
        {name: tensor.shape for name, tensor in model.state_dict().items()}
        for model in (narrowed, narrow_vocabulary(empty, tokens=tokens))
    ]
    assert shapes[0] == shapes[1]


def test_unedited_model_is_saved_as_a_plain_folder(tiny_model: Models, tmp_path: Path) -> None:
    save(tiny_model("bert"), tmp_path / "plain")
    assert not is_run(tmp_path / "plain")
    assert weights_hash(load(tmp_path / "plain")) == weights_hash(tiny_model("bert"))


@pytest.mark.parametrize("layers", [[], [0, 2], [1, 0], [0, 0], [-1]])
def test_bad_indices_are_refused_and_nothing_changes(layers: list[int], tiny_model: Models) -> None:
    model = tiny_model("bert")
    before = weights_hash(model)
    with pytest.raises(NiwakiError, match=r"0\.\.1"):
        keep_layers(model, layers=layers)
    assert weights_hash(model) == before
    assert len(journal_of(model)) == 1


def test_packed_linears_are_not_cut(tiny_model: Models) -> None:
    model = tiny_model("bert")
    quantize_linear(model, module=anatomy_of(model).layers[0].name_of("up"))
    with pytest.raises(NiwakiError, match="packed"):
        narrow_neurons(model, layer=0, neurons=[0])
    with pytest.raises(NiwakiError, match="packed"):
        quantize_linear(model, module=anatomy_of(model).layers[0].name_of("up"))


def test_broken_folders_are_named(tiny_model: Models, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    save(keep_layers(tiny_model("bert"), layers=[0]), folder)
    lines = (folder / JOURNAL).read_text().splitlines()
    (folder / JOURNAL).write_text("\n".join([*lines, json.dumps({"edit": "fold"})]))
    with pytest.raises(NiwakiError, match="'fold'"):
        load(folder)
    (folder / JOURNAL).write_text(lines[0])
    with pytest.raises(NiwakiError, match="does not fit"):
        load(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(NiwakiError, match="finished run"):
        load(folder)
    with pytest.raises(NiwakiError, match="no model could be loaded"):
        load(tmp_path / "nowhere")


def test_without_heads_or_neurons_biases_are_left(family: str, tiny_model: Models, batch: dict[str, Tensor]) -> None:
    """A layer without attention or feed-forward equals the whole one with their outgoing weights at zero."""
    whole = tiny_model(family)
    emptied = copy.deepcopy(whole)
    layers = anatomy_of(whole).layers
    for layer, role in ((0, "output"), (1, "output"), (1, "down")):
        layers[layer].part(role).weight.data.zero_()
    narrow_heads(emptied, layer=0, heads=[])
    narrow_heads(emptied, layer=1, heads=[])
    narrow_neurons(emptied, layer=1, neurons=[])
    torch.testing.assert_close(logits(emptied, batch), logits(whole, batch), atol=1e-5, rtol=0)
    left = anatomy_of(emptied).layers[1].module
    # biases of output and down projection, and two norms, of width 32
    assert sum(parameter.numel() for parameter in left.parameters()) == (1 + 1 + 2 + 2) * 32
    emptied.train()(**batch).logits.sum().backward()
    assert anatomy_of(emptied).layers[1].part("down").bias.grad.abs().sum() > 0


def test_empty_layer_reloads_bit_equal(
    family: str, tiny_model: Models, batch: dict[str, Tensor], tmp_path: Path
) -> None:
    model = narrow_heads(tiny_model(family), layer=0, heads=[])
    narrow_neurons(model, layer=0, neurons=[])
    assert not is_plain(model)
    narrow_hidden(model, channels=list(range(0, 32, 3)))
    save(model, tmp_path / "run")
    again = load(tmp_path / "run")
    assert torch.equal(logits(again, batch), logits(model, batch))
    assert weights_hash(again) == weights_hash(model)
    assert anatomy_of(again).layers[0].heads == 0


def test_hidden_channels_are_cut_everywhere(family: str, tiny_model: Models) -> None:
    whole = tiny_model(family)
    model = narrow_hidden(copy.deepcopy(whole), channels=list(range(1, 32, 2)))
    for ours, theirs in zip(anatomy_of(model).layers, anatomy_of(whole).layers, strict=True):
        assert torch.equal(ours.part("up").weight, theirs.part("up").weight[:, 1::2])
        assert torch.equal(ours.part("query").weight, theirs.part("query").weight[:, 1::2])
        assert torch.equal(ours.part("down").weight, theirs.part("down").weight[1::2])
        assert torch.equal(ours.part("output").bias, theirs.part("output").bias[1::2])
        assert torch.equal(ours.part("output_norm").weight, theirs.part("output_norm").weight[1::2])
    assert model.config.hidden_size == 16
    assert not is_plain(model)  # heads of 8 times 4 are wider than the 16 channels


def test_hidden_width_of_a_packed_model_is_not_cut(tiny_model: Models) -> None:
    model = tiny_model("bert")
    quantize_embedding(model, module=next(iter(anatomy_of(model).embedding_names())))
    before = weights_hash(model)
    with pytest.raises(NiwakiError, match="packed"):
        narrow_hidden(model, channels=[0, 1])
    with pytest.raises(NiwakiError, match=r"0\.\.31"):
        narrow_hidden(model, channels=[])
    assert weights_hash(model) == before
