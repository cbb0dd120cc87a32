"""Quantization by the figures: how much each method loses at 4, 3 and 2 bits on a small decoder.

    make bench CASE=quantization

Post-training, weights alone: embeddings and head stay in floats. Groups of 32 inputs, of 43 where the width is 172.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import models_folder, records_of, runs_folder, stories, write_result

from niwaki.comparison import compare
from niwaki.recipe import Recipe
from niwaki.run import compress
from niwaki.techniques.quantize import Quantize

CASE = "quantization"
METHODS = {"rtn": "nearest", "mse": "mean-square", "hqq": "hqq", "awq": "awq", "gptq": "gptq"}
SETTINGS: dict[str, Any] = {
    "symmetric": False,
    "group": 32,
    "override": {"*.down_proj": {"group": 43}},
    "embeddings": False,
    "skip": ("lm_head",),
    "examples": 128,
}


def main() -> None:
    base, task = models_folder() / "stories260k", stories()
    runs = {}
    for bits in (4, 3, 2):
        for word, by in METHODS.items():
            name = f"stories-{word}{bits}"
            step = Quantize(bits=bits, by=by, **SETTINGS)
            runs[f"{word}{bits}"] = compress(
                base, Recipe([step]), task, runs_folder(CASE) / name, measure=False, progress=False
            )
    folders = [one.folder for one in runs.values()]
    rows = {
        row.name: row for row in compare(base, *folders, task=task, runtimes=["torch"], quick=True, progress=False).rows
    }
    figures = {"nats_base": next(iter(rows.values())).quality.value}
    figures |= {f"nats_{name}": rows[one.folder.name].quality.value for name, one in runs.items()}
    write_result(CASE, figures, records_of(rows), {"quantize": SETTINGS})


if __name__ == "__main__":
    main()
