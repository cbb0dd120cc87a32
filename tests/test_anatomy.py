"""The tables find the same parts in every family."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from niwaki.anatomy import FAMILIES, anatomy_of, label_names, longest_input
from niwaki.errors import NiwakiError


def test_every_role_is_found(family: str, tiny_model: Callable[..., nn.Module]) -> None:
    anatomy = anatomy_of(tiny_model(family, layers=3, hidden=32, heads=4, neurons=64))
    assert anatomy.num_layers == 3
    assert anatomy.word_embeddings.weight.shape[0] == 200
    assert isinstance(anatomy.head, nn.Linear) and anatomy.head.out_features == 2
    assert isinstance(anatomy.pooler, nn.Linear)
    for layer in anatomy.layers:
        assert (layer.heads, layer.head_size, layer.neurons) == (4, 8, 64)
        shapes = {
            role: tuple(layer.part(role).weight.shape) for role in ("query", "key", "value", "output", "up", "down")
        }
        assert shapes == {
            "query": (32, 32), "key": (32, 32), "value": (32, 32), "output": (32, 32), "up": (64, 32), "down": (32, 64),
        }  # fmt: skip
        assert isinstance(layer.part("attention_norm"), nn.LayerNorm)
        assert isinstance(layer.part("output_norm"), nn.LayerNorm)


def test_names_lead_to_the_modules(family: str, tiny_model: Callable[..., nn.Module]) -> None:
    model = tiny_model(family)
    anatomy = anatomy_of(model)
    assert len(list(anatomy.linear_names())) == 2 * 6
    for name in anatomy.linear_names():
        assert isinstance(model.get_submodule(name), nn.Linear)
    tables = [model.get_submodule(name) for name in anatomy.embedding_names()]
    assert tables == [module for module in model.modules() if isinstance(module, nn.Embedding)]


def test_query_is_not_key(family: str, tiny_model: Callable[..., nn.Module]) -> None:
    """Doubling queries or keys gives the same outputs, doubling values others: roles are not mixed up."""
    base = tiny_model(family)

    def logits_with_doubled(role: str) -> torch.Tensor:
        model = tiny_model(family)
        for parameter in anatomy_of(model).layers[0].part(role).parameters():
            parameter.data *= 2
        with torch.inference_mode():
            return model(torch.arange(5, 13)[None]).logits

    torch.testing.assert_close(logits_with_doubled("query"), logits_with_doubled("key"))
    assert not torch.allclose(logits_with_doubled("query"), logits_with_doubled("value"))
    assert label_names(base) == ["negative", "positive"]


def test_unknown_family_lists_the_known_ones() -> None:
    model = nn.Linear(2, 2)
    model.config = SimpleNamespace(model_type="mamba")  # type: ignore[assignment]
    with pytest.raises(NiwakiError, match="mamba") as caught:
        anatomy_of(model)
    for name in FAMILIES:
        assert name in str(caught.value)


def test_longest_input_knows_the_offset_of_roberta(
    family: str, tiny_model: Callable[..., nn.Module], tiny_tokenizer: Callable[..., object]
) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)
    assert longest_input(model, tokenizer) == 64
    assert longest_input(model, tokenizer, 20) == 20
    with pytest.raises(NiwakiError, match="max_length is 65"):
        longest_input(model, tokenizer, 65)
    with torch.inference_mode():
        model(torch.full((1, 64), 7))
