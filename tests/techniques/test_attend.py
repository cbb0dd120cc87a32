"""`attend`: attention below the square of the length, checked against its definition, its cost and its files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of, longest_input, longest_read
from niwaki.checkpoint import load, load_tokenizer, save
from niwaki.errors import NiwakiError
from niwaki.export import export_onnx, export_openvino
from niwaki.layers.attention import apart, side_by_side
from niwaki.layers.kinds import build
from niwaki.layers.nystrom import pseudo_inverse
from niwaki.recipe import Recipe
from niwaki.surgery import extend_positions, is_plain, narrow_heads, quantize_linear, swap_attention
from niwaki.task import Task
from niwaki.techniques.attend import Attend
from niwaki.techniques.attend.break_even import Times
from niwaki.techniques.distill import Distill
from niwaki.testing import make_context
from niwaki.train import Train

HEADS, SIZE = 2, 4
SETTINGS: dict[str, dict[str, Any]] = {
    "window": {"window": 4, "global_tokens": 1},
    "two-global": {"window": 5, "global_tokens": 2},
    "no-global": {"window": 3, "global_tokens": 0},
    "hedgehog": {"features": "hedgehog"},
    "t2r": {"features": "t2r"},
    "nystrom": {"landmarks": 4},
}
OWN = {"window": "window", "features": "linear", "landmarks": "nystrom"}
KINDS: list[tuple[Any, dict[str, Any]]] = [(OWN[next(iter(one))], one) for one in SETTINGS.values()]
IDS = list(SETTINGS)


def drawn(batch: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = torch.randn(3, batch, tokens, HEADS * SIZE, generator=torch.Generator().manual_seed(0))
    return query, key, value


def trained(by: str, settings: dict[str, Any]) -> Any:
    """Return an attention whose weights, if any, are no longer the identity."""
    mechanism = build(by, HEADS, SIZE, **settings)
    generator = torch.Generator().manual_seed(1)
    for parameter in mechanism.parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator)
    return mechanism


def by_definition(mechanism: Any, by: str, settings: dict[str, Any], states: Any, real_BT: Tensor) -> Tensor:
    """Return the answers with a weight for every pair of tokens."""
    query, key, value = (apart(one, HEADS) for one in states)
    place = torch.arange(query.shape[2])
    if by == "window":
        near = (place[:, None] - place).abs() < settings["window"]
        far = place < settings["global_tokens"]
        seen = (near | far | far[:, None]) & real_BT[:, None, None, :]
        weights = (query @ key.mT * SIZE**-0.5).masked_fill(~seen, -torch.inf).softmax(dim=-1)
    else:
        maps = []
        for states_BHTS, each in ((query, mechanism.query_map), (key, mechanism.key_map)):
            mapped = (states_BHTS * SIZE**-0.25) @ each.weight + each.bias
            twice = torch.cat([mapped, -mapped], dim=-1)
            maps.append(mapped.relu() if settings["features"] == "t2r" else twice.exp() / twice.exp().sum(-1, True))
        weights = maps[0] @ maps[1].mT * real_BT[:, None, None, :]
        weights = weights / weights.sum(-1, True).clamp_min(1e-9)
    return side_by_side(weights @ value)


@pytest.mark.parametrize(("by", "settings"), KINDS[:-1], ids=IDS[:-1])
@pytest.mark.parametrize("tokens", [1, 2, 4, 5, 12, 23])
def test_it_is_what_its_definition_says(by: str, settings: dict[str, Any], tokens: int) -> None:
    states, mechanism = drawn(3, tokens), trained(by, settings)
    real_BT = torch.arange(tokens) < torch.tensor([tokens, (tokens + 1) // 2, 1])[:, None]
    expected = by_definition(mechanism, by, settings, states, real_BT)
    answered = mechanism(*states, real_BT, SIZE**-0.5)
    assert torch.allclose(answered[real_BT], expected[real_BT], atol=1e-5)
    assert torch.isfinite(answered).all(), "padding is no number, and would spread"
    if mechanism.first_alone:
        first = mechanism.first(states[0][:, :1], *states[1:], real_BT, SIZE**-0.5)
        assert torch.allclose(first[:, 0], expected[:, 0], atol=1e-5)


@pytest.mark.parametrize(("by", "settings"), KINDS, ids=IDS)
def test_a_row_does_not_know_its_padding_nor_its_neighbours(by: str, settings: dict[str, Any]) -> None:
    states, mechanism = drawn(2, 20), trained(by, settings)
    real_BT = torch.arange(20) < torch.tensor([20, 9])[:, None]
    alone = mechanism(*(one[1:, :9] for one in states), real_BT[1:, :9], SIZE**-0.5)
    other = [torch.where(real_BT[..., None], one, 1e4) for one in states]  # whatever stands there
    other[0][0] = other[1][0] = other[2][0] = 7.0
    among = mechanism(*other, real_BT, SIZE**-0.5)
    assert torch.allclose(among[1, :9], alone[0], atol=1e-5)


def test_landmarks_are_the_means_of_segments() -> None:
    """Of 8 tokens and 2 landmarks, by hand; with one for each token, as near to the softmax as six steps come."""
    states = drawn(1, 8)
    query, key, value = (apart(one, HEADS) for one in states)
    far_query, far_key = (torch.stack([one[:, :, :4].mean(2), one[:, :, 4:].mean(2)], dim=2) for one in (query, key))
    among = (far_query @ far_key.mT * 0.5).softmax(-1)
    left, right = (query @ far_key.mT * 0.5).softmax(-1), (far_query @ key.mT * 0.5).softmax(-1)
    expected = side_by_side(left @ (pseudo_inverse(among) @ (right @ value)))
    real_BT = torch.ones(1, 8, dtype=torch.bool)
    assert torch.allclose(build("nystrom", HEADS, SIZE, landmarks=2)(*states, real_BT, 0.5), expected, atol=1e-5)
    wide = [4 * one for one in states[:2]]  # attention so sharp that its matrix has an inverse
    exact = side_by_side((apart(wide[0], HEADS) @ apart(wide[0], HEADS).mT).softmax(-1) @ value)
    answered = build("nystrom", HEADS, SIZE, landmarks=16)(wide[0], wide[0], states[2], real_BT, 1.0)
    assert torch.allclose(answered, exact, atol=0.05)


@pytest.mark.parametrize(("by", "settings"), KINDS, ids=IDS)
def test_a_row_that_is_all_padding_stays_finite(by: Any, settings: dict[str, Any]) -> None:
    """In answers and gradients, and rows beside it get what they get without it."""
    states = tuple(one.requires_grad_() for one in drawn(2, 9))
    mechanism = trained(by, settings)
    real_BT = torch.tensor([[True] * 7 + [False] * 2, [False] * 9])
    answered = mechanism(*states, real_BT, 0.5)
    assert bool(answered.isfinite().all())
    assert torch.allclose(answered[:1], mechanism(*(one[:1] for one in states), real_BT[:1], 0.5), atol=1e-6)
    answered.sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in states if one.grad is not None)


@pytest.mark.parametrize(("by", "settings"), [KINDS[0], KINDS[3], KINDS[5]], ids=["window", "linear", "nystrom"])
def test_no_tensor_grows_with_the_square_of_the_length(
    by: str, settings: dict[str, Any], tiny_model: Callable[..., nn.Module], largest_tensor: Callable[[], Any]
) -> None:
    """The mask that Transformers makes is looked at too: the whole model runs, on a padded batch."""
    model = tiny_model("bert")
    extend_positions(model, tokens=2048)
    for layer in range(2):
        swap_attention(model, layer=layer, by=by, **settings)  # type: ignore[arg-type]
    largest = []
    for tokens in (512, 2048):
        mask_BT = (torch.arange(tokens) < torch.tensor([tokens, tokens // 2])[:, None]).long()
        with largest_tensor() as seen, torch.no_grad():
            model(input_ids=torch.ones_like(mask_BT), attention_mask=mask_BT)
        largest.append(seen.numbers)
    assert largest[1] <= 4.1 * largest[0]
    assert largest[1] < 2048 * 2048 / 4, "no matrix of all tokens by all tokens"


@pytest.mark.parametrize(
    ("family", "by"), [("bert", "window"), ("roberta", "linear"), ("distilbert", "nystrom"), ("electra", "window")]
)
def test_it_saves_narrows_packs_and_exports(family: str, by: Any, batch: Any, tiny_model: Any, tmp_path: Path) -> None:
    """In each family, in a graph that serves inputs shorter and much longer than the one it was traced with."""
    model = tiny_model(family)
    extend_positions(model, tokens=150)
    settings: dict[str, Any] = {"window": 4, "global_tokens": 3} if by == "window" else {}
    for layer in range(2):
        swap_attention(model, layer=layer, by=by, **settings)
    narrow_heads(model, layer=0, heads=[1, 3])
    quantize_linear(model, module=f"{name_of_query(model)}")
    assert not is_plain(model)
    save(model, tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert export_onnx(loaded, unlike_lengths(batch), tmp_path / "model.onnx").agreement == 1.0


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("bert", "two-global"),
        ("roberta", "no-global"),
        ("electra", "hedgehog"),
        ("roberta", "t2r"),
        ("distilbert", "nystrom"),
    ],
)
def test_openvino_attends_as_the_model_does(
    family: str, form: str, batch: Any, tiny_model: Any, tmp_path: Path
) -> None:
    """In floats, at inputs as short as the global tokens and of 140, padding among them."""
    pytest.importorskip("openvino")
    model = tiny_model(family)
    extend_positions(model, tokens=150)
    by, settings = KINDS[IDS.index(form)]
    for layer in range(2):
        swap_attention(model, layer=layer, by=by, **settings)
    parity = export_openvino(model, unlike_lengths(batch), tmp_path / "model.xml")
    assert parity.agreement == 1.0 and parity.largest_difference < 1e-4


def unlike_lengths(batch: Any) -> list[dict[str, Tensor]]:
    """Return the batch, a long one of unlike lengths, and one of two tokens a row."""
    long = {name: torch.cat([value] * 10, dim=1)[:3, :140] for name, value in batch.items()}
    long["attention_mask"] = (torch.arange(long["input_ids"].shape[1]) < torch.tensor([140, 71, 2])[:, None]).long()
    return [batch, long, {name: value[:2, :2] for name, value in batch.items()}]


def name_of_query(model: nn.Module) -> str:
    return next(name for name, _ in model.named_modules() if name.endswith(("query", "q_lin")))


def test_a_window_as_long_as_the_input_changes_nothing(family: str, batch: Any, tiny_model: Any) -> None:
    model = tiny_model(family)
    before = model(**batch).logits
    swap_attention(model, layer=0, by="window", window=batch["input_ids"].shape[1])
    assert torch.allclose(model(**batch).logits, before, atol=1e-5)


def test_copied_positions_leave_short_inputs_as_they_were(family: str, batch: Any, tiny_model: Any) -> None:
    model = tiny_model(family)
    reads, before = longest_read(model), model(**batch).logits
    extend_positions(model, tokens=3 * reads)
    assert torch.equal(model(**batch).logits, before) and longest_read(model) == 3 * reads
    table = next(module for name, module in model.named_modules() if name.endswith("position_embeddings")).weight
    assert torch.equal(table[-1], table[-1 - reads])
    assert is_plain(model)


def test_stretched_positions_lie_between_those_there_were(tiny_model: Any) -> None:
    model = tiny_model("bert")
    before = model.bert.embeddings.position_embeddings.weight.detach()
    extend_positions(model, tokens=127, fill="interpolated")
    after = model.bert.embeddings.position_embeddings.weight
    assert torch.allclose(after[::2], before, atol=1e-6)
    assert torch.allclose(after[1], (before[0] + before[1]) / 2, atol=1e-6)


@pytest.fixture
def context(saved_base: Callable[..., Path], toy_task: Task, tmp_path: Path) -> Any:
    return make_context(saved_base("bert"), toy_task, tmp_path)


@pytest.mark.parametrize("match", ["maps", "outputs"])
def test_features_learn_what_exact_attention_does(match: Any, context: Any) -> None:
    """And nothing else learns: the losses of both layers fall, and projections stay bit by bit."""
    events: list[dict[str, Any]] = []
    context.__dict__["log"] = events.append
    model = load(context.base.config._name_or_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Attend(by="linear", match=match, examples=64, passes=6, allow_slower=True).apply(model, context)
    told = next(event for event in events if event["event"] == "attention-transfer")
    assert all(last < 0.97 * first for first, last in zip(told["first_pass"], told["last_pass"], strict=True))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_longer_texts_are_read_after_it_by_model_teacher_and_tokenizer(
    saved_base: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    row = " ".join(["good film"] * 60)
    for name in ("train", "validation"):
        (folder / f"{name}.csv").write_text(f"text,label\n{row},positive\n{row} bad,negative\n")
    context = make_context(saved_base("bert"), Task("text-classification", data=str(folder)), tmp_path / "work")
    assert context.train.lengths.max() == 64
    model = load(context.base.config._name_or_path)
    Attend(window=16, positions=256, allow_slower=True).apply(model, context)
    reading = context.as_read_by(model)
    assert sorted(reading.train.lengths) == [122, 123] and reading.as_read_by(model) is reading
    saved = save(model, tmp_path / "saved", reading.tokenizer)
    assert longest_input(load(saved), load_tokenizer(saved)) == 256
    Train(together=(Distill(),), epochs=1, batch_size=2).run(model, reading)
    longer = Train(together=(Attend(positions=512, allow_slower=True),), epochs=1)
    for refused in (lambda: longer.run(model, reading), lambda: Recipe([longer])):
        with pytest.raises(NiwakiError, match="inside train"):
            refused()


def test_each_row_has_a_coin_of_its_own(context: Any) -> None:
    """Half of them fall for the window: no row is a mixture, and none is like all others."""
    answers = {}
    for probability in (0.0, 0.5, 1.0):
        model = load(context.base.config._name_or_path)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        attend = Attend(window=2, keep=(1,), end=1.0, coin="example", schedule="constant", probability=probability)
        companion = attend.model_copy(update={"allow_slower": True}).accompany(model, context)
        companion.step(0.0)
        answers[probability] = model.train()(input_ids=torch.ones(16, 30, dtype=torch.long)).logits
    exact, mixed, own = answers.values()
    are_exact, are_own = (torch.isclose(mixed, one, atol=1e-6).all(dim=1) for one in (exact, own))
    assert torch.equal(are_exact, ~are_own) and 0 < int(are_own.sum()) < 16


def test_the_exact_attention_gives_way_little_by_little(context: Any) -> None:
    model = load(context.base.config._name_or_path)
    tokens = {"input_ids": torch.ones(2, 30, dtype=torch.long)}
    exact = model(**tokens).logits
    companion = Attend(window=2, end=0.5, allow_slower=True).accompany(model, context)
    answers = {}
    for progress in (0.0, 0.5):
        companion.step(progress)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        answers[progress] = model(**tokens).logits
    own = companion.finish(model).eval()(**tokens).logits
    assert torch.allclose(answers[0.0], exact, atol=1e-5) and torch.allclose(answers[0.5], own, atol=1e-5)
    assert not torch.allclose(exact, own, atol=1e-3)


def test_what_would_not_get_faster_is_refused(monkeypatch: pytest.MonkeyPatch, context: Any) -> None:
    """On a clock of our own: the new attention pays from 48 tokens on; the texts have 14 at most."""
    times = Times((32, 64), exact=(1.0, 2.0), other=(2.0**0.5, 2.0**0.5))
    monkeypatch.setattr("niwaki.techniques.attend.technique.times_of", lambda *_: times)
    model = load(context.base.config._name_or_path)
    Attend(window=8).check(model)
    with pytest.raises(NiwakiError, match="times as long") as refused:
        Attend(window=8).apply(model, context)
    assert "45 tokens" in str(refused.value) and is_plain(model)
    monkeypatch.setattr(
        "niwaki.techniques.attend.technique.times_of", lambda *_: Times((32, 64), exact=(1.0, 2.0), other=(3.0, 3.0))
    )
    with pytest.raises(NiwakiError, match="nothing gets faster up to 64 tokens"):
        Attend(window=8).check(model)
    Attend(window=8, allow_slower=True).check(model)


def test_what_gets_faster_says_from_which_length_on(monkeypatch: pytest.MonkeyPatch, context: Any) -> None:
    times = Times((4, 64), exact=(1.0, 16.0), other=(0.5, 4.0))
    monkeypatch.setattr("niwaki.techniques.attend.technique.times_of", lambda *_: times)
    events: list[dict[str, Any]] = []
    context.__dict__["log"] = events.append
    Attend(window=8).apply(load(context.base.config._name_or_path), context)
    assert any("pays from about 4 tokens on" in event.get("note", "") for event in events)


def test_what_attends_like_this_already_stays(context: Any) -> None:
    """What was learnt is not taught anew, neither where it is kept nor where it is asked for again."""
    model = load(context.base.config._name_or_path)
    linear: dict[str, Any] = {"by": "linear", "allow_slower": True, "examples": 8, "passes": 1}
    Attend(**linear, keep=(1,)).apply(model, context)
    first, second = (layer.attention for layer in anatomy_of(model).layers)
    learnt = {name: tensor.clone() for name, tensor in first.mechanism.state_dict().items()}
    companion = Attend(**linear, end=0.5).accompany(model, context)
    assert len(companion.eithers) == 1  # of the second layer alone
    assert all(torch.equal(first.mechanism.state_dict()[name], tensor) for name, tensor in learnt.items())
    assert type(second.mechanism) is type(first.mechanism)
    with pytest.raises(NiwakiError, match="no attention to swap"):
        Attend(**linear).apply(model, context)
    Attend(window=4, keep=(1,), allow_slower=True).apply(model, context)
    assert type(first.mechanism) is not type(second.mechanism)


def test_up_to_its_window_an_attention_takes_as_long_as_the_exact_one() -> None:
    from niwaki.techniques.attend.break_even import times_of

    times = times_of("window", 2, 4, 2, 64, (("window", 64), ("global_tokens", 1)))
    assert times.exact == times.other and times.break_even == np.inf


def test_the_clock_runs(context: Any) -> None:
    """What was timed goes with the lengths asked for, and every time is one."""
    from niwaki.techniques.attend.break_even import times_of

    times = times_of("window", 2, 4, 2, 100, (("window", 8), ("global_tokens", 1)))
    assert times.lengths == (32, 64, 100)
    assert np.all(np.array(times.exact + times.other) > 0)


def test_layers_that_are_kept_stay_exact(context: Any) -> None:
    model = load(context.base.config._name_or_path)
    Attend(window=2, keep=(0,), allow_slower=True).apply(model, context)
    swapped = [hasattr(layer.attention.self, "mechanism") for layer in model.bert.encoder.layer]
    assert swapped == [False, True]
    for wrong in ({"keep": (0, 1)}, {"keep": (2,)}):
        with pytest.raises(NiwakiError):
            Attend(**wrong, allow_slower=True).check(model)
