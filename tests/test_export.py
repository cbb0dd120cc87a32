"""Export: the rewriting is the same function, the file holds the model's integers, and one that differs is refused."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.export import artifact, export_onnx, export_openvino, onnx_file
from niwaki.export.audit import audit, weights_in_onnx
from niwaki.export.parity import compare
from niwaki.export.prepare import AsItStands, LeanClassifier, is_known, prepare
from niwaki.export.together import Together
from niwaki.layers.linear import QuantizedLinear
from niwaki.surgery import narrow_heads, narrow_hidden, narrow_neurons, quantize_embedding, quantize_linear

Batches = list[dict[str, Tensor]]


def shaped(model: nn.Module, kind: str) -> nn.Module:
    """Cut heads and neurons unevenly, and quantize all linears and embeddings, the classification head's too."""
    narrow_heads(model, layer=1, heads=[0, 2])
    narrow_neurons(model, layer=0, neurons=list(range(40)))
    if kind == "floats":
        return model
    static = {"scale": 0.05, "zero_point": 120} if kind == "static" else {}
    anatomy = anatomy_of(model)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name in linears:
        quantize_linear(model, module=name, activations=kind, **static)
    for name in list(anatomy.embedding_names()):
        quantize_embedding(model, module=name)
    return model


def ragged(vocabulary: int = 180, pad: int = 0, pairs: bool = False) -> Batches:
    """Return a lone token, single rows, and a padded batch of an odd number of rows."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in ([1], [7], [33], [3, 12, 20, 5, 9]):
        size = (len(lengths), max(lengths))
        mask = (torch.arange(size[1]) < torch.tensor(lengths)[:, None]).long()
        ids = torch.randint(5, vocabulary, size, generator=generator).where(mask.bool(), torch.tensor(pad))
        batch = {"input_ids": ids, "attention_mask": mask}
        if pairs:
            batch["token_type_ids"] = (torch.arange(size[1]) >= size[1] // 2).long() * mask
        batches.append(batch)
    return batches


def examples(family: str, pairs: bool = False) -> Batches:
    return ragged(pad=1 if family == "roberta" else 0, pairs=pairs)


def logits(model: nn.Module, batches: Batches) -> Tensor:
    with torch.no_grad():
        outputs = [model(**batch) for batch in batches]
    return torch.cat([getattr(output, "logits", output) for output in outputs])


def operators(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


# The rewriting, in torch


@pytest.mark.parametrize("kind", ["floats", "static", "none"])
def test_the_rewritten_model_is_the_same_function(tiny_model: Callable[..., nn.Module], family: str, kind: str) -> None:
    model = shaped(tiny_model(family), kind)
    before, batches = copy.deepcopy(model), examples(family)
    prepared = prepare(model, token_types=False)
    assert isinstance(prepared, LeanClassifier)
    assert torch.allclose(logits(prepared, batches), logits(model, batches), atol=1e-5)
    states = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    assert all(torch.equal(value, other) for value, other in states)


@pytest.mark.parametrize("family", ["bert", "electra"])
@pytest.mark.parametrize("kind", ["floats", "static"])
def test_the_rewritten_model_takes_token_types(tiny_model: Callable[..., nn.Module], family: str, kind: str) -> None:
    model, batches = shaped(tiny_model(family), kind), examples(family, pairs=True)
    typed = logits(prepare(model, token_types=True), batches)
    assert torch.allclose(typed, logits(model, batches), atol=1e-5)
    assert not torch.allclose(typed, logits(model, examples(family)), atol=1e-2)


def test_the_last_layer_computes_the_first_token_alone(tiny_model: Callable[..., nn.Module], family: str) -> None:
    prepared = prepare(tiny_model(family, layers=3), token_types=False)
    widths: list[tuple[int, ...]] = []
    for layer in prepared.layers:  # type: ignore[union-attr]
        layer.up.register_forward_hook(lambda module, inputs, output: widths.append(tuple(inputs[0].shape[:2])))
    logits(prepared, [examples(family)[-1]])
    assert widths == [(5, 20), (5, 20), (5, 1)]


def test_padding_changes_nothing_for_the_rewritten_model(tiny_model: Callable[..., nn.Module], family: str) -> None:
    prepared = prepare(tiny_model(family), token_types=False)
    batch = examples(family)[-1]
    alone = [{name: value[row : row + 1, :length] for name, value in batch.items()} for row, length in ((0, 3), (3, 5))]
    assert torch.allclose(logits(prepared, [batch])[[0, 3]], logits(prepared, alone), atol=1e-5)


def test_linears_that_read_one_input_become_one() -> None:
    torch.manual_seed(0)
    linears = [nn.Linear(8, size) for size in (4, 6, 2)]
    hidden = torch.randn(2, 3, 8)
    for kind in ("dynamic", "none"):
        packed = [QuantizedLinear.from_linear(linear, kind) for linear in linears]
        together = Together(packed)
        assert len(together.linears) == 1
        merged = together.linears[0].weight
        assert torch.equal(merged, torch.cat([linear.weight for linear in packed]))  # type: ignore[arg-type]
        for ours, linear in zip(together(hidden), packed, strict=True):
            assert torch.equal(ours, linear(hidden)) or kind == "none"
    for ours, linear in zip(Together(linears)(hidden), linears, strict=True):
        assert torch.allclose(ours, linear(hidden), atol=1e-6)


def test_linears_that_differ_stay_apart() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(8, 4), nn.Linear(8, 6)
    hidden = torch.randn(2, 8)
    static = [
        QuantizedLinear.from_linear(linear, "static", step, 128) for linear, step in ((first, 0.1), (second, 0.2))
    ]
    mixed = [QuantizedLinear.from_linear(first), second]
    low_rank = [nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 4)), second]
    for linears in (static, mixed, low_rank):
        together = Together(linears)
        assert len(together.linears) == 2
        for ours, linear in zip(together(hidden), linears, strict=True):
            assert torch.equal(ours, linear(hidden))


# ONNX


@pytest.fixture(scope="module")
def exported(tiny_model: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """Export a tiny BERT with uneven layers, all of it int8 with dynamic ranges."""
    model = shaped(tiny_model("bert"), "dynamic")
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_onnx(model, examples("bert"), path)
    return model, path


@pytest.mark.parametrize(
    ("family", "kind"), [("bert", "static"), ("roberta", "none"), ("distilbert", "floats"), ("electra", "dynamic")]
)
def test_onnx_computes_what_the_model_does(
    tiny_model: Callable[..., nn.Module], family: str, kind: str, tmp_path: Path
) -> None:
    model = shaped(tiny_model(family), kind)
    parity = export_onnx(model, examples(family), tmp_path / "model.onnx")
    assert parity.count == 8
    assert kind == "dynamic" or (parity.agreement == 1.0 and parity.largest_difference < 1e-4)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]


def test_onnx_takes_any_batch_and_length(exported: tuple[nn.Module, Path]) -> None:
    import onnxruntime

    model, path = exported
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [port.name for port in session.get_inputs()] == ["input_ids", "attention_mask"]
    assert [port.shape for port in session.get_inputs()] == [["batch", "length"]] * 2
    assert [(port.name, port.shape) for port in session.get_outputs()] == [("logits", ["batch", 2])]
    prepared = prepare(model, token_types=False)
    for size in ((1, 1), (1, 64), (3, 17), (33, 2)):
        ids = torch.randint(5, 180, size, generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        (ours,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
        assert torch.allclose(torch.from_numpy(ours), logits(prepared, [batch]), atol=0.05)


def test_onnx_has_one_integer_product_for_each_merged_group(exported: tuple[nn.Module, Path]) -> None:
    _, path = exported
    counts = operators(path)
    # Layer 0: query-key-value, output, up, down. Last layer: query, key-value, output, up, down. Then pooler and head.
    assert counts["MatMulInteger"] == 4 + 5 + 2
    # In the last layer query and key-value share one rounded input.
    assert counts["DynamicQuantizeLinear"] == 4 + 4 + 2
    assert (counts["Attention"], counts["Gelu"], counts["LayerNormalization"]) == (2, 2, 5)
    assert counts["MatMul"] == counts["Gemm"] == counts["Transpose"] == 0


def test_onnx_runtime_fuses_every_integer_product(exported: tuple[nn.Module, Path], tmp_path: Path) -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(exported[1], options, providers=["CPUExecutionProvider"])
    counts = operators(tmp_path / "optimized.onnx")
    assert counts["DynamicQuantizeMatMul"] + counts["MatMulIntegerToFloat"] == 11
    assert counts["MatMulInteger"] == counts["SkipLayerNormalization"] == 0


def test_onnx_holds_bytes_and_nothing_of_this_machine(exported: tuple[nn.Module, Path]) -> None:
    import onnx

    model, path = exported
    saved = sum(
        module.weight.numel()
        for module in model.modules()
        if getattr(module, "weight", None) is not None and module.weight.dtype == torch.int8
    )  # type: ignore[union-attr]
    table = anatomy_of(model).embeddings.token_type_embeddings.weight.numel()  # type: ignore[union-attr,operator]
    in_file = [tensor for tensor in onnx.load(path).graph.initializer if tensor.data_type == onnx.TensorProto.INT8]
    # The table of token types is gone: its first row is a constant now.
    assert sum(len(tensor.raw_data) for tensor in in_file) == saved - table
    assert str(Path(niwaki.__file__).parent).encode() not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_onnx_takes_token_types_where_the_examples_have_them(
    tiny_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = tiny_model("electra")
    parity = export_onnx(model, examples("electra", pairs=True), tmp_path / "model.onnx")
    assert parity.largest_difference < 1e-4
    import onnx

    names = [port.name for port in onnx.load(tmp_path / "model.onnx").graph.input]
    assert names == ["input_ids", "attention_mask", "token_type_ids"]


def test_empty_modules_leave_no_product(tiny_model: Callable[..., nn.Module], family: str, tmp_path: Path) -> None:
    """Without heads in one layer and neurons in the other, on fewer channels: the graph holds only what is left."""
    model = narrow_heads(tiny_model(family, layers=3), layer=0, heads=[])
    narrow_neurons(model, layer=1, neurons=[])
    narrow_heads(model, layer=2, heads=[])
    narrow_neurons(model, layer=2, neurons=[])
    narrow_hidden(model, channels=list(range(4, 28)))
    assert is_known(model)
    parity = export_onnx(model, examples(family), tmp_path / "model.onnx")
    assert parity.largest_difference < 1e-4
    counts = operators(tmp_path / "model.onnx")
    assert counts["Attention"] == counts["Gelu"] - (family == "electra") == 1
    # layer 0: up and down; layer 1: query-key-value and output; then the head's two, and the embedding's projection
    assert counts["MatMul"] + counts["Gemm"] == 2 + 2 + 2 + (family == "electra")


def test_a_model_that_is_not_known_by_heart_is_exported_as_it_stands(
    tiny_model: Callable[..., nn.Module], tmp_path: Path
) -> None:
    from transformers.models.bert.modeling_bert import BertSelfAttention

    class Halved(BertSelfAttention):
        def forward(self, *positional: Any, **named: Any) -> Any:
            output, weights = super().forward(*positional, **named)
            return output / 2, weights

    model = shaped(tiny_model("bert"), "static")
    for layer in anatomy_of(model).layers:
        layer.attention.__class__ = Halved
    assert not is_known(model)
    assert isinstance(prepare(model, token_types=False), AsItStands)
    parity = export_onnx(model, examples("bert"), tmp_path / "model.onnx")
    assert parity.largest_difference < 1e-4
    assert operators(tmp_path / "model.onnx")["MatMulInteger"] == 6 + 6 + 2


def test_weights_too_big_for_one_file_stand_beside_it(
    tiny_model: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_FILE_BYTES", 1000)
    parity = export_onnx(tiny_model("roberta"), examples("roberta"), tmp_path / "model.onnx")
    assert parity.largest_difference < 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_export_leaves_the_model_in_its_mode(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = shaped(tiny_model("distilbert"), "dynamic").train()
    model.dropout.eval()  # type: ignore[union-attr,operator]
    export_onnx(model, examples("distilbert"), tmp_path / "model.onnx")
    assert model.training and not model.dropout.training  # type: ignore[union-attr]
    assert {module.activations for module in model.modules() if isinstance(module, QuantizedLinear)} == {"dynamic"}


# What must not ship


def test_a_missing_integer_is_named(exported: tuple[nn.Module, Path]) -> None:
    model, path = exported
    audit(model, weights_in_onnx(path), place="model.onnx")
    changed = copy.deepcopy(model)
    name = next(anatomy_of(changed).linear_names())
    changed.get_submodule(name).weight[3, 5] += 1  # type: ignore[operator,index]
    with pytest.raises(NiwakiError, match=f"model.onnx: .*{name} not found as integers"):
        audit(changed, weights_in_onnx(path), place="model.onnx")


def test_an_artifact_of_another_model_is_refused(
    exported: tuple[nn.Module, Path], tiny_model: Callable[..., nn.Module]
) -> None:
    other = shaped(tiny_model("bert", seed=1), "dynamic")
    with pytest.raises(
        NiwakiError, match="% of 8 predictions agree, and the largest difference of logits is"
    ) as caught:
        compare(other, prepare(other, False), exported[1], "onnxruntime", examples("bert"), place="model.onnx")
    assert "expected: a largest difference of at most" in str(caught.value)


def test_a_refused_artifact_is_not_left_behind(
    tiny_model: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*positional: Any, **named: Any) -> None:
        raise NiwakiError("no")

    monkeypatch.setattr(artifact, "compare", refuse)
    with pytest.raises(NiwakiError):
        export_onnx(tiny_model("bert"), examples("bert"), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_rewriting_that_differs_is_refused(
    tiny_model: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = prepare(tiny_model("bert", seed=1), token_types=False)
    monkeypatch.setattr(artifact, "prepare", lambda model, token_types: other)
    with pytest.raises(NiwakiError, match="rewritten for export differs from the model by"):
        export_onnx(tiny_model("bert"), examples("bert"), tmp_path / "model.onnx")


def test_a_missing_package_is_named(
    tiny_model: Callable[..., nn.Module], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifact.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(NiwakiError, match="onnxscript not installed") as caught:
        export_onnx(tiny_model("bert"), examples("bert"), tmp_path / "model.onnx")
    assert "pip install 'niwaki[onnx]'" in str(caught.value)


def test_no_examples_are_refused(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    with pytest.raises(NiwakiError, match="there are no examples"):
        export_onnx(tiny_model("bert"), [], tmp_path / "model.onnx")


# OpenVINO


@pytest.mark.parametrize(("family", "kind"), [("bert", "static"), ("roberta", "none"), ("distilbert", "dynamic")])
def test_openvino_holds_bytes_and_computes_what_the_model_does(
    tiny_model: Callable[..., nn.Module], family: str, kind: str, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    model = shaped(tiny_model(family), kind)
    parity = export_openvino(model, examples(family), tmp_path / "model.xml")
    assert parity.count == 8
    assert kind == "dynamic" or parity.largest_difference < 1e-4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    graph = openvino.Core().read_model(tmp_path / "model.xml")
    assert [port.get_any_name() for port in graph.inputs] == ["input_ids", "attention_mask"]
    assert graph.output(0).get_any_name() == "logits"
    integers = sum(value.numel() for value in model.state_dict().values() if value.dtype == torch.int8)
    floats = sum(4 * value.numel() for value in model.state_dict().values() if value.dtype == torch.float32)
    # Constants beside the weights (shapes, epsilons) take some hundred bytes.
    assert (tmp_path / "model.bin").stat().st_size < integers + floats + 2000
    kinds = Counter(node.get_type_name() for node in graph.get_ops())
    assert (kinds["FakeQuantize"] > 0) == (kind == "static")


def test_openvino_of_floats(tiny_model: Callable[..., nn.Module], tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    parity = export_openvino(tiny_model("electra"), examples("electra"), tmp_path / "model.xml")
    assert parity.largest_difference < 1e-4
