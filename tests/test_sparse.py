"""Weights that are stored sparse: smaller on disk, the same bits when read, and refused where the file is broken."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from niwaki import sparse
from niwaki.anatomy import anatomy_of
from niwaki.artifacts import export
from niwaki.checkpoint import WEIGHTS, load, save, weights_hash
from niwaki.errors import NiwakiError
from niwaki.measure.counting import module_table
from niwaki.surgery import keep_layers, quantize_linear, sparsify_linear

Models = Callable[..., nn.Module]
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.int64, torch.bool)


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def zeroed(model: nn.Module, share: int = 2) -> nn.Module:
    """Keep every n-th weight of the layers' linears, and say so."""
    for name in anatomy_of(model).linear_names():
        weight = model.get_submodule(name).weight
        with torch.no_grad():
            weight.view(-1)[torch.arange(weight.numel()) % share != 0] = 0
        sparsify_linear(model, module=name, kept=int(weight.count_nonzero()))
    return model


@given(
    st.integers(0, 2**32),
    st.integers(1, 600),
    st.integers(0, 100),
    st.sampled_from(DTYPES),
    st.booleans(),
)
def test_any_bits_come_back(seed: int, groups: int, share: int, dtype: torch.dtype, matrix: bool) -> None:
    """Whatever the bits are (NaN, -0.0, subnormal), for any share of zeros."""
    raw = np.frombuffer(np.random.default_rng(seed).bytes(groups * 8), np.uint8)
    words = torch.from_numpy(raw.copy())
    words = (words % 2).bool() if dtype == torch.bool else words.view(dtype)
    words[torch.arange(len(words)) % 101 >= share] = 0
    tensor = words.reshape(-1, 2) if matrix and len(words) % 2 == 0 else words
    stored, metadata = sparse.pack({"w": tensor, "b": tensor[:1]})
    again = sparse.unpack(stored, metadata)
    assert list(again) == ["w", "b"]
    assert again["w"].dtype == dtype and again["w"].shape == tensor.shape and bits(again["w"]) == bits(tensor)
    size = sum(part.numel() * part.element_size() for name, part in stored.items() if name.startswith("w"))
    assert size <= tensor.numel() * tensor.element_size()


def test_the_bitmap_is_as_documented() -> None:
    """Elements 0, 3 and 9 of 800: bits 0 and 3 of byte 0, bit 1 of byte 1. -0.0 is a value, 0.0 is none."""
    tensor = torch.zeros(2, 400)
    tensor[0, 0], tensor[0, 3], tensor[0, 9] = 5.0, -0.0, float("nan")
    stored, metadata = sparse.pack({"w": tensor})
    assert json.loads(metadata["niwaki.sparse"]) == {"w": [2, 400]}
    assert stored["w.bitmap"].tolist() == [0b00001001, 0b00000010] + [0] * 98
    assert stored["w"][0] == 5.0 and bits(stored["w"][1:2]) == bits(torch.tensor([-0.0])) and stored["w"][2].isnan()


def test_what_does_not_pay_is_left_alone() -> None:
    full, small = torch.ones(64, 64), torch.zeros(8)
    stored, metadata = sparse.pack({"full": full, "small": small, "complex": torch.zeros(99, dtype=torch.complex128)})
    assert set(stored) == {"full", "small", "complex"} and metadata == {}


def test_bytes_fall_as_promised() -> None:
    """A matrix of MiniLM's size in float32: 32 bits a weight become 1 + 32 k."""
    for keep, ratio in ((0.5, 1.88), (0.1, 7.6)):
        matrix = torch.randn(1536, 384).masked_fill(torch.rand(1536, 384) >= keep, 0.0)
        stored, _ = sparse.pack({"w": matrix})
        size = sum(part.numel() * part.element_size() for part in stored.values())
        assert matrix.numel() * 4 / size == pytest.approx(ratio, rel=0.02)


def test_saved_sparse_reloads_bit_equal(family: str, tiny_model: Models, tmp_path: Path) -> None:
    model = zeroed(tiny_model(family))
    save(model, tmp_path / "sparse")
    save(model, tmp_path / "dense", dense=True)
    assert weights_hash(load(tmp_path / "sparse")) == weights_hash(load(tmp_path / "dense")) == weights_hash(model)
    sizes = [(tmp_path / name / WEIGHTS).stat().st_size for name in ("sparse", "dense")]
    names = list(anatomy_of(model).linear_names())
    saved = sum(model.get_submodule(name).weight.numel() for name in names) * (
        2 - 1 / 8
    )  # bytes: half of 4, less a bit
    assert sizes[1] - sizes[0] == pytest.approx(saved, abs=len(names) * sparse.OVERHEAD)
    config = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("sparse", "dense")]
    assert [one["niwaki"]["plain"] for one in config] == [False, True]


def test_the_documented_reader_reads(tiny_model: Models, tmp_path: Path) -> None:
    """The lines of Python in the page of the format, with NumPy and safetensors alone."""
    page = (Path(__file__).parents[1] / "docs" / "reference" / "files.md").read_text("utf-8")
    lines = page.partition("## Sparse weights")[2].partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {}
    exec(lines, names)
    model = zeroed(tiny_model("bert"), share=3)
    save(model, tmp_path)
    name = anatomy_of(model).layers[1].name_of("down") + ".weight"
    assert np.array_equal(names["read"](tmp_path / WEIGHTS, name), model.state_dict()[name].numpy())


def test_bytes_by_part_are_those_of_the_file(tiny_model: Models) -> None:
    model = tiny_model("bert")
    batch = {"input_ids": torch.ones(1, 8, dtype=torch.long)}
    dense = {row["module"]: row["bytes"] for row in module_table(model, batch)}
    packed = {row["module"]: row["bytes"] for row in module_table(zeroed(model), batch)}
    assert packed["embeddings"] == dense["embeddings"]
    assert dense["layer 0 feed-forward"] - packed["layer 0 feed-forward"] == 2 * 64 * 32 * (4 - 2 - 1 / 8)


def test_an_unpruned_model_is_never_packed(tiny_model: Models, tmp_path: Path) -> None:
    model = keep_layers(tiny_model("bert"), layers=[0])
    nn.init.zeros_(anatomy_of(model).layers[0].part("up").weight)
    save(model, tmp_path)
    assert not [name for name in load_file(tmp_path / WEIGHTS) if name.endswith(".bitmap")]


def test_edits_after_it_keep_the_file_sparse(tiny_model: Models, tmp_path: Path) -> None:
    """Layers dropped and weights rounded afterwards: 8-bit zeros are stored as bits too."""
    model = keep_layers(zeroed(tiny_model("bert", layers=3), share=10), layers=[0, 2])
    for name in list(anatomy_of(model).linear_names()):
        quantize_linear(model, module=name)
    save(model, tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    up = anatomy_of(model).layers[1].name_of("up")
    assert stored[f"{up}.weight"].dtype == torch.int8 and len(stored[f"{up}.weight"]) <= 64 * 32 // 10 + 1
    again = load(tmp_path)
    assert weights_hash(again) == weights_hash(model)
    assert again.get_submodule(up).weight.count_nonzero() > 0


def test_zeros_lose_their_sign(tiny_model: Models, tmp_path: Path) -> None:
    """A mask times a negative weight is -0.0, which would be stored as a value."""
    model = tiny_model("bert")
    up = anatomy_of(model).layers[0].part("up")
    with torch.no_grad():
        up.weight.mul_(0.0)
    sparsify_linear(model, module=anatomy_of(model).layers[0].name_of("up"), kept=0)
    assert not any(bits(up.weight.detach()))


def test_more_weights_than_said_is_refused(tiny_model: Models) -> None:
    model = tiny_model("bert")
    name = next(anatomy_of(model).linear_names())
    with pytest.raises(NiwakiError, match="1024 weights that are not zero"):
        sparsify_linear(model, module=name, kept=1000)
    with pytest.raises(NiwakiError, match="LayerNorm"):
        sparsify_linear(model, module="bert.embeddings.LayerNorm", kept=1)


def test_plain_transformers_refuses_a_packed_file_and_reads_the_dense_one(tiny_model: Models, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    model = zeroed(tiny_model("bert"))
    save(model, tmp_path / "sparse")
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / "sparse")
    save(model, tmp_path / "dense", dense=True)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "dense")
    assert weights_hash(plain) == weights_hash(model)


def test_export_to_safetensors(saved_base: Callable[..., Path], tmp_path: Path) -> None:
    from niwaki.checkpoint import load_tokenizer

    base = saved_base("bert")
    run = save(zeroed(load(base)), tmp_path / "run", load_tokenizer(base))
    file = export(run, "safetensors")
    assert file == run / "artifacts" / "safetensors" / WEIGHTS
    assert not [name for name in load_file(file) if name.endswith(".bitmap")]
    assert load_tokenizer(file.parent)("a good film")["input_ids"] == load_tokenizer(base)("a good film")["input_ids"]
    assert weights_hash(load(file.parent)) == weights_hash(load(run))
    with pytest.raises(NiwakiError, match=r"model\.safetensors"):
        export(run, "safetensors", tmp_path / "weights.safetensors")


def broken(file: Path, change: Callable[[dict[str, Tensor], dict[str, str]], None]) -> None:
    with safe_open(file, framework="pt") as opened:
        tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
    change(tensors, metadata)
    save_file(tensors, file, metadata=metadata)


NAME = "bert.encoder.layer.0.output.dense.weight"
BREAKS: dict[str, Callable[[dict[str, Tensor], dict[str, str]], object]] = {
    "bit set": lambda tensors, metadata: tensors[f"{NAME}.bitmap"].bitwise_or_(2),
    "bit lost": lambda tensors, metadata: tensors[f"{NAME}.bitmap"].zero_(),
    "bitmap cut": lambda tensors, metadata: tensors.update({f"{NAME}.bitmap": tensors[f"{NAME}.bitmap"][:-1].clone()}),
    "bitmap gone": lambda tensors, metadata: tensors.pop(f"{NAME}.bitmap"),
    "values gone": lambda tensors, metadata: tensors.pop(NAME),
    "bitmap of floats": lambda tensors, metadata: tensors.update({f"{NAME}.bitmap": tensors[f"{NAME}.bitmap"].float()}),
    "values in two dimensions": lambda tensors, metadata: tensors.update({NAME: tensors[NAME].reshape(2, -1)}),
    "shape": lambda tensors, metadata: metadata.update({"niwaki.sparse": json.dumps({NAME: [1 << 40, 1 << 40]})}),
    "negative shape": lambda tensors, metadata: metadata.update({"niwaki.sparse": json.dumps({NAME: [-32, -64]})}),
    "no shape": lambda tensors, metadata: metadata.update({"niwaki.sparse": json.dumps({NAME: None})}),
    "no JSON": lambda tensors, metadata: metadata.update({"niwaki.sparse": "{"}),
}


@pytest.mark.parametrize("change", BREAKS.values(), ids=BREAKS)
def test_broken_files_are_named(
    change: Callable[[dict[str, Tensor], dict[str, str]], None], tiny_model: Models, tmp_path: Path
) -> None:
    save(zeroed(tiny_model("bert")), tmp_path)
    broken(tmp_path / WEIGHTS, change)
    with pytest.raises(NiwakiError, match=WEIGHTS):
        load(tmp_path)


def test_bits_beyond_the_end_are_refused() -> None:
    stored = {"w": torch.ones(1), "w.bitmap": torch.tensor([0b00001000], dtype=torch.uint8)}
    with pytest.raises(NiwakiError, match="1 bits set"):
        sparse.unpack(stored, {"niwaki.sparse": '{"w": [3]}'})
    assert sparse.unpack(stored, {"niwaki.sparse": '{"w": [4]}'})["w"].tolist() == [0, 0, 0, 1]
