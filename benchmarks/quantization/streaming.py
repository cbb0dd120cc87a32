"""Quantize a decoder that is larger than the memory it may take: the most that the process ever held, and how long.

    python benchmarks/quantization/run.py streaming
    python benchmarks/quantization/streaming.py [--methods gptq] [--hidden 1024 ...]     prints the figures, writes none

A random Llama in bfloat16, by default of three billion parameters, is written shard by shard, quantized to 4 bits by
`niwaki compress --stream` in a process of its own, and deleted: by round-to-nearest, which looks at weights alone, and
by GPTQ, through whose blocks rows run as well. GPTQ gets a model of two such layers: its peak is that of one block,
whatever the depth, and all 28 would take an hour. The peak is the most resident memory of that process (`VmHWM` of
Linux), the interpreter and PyTorch in it.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import models_folder, runs_folder

from niwaki.shards import INDEX, TensorFile

HEAD = 128
#: Rows to calibrate on, tokens of each, and letters that are more than so many tokens.
ROWS, LENGTH, LETTERS = 24, 512, 1200
#: `python -m niwaki`, which writes the most memory it ever held into the file that is named first, in KiB.
CHILD = """
import pathlib, runpy, sys
place = pathlib.Path(sys.argv.pop(1))
try:
    runpy.run_module("niwaki", run_name="__main__", alter_sys=True)
finally:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    place.write_text(next(line.split()[1] for line in lines if line.startswith("VmHWM")))
"""
SIZES = {"hidden": 3072, "layers": 28, "neurons": 8192, "vocabulary": 32000}
#: Layers of the model that a method gets.
DEPTHS = {"nearest": 28, "gptq": 2}


def stage(
    methods: Sequence[str] = tuple(DEPTHS), rows: int = ROWS, **sizes: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return figures and a record for each method; the largest peak is the figure that counts."""
    folder = runs_folder("quantization") / "streaming"
    records = []
    try:
        for by in methods:
            shutil.rmtree(folder, ignore_errors=True)
            shape = SIZES | {"layers": DEPTHS.get(by, SIZES["layers"])} | sizes
            write_model(folder / "base", **shape)
            write_rows(folder / "data", rows)
            records.append({**shape, **quantized(folder, by, rows)})
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = {"stream_peak_gb": max(record["peak_bytes"] for record in records) / 1e9}
    for record in records:
        figures[f"stream_{record['by']}_peak_gb"] = record["peak_bytes"] / 1e9
        figures[f"stream_{record['by']}_minutes"] = record["seconds"] / 60
    return figures | {"stream_base_gb": records[0]["base_bytes"] / 1e9}, records


def quantized(folder: Path, by: str, rows: int) -> dict[str, Any]:
    """Quantize by one method, in a process of its own; return what it took, and delete what it wrote."""
    step = {"bits": 4, "group": 128, "symmetric": False, "by": by, "embeddings": False, "examples": rows}
    (folder / "small.yaml").write_text(json.dumps({"steps": [{"quantize": step}]}), encoding="utf-8")
    out, peak = folder / "out", folder / "peak"
    words = ["compress", folder / "base", "--recipe", folder / "small.yaml", "--data", folder / "data", "--out", out]
    words += ["--task", "language-modelling", "--max-length", LENGTH, "--stream", "--quiet"]
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", CHILD, str(peak), *map(str, words)], check=True, stdout=subprocess.DEVNULL)
    seconds, peak_bytes = time.monotonic() - begin, 1024 * int(peak.read_text())
    fell_back = (out / "log.jsonl").read_text(encoding="utf-8").count("saw too few tokens")
    sizes = {"base_bytes": bytes_in(folder / "base"), "result_bytes": bytes_in(out)}
    shutil.rmtree(out)
    return {"by": by, "rows": rows, "seconds": seconds, "peak_bytes": peak_bytes, "fell_back": fell_back, **sizes}


def write_model(folder: Path, *, hidden: int, layers: int, neurons: int, vocabulary: int) -> None:
    """Write a random Llama, one shard a block; three heads share one key and value head."""
    from accelerate import init_empty_weights
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    heads = hidden // HEAD
    config = LlamaConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=neurons,
        vocab_size=vocabulary,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3 if heads % 3 == 0 else heads // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    with init_empty_weights():
        model = LlamaForCausalLM(config)
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(models_folder() / "stories260k").save_pretrained(folder)
    places = {}
    generator = torch.Generator().manual_seed(0)
    for name, tensors in shards_of(model).items():
        with TensorFile(folder / name, tensors, {"format": "pt"}) as file:
            for key, tensor in tensors.items():
                places[key] = name
                drawn = torch.randn(tensor.shape, generator=generator).mul_(0.02)
                file.write(key, (drawn if tensor.dim() > 1 else drawn + 1.0).bfloat16())
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}), encoding="utf-8")


def shards_of(model: torch.nn.Module) -> dict[str, dict[str, torch.Tensor]]:
    """Return the empty tensors of a model by file: one for each block, and one for each matrix beside them."""
    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        part = ".".join(name.split(".")[: 3 if ".layers." in name else -1])
        files.setdefault(f"{part}.safetensors", {})[name] = tensor.bfloat16()
    return files


def write_rows(folder: Path, rows: int) -> None:
    """Write texts of random letters."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for split, count in (("train", rows), ("validation", 8)):
        texts = [["".join(chance.choices("abcdefghijklmnopqrstuvwxyz    ", k=LETTERS)).strip()] for _ in range(count)]
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text"], *texts])


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", nargs="+", default=[*DEPTHS])
    for size in ("rows", *SIZES):
        parser.add_argument(f"--{size}", type=int, default=argparse.SUPPRESS)
    print(json.dumps(stage(**vars(parser.parse_args())), indent=2))
