"""A chain of segments: the same logits and the same exits as the model, in any batch, and its integers held once."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.artifacts import artifact_of, random_rows
from niwaki.checkpoint import save
from niwaki.errors import MismatchError, NiwakiError
from niwaki.exit_rule import NEVER, leaving, sureness
from niwaki.exiting import all_logits, classify
from niwaki.export import chain as chain_export
from niwaki.export import export_onnx, export_openvino
from niwaki.export.audit import Weights, _with_branches, audit, weights_in_onnx
from niwaki.export.segments import Segments
from niwaki.runtime import open_artifact, open_worker, size_on_disk
from niwaki.runtime.chain import ChainFile
from niwaki.runtime.rule import Rule
from niwaki.surgery import add_exit, narrow_heads, narrow_neurons, quantize_embedding, quantize_linear, set_thresholds

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

Batches = list[dict[str, Tensor]]
LAYERS = (0, 2)


def ragged(pad: int = 0, lengths: tuple[tuple[int, ...], ...] = ((1,), (7,), (33,), (3, 12, 20, 5, 9, 14))) -> Batches:
    generator = torch.Generator().manual_seed(1)
    batches = []
    for own in lengths:
        size = (len(own), max(own))
        mask = (torch.arange(size[1]) < torch.tensor(own)[:, None]).long()
        ids = torch.randint(5, 180, size, generator=generator).where(mask.bool(), torch.tensor(pad))
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def examples(family: str) -> Batches:
    return ragged(pad=1 if family == "roberta" else 0)


def with_exits(model: nn.Module, batches: Batches, by: str = "probability", kind: str = "floats") -> nn.Module:
    """Cut a model unevenly, hang two exits on it, and put thresholds that some rows reach and others do not."""
    torch.manual_seed(3)
    for layer in LAYERS:
        add_exit(model, layer=layer, width=8)
    with torch.no_grad():  # heads that are sure of something
        for head in model.exits.heads.values():  # type: ignore[union-attr,operator]
            head.classifier.weight.mul_(4)
    narrow_heads(model, layer=min(1, anatomy_of(model).num_layers - 1), heads=[0, 2])
    narrow_neurons(model, layer=0, neurons=list(range(40)))
    if kind != "floats":
        static: dict[str, Any] = {"scale": 0.05, "zero_point": 120} if kind == "static" else {}
        for name in [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]:
            quantize_linear(model, module=name, activations=kind, **static)
        for name in list(anatomy_of(model).embedding_names()):
            quantize_embedding(model, module=name)
    set_thresholds(model, by=by, thresholds=[2.0, 2.0] if by == "patience" else [NEVER, NEVER])
    if by != "patience":
        set_thresholds(model, by=by, thresholds=between(by, every(model, batches)[:-1]))
    return model


def every(model: nn.Module, batches: Batches) -> np.ndarray:
    """Return the logits (E + 1, N, C) of the model's exits and of its end."""
    with torch.no_grad():
        return np.concatenate([all_logits(model, batch).numpy() for batch in batches], axis=1)


def between(by: str, logits_ENC: np.ndarray) -> list[float]:
    """Return thresholds in the widest gap of the middle rows' sureness: some leave and some stay."""
    thresholds = []
    for sure_N in np.sort(sureness(by, logits_ENC), axis=1):  # type: ignore[arg-type]
        third = len(sure_N) // 3
        gaps = np.diff(sure_N)[third : 2 * third]
        place = third + int(gaps.argmax())
        thresholds.append(float(sure_N[place : place + 2].mean()))
    return thresholds


def arrays(batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in batch.items()}


# The segments, in torch


@pytest.mark.parametrize("kind", ["floats", "static"])
def test_segments_say_what_every_exit_says(tiny_model: Callable[..., nn.Module], family: str, kind: str) -> None:
    batches = examples(family)
    model = with_exits(tiny_model(family, layers=4), batches, kind=kind)
    before = copy.deepcopy(model)
    segments = Segments(model, token_types=False).eval()
    with torch.no_grad():
        found = np.concatenate([segments(**batch).transpose(0, 1).numpy() for batch in batches], axis=1)
    assert np.allclose(found, every(model, batches), atol=1e-4)
    states = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for value, other in states)


def test_all_tokens_are_handed_on_and_the_end_computes_the_first_alone(tiny_model: Callable[..., nn.Module]) -> None:
    batches = examples("bert")
    segments = Segments(with_exits(tiny_model("bert", layers=4), batches), token_types=False).eval()
    widths: list[tuple[int, ...]] = []
    for segment in segments.segments:
        for layer in segment.layers:  # type: ignore[union-attr]
            layer.up.register_forward_hook(lambda module, inputs, output: widths.append(tuple(inputs[0].shape[:2])))
    with torch.no_grad():
        segments(**batches[-1])
    assert widths == [(6, 20), (6, 20), (6, 20), (6, 1)]
    assert [len(segment.layers) for segment in segments.segments] == [1, 2, 1]  # type: ignore[arg-type,union-attr]


# The chain


@pytest.fixture(scope="module", params=["floats", "dynamic"])
def exported(
    request: pytest.FixtureRequest, tiny_model: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> tuple[nn.Module, Path]:
    """Export a tiny BERT with two exits."""
    model = with_exits(tiny_model("bert", layers=4), ragged(), kind=request.param)
    path = tmp_path_factory.mktemp("chain") / "chain.json"
    export_onnx(model, ragged(), path)
    return model, path


@pytest.mark.parametrize(
    ("family", "kind", "by"),
    [
        ("bert", "none", "entropy"),
        ("roberta", "static", "patience"),
        ("distilbert", "floats", "probability"),
        ("albert", "static", "entropy"),
    ],
)
def test_the_chain_is_the_model_exit_by_exit(
    tiny_model: Callable[..., nn.Module], family: str, kind: str, by: str, tmp_path: Path
) -> None:
    batches = examples(family)
    model = with_exits(tiny_model(family, layers=4), batches, by=by, kind=kind)
    parity = export_onnx(model, batches, tmp_path / "chain.json")
    assert (parity.count, parity.same_exit, parity.agreement) == (9, 1.0, 1.0)
    assert parity.largest_difference < 1e-3
    names = ["chain.json", "segment-0.onnx", "segment-1.onnx", "segment-2.onnx"]
    assert sorted(file.name for file in tmp_path.iterdir()) == names
    artifact = open_artifact(tmp_path / "chain.json", "onnxruntime", threads=1)
    taken = set()
    for batch in batches:
        logits_BC, exits_B = classify(model, batch)
        found_BC, found_B = artifact.classify(arrays(batch))
        assert found_B.tolist() == exits_B.tolist()
        assert np.allclose(found_BC, logits_BC.numpy(), atol=1e-3)
        assert np.array_equal(artifact(arrays(batch)), found_BC)
        taken |= set(found_B.tolist())
    assert len(taken) > 1  # rows did part


@pytest.mark.parametrize(("family", "kind"), [("bert", "dynamic"), ("distilbert", "floats"), ("albert", "static")])
def test_one_file_is_the_chain(tiny_model: Callable[..., nn.Module], family: str, kind: str, tmp_path: Path) -> None:
    import onnx

    batches = examples(family)
    model = with_exits(tiny_model(family, layers=4), batches, by="entropy", kind=kind)
    assert export_onnx(model, batches, tmp_path / "model.onnx").count == 9
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    artifact = open_artifact(tmp_path / "model.onnx", "onnxruntime", threads=1)
    if kind == "floats":
        for batch in batches:
            assert artifact.classify(arrays(batch))[1].tolist() == classify(model, batch)[1].tolist()
    tensors = [one for graph in _with_branches(onnx.load(artifact.path).graph) for one in graph.initializer]
    saved = sum(value.numel() for value in model.state_dict().values() if value.dtype == torch.int8)
    table = anatomy_of(model).embeddings.token_type_embeddings.weight.numel() if saved else 0  # type: ignore[union-attr,operator]
    assert sum(len(one.raw_data) for one in tensors if one.data_type == onnx.TensorProto.INT8) == saved - table


def test_openvino_runs_chains_too(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    batches = examples("electra")
    model = with_exits(tiny_model("electra", layers=4), batches)
    assert export_openvino(model, batches, tmp_path / "chain.json").same_exit == 1.0
    artifact = open_artifact(tmp_path / "chain.json", "openvino", threads=1, precision="f32")
    for batch in batches:
        assert artifact.classify(arrays(batch))[1].tolist() == classify(model, batch)[1].tolist()
    held = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size_on_disk(tmp_path / "chain.json", "openvino") == held


def test_ranges_of_a_whole_batch_make_rows_depend_on_each_other(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    packed = any(value.dtype == torch.int8 for value in model.state_dict().values())
    assert open_artifact(path, "onnxruntime", threads=1).rows_independent is not packed


@pytest.mark.parametrize("exported", ["floats"], indirect=True)
def test_a_row_gets_in_a_batch_what_it_gets_alone(exported: tuple[nn.Module, Path]) -> None:
    artifact = open_artifact(exported[1], "onnxruntime", threads=1)
    batch = arrays(ragged(lengths=((9, 3, 17, 5, 30, 2, 11, 8),))[0])
    logits_BC, exits_B = artifact.classify(batch)
    assert len(set(exits_B.tolist())) > 1
    for row, length in enumerate(batch["attention_mask"].sum(axis=1)):
        alone_1C, exit_1 = artifact.classify({name: value[row : row + 1, :length] for name, value in batch.items()})
        assert exit_1[0] == exits_B[row]
        assert np.allclose(alone_1C[0], logits_BC[row], atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_rows_come_back_in_their_order_whatever_leaves(exported: tuple[nn.Module, Path], data: st.DataObject) -> None:
    """For any thresholds and any batch: each row has the logits of the exit that the rule names."""
    _, path = exported
    by = data.draw(st.sampled_from(["entropy", "probability", "patience"]))
    thresholds = data.draw(st.lists(st.floats(0, 3 if by == "patience" else 1), min_size=2, max_size=2))
    lengths = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    opened = open_once(path)
    runner = copy.copy(opened)
    object.__setattr__(runner, "rule", Rule(by, tuple(thresholds), LAYERS))  # type: ignore[arg-type]
    inputs = arrays(ragged(lengths=(tuple(lengths),))[0])
    every_EBC = runner.every(inputs)
    logits_BC, exits_B = runner.classify(inputs)
    expected_B = leaving(by, np.array(thresholds), every_EBC[:-1])  # type: ignore[arg-type]
    independent = ChainFile.read(path).rows_independent
    if independent:
        assert exits_B.tolist() == expected_B.tolist()
        assert np.allclose(logits_BC, every_EBC[exits_B, np.arange(len(lengths))], atol=1e-5)
    else:  # who leaves at the first exit does so before anything is taken out
        assert ((exits_B == 0) == (expected_B == 0)).all()


_OPENED: dict[Path, Any] = {}


def open_once(path: Path) -> Any:
    if path not in _OPENED:
        _OPENED[path] = open_artifact(path, "onnxruntime", threads=1).exits
    return _OPENED[path]


def test_segments_after_the_last_row_has_left_do_not_run(
    exported: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = open_artifact(exported[1], "onnxruntime", threads=1).exits
    ran: list[tuple[int, int]] = []

    def watched(graph: Any, index: int) -> Any:
        def run(inputs: Any) -> Any:
            ran.append((index, len(inputs["attention_mask"])))
            return graph.run(inputs)

        changed = copy.copy(graph)
        object.__setattr__(changed, "run", run)
        return changed

    graphs = tuple(watched(graph, index) for index, graph in enumerate(runner.graphs))  # type: ignore[union-attr]
    object.__setattr__(runner, "graphs", graphs)
    inputs = arrays(ragged()[-1])
    sure_B = np.sort(sureness("probability", runner.every(inputs)[:1])[0])  # type: ignore[union-attr]
    for threshold, expected in (
        (0.0, [(0, 6)]),
        (float(sure_B[:2].mean()), [(0, 6), (1, 1), (2, 1)]),
        (NEVER, [(0, 6), (1, 6), (2, 6)]),
    ):
        object.__setattr__(runner, "rule", Rule("probability", (threshold, NEVER), LAYERS))
        ran.clear()
        runner.classify(inputs)  # type: ignore[union-attr]
        assert ran == expected


def test_on_two_threads_the_answers_are_those_on_one(exported: tuple[nn.Module, Path]) -> None:
    """In a process of its own the segments have their threads in common; here each has its own, which rest."""
    batch = arrays(ragged()[-1])
    expected_BC, expected_B = open_artifact(exported[1], "onnxruntime", threads=1).classify(batch)
    with open_worker(exported[1], "onnxruntime", threads=2) as worker:
        found = worker.classify([batch])[0]
    for logits_BC, exits_B in (found, open_artifact(exported[1], "onnxruntime", threads=2).classify(batch)):
        assert np.allclose(logits_BC, expected_BC, atol=1e-5) and np.array_equal(exits_B, expected_B)


def test_a_threshold_moved_in_the_file_is_moved(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    for file in exported[1].parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / "chain.json"
    record = json.loads(path.read_text())
    for thresholds, exit in (([0.0, 0.0], 0), ([NEVER, 0.0], 1), ([NEVER, NEVER], 2)):
        path.write_text(json.dumps({**record, "thresholds": thresholds}))
        artifact = open_artifact(path, "onnxruntime", threads=1)
        assert set(artifact.classify(arrays(ragged()[-1]))[1].tolist()) == {exit}


# Its integers


@pytest.mark.parametrize("exported", ["dynamic"], indirect=True)
def test_files_together_hold_the_integers_once(exported: tuple[nn.Module, Path]) -> None:
    import onnx

    model, path = exported
    saved = sum(value.numel() for value in model.state_dict().values() if value.dtype == torch.int8)
    table = anatomy_of(model).embeddings.token_type_embeddings.weight.numel()  # type: ignore[union-attr,operator]
    tensors = [tensor for file in path.parent.glob("*.onnx") for tensor in onnx.load(file).graph.initializer]
    # The table of token types is gone: its first row is a constant now.
    assert sum(len(one.raw_data) for one in tensors if one.data_type == onnx.TensorProto.INT8) == saved - table
    held = sum(file.stat().st_size for file in path.parent.iterdir() if file.name != "chain.parity.json")
    assert size_on_disk(path, "onnxruntime") == held


@pytest.mark.parametrize("exported", ["dynamic"], indirect=True)
def test_an_integer_that_no_segment_holds_is_named(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    found = Weights()
    for file in path.parent.glob("*.onnx"):
        found.update(weights_in_onnx(file))
    audit(model, found, place="chain.json")
    changed = copy.deepcopy(model)
    changed.get_submodule("exits.heads.2.dense").weight[3, 5] += 1  # type: ignore[operator,index]
    with pytest.raises(MismatchError, match=r"chain.json: .*exits.heads.2.dense not found as integers"):
        audit(changed, found, place="chain.json")


# What must not ship, and what cannot be read


def test_a_chain_whose_rows_leave_elsewhere_is_refused(
    exported: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = exported
    write = ChainFile.write

    def wrong(file: ChainFile, path: Path) -> None:
        write(ChainFile(Rule("probability", (0.0, 0.0), LAYERS), file.segments, file.rows_independent), path)

    monkeypatch.setattr(ChainFile, "write", wrong)
    with pytest.raises(MismatchError, match="rows leave the artifact elsewhere than the model: row . at exit 0"):
        export_onnx(model, ragged(), tmp_path / "chain.json")
    assert not list(tmp_path.iterdir())


def test_a_chain_that_mixes_rows_up_is_refused(
    exported: tuple[nn.Module, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = exported
    worker_classify = chain_export.Worker.classify

    def mixed(worker: Any, batches: Any) -> Any:
        found = worker_classify(worker, batches)
        return [(-logits_BC, exits_B) for logits_BC, exits_B in found]

    monkeypatch.setattr(chain_export.Worker, "classify", mixed)
    with pytest.raises(MismatchError, match="largest difference of logits"):
        export_onnx(model, ragged(), tmp_path / "chain.json")


@pytest.mark.parametrize("by", ["probability", "entropy", "patience"])
def test_only_rows_near_a_threshold_are_undecided(by: str) -> None:
    logits_NEC = torch.tensor([[[0.0, 4.0]], [[0.0, 0.001]], [[3.0, 0.0]], [[0.2, 0.0]], [[0.0, 0.0]]])
    at = {
        "probability": 1 / (1 + np.exp(-0.2)),
        "entropy": float(sureness("entropy", [[[0.2, 0.0]]])[0, 0]),
        "patience": 1,
    }
    rule = Rule(by, (at[by],), (0,))  # type: ignore[arg-type]
    ends_NEC = torch.cat([logits_NEC, logits_NEC], dim=1)
    undecided = chain_export._undecided(rule, ends_NEC, ends_NEC).tolist()
    near = [False, True, False, False, True] if by == "patience" else [False, False, False, True, False]
    assert undecided == near


def test_a_name_of_another_form_is_refused(
    exported: tuple[nn.Module, Path], tiny_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(NiwakiError, match=r"model.xml is to hold a model with exits[^$]*write: .*chain.json"):
        export_openvino(exported[0], ragged(), tmp_path / "model.xml")
    with pytest.raises(NiwakiError, match=r"chain.json is to hold a model without exits[^$]*write: .*model.onnx"):
        export_onnx(tiny_model("bert"), ragged(), tmp_path / "chain.json")


def test_a_model_that_is_not_known_by_heart_is_not_cut(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = tiny_model("bert")
    add_exit(model, layer=0)
    model.dropout.register_forward_hook(lambda module, inputs, output: output)
    with pytest.raises(NiwakiError, match="with exits cannot be cut into segments"):
        export_onnx(model, ragged(), tmp_path / "chain.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"by": "luck"}, "by is 'luck'"),
        ({"thresholds": [0.5]}, r"thresholds is \[0.5\]"),
        ({"thresholds": "high"}, "thresholds is 'high'"),
        ({"layers": []}, r"layers is \[\]"),
        ({"segments": ["segment-0.onnx"]}, "segments is"),
        ({"segments": ["../a.onnx", "b.onnx", "c.onnx"]}, "segments is"),
        ({"segments": ["segment-0.onnx", "segment-1.onnx", "gone.onnx"]}, "gone.onnx is not there"),
        ({"segments": ["segment-0.onnx", "segment-2.onnx", "segment-1.onnx"]}, "segment-2.onnx takes hidden_states"),
    ],
)
def test_a_chain_file_that_is_wrong_says_where(
    exported: tuple[nn.Module, Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for file in exported[1].parent.iterdir():
        shutil.copy(file, tmp_path)
    path = tmp_path / "chain.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(NiwakiError, match=f"chain.json: {message}"):
        open_artifact(path, "onnxruntime", threads=1)


@pytest.mark.parametrize("text", ["no json", "[1]"])
def test_what_is_no_chain_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "chain.json").write_text(text)
    with pytest.raises(NiwakiError, match="chain of segments"):
        open_artifact(tmp_path / "chain.json", "onnxruntime", threads=1)


# In a process of its own, in torch, and in a run's folder


def test_a_worker_tells_the_rule_and_needs_no_torch(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    with open_worker(path, "onnxruntime", threads=1) as worker:
        assert worker.rule == Rule("probability", model.exits.thresholds, LAYERS)  # type: ignore[union-attr]
        (found,) = worker.classify([arrays(ragged()[1])])
        assert found[1].tolist() == classify(model, ragged()[1])[1].tolist()
        assert worker.every([arrays(ragged()[-1])])[0].shape == (3, 6, 2)
        assert "torch" not in worker.modules()


def test_the_torch_runtime_lets_rows_leave(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    model, _ = exported
    save(model, tmp_path)
    artifact = open_artifact(tmp_path, "torch", threads=1)
    for batch in ragged():
        logits_BC, exits_B = classify(model, batch)
        found_BC, found_B = artifact.classify(arrays(batch))
        assert found_B.tolist() == exits_B.tolist() and np.array_equal(found_BC, logits_BC.numpy())


def test_without_exits_every_row_takes_the_end(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    save(tiny_model("bert"), tmp_path)
    artifact = open_artifact(tmp_path, "torch", threads=1)
    assert artifact.classify(arrays(ragged()[-1]))[1].tolist() == [0] * 6
    with open_worker(tmp_path, "torch", threads=1) as worker, pytest.raises(NiwakiError, match="has no exits"):
        worker.every([arrays(ragged()[-1])])


def test_moved_thresholds_are_another_artifact(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = with_exits(tiny_model("bert", layers=4), ragged())
    save(model, tmp_path / "model")
    rows, told = random_rows(model), []
    for _ in range(2):
        path, parity = artifact_of(tmp_path / "model", "onnx", rows, tmp_path / "artifacts", told.append)
    assert path == tmp_path / "artifacts" / "chain.json" and parity["same_exit"] == 1.0
    assert [event["size_bytes"] for event in told] == [size_on_disk(path, "onnxruntime")]
    set_thresholds(model, by="probability", thresholds=[0.0, 0.0])
    save(model, tmp_path / "model")
    artifact_of(tmp_path / "model", "onnx", rows, tmp_path / "artifacts", told.append)
    assert len(told) == 2 and ChainFile.read(path).rule.thresholds == (0.0, 0.0)
