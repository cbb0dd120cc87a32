"""`attend` by hybrid: decoders that see a window exactly and all before it in sums, token by token as all at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.checkpoint import load, save
from niwaki.errors import NiwakiError
from niwaki.layers.attention import apart, attend_to_past, side_by_side
from niwaki.layers.hybrid import HybridAttention
from niwaki.layers.recurrent import recurrent_cache
from niwaki.surgery import is_plain, narrow_heads, swap_attention
from niwaki.task import Task
from niwaki.techniques.attend import Attend
from niwaki.testing import make_context

HEADS, SHARED, SIZE = 4, 2, 4
DECODERS = ("llama", "mistral", "qwen2")


def mechanism_of(window: int = 3, features: str = "hedgehog") -> HybridAttention:
    """Return an attention whose weights are no longer those it begins with."""
    mechanism = HybridAttention(HEADS, SIZE, SHARED, window, features)
    generator = torch.Generator().manual_seed(1)
    for parameter in mechanism.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return mechanism.eval()


def drawn(batch: int, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, tokens, heads * SIZE, generator=generator) for heads in (HEADS, SHARED, SHARED)]


def by_definition(mechanism: HybridAttention, states: list[Tensor], real_BT: Tensor) -> Tensor:
    """Return the answers with a weight for every pair of tokens, each head with keys and values of its own."""
    query = apart(states[0], HEADS)
    key, value = (apart(one, SHARED).repeat_interleave(HEADS // SHARED, dim=1) for one in states[1:])
    place = torch.arange(query.shape[2])
    distance = place[:, None] - place
    near = ((distance >= 0) & (distance < mechanism.window) & real_BT[:, None, None, :]) | (distance == 0)
    scores = (query @ key.mT * SIZE**-0.5).masked_fill(~near, -torch.inf)
    exact = (scores - scores.amax(-1, True)).exp() * mechanism.share.sigmoid()[:, None, None]
    asked = mechanism.query_map(query * SIZE**-0.25)
    seen = mechanism.key_map(apart(states[1], SHARED) * SIZE**-0.25).repeat_interleave(HEADS // SHARED, dim=1)
    far = (distance >= mechanism.window) & real_BT[:, None, None, :]
    weights = exact + asked @ seen.mT * far
    return side_by_side(weights @ value / weights.sum(-1, True))


@pytest.mark.parametrize("features", ["hedgehog", "t2r"])
@pytest.mark.parametrize("window", [1, 3, 5])
@pytest.mark.parametrize("tokens", [1, 3, 4, 6, 13])
def test_it_is_what_its_definition_says(features: str, window: int, tokens: int) -> None:
    states, mechanism = drawn(3, tokens), mechanism_of(window, features)
    real_BT = torch.arange(tokens) < torch.tensor([tokens, (tokens + 1) // 2, 1])[:, None]
    for real in (real_BT, real_BT.flip(1)):  # padding on the right, and on the left
        answered = mechanism(*states, real, SIZE**-0.5)
        assert torch.allclose(answered[real], by_definition(mechanism, states, real)[real], atol=1e-5)
        assert torch.isfinite(answered).all(), "padding is no number, and would spread"


def test_one_token_far_away_by_hand() -> None:
    """Two tokens, a window of one, W the identity and equal keys: near weighs 0.1, far phi(1) phi(1) of one number."""
    mechanism = HybridAttention(1, 1, 1, window=1, features="hedgehog")
    mechanism.share.data.fill_(0.0)  # the window weighs one half
    one = torch.ones(1, 2, 1)
    value = torch.tensor([[[1.0], [0.0]]])
    answered = mechanism(one, one, value, torch.ones(1, 2, dtype=torch.bool), 1.0)
    high = 2.718281828**2 / (1 + 2.718281828**2)  # softmax([1, -1])
    far = high**2 + (1 - high) ** 2
    assert torch.allclose(answered[0, :, 0], torch.tensor([1.0, far / (far + 0.5)]), atol=1e-6)


class Kept:
    """Keep a past."""

    past = None


@settings(deadline=None, max_examples=40)
@given(
    lengths=strategies.lists(strategies.integers(1, 9), min_size=1, max_size=5),
    window=strategies.integers(1, 5),
    left=strategies.integers(0, 4),
)
def test_parts_one_after_the_other_are_the_whole(lengths: list[int], window: int, left: int) -> None:
    tokens = sum(lengths)
    states, mechanism, memory = drawn(2, tokens), mechanism_of(window), Kept()
    real_BT = torch.arange(tokens) >= torch.tensor([0, min(left, tokens - 1)])[:, None]
    parts, start = [], 0
    for length in lengths:
        mechanism.memory = memory  # type: ignore[assignment]
        some = slice(start, start + length)
        parts.append(mechanism(*(one[:, some] for one in states), real_BT[:, some], SIZE**-0.5))
        start += length
    whole = by_definition(mechanism, states, real_BT)
    assert torch.allclose(torch.cat(parts, dim=1)[real_BT], whole[real_BT], atol=1e-5)


def test_exact_attention_to_the_past() -> None:
    """Of all queries and of the last ones, with padding, within a window, with heads that share keys."""
    query, key, value = (apart(one, heads) for one, heads in zip(drawn(2, 7), (HEADS, SHARED, SHARED), strict=True))
    real_BT = torch.arange(7) >= torch.tensor([0, 2])[:, None]
    wide_key, wide_value = (one.repeat_interleave(2, dim=1) for one in (key, value))
    distance = torch.arange(7)[:, None] - torch.arange(7)
    for window, real in ((None, torch.ones(2, 7, dtype=torch.bool)), (None, real_BT), (3, real_BT)):
        seen = (distance >= 0) & (distance < (window or 7)) & real[:, None, None, :]
        weights = (query @ wide_key.mT * 0.5).masked_fill(~(seen | (distance == 0)), -torch.inf).softmax(-1)
        for last in (7, 1):
            answered = attend_to_past(query[:, :, -last:], key, value, real, 0.5, window=window)
            assert torch.allclose(answered, (weights @ wide_value)[:, :, -last:], atol=1e-5)


def hybrid(model: nn.Module, window: int, keep: tuple[int, ...] = ()) -> nn.Module:
    """Swap the attention of all layers but some, and move what they learn away from where it begins."""
    generator = torch.Generator().manual_seed(2)
    for layer in anatomy_of(model).layers:
        if layer.index not in keep:
            swap_attention(model, layer=layer.index, by="hybrid", window=window)
            for parameter in layer.attention.mechanism.parameters():  # type: ignore[union-attr]
                parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(5, 200, (batch, tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", DECODERS)
def test_a_window_as_long_as_the_text_changes_nothing(family: str, tiny_model: Callable[..., nn.Module]) -> None:
    """With a layer that stays exact beside it, and padding."""
    model, ids_BT = tiny_model(family), ids(2, 12)
    mask_BT = (torch.arange(12) < torch.tensor([12, 7])[:, None]).long()
    before = model(ids_BT, attention_mask=mask_BT).logits
    swap_attention(model, layer=1, by="hybrid", window=12)
    after = model(ids_BT, attention_mask=mask_BT).logits
    assert torch.allclose(after[mask_BT.bool()], before[mask_BT.bool()], atol=1e-5)


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("keep", [(), (0,)])
def test_token_by_token_is_all_at_once(
    family: str, keep: tuple[int, ...], tiny_model: Callable[..., nn.Module]
) -> None:
    """With a memory that is as large after 40 tokens as after one, beside a layer with all its keys and without."""
    model, ids_BT = hybrid(tiny_model(family), window=3, keep=keep), ids(2, 40)
    with torch.no_grad():
        whole = model(ids_BT, attention_mask=torch.ones_like(ids_BT)).logits
        for first in (1, 11):
            cache, logits, sizes = recurrent_cache(model), [], []
            for start, end in [(0, first), *((place, place + 1) for place in range(first, 40))]:
                output = model(ids_BT[:, start:end], past_key_values=cache, use_cache=True)
                logits.append(output.logits)
                pasts = [layer.past for layer in cache.layers if hasattr(layer, "past")]
                sizes.append(sum(one.numel() for past in pasts for one in past.tensors))
            assert torch.allclose(torch.cat(logits, dim=1), whole, atol=2e-4)
            assert len(set(sizes)) == 1 and len(pasts) == 2 - len(keep)
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generate_writes_the_same_with_either_cache(
    settings: dict[str, Any], tiny_model: Callable[..., nn.Module]
) -> None:
    """From prompts of unlike lengths, padded on the left as `generate` wants them, greedily and with beams."""
    model: Any = hybrid(tiny_model("llama"), window=3, keep=(0,))
    mask_BT = (torch.arange(9) >= torch.tensor([0, 5])[:, None]).long()
    prompts = {"input_ids": ids(2, 9), "attention_mask": mask_BT}
    told = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": 250, **settings}
    usual = model.generate(**prompts, **told)
    assert usual.shape[1] == 21
    assert torch.equal(model.generate(**prompts, **told, past_key_values=recurrent_cache(model)), usual)
    assert torch.equal(model.generate(**prompts, **told, use_cache=False), usual)


def test_no_tensor_grows_with_the_square_of_the_length(
    tiny_model: Callable[..., nn.Module], largest_tensor: Callable[[], Any]
) -> None:
    model = hybrid(tiny_model("qwen2"), window=4)
    model.config.max_position_embeddings = 4096
    largest = []
    for tokens in (512, 2048):
        mask_BT = (torch.arange(tokens) < torch.tensor([tokens, tokens // 2])[:, None]).long()
        with largest_tensor() as seen, torch.no_grad():
            model(input_ids=torch.ones_like(mask_BT), attention_mask=mask_BT, logits_to_keep=1)
        largest.append(seen.numbers)
    assert largest[1] <= 4.1 * largest[0]
    assert largest[1] < 2048 * 2048 / 2, "no matrix of all tokens by all tokens"


@pytest.mark.parametrize("family", DECODERS)
def test_it_saves_and_narrows(family: str, tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    """Heads that go take their maps with them; what is left answers as the whole without what they wrote."""
    whole, narrow = hybrid(tiny_model(family), window=3), hybrid(tiny_model(family), window=3)
    anatomy_of(whole).layers[1].part("output").weight.data[:, :16] = 0
    narrow_heads(narrow, layer=1, heads=[2, 3])
    with torch.no_grad():
        expected = whole(ids(2, 20)).logits
        assert torch.allclose(narrow(ids(2, 20)).logits, expected, atol=1e-5)
        assert not is_plain(narrow)
        save(narrow, tmp_path / "saved")
        loaded = load(tmp_path / "saved")
        assert torch.equal(loaded(ids(2, 20)).logits, narrow(ids(2, 20)).logits)
    mechanism = anatomy_of(loaded).layers[1].attention.mechanism
    assert (mechanism.heads, mechanism.key_value_heads) == (2, 1)


@pytest.fixture
def context(saved_base: Callable[..., Path], toy_data: Callable[..., Path], tmp_path: Path) -> Any:
    task = Task("language-modelling", data=str(toy_data()))
    return make_context(saved_base("llama"), task, tmp_path)


def test_attention_is_transferred_layer_by_layer(context: Any) -> None:
    """The difference of outputs falls in both layers, and nothing but the new weights has moved."""
    events: list[dict[str, Any]] = []
    context.__dict__["log"] = events.append
    model = load(context.base.config._name_or_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Attend(by="hybrid", window=2, examples=64, passes=8, allow_slower=True).apply(model, context)
    told = next(event for event in events if event["event"] == "attention-transfer")
    assert told["match"] == "outputs" and len(told["last_pass"]) == 2
    assert all(last < 0.97 * first for first, last in zip(told["first_pass"], told["last_pass"], strict=True))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_texts_within_the_window_teach_nothing_and_break_nothing(context: Any) -> None:
    model = load(context.base.config._name_or_path)
    with torch.no_grad():
        before = model(ids(2, 12)).logits
        Attend(by="hybrid", window=64, examples=16, allow_slower=True).apply(model, context)
        assert torch.allclose(model(ids(2, 12)).logits, before, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "wrong", "said"),
    [
        ("llama", {"by": "window"}, "left to right"),
        ("bert", {"by": "hybrid"}, "both directions"),
        ("mistral", {"by": "hybrid", "positions": 128}, "table of positions"),
    ],
)
def test_a_kind_that_is_not_for_the_model_is_refused(
    family: str, wrong: dict[str, Any], said: str, tiny_model: Callable[..., nn.Module]
) -> None:
    with pytest.raises(NiwakiError, match=said):
        Attend(**wrong, allow_slower=True).check(tiny_model(family))


def test_what_makes_no_sense_is_refused(tiny_model: Callable[..., nn.Module]) -> None:
    with pytest.raises(NiwakiError, match="maps"):
        Attend(by="hybrid", match="maps")
    with pytest.raises(NiwakiError, match="by is 'linear', of a llama"):
        swap_attention(tiny_model("llama"), layer=0, by="linear")
    with pytest.raises(NiwakiError, match="does not grow"):
        recurrent_cache(tiny_model("llama"))
    cache = recurrent_cache(hybrid(tiny_model("llama"), window=2))
    with pytest.raises(NiwakiError, match="3 tokens are to be forgotten"):
        cache.crop(-3)
