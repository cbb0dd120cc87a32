"""Compare an artifact with the model it was made from, on real inputs.

Two comparisons, because rounding is not smooth. A model that rounds its activations answers a difference in the last
bit (another order of summation) with a step of the rounding; on a trained MiniLM in int8, noise of 1e-7 on the
embeddings moves logits by up to 0.2. So the rewriting for export is checked with rounding switched off, where it must
be exact; and the file is checked with rounding on, where it may differ from the rewritten model by what rounding itself
does to the logits, measured on the same inputs.

Dropping tokens is not smooth either: where two tokens of a row have nearly the same score, the last bit says which one
stays. Such rows are not compared.
"""

# N examples, C classes

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from niwaki.errors import MismatchError
from niwaki.layers.dropping import droppers_of
from niwaki.layers.linear import QuantizedLinear
from niwaki.runtime import open_worker

Batches = Sequence[Mapping[str, Tensor]]

#: Largest difference of two float32 logits, as a share of the largest logit or of 1.
FLOAT_TOLERANCE = 1e-3
#: How far two ways of rounding may be apart, as a multiple of what each does to the logits. Measured: 0.6 and 0.3 (the
#: largest, the mean) on a trained MiniLM; up to 2.3 and 1.4 on random models of two layers and eight examples.
LARGEST_FACTOR, MEAN_FACTOR = 4.0, 3.0
#: A token stays or goes by more than chance where its score is further than this from where it is decided, as a share.
LEAST_MARGIN = 1e-4


@dataclass(frozen=True)
class Parity:
    """Say how well an artifact agrees with its model.

    Attributes:
        agreement: share of examples with the same prediction, 0 to 1.
        largest_difference: of any two logits.
        count: number of examples.
        same_exit: of a model with exits, the share of examples that leave where they leave the model, 0 to 1.
    """

    agreement: float
    largest_difference: float
    count: int
    same_exit: float | None = None


def check_rewriting(model: nn.Module, prepared: nn.Module, batches: Batches) -> None:
    """Make sure that the prepared model is the same function: with activations in floats, the same logits.

    Raises:
        MismatchError: it is not.
    """
    with activations_in_floats(model, prepared):
        before_NC, after_NC = logits_of(model, batches), logits_of(prepared, batches)
        decided_N = decided(model, batches)
    difference = float((before_NC - after_NC)[decided_N].abs().max())
    tolerance = float_tolerance(before_NC)
    if not difference <= tolerance:
        raise MismatchError(
            f"the model rewritten for export differs from the model by {difference:.2g} in a logit",
            expected=f"at most {tolerance:.2g}",
        )


def compare(model: nn.Module, prepared: nn.Module, path: Path, runtime: str, batches: Batches, place: str) -> Parity:
    """Run an artifact in a process of its own and compare it with the model.

    Args:
        model: what the user holds; the parity returned is with it.
        prepared: what the file was written from; the tolerance is on the difference from it.
        path: the artifact.
        runtime: "onnxruntime" or "openvino"; the latter in float32, whatever the processor would choose.
        batches: inputs, as the artifact takes them.
        place: the artifact's name in an error.

    Raises:
        MismatchError: the artifact differs from the model, or its runtime died of it.
    """
    precision = "f32" if runtime == "openvino" else None
    with open_worker(path, runtime, threads=1, precision=precision) as worker:
        arrays = worker.run([{name: value.numpy() for name, value in batch.items()} for batch in batches])
    artifact_NC = torch.cat([torch.from_numpy(array) for array in arrays])
    expected_NC, rounding_NC = expectation(prepared, runtime, batches)
    model_NC = logits_of(model, batches)
    parity = Parity(
        agreement=float((artifact_NC.argmax(-1) == model_NC.argmax(-1)).float().mean()),
        largest_difference=float((artifact_NC - model_NC).abs().max()),
        count=len(model_NC),
    )
    decided_N = decided(model, batches)
    judge(artifact_NC[decided_N], expected_NC[decided_N], rounding_NC, parity=parity, place=place)
    return parity


def decided(model: nn.Module, batches: Batches) -> Tensor:
    """Return (N,), of which examples it does not hang on the last bits of a score which tokens stay; all, if of none.

    Of a model that drops no tokens they are all.
    """
    droppers, parts = droppers_of(model), []
    for batch in batches:
        margins = [torch.full((len(batch["input_ids"]),), torch.inf)]
        if droppers:
            logits_of(model, [batch])
            margins += [dropper.margin_B for dropper in droppers if dropper.margin_B is not None]
        parts.append(torch.stack(margins).amin(dim=0) > LEAST_MARGIN)
    decided_N = torch.cat(parts)
    return decided_N if bool(decided_N.any()) else torch.ones_like(decided_N)


def expectation(prepared: nn.Module, runtime: str, batches: Batches) -> tuple[Tensor, Tensor]:
    """Return the logits (N, ..., C) to be expected of an artifact, and what rounding activations does to them."""
    rounded_NC = logits_of(prepared, batches)
    with activations_in_floats(prepared):
        floats_NC = logits_of(prepared, batches)
    with activations_in_floats(prepared, kinds=("dynamic",) if runtime == "openvino" else ()):
        expected_NC = logits_of(prepared, batches)
    return expected_NC, rounded_NC - floats_NC


def judge(artifact_NC: Tensor, expected_NC: Tensor, rounding_NC: Tensor, parity: Parity, place: str) -> None:
    """Raise if an artifact's logits are further from the expected ones than floats and rounding account for."""
    difference_NC = (artifact_NC - expected_NC).abs()
    floor = float_tolerance(expected_NC)
    largest = max(floor, LARGEST_FACTOR * float(rounding_NC.abs().max()))
    mean = max(floor, MEAN_FACTOR * float(rounding_NC.abs().mean()))
    if not (float(difference_NC.max()) <= largest and float(difference_NC.mean()) <= mean):
        numbers = f"{float(difference_NC.max()):.3g} (mean {float(difference_NC.mean()):.3g})"
        raise MismatchError(
            f"the artifact does not agree with the model: {parity.agreement:.1%} of {parity.count} predictions agree, "
            f"and the largest difference of logits is {numbers}",
            expected=f"a largest difference of at most {largest:.3g} (mean {mean:.3g})",
            place=place,
        )


def float_tolerance(logits_NC: Tensor) -> float:
    """Return the largest difference that float32 arithmetic in another order may make."""
    return FLOAT_TOLERANCE * max(1.0, float(logits_NC.abs().max()))


def logits_of(model: nn.Module, batches: Batches) -> Tensor:
    """Return the logits of all examples, float32 (N, C)."""
    with torch.no_grad():
        outputs = [model(**batch) for batch in batches]
    return torch.cat([getattr(output, "logits", output).float() for output in outputs])


@contextmanager
def activations_in_floats(*models: nn.Module, kinds: Sequence[str] = ("dynamic", "static")) -> Iterator[None]:
    """Switch the rounding of activations off, and back on at the end."""
    linears = {module for model in models for module in model.modules() if isinstance(module, QuantizedLinear)}
    before = {linear: linear.activations for linear in linears if linear.activations in kinds}
    try:
        for linear in before:
            linear.activations = "none"
        yield
    finally:
        for linear, kind in before.items():
            linear.activations = kind
