"""How long GPTQ and AWQ take for one matrix: ours beside the plain published algorithms, interleaved.

    python benchmarks/quantization/run.py rounding-speed
    python benchmarks/quantization/rounding_speed.py [SIZE [TOKENS [ROUNDS]]]     prints the figures, and writes none

The plain ones are the loops of the papers' own code, short: GPTQ with blocks of 128 columns, its factor by two Cholesky
decompositions and an inverse, ranges by minimum and maximum; AWQ with 20 exponents, each tried on the outputs of all
tokens, those of the matrix itself computed once. Both sides get 4 bits, groups of 128 inputs with zero points, and the
same random weights and tokens. GPTQ is timed from X^T X, which both need alike; AWQ from the tokens. Errors are those
of the outputs, as trace(D H D^T).
"""

# P tokens, O outputs, I inputs, N inputs of a group, C columns of a block

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from niwaki.grid import Grid
from niwaki.techniques.quantize.rounding import awq, gptq

BITS, GROUP, BLOCK, DAMPING, EXPONENTS = 4, 128, 128, 0.01, 20
GRID = Grid(BITS, GROUP, "integer")
#: Tokens whose outputs stand in memory at once.
CHUNK = 4096


def matrix_and_tokens(size: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random weights (O, I), and inputs (P, I) of few directions and unlike sizes, as in language models."""
    generator = torch.Generator().manual_seed(seed)
    mixed_PI = torch.randn(tokens, 64, generator=generator) @ torch.randn(64, size, generator=generator)
    mixed_PI += 4.0 * torch.randn(tokens, size, generator=generator)
    return torch.randn(size, size, generator=generator) / size**0.5, mixed_PI * torch.logspace(-1, 1, size)


def plain_range(weight_ON: Tensor) -> tuple[Tensor, Tensor]:
    low_O, high_O = weight_ON.amin(dim=-1).clamp(max=0.0), weight_ON.amax(dim=-1).clamp(min=0.0)
    scale_O = (high_O - low_O) / (2**BITS - 1)
    return scale_O, (-low_O / scale_O).round()


def plain_rounded(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return scale * (((weight / scale).round() + zero).clamp(0, 2**BITS - 1) - zero)


def plain_gptq(weight_OI: Tensor, products_II: Tensor) -> Tensor:
    """Return the rounded weights of Frantar et al. 2023, algorithm 1, as published with the paper."""
    left_OI, hessian_II = weight_OI.clone(), products_II.clone()
    hessian_II.diagonal().add_(DAMPING * hessian_II.diagonal().mean())
    factor_II = torch.cholesky_inverse(torch.linalg.cholesky(hessian_II))
    factor_II = torch.linalg.cholesky(factor_II, upper=True)
    result_OI = torch.zeros_like(left_OI)
    for first in range(0, left_OI.shape[1], BLOCK):
        last = min(first + BLOCK, left_OI.shape[1])
        part_OC, factor_CC = left_OI[:, first:last].clone(), factor_II[first:last, first:last]
        rounded_OC, errors_OC = torch.zeros_like(part_OC), torch.zeros_like(part_OC)
        for column in range(last - first):
            if (first + column) % GROUP == 0:
                scale_O, zero_O = plain_range(left_OI[:, first + column : first + column + GROUP])
            rounded_O = plain_rounded(part_OC[:, column], scale_O, zero_O)
            rounded_OC[:, column] = rounded_O
            error_O = (part_OC[:, column] - rounded_O) / factor_CC[column, column]
            part_OC[:, column:] -= error_O[:, None].matmul(factor_CC[column, None, column:])
            errors_OC[:, column] = error_O
        result_OI[:, first:last] = rounded_OC
        left_OI[:, last:] -= errors_OC.matmul(factor_II[first:last, last:])
    return result_OI


def plain_awq(weight_OI: Tensor, inputs_PI: Tensor) -> Tensor:
    """Return the weights of Lin et al. 2024, equation 4, rounded: the best exponent by the outputs of all tokens."""
    size_I = torch.stack([chunk_PI.abs().sum(dim=0) for chunk_PI in inputs_PI.split(CHUNK)]).sum(dim=0)
    size_I = (size_I / len(inputs_PI)).clamp_min(1e-4)
    wanted = [chunk_PI @ weight_OI.T for chunk_PI in inputs_PI.split(CHUNK)]
    best_OI, least = weight_OI, float("inf")
    for index in range(EXPONENTS):
        scale_I = size_I ** (index / EXPONENTS)
        scale_I = scale_I / (scale_I.max() * scale_I.min()).sqrt()
        grouped_ON = (weight_OI * scale_I).reshape(-1, GROUP)
        scale_O, zero_O = plain_range(grouped_ON)
        tried_OI = plain_rounded(grouped_ON, scale_O[:, None], zero_O[:, None]).reshape(weight_OI.shape) / scale_I
        loss = 0.0
        for chunk_PI, wanted_PO in zip(inputs_PI.split(CHUNK), wanted, strict=True):
            loss += float((chunk_PI @ tried_OI.T).sub_(wanted_PO).square_().sum())
        if loss < least:
            best_OI, least = tried_OI, loss
    return best_OI


def our_gptq(weight_OI: Tensor, products_II: Tensor) -> Tensor:
    return gptq(weight_OI, products_II, GRID).floats(GRID)


def our_awq(weight_OI: Tensor, inputs_PI: Tensor) -> Tensor:
    rounded = awq(weight_OI, products_of(inputs_PI), GRID)
    assert rounded.input_scale is not None
    return rounded.floats(GRID) * rounded.input_scale


def products_of(inputs_PI: Tensor) -> Tensor:
    """Return X^T X, summed up in 64 bits chunk by chunk, as calibration does."""
    products_II = torch.zeros(inputs_PI.shape[1], inputs_PI.shape[1], dtype=torch.float64)
    for chunk_PI in inputs_PI.split(CHUNK):
        products_II += chunk_PI.T @ chunk_PI
    return products_II


def error_of(weight_OI: Tensor, rounded_OI: Tensor, products_II: Tensor) -> float:
    difference_OI = rounded_OI - weight_OI
    return float((difference_OI @ products_II.float() * difference_OI).double().sum())


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    begin = time.perf_counter()
    result = run()
    return time.perf_counter() - begin, result


def stage(size: int = 4096, tokens: int = 128 * 512, rounds: int = 2) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Return figures and records: medians of the seconds a matrix, and the errors of ours as shares of the plain."""
    weight_OI, inputs_PI = matrix_and_tokens(size, tokens)
    products_II = products_of(inputs_PI)
    sides: dict[str, Callable[[], Tensor]] = {
        "gptq": lambda: our_gptq(weight_OI, products_II),
        "gptq_plain": lambda: plain_gptq(weight_OI, products_II.float()),
        "awq": lambda: our_awq(weight_OI, inputs_PI),
        "awq_plain": lambda: plain_awq(weight_OI, inputs_PI),
    }
    records = []
    for turn in range(rounds):
        for name, run in sides.items():
            seconds, rounded_OI = timed(run)
            error = error_of(weight_OI, rounded_OI, products_II)
            records.append({"side": name, "round": turn, "seconds": seconds, "error": error})
    shape = {"size": size, "tokens": tokens, "threads": torch.get_num_threads(), "bits": BITS, "group": GROUP}
    return _figures(records), [{**shape, **record} for record in records]


def _figures(records: list[dict[str, Any]]) -> dict[str, float]:
    def middle(side: str, what: str) -> float:
        return statistics.median(record[what] for record in records if record["side"] == side)

    figures = {}
    for name in ("gptq", "awq"):
        ours, plain = middle(name, "seconds"), middle(f"{name}_plain", "seconds")
        figures |= {f"{name}_layer_seconds": ours, f"{name}_plain_layer_seconds": plain}
        figures[f"{name}_times_as_fast"] = plain / ours
        figures[f"{name}_error_share"] = middle(name, "error") / middle(f"{name}_plain", "error")
    return figures


if __name__ == "__main__":
    print(json.dumps(stage(*(int(word) for word in sys.argv[1:]))[0], indent=2))
