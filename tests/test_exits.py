"""Exits: edits that reload, what every head says in one pass, and rows that leave a batch as each would alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.checkpoint import load, save, weights_hash
from niwaki.errors import NiwakiError
from niwaki.exit_rule import NEVER, By, leaving, sureness
from niwaki.exiting import all_logits, classify, run_layers
from niwaki.layers.exits import ExitHead, exits_of
from niwaki.packable import packable
from niwaki.surgery import add_exit, is_plain, journal_of, keep_layers, narrow_hidden, set_thresholds, swap_attention
from niwaki.surgery.journal import EDITS

Models = Callable[..., nn.Module]
Batches = Callable[..., dict[str, Tensor]]
ENCODERS = ("bert", "roberta", "distilbert", "electra", "albert")


@pytest.fixture(scope="session")
def with_exits(tiny_model: Models, tiny_batch: Batches) -> Models:
    """Return the factory of tiny models with exits whose heads say something, and not the same to all."""

    def build(family: str, after: tuple[int, ...] = (0, 2), layers: int = 4, labels: int = 2) -> nn.Module:
        model = tiny_model(family, layers=layers, labels=labels)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(1)
            for layer in after:
                add_exit(model, layer=layer, width=16)
            for head in model.exits.heads.values():
                head.classifier.weight.mul_(4)
                head.classifier.bias.zero_()
            said_EBC = all_logits(model.eval(), tiny_batch(family))
            for head, logits_BC in zip(model.exits.heads.values(), said_EBC[:-1], strict=True):
                head.classifier.bias.sub_(logits_BC.mean(dim=0))
        return model

    return build


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_model_with_exits_reloads_bit_equal(
    encoder: str, tmp_path: Path, with_exits: Models, tiny_batch: Batches
) -> None:
    model, batch = with_exits(encoder), tiny_batch(encoder)
    set_thresholds(model, by="entropy", thresholds=[0.9, 0.25])
    again = load(save(model, tmp_path / "run"))
    assert torch.equal(all_logits(again, batch), all_logits(model, batch))
    assert weights_hash(again) == weights_hash(model) and journal_of(again) == journal_of(model)
    exits = exits_of(again)
    assert exits is not None and (exits.layers, exits.by, exits.thresholds) == ((0, 2), "entropy", (0.9, 0.25))
    assert not any(tensor.is_meta for tensor in again.parameters())
    assert not is_plain(model)


def test_the_models_own_forward_is_what_it_was(
    encoder: str, with_exits: Models, tiny_model: Models, tiny_batch: Batches
) -> None:
    whole, model, batch = tiny_model(encoder, layers=4), with_exits(encoder), tiny_batch(encoder)
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, whole(**batch).logits)
        assert torch.equal(all_logits(model, batch)[-1], whole(**batch).logits)


def test_exits_read_the_first_token_of_their_layer(encoder: str, with_exits: Models, tiny_batch: Batches) -> None:
    model, batch = with_exits(encoder), tiny_batch(encoder)
    anatomy = anatomy_of(model)
    seen: list[Tensor] = []
    handles = [
        layer.module.register_forward_hook(lambda module, inputs, output: seen.append(output))
        for layer in anatomy.layers
    ]
    with torch.inference_mode():
        model(**batch)
        for handle in handles:
            handle.remove()
        assert len(seen) == anatomy.depth == 4
        for place, layer in enumerate((0, 2)):
            head = model.exits.heads[str(layer)]
            states_BD = seen[layer][:, 0]
            by_hand = torch.tanh(states_BD @ head.dense.weight.T + head.dense.bias) @ head.classifier.weight.T
            torch.testing.assert_close(all_logits(model, batch)[place], by_hand + head.classifier.bias)


def test_a_stretch_of_layers_leaves_nothing_behind(encoder: str, tiny_model: Models, tiny_batch: Batches) -> None:
    model, inputs = tiny_model(encoder, layers=4), inputs_of(tiny_batch(encoder))
    with torch.inference_mode():
        states = run_layers(model, inputs, 0, 3)
        assert torch.equal(run_layers(model, inputs, 3, None, states), model(**inputs).logits)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_threads_may_share_a_model(encoder: str, with_exits: Models, tiny_batch: Batches) -> None:
    """Two threads go through it at the same time, one a layer ahead of the other."""
    model, batch = with_exits(encoder), tiny_batch(encoder)
    said = sureness("probability", all_logits(model, batch)[:-1].detach().numpy())
    set_thresholds(model, by="probability", thresholds=np.sort(said, axis=1)[:, 9:11].mean(axis=1).tolist())
    halves = [{name: value[at : at + 8] for name, value in batch.items()} for at in (0, 8)]
    expected = [classify(model, half) for half in halves]
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda half: classify(model, half), halves * 20))
    for (logits_BC, exit_B), (wanted_BC, wanted_B) in zip(found, expected * 20, strict=True):
        assert torch.equal(logits_BC, wanted_BC) and torch.equal(exit_B, wanted_B)


def test_what_an_exit_cannot_be(tiny_model: Models, tiny_batch: Batches) -> None:
    model = tiny_model("bert", layers=3)
    add_exit(model, layer=1)
    for layer in (-1, 1, 2, 3):
        with pytest.raises(NiwakiError, match=rf"an exit after layer {layer}\n.*0\.\.1, but 1"):
            add_exit(model, layer=layer)
    with pytest.raises(NiwakiError, match="width is 0"):
        add_exit(model, layer=0, width=0)
    with pytest.raises(NiwakiError, match="more than one layer"):
        add_exit(tiny_model("bert", layers=1), layer=0)
    with pytest.raises(NiwakiError, match="LlamaForCausalLM has no head that reads the first token"):
        add_exit(tiny_model("llama", layers=3), layer=0)
    with pytest.raises(NiwakiError, match="1 numbers, one an exit"):
        set_thresholds(model, by="entropy", thresholds=[0.5, 0.5])
    with pytest.raises(NiwakiError, match="1 numbers, one an exit"):
        set_thresholds(model, by="entropy", thresholds=[float("inf")])
    with pytest.raises(NiwakiError, match="by is 'sure'"):
        EDITS["set_thresholds"](model, by="sure", thresholds=[0.5])
    plain = tiny_model("bert")
    for call in (all_logits, classify):
        with pytest.raises(NiwakiError, match="no exits"):
            call(plain, tiny_batch("bert"))
    with pytest.raises(NiwakiError, match="no exits"):
        set_thresholds(plain, by="entropy", thresholds=[])


def test_exits_go_with_their_layers(tmp_path: Path, with_exits: Models, tiny_batch: Batches) -> None:
    model, batch = with_exits("bert", after=(0, 1, 3), layers=6), tiny_batch("bert")
    set_thresholds(model, by="patience", thresholds=[1, 2, 3])
    heads = dict(model.exits.heads)
    keep_layers(model, layers=[1, 3, 4])
    assert model.exits.layers == (0, 1) and model.exits.thresholds == (2.0, 3.0)
    assert model.exits.heads["0"] is heads["1"] and model.exits.heads["1"] is heads["3"]
    again = load(save(model, tmp_path / "run"))
    assert torch.equal(all_logits(again, batch), all_logits(model, batch))
    keep_layers(model, layers=[1, 2])  # the exit after layer 1 stands first now
    assert model.exits.layers == (0,)
    keep_layers(model, layers=[0])  # and would stand last
    assert exits_of(model) is None
    assert exits_of(load(save(model, tmp_path / "none"))) is None


def test_channels_that_go_go_in_the_heads_too(
    encoder: str, tmp_path: Path, with_exits: Models, tiny_batch: Batches
) -> None:
    whole, batch = with_exits(encoder), tiny_batch(encoder)
    channels = list(range(0, 32, 2))
    model = narrow_hidden(copy.deepcopy(whole), channels=channels)
    for layer in ("0", "2"):
        wide, narrow = whole.exits.heads[layer], model.exits.heads[layer]
        assert torch.equal(narrow.dense.weight, wide.dense.weight[:, channels])
        assert torch.equal(narrow.classifier.weight, wide.classifier.weight)
    again = load(save(model, tmp_path / "run"))
    assert torch.equal(all_logits(again, batch), all_logits(model, batch))


def test_heads_of_exits_stay_floats(with_exits: Models) -> None:
    model = with_exits("bert")
    linears, _ = packable(model, embeddings=True, skip=(), technique="quantize")
    assert linears and not [name for name in linears if name.startswith("exits")]


# Rows leave

LABELS = {"bert": 2, "roberta": 3, "distilbert": 2, "electra": 3, "albert": 3}
#: By which no threshold of a test is nearer to what a row has: sums are rounded in another order in another batch.
MARGIN = 1e-3


@pytest.fixture(scope="session")
def models(with_exits: Models) -> dict[str, nn.Module]:
    return {family: with_exits(family, labels=labels) for family, labels in LABELS.items()}


def alone(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return what each row gets when it comes alone, without padding."""
    rows = []
    for row, mask_T in enumerate(batch["attention_mask"]):
        rows.append(classify(model, {name: value[row : row + 1, : int(mask_T.sum())] for name, value in batch.items()}))
    return torch.cat([logits for logits, _ in rows]), torch.cat([exit_B for _, exit_B in rows])


@settings(max_examples=25, deadline=None)
@given(
    family=st.sampled_from(sorted(LABELS)),
    by=st.sampled_from(["entropy", "probability", "patience"]),
    shares=st.lists(st.one_of(st.floats(0, 1), st.just(NEVER)), min_size=2, max_size=2),
    first=st.integers(0, 12),
    rows=st.integers(1, 16),
)
def test_rows_leave_a_batch_as_they_would_leave_alone(
    models: dict[str, nn.Module],
    tiny_batch: Batches,
    family: str,
    by: By,
    shares: list[float],
    first: int,
    rows: int,
) -> None:
    model, whole = models[family], tiny_batch(family)
    batch = {name: value[first : first + rows] for name, value in whole.items()}
    said_EBC = all_logits(model, whole)[:, first : first + rows].detach().numpy()
    thresholds = [1 + round(share) if by == "patience" and share != NEVER else share for share in shares]
    if by != "patience":
        assume(np.abs(sureness(by, said_EBC[:-1]) - np.array(thresholds)[:, None]).min() > MARGIN)
    assume(np.abs(np.diff(np.sort(said_EBC, axis=2)[:, :, -2:], axis=2)).min() > MARGIN)  # no tie between classes
    set_thresholds(model, by=by, thresholds=thresholds)
    logits_BC, exit_B = classify(model, batch)
    expected_B = leaving(by, np.array(thresholds), said_EBC[:-1])
    assert exit_B.tolist() == expected_B.tolist()
    by_rule = torch.from_numpy(said_EBC[expected_B, np.arange(len(expected_B))])
    torch.testing.assert_close(logits_BC, by_rule, atol=1e-4, rtol=1e-4)
    alone_BC, alone_B = alone(model, batch)
    assert exit_B.tolist() == alone_B.tolist()
    torch.testing.assert_close(logits_BC, alone_BC, atol=1e-4, rtol=1e-4)


def test_layers_run_the_rows_that_are_left_and_their_columns(
    encoder: str, with_exits: Models, tiny_batch: Batches
) -> None:
    model, batch = with_exits(encoder), tiny_batch(encoder)
    order = batch["attention_mask"].sum(dim=1).argsort(descending=True)
    batch = {name: value[order] for name, value in batch.items()}  # the longest rows first
    said = sureness("probability", all_logits(model, batch)[:1].detach().numpy())[0]
    threshold = float(np.sort(said)[-8:-6].mean())  # the 7 surest leave at the first exit
    set_thresholds(model, by="probability", thresholds=[threshold, NEVER])
    shapes: list[tuple[int, ...]] = []
    anatomy = anatomy_of(model)
    handles = [
        layer.module.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
        for layer in anatomy.layers
    ]
    runs: list[int] = []
    up = anatomy.layers[0].part("up")
    handles.append(up.register_forward_hook(lambda module, inputs, output: runs.append(output.shape[0])))
    _, exit_B = classify(model, batch)
    for handle in handles:
        handle.remove()
    assert exit_B.tolist() == [0 if sure > threshold else 2 for sure in said]
    left_T = int(batch["attention_mask"][exit_B == 2].sum(dim=1).max())
    assert shapes[-1][:2] == (9, left_T)
    assert runs == [16] if anatomy.uses == 1 else [16, 9, 9, 9]


def test_no_layer_runs_when_all_have_left(with_exits: Models, tiny_batch: Batches) -> None:
    model, batch = with_exits("bert"), tiny_batch("bert")
    set_thresholds(model, by="probability", thresholds=[0.0, 0.0])
    ran: list[int] = []
    handles = [
        layer.part("up").register_forward_hook(lambda *_, index=layer.index: ran.append(index))
        for layer in anatomy_of(model).layers
    ]
    logits_BC, exit_B = classify(model, batch)
    for handle in handles:
        handle.remove()
    assert ran == [0] and exit_B.tolist() == [0] * 16
    torch.testing.assert_close(logits_BC, all_logits(model, batch)[0])


@pytest.mark.parametrize("by", ["window", "linear", "nystrom"])
def test_rows_leave_models_that_attend_otherwise(by: str, with_exits: Models, tiny_batch: Batches) -> None:
    model, batch = with_exits("bert"), tiny_batch("bert")
    for layer in range(4):
        swap_attention(model, layer=layer, by=by, **({"window": 3} if by == "window" else {}))  # type: ignore[arg-type]
    said = sureness("probability", all_logits(model.eval(), batch)[:-1].detach().numpy())
    ordered = np.sort(said, axis=1)
    set_thresholds(model, by="probability", thresholds=ordered[:, 9:11].mean(axis=1).tolist())
    logits_BC, exit_B = classify(model, batch)
    alone_BC, alone_B = alone(model, batch)
    assert len(set(exit_B.tolist())) == 3 and exit_B.tolist() == alone_B.tolist()
    torch.testing.assert_close(logits_BC, alone_BC, atol=1e-4, rtol=1e-4)


def test_a_head_is_worked_out_by_hand() -> None:
    head = ExitHead(hidden=2, width=1, classes=2)
    with torch.no_grad():
        head.dense.weight.copy_(torch.tensor([[1.0, 2.0]]))
        head.dense.bias.fill_(-3.0)
        head.classifier.weight.copy_(torch.tensor([[2.0], [-1.0]]))
        head.classifier.bias.copy_(torch.tensor([0.5, 0.0]))
    states_BTD = torch.tensor([[[1.0, 1.0], [9.0, 9.0]]])  # 1 + 2 - 3 = 0
    assert head(states_BTD).tolist() == [[0.5, 0.0]]
