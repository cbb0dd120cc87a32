"""`drop-tokens`: scores and choices by hand, rows that do not touch each other, levels fitted and learnt, files."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki import techniques
from niwaki.anatomy import anatomy_of
from niwaki.calibrate import input_ranges, input_sizes, predict
from niwaki.checkpoint import load, save
from niwaki.errors import NiwakiError
from niwaki.export import export_onnx, export_openvino
from niwaki.export.parity import decided
from niwaki.layers.dropping import TokenDropper, attend_and_score, droppers_of, dropping, to_front
from niwaki.recipe import Recipe
from niwaki.report.exits import pictures
from niwaki.report.precision import told_of
from niwaki.surgery import (
    add_exit,
    drop_tokens,
    is_plain,
    journal_of,
    keep_layers,
    narrow_heads,
    quantize_linear,
    swap_attention,
)
from niwaki.surgery.dropping import levels_of, stand_droppers
from niwaki.task import Task
from niwaki.technique import Context
from niwaki.techniques.distill import Distill
from niwaki.techniques.drop_tokens import DropTokens
from niwaki.techniques.drop_tokens.fitting import Schedule, candidates, least_share
from niwaki.techniques.exit import Exit
from niwaki.techniques.quantize import Quantize
from niwaki.testing import fresh, logits, make_context
from niwaki.token_shares import token_shares
from niwaki.train import Train

Bases = Callable[..., Path]
LEVELS: list[tuple[Any, list[float]]] = [("share", [0.7, 0.7, 0.7]), ("threshold", [0.04, 0.08, 0.1])]


@pytest.fixture
def context(saved_base: Bases, toy_task: Task, tmp_path: Path) -> Context:
    return make_context(saved_base("bert", layers=3), toy_task, tmp_path)


def logging(context: Context, events: list[dict[str, Any]]) -> Context:
    return replace(context, log=events.append)


def said(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch).logits
    return found


def alone(batch: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """Return one row without its padding."""
    length = int(batch["attention_mask"][row].sum())
    return {name: value[row : row + 1, :length] for name, value in batch.items()}


# Scores and choices


def test_scores_by_hand() -> None:
    """Two heads: one looks at tokens by 1 : 2 : 1, whoever asks, the other at all alike; a fourth token is padding."""
    query = torch.ones(1, 2, 4, 1)
    key = torch.tensor([[[1.0, 2.0, 1.0, 9.0], [1.0, 1.0, 1.0, 9.0]]]).log()[..., None]
    value = torch.tensor([[[4.0, 8.0, 0.0, 99.0], [3.0, 0.0, 0.0, 99.0]]])[..., None]
    real = torch.tensor([[True, True, True, False]])
    context, scores = attend_and_score(query, key, value, real, scaling=1.0)
    assert torch.allclose(scores, torch.tensor([[(1 / 4 + 1 / 3) / 2, (2 / 4 + 1 / 3) / 2, (1 / 4 + 1 / 3) / 2, 0.0]]))
    assert torch.allclose(context[0, :, 0, 0], torch.tensor([5.0, 1.0]))


def test_the_score_is_the_mean_over_tokens_that_are_there() -> None:
    """What padding looks at does not count: its query would give all its attention to the last token."""
    query = torch.tensor([[[[0.0], [0.0], [50.0]]]])
    key = torch.tensor([[[[0.0], [1.0], [0.0]]]])
    _, scores = attend_and_score(query, key, key, torch.tensor([[True, True, False]]), scaling=1.0)
    assert torch.allclose(scores, torch.tensor([[0.5, 0.5, 0.0]]))


@pytest.mark.parametrize("at_once", [1, 40, 120, 200])
def test_blocks_make_what_the_whole_makes(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token after the other, some of a row, a row, and two of three: answers, scores and gradients."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(3, 2, 7, 4, generator=generator, requires_grad=True) for _ in range(3))
    real = torch.arange(7) < torch.tensor([[7], [4], [1]])

    def asked() -> tuple[torch.Tensor, ...]:
        context, scores = attend_and_score(query, key, value, real, scaling=0.5)
        loss = (context * real[:, None, :, None]).square().sum() + scores.square().sum()
        return context.detach(), scores.detach(), *torch.autograd.grad(loss, (query, key, value))

    whole = asked()
    monkeypatch.setattr("niwaki.layers.dropping.AT_ONCE", at_once)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(whole, asked(), strict=True))


def test_a_row_that_is_all_padding_stays_finite(tiny_model: Any, tiny_batch: Any) -> None:
    """In answers and gradients, as it does where attention is exact; rows beside it get what they get alone."""
    model, batch = tiny_model("bert"), tiny_batch("bert")
    drop_tokens(model, by="threshold", levels=[0.05])
    wanted = said(model, batch)
    batch["attention_mask"] = batch["attention_mask"].clone()
    batch["attention_mask"][3] = 0
    logits = model(**batch).logits
    others = torch.arange(len(logits)) != 3
    assert bool(logits.isfinite().all()) and torch.allclose(logits[others], wanted[others], atol=1e-5)
    logits.sum().backward()
    assert all(bool(one.grad.isfinite().all()) for one in model.parameters() if one.grad is not None)
    model.zero_grad()
    assert bool(said(model, {name: value[3:4] for name, value in batch.items()}).isfinite().all())
    with dropping(model, "off"):
        assert bool(said(model, batch).isfinite().all())


@pytest.mark.parametrize(
    ("dropper", "stay"),
    [
        (TokenDropper("share", 0.5), [[0, 2], [0, 1]]),
        (TokenDropper("share", 0.01), [[0], [0]]),
        (TokenDropper("share", 0.9), [[0, 1, 2, 3], [0, 1, 2]]),
        (TokenDropper("threshold", 0.3), [[0, 2, 3], [0]]),
        (TokenDropper("threshold", 0.3, from_length=4), [[0, 2, 3], [0, 1, 2]]),
        (TokenDropper("threshold", 1.0), [[0], [0]]),
    ],
    ids=repr,
)
def test_which_tokens_stay(dropper: TokenDropper, stay: list[list[int]]) -> None:
    scores = torch.tensor([[0.1, 0.2, 0.4, 0.3], [0.7, 0.2, 0.1, 0.0]])
    real = torch.tensor([[True] * 4, [True, True, True, False]])
    found = dropper(scores, real)
    assert [row.nonzero()[:, 0].tolist() for row in found] == stay
    assert dropper.kept_B is not None and dropper.kept_B.tolist() == [len(row) for row in stay]


def test_tokens_that_tie_with_the_last_one_stay() -> None:
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2]])
    assert TokenDropper("share", 0.4)(scores, scores > 0).all()


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    share=st.floats(0.05, 1.0),
    seed=st.integers(0, 1000),
)
def test_a_share_of_a_row_stays_in_its_order(lengths: list[int], share: float, seed: int) -> None:
    tokens = max(lengths)
    scores = torch.rand(len(lengths), tokens, generator=torch.Generator().manual_seed(seed))
    real = torch.arange(tokens) < torch.tensor(lengths)[:, None]
    stays = TokenDropper("share", share)(scores * real, real)
    assert bool(stays[:, 0].all()) and not bool((stays & ~real).any())
    assert stays.sum(dim=1).tolist() == [max(1, math.ceil(length * share - 1e-3)) for length in lengths]
    index = to_front(stays)
    assert index.shape[1] == int(stays.sum(dim=1).max())
    for row, kept in enumerate(stays.sum(dim=1).tolist()):
        assert index[row, :kept].tolist() == stays[row].nonzero()[:, 0].tolist()
        assert len(set(index[row].tolist())) == index.shape[1]


def test_what_stays_moves_to_the_front_and_the_mask_with_it() -> None:
    dropper = TokenDropper("threshold", 0.3)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])[:, None, None, :].clone()
    dropper.choose(torch.tensor([[0.1, 0.2, 0.4, 0.3], [0.3, 0.2, 0.5, 0.0]]), mask)
    states = torch.arange(8.0).view(2, 4, 1)
    taken = dropper.take(states)[..., 0]
    assert taken[0].tolist() == [0.0, 2.0, 3.0] and taken[1, :2].tolist() == [4.0, 6.0]
    assert mask[:, 0, 0, :3].tolist() == [[True, True, True], [True, True, False]]
    assert dropper.take(states) is states, "it lets go once for each choice"


# Models


@pytest.mark.parametrize(("by", "levels"), LEVELS, ids=["share", "threshold"])
def test_a_row_gets_what_it_gets_alone(
    family: str, by: Any, levels: list[float], tiny_model: Any, batch: dict[str, Tensor]
) -> None:
    """In a batch or alone, with padding or without a mask; tokens that are taken out are as good as unseen."""
    model = tiny_model(family, layers=4)
    whole = said(model, batch)
    drop_tokens(model, by=by, levels=levels)
    together = said(model, batch)
    assert (together - whole).abs().max() > 1e-2
    single = torch.cat([said(model, alone(batch, row)) for row in range(len(together))])
    assert torch.allclose(together, single, atol=1e-5)
    unmasked = {name: value for name, value in alone(batch, 1).items() if name != "attention_mask"}
    assert torch.allclose(said(model, unmasked), single[1:2], atol=1e-5)
    with dropping(model, "masked"):
        assert torch.allclose(said(model, batch), together, atol=1e-5)
    with dropping(model, "off"):
        assert torch.equal(said(model, batch), said(drop_tokens(model, by=by, levels=neutral(by, 3)), batch))
    assert torch.allclose(said(model, batch), whole, atol=1e-5) and not droppers_of(model)


def neutral(by: str, count: int) -> list[float]:
    return [1.0 if by == "share" else 0.0] * count


def test_later_layers_compute_fewer_tokens(tiny_model: Any, tiny_batch: Any) -> None:
    model, batch = tiny_model("bert", layers=4), tiny_batch("bert")
    drop_tokens(model, by="share", levels=[0.5, 1.0, 0.5])
    seen: list[tuple[int, int]] = []
    for layer in anatomy_of(model).layers:
        layer.module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0].shape[1], output.shape[1])))
    said(model, batch)
    longest = batch["input_ids"].shape[1]
    half, quarter = math.ceil(longest / 2), math.ceil(math.ceil(longest / 2) / 2)
    assert seen == [(longest, half), (half, half), (half, quarter), (quarter, quarter)]
    assert len(droppers_of(model)) == 2, "a layer that keeps all has no scores to compute"


def test_a_copy_takes_nothing_of_the_last_pass_over(tiny_model: Any, tiny_batch: Any) -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    drop_tokens(model, by="share", levels=[0.5])
    model(**batch).logits.sum().backward()
    other = copy.deepcopy(model)
    (theirs,), (ours,) = droppers_of(other), droppers_of(model)
    assert theirs is not ours and theirs.kept_B is None and ours.kept_B is not None
    assert torch.equal(said(other, batch), said(model, batch)) and theirs.kept_B is not None


def test_short_inputs_are_not_looked_at(tiny_model: Any, tiny_batch: Any) -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    whole = said(model, batch)
    drop_tokens(model, by="share", levels=[0.5], from_length=batch["input_ids"].shape[1] + 1)
    assert torch.allclose(said(model, batch), whole, atol=1e-6)
    assert droppers_of(model)[0].kept_B is None
    drop_tokens(model, by="share", levels=[0.5], from_length=batch["input_ids"].shape[1])
    lengths = batch["attention_mask"].sum(dim=1)
    is_short = lengths < batch["input_ids"].shape[1]
    assert torch.allclose(said(model, batch)[is_short], whole[is_short], atol=1e-5)
    assert (said(model, batch) - whole)[~is_short].abs().max() > 1e-3


def test_it_reloads_and_goes_on_being_cut(family: str, tiny_model: Any, batch: Any, tmp_path: Path) -> None:
    model = tiny_model(family, layers=4)
    drop_tokens(model, by="threshold", levels=[0.03, 1 / 12, 0.1])
    narrow_heads(model, layer=1, heads=[])
    narrow_heads(model, layer=0, heads=[0, 3])
    keep_layers(model, layers=[0, 1, 2])
    assert not is_plain(model) and levels_of(model, "threshold") == [0.03, 0.0]
    loaded = load(save(model, tmp_path))
    assert torch.equal(said(loaded, batch), said(model, batch))
    assert [dropper.level for dropper in droppers_of(loaded)] == [0.03, 0.1]  # the last one drops what nobody reads


def test_statistics_are_of_all_tokens(tiny_model: Any, context: Context) -> None:
    """What is calibrated is as it would be without: states that have left would be missing, and padding be counted."""
    model, same = tiny_model("bert", layers=3), tiny_model("bert", layers=3)
    drop_tokens(model, by="share", levels=[0.5, 0.5])
    names = list(anatomy_of(model).linear_names())
    batches = list(context.calibration_batches(16))
    ours, theirs = (input_ranges(one, names, batches) for one in (model, same))
    assert all(ours[name] == pytest.approx(theirs[name], abs=1e-4) for name in names)
    assert {sizes.tokens for sizes in input_sizes(model, names, batches).values()} == {
        sum(int(batch["attention_mask"].sum()) for batch in batches)
    }
    assert all(dropper.form == "cropped" for dropper in droppers_of(model))


def test_gptq_walks_through_it(context: Context) -> None:
    """Layers run twice there, on a mask that must not have been thinned the first time."""
    step = Quantize(preset="int4-gptq", group=16, examples=16)
    plain = step.run(fresh(context), context)
    model = step.run(drop_tokens(fresh(context), by="share", levels=[0.5, 0.5]), context)
    with dropping(model, "off"):
        assert torch.allclose(logits(model, context), logits(plain, context), atol=1e-4)


# Fitting


def test_candidates_keep_even_means(context: Context) -> None:
    rows = context.data.selection(0)[1]
    for by in ("share", "threshold"):
        schedule = Schedule(by, (1 / 3, 2 / 3))  # type: ignore[arg-type]
        strengths = candidates(fresh(context), schedule, rows)
        assert strengths == sorted(strengths) and strengths[0] > 0 and len(strengths) > 10
    model = fresh(context)
    stand_droppers(model, "threshold", schedule.levels(strengths[len(strengths) // 2]))
    # half of the tokens but the first would go in each layer, if none had gone before
    assert 0.4 < token_shares(model, rows).by_layer[0] < 0.95


@pytest.mark.parametrize("by", ["threshold", "share"])
def test_a_wanted_share_is_held(by: Any, context: Context) -> None:
    events: list[dict[str, Any]] = []
    model = DropTokens(by=by, keep=0.6).apply(fresh(context), logging(context, events))
    shares = token_shares(model, context.data.selection(0)[1])
    record = next(event for event in events if event["event"] == "tokens")
    assert shares.mean == pytest.approx(record["chosen"]["mean_cost"]) and 0.45 < shares.mean <= 0.6
    assert shares.by_layer == pytest.approx(record["chosen"]["shares"]) and shares.by_layer[0] > shares.by_layer[1]
    costs = [point["mean_cost"] for point in record["curve"]]
    assert costs[0] == 1.0 and costs == sorted(costs, reverse=True) and len(costs) > 10
    assert len([one for one in journal_of(model) if one["edit"] == "drop_tokens"]) == 1
    (table,) = told_of(events)
    assert table.title == "What dropping tokens costs" and "60.0% of the tokens in all layers" in table.below
    assert any(line[1] == "chosen" for line in table.lines)
    assert "tokens left in the layers" in pictures(events, "x")[0][1]


def test_a_limit_on_the_loss_is_held(context: Context) -> None:
    events: list[dict[str, Any]] = []
    model = DropTokens(allowed_drop=20.0).apply(fresh(context), logging(context, events))
    record = next(event for event in events if event["event"] == "tokens")
    curve, chosen = record["curve"], record["chosen"]
    fitting = [point for point in curve if curve[0]["quality"] - point["quality"] <= 20.0]
    assert chosen["mean_cost"] == min(point["mean_cost"] for point in fitting)
    _, rows = context.data.selection(0)
    accuracy = 100 * (predict(model, rows).argmax(axis=1) == rows.labels).mean()
    assert accuracy == pytest.approx(chosen["quality"])


def test_it_is_fitted_anew_in_the_shape_it_has(context: Context) -> None:
    model = drop_tokens(fresh(context), by="threshold", levels=[0.02, 0.06])
    first, second = levels_of(DropTokens(keep=0.7).apply(model, context), "threshold")
    assert second == pytest.approx(3 * first)


# Training


def test_the_soft_mask_by_hand(context: Context) -> None:
    technique = DropTokens(penalty=0.5, temperature=0.4, end=1.0)
    model = fresh(context)
    companion: Any = technique.accompany(model, context)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    unit = 1 / float(context.train.lengths.mean())
    batch = context.train.batch(range(6))
    seen: dict[str, Tensor] = {}
    for layer in anatomy_of(model).layers[:2]:
        layer.attention.dropper.register_forward_hook(
            lambda _, inputs, __, index=layer.index: seen.update({f"s{index}": inputs[0]})
        )
        layer.module.register_forward_hook(
            lambda _, __, output, index=layer.index: seen.update({f"h{index}": output}), prepend=True
        )
    following = anatomy_of(model).layers[2].module
    following.register_forward_hook(lambda _, inputs, __: seen.update({"next": inputs[0]}))
    companion.step(0.0)
    output = model.train()(**{name: value for name, value in batch.items() if name != "labels"})
    masks = []
    for index, level in enumerate((unit / 3, 2 * unit / 3)):
        mask = torch.sigmoid((seen[f"s{index}"] - level) / (0.4 * unit))
        mask[:, 0] = 1.0
        masks.append(mask * masks[-1] if masks else mask)
    real = batch["attention_mask"].bool()
    wanted = 0.5 * (masks[0][real].mean() + masks[1][real].mean()) / 2
    loss = companion.loss(output, batch)["mask"]
    assert torch.allclose(loss, wanted)
    assert torch.allclose(seen["next"], seen["h1"] * masks[1][:, :, None])
    loss.backward()
    assert (companion.thresholds.grad < 0).all(), "to raise a threshold makes the mask smaller"


def test_learnt_thresholds_leave_fewer_tokens(context: Context) -> None:
    """With a high price they rise, are held in the second half, and mean later what they meant in training."""
    events: list[dict[str, Any]] = []
    learnt = {}
    for penalty in (0.0, 30.0):
        technique = DropTokens(penalty=penalty, threshold_rate=0.1, temperature=0.3)
        train = Train(together=(Distill(), technique), epochs=3, batch_size=8, learning_rate=1e-4)
        model = train.run(fresh(context), logging(context, events))
        learnt[penalty] = token_shares(model, context.data.selection(0)[1]).mean
        record = [event for event in events if event["event"] == "tokens"][-1]
        assert record["chosen"]["strength"] == 1.0 and record["chosen"]["mean_cost"] == pytest.approx(learnt[penalty])
        assert record["chosen"]["levels"] == levels_of(model, "threshold")
    assert learnt[30.0] < learnt[0.0] - 0.1
    assert any("fading.mask" in event.get("parts", {}) for event in events)


def test_shares_fall_while_it_trains(context: Context) -> None:
    model = fresh(context)
    companion: Any = DropTokens(by="share", keep=0.5, end=0.5).accompany(model, context)
    shares = []
    for progress in (0.0, 0.25, 0.5, 1.0):
        companion.step(progress)
        shares.append(droppers_of(model)[0].level)
        assert companion.ready(progress) == (progress >= 0.5)
    assert shares[0] == 1.0 and shares[1] == pytest.approx((1 + shares[2]) / 2) and shares[2] == shares[3]
    model = companion.finish(model)
    found = token_shares(model, context.data.selection(0)[1])
    once = [max(1, math.ceil(length * shares[-1] - 1e-3)) for length in found.length_N]
    twice = [max(1, math.ceil(length * shares[-1] - 1e-3)) for length in once]
    assert found.kept_NL.tolist() == [[*row, row[-1]] for row in zip(once, twice, strict=True)]
    assert all(dropper.form == "cropped" for dropper in droppers_of(model))


def test_an_interrupted_training_ends_the_same(context: Context, run_until: Any, tmp_path: Path) -> None:
    """Interrupted in its hard half, where thresholds are held."""
    train = Train(together=(DropTokens(threshold_rate=0.1),), epochs=1, batch_size=16, checkpoint_seconds=1e-6)
    straight, interrupted = (replace(context, workspace=tmp_path / name) for name in ("straight", "interrupted"))
    for one in (straight, interrupted):
        one.workspace.mkdir()
    whole = train.run(fresh(context), straight)
    run_until(train, interrupted, 4)
    again = train.run(fresh(context), interrupted)
    assert levels_of(again, "threshold") == levels_of(whole, "threshold")
    assert torch.equal(logits(again, context), logits(whole, context))


# Files


@pytest.mark.parametrize(
    ("name", "by", "levels", "packed"),
    [("distilbert", "threshold", [0.05, 0.1], False), ("bert", "share", [0.7], True)],
    ids=["threshold", "share-int8"],
)
def test_onnx_computes_fewer_tokens(
    name: str, by: Any, levels: list[float], packed: bool, tiny_model: Any, tiny_batch: Any, tmp_path: Path
) -> None:
    """In a padded batch and alone; the lengths inside the file are those of the model."""
    import onnx
    import onnxruntime

    model, batch = tiny_model(name, layers=len(levels) + 1), tiny_batch(name)
    drop_tokens(model, by=by, levels=levels)
    if packed:
        for module in list(anatomy_of(model).linear_names()):
            quantize_linear(model, module=module)
    parity = export_onnx(model, [batch, alone(batch, 3)], tmp_path / "model.onnx")
    assert parity.count == 17 and (packed or parity.agreement == 1.0)
    said(model, batch)
    wanted = [int(dropper.kept_B.max()) for dropper in droppers_of(model) if dropper.kept_B is not None]
    graph = onnx.load(tmp_path / "model.onnx")
    norms = [node.output[0] for node in graph.graph.node if node.op_type == "LayerNormalization"]
    graph.graph.output.extend(onnx.ValueInfoProto(name=norm) for norm in norms)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    inputs = {one.name: batch[one.name].numpy() for one in session.get_inputs()}
    lengths = [states.shape[1] for states in session.run(norms, inputs)]
    longest = batch["input_ids"].shape[1]
    # the embeddings' norm; two a layer, behind the choice of each that drops; the last one reads the first token alone
    assert lengths == [longest, *(length for length in wanted for _ in range(2)), 1, 1]
    assert wanted[-1] < longest


def test_openvino_agrees(tiny_model: Any, tiny_batch: Any, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    model, batch = tiny_model("roberta"), tiny_batch("roberta")
    drop_tokens(model, by="share", levels=[0.6], from_length=6)
    parity = export_openvino(model, [batch, alone(batch, 3)], tmp_path / "model.xml")
    assert parity.agreement == 1.0 and parity.largest_difference < 1e-3


def test_rows_whose_choice_hangs_on_the_last_bit_are_not_compared(tiny_model: Any, tiny_batch: Any) -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    drop_tokens(model, by="threshold", levels=[0.05])
    said(model, batch)
    margins = droppers_of(model)[0].margin_B
    assert margins is not None and decided(model, [batch]).tolist() == (margins > 1e-4).tolist()
    scores = torch.tensor([[0.5, 0.05 + 1e-7, 0.2], [0.5, 0.06, 0.2]])
    droppers_of(model)[0](scores, scores > 0)
    near = droppers_of(model)[0].margin_B
    assert near is not None and near.tolist() == pytest.approx([0.0, 0.2], abs=1e-5)
    assert decided(tiny_model("bert"), [batch]).all()


# What cannot be


def test_the_registry_knows_two_words() -> None:
    assert techniques.get("drop-tokens") is DropTokens and "drop-tokens" in techniques.names()
    recipe = Recipe.parse("steps: [{drop-tokens: {keep: 0.5}}]")
    assert recipe.steps == (DropTokens(keep=0.5),) and Recipe.parse(recipe.dump()).steps == recipe.steps


@pytest.mark.parametrize(
    ("family", "layers", "why"),
    [("llama", 3, "no head that reads the first token"), ("albert", 3, "albert"), ("bert", 1, "one layer")],
)
def test_models_that_cannot(family: str, layers: int, why: str, tiny_model: Any) -> None:
    with pytest.raises(NiwakiError, match=why):
        DropTokens().check(tiny_model(family, layers=layers))


def test_what_needs_all_tokens_does_not_stand_beside_it(tiny_model: Any) -> None:
    with_exit = add_exit(tiny_model("bert", layers=3), layer=0)
    with pytest.raises(NiwakiError, match="has exits"):
        drop_tokens(with_exit, by="share", levels=[0.5, 0.5])
    swapped = swap_attention(tiny_model("bert"), layer=0, by="window")
    with pytest.raises(NiwakiError, match="was swapped"):
        DropTokens().check(swapped)
    dropped = drop_tokens(tiny_model("bert", layers=3), by="share", levels=[0.5, 0.5])
    with pytest.raises(NiwakiError, match="exit needs every token"):
        add_exit(dropped, layer=0)
    with pytest.raises(NiwakiError, match="attend needs every token"):
        swap_attention(dropped, layer=0, by="window")


@pytest.mark.parametrize(
    ("levels", "more"),
    [
        ({"by": "share", "levels": [0.5]}, "2 numbers"),
        ({"by": "share", "levels": [0.5, 0.0]}, r"\(0, 1\]"),
        ({"by": "threshold", "levels": [0.5, -0.1]}, r"\[0, 1\]"),
        ({"by": "length", "levels": [0.5, 0.5]}, "threshold, share"),
        ({"by": "share", "levels": [0.5, 0.5], "from_length": -1}, "from 0"),
    ],
)
def test_levels_that_cannot_be(levels: dict[str, Any], more: str, tiny_model: Any) -> None:
    model = tiny_model("bert", layers=3)
    with pytest.raises(NiwakiError, match=more):
        drop_tokens(model, **levels)
    assert is_plain(model) and len(journal_of(model)) == 1


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ((Train(together=(Distill(hidden=1.0), DropTokens())),), "distill needs every token"),
        ((Train(together=(Distill(relations=1.0), DropTokens())),), "relations: 0"),
        ((Train(together=(DropTokens(), Exit())), DropTokens()), "exit needs every token"),
        ((DropTokens(), Train(together=(Distill(hidden=1.0),)), DropTokens()), "distill needs every token"),
        ((Train(together=(DropTokens(), DropTokens(keep=0.5))),), "both say which tokens go"),
        ((DropTokens(), Quantize()), "drop-tokens once more"),
    ],
)
def test_recipes_that_cannot_be(steps: tuple[Any, ...], why: str) -> None:
    with pytest.raises(NiwakiError, match=why):
        Recipe(steps)


def test_recipes_that_can_be() -> None:
    Recipe(
        [Train(together=(Distill(hidden=1.0),)), Train(together=(Distill(), DropTokens())), Quantize(), DropTokens()]
    )


def test_a_teacher_that_drops_tokens_tells_no_hidden_states(context: Context) -> None:
    model = drop_tokens(fresh(context), by="share", levels=[0.5, 0.5])
    with pytest.raises(NiwakiError, match="needs every token"):
        Distill(hidden=1.0).accompany(model, context)


def test_settings_that_cannot_be(context: Context) -> None:
    for wrong in ({"keep": 0.5, "allowed_drop": 1.0}, {"keep": 0.5, "confidence": 0.9}, {"keep": 0.0}, {"by": "score"}):
        with pytest.raises(NiwakiError):
            DropTokens(**wrong)  # type: ignore[arg-type]
    with pytest.raises(NiwakiError, match="by share inside train without keep"):
        DropTokens(by="share").accompany(fresh(context), context)
    with pytest.raises(NiwakiError, match="none is dropped"):
        DropTokens(from_length=60).apply(fresh(context), context)
    with pytest.raises(NiwakiError, match="are left where most are dropped"):
        DropTokens(keep=0.01).apply(fresh(context), context)


@pytest.mark.parametrize(
    ("technique", "why"),
    [
        (DropTokens(by="share"), r"steps\[0\].together\[0\].*without keep"),
        (DropTokens(confidence=0.95), "allowed_drop: 1"),
    ],
    ids=["share", "confidence"],
)
def test_what_a_training_does_not_know_is_refused_when_the_recipe_is_read(technique: DropTokens, why: str) -> None:
    with pytest.raises(NiwakiError, match=why):
        Recipe([Train(together=(technique,)), DropTokens()])
    Recipe([Train(together=(DropTokens(confidence=0.95, allowed_drop=1.0),)), DropTokens(confidence=0.95)])


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"from_length": 64}, "none is dropped"),
        ({"from_length": 64, "by": "share", "keep": 0.5}, "none is dropped"),
        ({"keep": 0.05}, "are left where most are dropped"),
        ({"keep": 0.05, "by": "share"}, "are left where most are dropped"),
    ],
    ids=repr,
)
def test_texts_of_which_too_few_tokens_can_go_are_refused_before_training(
    settings: dict[str, Any], why: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("niwaki.train.step.fit", lambda *_: pytest.fail("it has trained"))
    with pytest.raises(NiwakiError, match=why):
        Train(together=(DropTokens(**settings),)).run(fresh(context), context)


def test_the_first_tokens_are_what_is_left_at_least(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """And thresholds are made as strong as that takes, where others would be strong enough."""
    monkeypatch.setattr("niwaki.techniques.drop_tokens.technique.FEW", 0.9)
    rows = context.data.selection(0)[1]
    least = least_share(rows.lengths)
    assert least == pytest.approx(len(rows) / rows.lengths.sum())
    assert token_shares(DropTokens(keep=least).apply(fresh(context), context), rows).mean == pytest.approx(least)


def test_a_training_is_not_lost_where_no_threshold_leaves_as_few_as_are_wanted(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a step it is refused; behind a training the one that leaves the fewest is taken, and the log says so."""
    monkeypatch.setattr("niwaki.techniques.drop_tokens.fitting.DOUBLINGS", 0)
    technique = DropTokens(keep=1.01 * least_share(context.data.selection(0)[1].lengths))
    with pytest.raises(NiwakiError, match="are left where most are dropped"):
        technique.apply(fresh(context), context)
    events: list[dict[str, Any]] = []
    Train(together=(technique,), epochs=0.5).run(fresh(context), logging(context, events))
    record = next(event for event in events if event["event"] == "tokens")
    assert record["chosen"] == record["curve"][-1] and record["chosen"]["mean_cost"] > record["wanted"]
    assert any("are left" in event["note"] for event in events if event["event"] == "note")


def test_a_limit_within_which_no_token_goes(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every point but the first is worse by far."""
    from niwaki.techniques.drop_tokens.fitting import Labels

    def quality(self: Labels, predictions: Any, found: list[int] = []) -> float:  # noqa: B006
        found.append(1)
        return 90.0 if len(found) == 1 else 10.0

    monkeypatch.setattr(Labels, "quality", quality)
    with pytest.raises(NiwakiError, match="found no level within allowed_drop 1") as refused:
        DropTokens().apply(fresh(context), context)
    assert "allowed_drop: 2" in str(refused.value)
