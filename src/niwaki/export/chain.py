"""Write a model with exits as a chain: a graph file for each segment, and the rule by which rows leave beside them.

What a whole model is checked for holds for the chain: its files together hold the model's integers, the logits of every
exit are the model's, and rows leave where they leave the model.
"""

# N examples, E exits, C classes, B batch, T tokens, D hidden

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from niwaki.errors import MismatchError
from niwaki.exit_rule import leaving, sureness
from niwaki.exiting import all_logits
from niwaki.export.audit import Weights, audit, weights_in_onnx
from niwaki.export.one_file import write_one_file
from niwaki.export.parity import (
    FLOAT_TOLERANCE,
    Batches,
    Parity,
    check_rewriting,
    expectation,
    float_tolerance,
    judge,
    logits_of,
)
from niwaki.export.segments import Segment, Segments
from niwaki.layers.linear import rows_independent
from niwaki.runtime import Worker, open_worker
from niwaki.runtime.chain import HANDED_ON, MASK, TAKEN, Array, ChainFile
from niwaki.runtime.rule import Rule

Write = Callable[[nn.Module, dict[str, Tensor], Path, Sequence[str]], None]
ENDINGS = {"onnxruntime": ".onnx", "openvino": ".xml"}


class EveryExit(nn.Module):
    """Call a model with exits and return the logits of every exit and of the end."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Tensor) -> Tensor:
        """Return logits (B, E + 1, C)."""
        return all_logits(self.model, batch).transpose(0, 1)


def write_chain(
    model: nn.Module,
    sample: Mapping[str, Tensor],
    batches: Batches,
    path: Path,
    runtime: str,
    write: Write,
    read: Callable[[Path], Weights],
    place: str,
) -> Parity:
    """Write a chain and check it.

    Args:
        model: with `exits`, in eval mode.
        sample: the inputs to trace the first segment with, (B, T) each.
        batches: real inputs to check on.
        path: chain.json; the segments stand beside it.
        runtime: "onnxruntime" or "openvino".
        write: writes a segment.
        read: reads a segment's integers back.
        place: the chain's name in an error.

    Raises:
        MismatchError: the chain is another model, or rows leave it elsewhere.
    """
    prepared = Segments(model, token_types="token_type_ids" in sample).eval()
    check_rewriting(EveryExit(model), prepared, batches)
    found = Weights()
    names = [f"segment-{index}{ENDINGS[runtime]}" for index in range(len(prepared.segments))]
    for name, (segment, inputs) in zip(names, _to_trace(prepared, sample), strict=True):
        with sdpa_kernel(SDPBackend.MATH):  # as for a whole model
            write(segment, inputs, path.with_name(name), ("logits", HANDED_ON) if segment.hands_on else ("logits",))
        found.update(read(path.with_name(name)))
    audit(model, found, place)
    ChainFile(prepared.rule, tuple(names), rows_independent(model)).write(path)
    return compare_chain(model, prepared, path, runtime, batches, place)


def _to_trace(prepared: Segments, sample: Mapping[str, Tensor]) -> Iterator[tuple[Segment, dict[str, Tensor]]]:
    """Yield each segment with the inputs to trace it with."""
    inputs = dict(sample)
    for segment in cast("Sequence[Segment]", prepared.segments):
        yield segment, inputs
        if segment.hands_on:
            _, hidden_BTD = segment(*inputs.values())
            inputs = {TAKEN: hidden_BTD, MASK: sample[MASK]}


def compare_chain(
    model: nn.Module, prepared: Segments, path: Path, runtime: str, batches: Batches, place: str
) -> Parity:
    """Run a chain in a process of its own and compare it with the model, exit by exit.

    Where ranges are taken from a batch as a whole, the rows that share it play a part in where a row leaves; so of such
    a chain exits are compared row by row.

    Raises:
        MismatchError: logits differ by more than floats and rounding account for; or a row leaves elsewhere that is
            not as near to a threshold as that.
    """
    independent = ChainFile.read(path).rows_independent
    asked = batches if independent else [row for batch in batches for row in _rows(batch)]
    with open_worker(path, runtime, threads=1, precision="f32" if runtime == "openvino" else None) as worker:
        every_NEC = _every(worker, batches)
        asked_NEC = _every(worker, asked)
        routed = worker.classify([_arrays(batch) for batch in asked])
    left_NC = torch.cat([torch.from_numpy(logits_BC) for logits_BC, _ in routed])
    exits_N = np.concatenate([exits_B for _, exits_B in routed])
    model_NEC, rule = logits_of(EveryExit(model), asked), prepared.rule
    model_exits_N = _leaving(rule, model_NEC)
    parity = Parity(
        agreement=float((left_NC.argmax(-1) == _at(model_NEC, model_exits_N).argmax(-1)).float().mean()),
        largest_difference=float((every_NEC - logits_of(EveryExit(model), batches)).abs().max()),
        count=len(every_NEC),
        same_exit=float(np.mean(exits_N == model_exits_N)),
    )
    expected_NEC, rounding_NEC = expectation(prepared, runtime, batches)
    judge(every_NEC, expected_NEC, rounding_NEC, parity=parity, place=place)
    judge(left_NC, _at(asked_NEC, exits_N), rounding_NEC, parity=parity, place=place)
    expected_NEC, _ = expectation(prepared, runtime, asked)
    _judge_exits(rule, exits_N, asked_NEC, expected_NEC, place)
    return parity


def join_chain(model: nn.Module, chain: Path, path: Path, batches: Batches, place: str) -> None:
    """Write a checked chain as one ONNX file, check that too, and take the chain away.

    Raises:
        MismatchError: the file lacks integers of the model, or rows leave it with other logits than the chain.
    """
    rule = ChainFile.read(chain).rule
    write_one_file(chain, path)
    audit(model, weights_in_onnx(path), place)
    with open_worker(chain, "onnxruntime", threads=1) as worker:
        every_NEC = _every(worker, batches)
    with open_worker(path, "onnxruntime", threads=1) as worker:
        routed = worker.classify([_arrays(batch) for batch in batches])
    left_NC = torch.cat([torch.from_numpy(logits_BC) for logits_BC, _ in routed])
    exits_N = np.concatenate([exits_B for _, exits_B in routed])
    _judge_exits(rule, exits_N, every_NEC, every_NEC, place)
    expected_NC = _at(every_NEC, exits_N)
    difference = float((left_NC - expected_NC).abs().max())
    if not difference <= float_tolerance(expected_NC):
        raise MismatchError(
            f"rows leave the joined file with logits that differ from the chain's by {difference:.2g}",
            expected=f"at most {float_tolerance(expected_NC):.2g}",
            place=place,
        )
    for name in (chain.name, *ChainFile.read(chain).segments):
        chain.with_name(name).unlink()


def _rows(batch: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Yield the rows of a batch alone, each without its padding."""
    for row, mask_T in enumerate(batch[MASK]):
        length = int(mask_T.nonzero().max()) + 1
        yield {name: value[row : row + 1, :length] for name, value in batch.items()}


def _arrays(batch: Mapping[str, Tensor]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in batch.items()}


def _every(worker: Worker, batches: Batches) -> Tensor:
    """Return the logits (N, E + 1, C) of every exit and of the end."""
    found = worker.every([_arrays(batch) for batch in batches])
    return torch.cat([torch.from_numpy(logits_EBC).transpose(0, 1) for logits_EBC in found])


def _at(logits_NEC: Tensor, exits_N: Array) -> Tensor:
    """Return the logits (N, C) of the exits at which rows left."""
    return logits_NEC[torch.arange(len(logits_NEC)), torch.from_numpy(exits_N)]


def _of_exits(logits_NEC: Tensor) -> Array:
    """Return the logits (E, N, C) of the exits, without those of the end."""
    return logits_NEC[:, :-1].transpose(0, 1).numpy()


def _leaving(rule: Rule, logits_NEC: Tensor) -> Array:
    """Return (N,), at which exit each row leaves by logits of the exits and of the end."""
    return leaving(rule.by, np.array(rule.thresholds), _of_exits(logits_NEC))


def _judge_exits(rule: Rule, exits_N: Array, artifact_NEC: Tensor, expected_NEC: Tensor, place: str) -> None:
    """Raise if a row left elsewhere than expected, and the difference of logits does not account for it."""
    expected_N = _leaving(rule, expected_NEC)
    wrong_N = (exits_N != expected_N) & ~_undecided(rule, artifact_NEC, expected_NEC)
    if wrong_N.any():
        row = int(wrong_N.argmax())
        raise MismatchError(
            f"{wrong_N.sum()} of {len(wrong_N)} rows leave the artifact elsewhere than the model: "
            f"row {row} at exit {exits_N[row]}",
            expected=f"exit {expected_N[row]}, as by the logits of the model",
            place=place,
        )


def _undecided(rule: Rule, artifact_NEC: Tensor, expected_NEC: Tensor) -> Any:
    """Return (N,), which rows are as near to leaving or staying as the artifact is to the model."""
    ours_ENC, theirs_ENC = _of_exits(artifact_NEC), _of_exits(expected_NEC)
    if rule.by == "patience":
        sorted_ENC = np.sort(theirs_ENC, axis=2)
        least = 2 * max(FLOAT_TOLERANCE, float(np.abs(ours_ENC - theirs_ENC).max()))
        return (sorted_ENC[:, :, -1] - sorted_ENC[:, :, -2] <= least).any(axis=0)
    ours_EN, theirs_EN = sureness(rule.by, ours_ENC), sureness(rule.by, theirs_ENC)
    least = max(FLOAT_TOLERANCE, float(np.abs(ours_EN - theirs_EN).max()))
    return (np.abs(theirs_EN - np.array(rule.thresholds)[:, None]) <= least).any(axis=0)
