"""Quantize a decoder that is larger than the memory it may take: the most that the process ever held, and how long.

    python benchmarks/quantization/streaming.py [--by gptq] [--dry] [--hidden 3072 --layers 28 ...]

A random Llama in bfloat16, by default of three billion parameters, is written shard by shard, quantized to 4 bits by
`niwaki compress --stream` in a process of its own, and deleted. The peak is the most resident memory of that process
(`ru_maxrss`), the interpreter and PyTorch in it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import models_folder, runs_folder, write_stage

from niwaki.shards import INDEX, TensorFile

HEAD = 128
#: Rows to calibrate on, and letters in each: about 512 tokens.
ROWS, LETTERS = 128, 900
SIZES = {"hidden": 3072, "layers": 28, "neurons": 8192, "vocabulary": 32000}


def stage(by: str = "nearest", **sizes: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return figures and one record. With `by` "gptq" rows run through the blocks as well."""
    sizes = SIZES | sizes
    folder = runs_folder("quantization") / f"stream-{by}"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        write_model(folder / "base", **sizes)
        write_rows(folder / "data")
        settings = f"{{bits: 4, group: 128, symmetric: false, by: {by}, embeddings: false, examples: {ROWS}}}"
        (folder / "small.yaml").write_text(f"steps:\n  - quantize: {settings}\n", encoding="utf-8")
        seconds, peak_bytes = carried_out(folder)
        before, after = bytes_in(folder / "base"), bytes_in(folder / "out")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    name = "stream" if by == "nearest" else f"stream_{by}"
    figures = {f"{name}_peak_gb": peak_bytes / 1e9, f"{name}_minutes": seconds / 60}
    figures |= {f"{name}_base_gb": before / 1e9, f"{name}_result_gb": after / 1e9}
    return figures, [
        {"by": by, **sizes, "seconds": seconds, "peak_bytes": peak_bytes, "before": before, "after": after}
    ]


def carried_out(folder: Path) -> tuple[float, int]:
    """Run the command in a process of its own; return its seconds and its largest resident memory, in bytes."""
    words = ["compress", folder / "base", "--recipe", folder / "small.yaml", "--data", folder / "data"]
    words += ["--task", "language-modelling", "--max-length", "512", "--out", folder / "out", "--stream", "--quiet"]
    begin = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "niwaki", *map(str, words)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"niwaki compress ended with {os.waitstatus_to_exitcode(status)}")
    return time.monotonic() - begin, usage.ru_maxrss * 1024


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


def write_rows(folder: Path) -> None:
    """Write texts of random letters."""
    folder.mkdir(parents=True)
    chance = random.Random(0)
    for split, count in (("train", ROWS), ("validation", 8)):
        rows = [["".join(chance.choices("abcdefghijklmnopqrstuvwxyz    ", k=LETTERS)).strip()] for _ in range(count)]
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["text"], *rows])


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--by", default="nearest")
    for size, default in SIZES.items():
        parser.add_argument(f"--{size}", type=int, default=default)
    parser.add_argument("--dry", action="store_true", help="print the figures, and write none")
    given = vars(parser.parse_args())
    dry = given.pop("dry")
    figures, records = stage(**given)
    print(json.dumps(figures, indent=2)) if dry else write_stage("quantization", "streaming", figures, records)
