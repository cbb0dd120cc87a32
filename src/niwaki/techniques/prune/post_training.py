"""Prune after training: calibrate once, plan any size, cut layer by layer and let the rest make up for it."""

# U units, D hidden

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from niwaki.anatomy import UNITS, Layer, anatomy_of
from niwaki.calibrate import frozen
from niwaki.checkpoint import weights_hash, write_tensors
from niwaki.errors import NiwakiError
from niwaki.export.prepare import is_known
from niwaki.technique import Context
from niwaki.techniques.prune import latency, mask_search, second_order, told
from niwaki.techniques.prune.plan import Costs, Sizes, by_cost, by_share, candidates, macs
from niwaki.techniques.prune.readout import Moments
from niwaki.techniques.prune.rebuild import rebuild
from niwaki.techniques.prune.sensitivity import BATCH, gate_fisher, output_fisher

Curves = Mapping[str, list[list[float]]]
METHODS = ("mask-search", "second-order")
#: How many calibrations the cache holds.
CACHED = 8


@dataclass(frozen=True)
class Cost:
    """Name a budget over heads and neurons together.

    Attributes:
        what: "macs" or "latency".
        share: that stays.
        runtime, bits, length: latency is measured in; a length of None is the mean of the training rows.
    """

    what: str
    share: float
    runtime: str = "onnxruntime"
    bits: int = 32
    length: int | None = None


@dataclass(frozen=True)
class PostTraining:
    """Hold one request: shares of units, or one budget.

    Attributes:
        by: "mask-search" or "second-order".
        shares: what stays of each kind of units, where no budget is set.
        cost: the budget, or None.
        even, multiple_of, examples: as of `Prune`.
    """

    by: str
    shares: Mapping[str, float]
    cost: Cost | None
    even: bool
    multiple_of: int
    examples: int

    def check(self, model: nn.Module) -> None:
        """Refuse what no calibration could make possible; what a latency table decides is refused when it is there."""
        if self.cost is not None and self.cost.what == "latency" and not is_known(model):
            raise NiwakiError(
                f"no latency table can be made for {type(model).__name__}",
                expected="a text classifier: latency is that of the exported layers, and those of a language model are "
                "not exported",
                fix=f"keep: {{macs: {self.cost.share:g}}}",
                place="prune",
            )
        sizes = candidates(anatomy_of(model).layers, self.multiple_of)
        if self.cost is None:
            for kind, share in self.shares.items():
                by_share(kind, share, self.even, sizes[kind], None)
        elif self.cost.what == "macs":
            by_cost("macs", self.cost.share, self.even, macs(model, sizes, length=self.cost.length or 1), None)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Plan the sizes and cut the model to them."""
        self.check(model)
        before = told.counts_of(model)
        sizes = candidates(anatomy_of(model).layers, self.multiple_of)
        costs = self._costs(model, context, sizes)
        with frozen(model):
            calibration = calibrated(model, context, self.by, self.examples)
            chosen = self._chosen(sizes, costs, calibration.curves)
            choose = _chooser(self.by, calibration.fisher, chosen)
            rebuild(model, context.calibration_batches(self.examples, BATCH), choose)
        told.tell(context.log, model, before, even=self.even, multiple_of=self.multiple_of)
        return model

    def _costs(self, model: nn.Module, context: Context, sizes: Mapping[str, list[list[int]]]) -> Costs | None:
        """Return what each block costs at each size, having seen that the budget can be met."""
        if self.cost is None:
            return None
        length = self.cost.length or max(1, round(float(context.train.lengths.mean())))
        if self.cost.what == "macs":
            costs = macs(model, sizes, length)
        else:
            costs = latency.latency_costs(model, context, sizes, length, self.cost.runtime, self.cost.bits)
        by_cost(self.cost.what, self.cost.share, self.even, costs, None)
        return costs

    def _chosen(self, sizes: Mapping[str, list[list[int]]], costs: Costs | None, curves: Curves) -> Sizes:
        """Return how many units of each kind stay in each layer."""
        if self.cost is not None and costs is not None:
            return by_cost(self.cost.what, self.cost.share, self.even, costs, curves)
        shares = self.shares.items()
        return {kind: by_share(kind, share, self.even, sizes[kind], curves[kind]) for kind, share in shares}


@dataclass(frozen=True)
class Calibration:
    """Hold what one calibration tells of a model, enough for every size.

    Attributes:
        curves: by kind and layer, what the loss grows by when 0, 1, 2, ... units are gone.
        fisher: by kind and layer, the information that units are chosen by.
    """

    curves: dict[str, list[list[float]]]
    fisher: dict[str, list[Tensor]]


def calibrated(model: nn.Module, context: Context, by: str, examples: int) -> Calibration:
    """Calibrate a model, or read what an earlier calibration of the same model on the same rows has left.

    The file stands in the context's cache, so that all runs of a family share it.
    """
    parts = (version("niwaki"), weights_hash(model), context.train.fingerprint, by, str(examples), str(context.seed))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    file = context.cache / "prune" / f"{key}.safetensors"
    layers = range(anatomy_of(model).num_layers)
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = _calibrate(model, context, by, examples)
        tensors = {f"fisher.{kind}.{index}": made.fisher[kind][index] for kind in UNITS for index in layers}
        for kind in UNITS:
            for index in layers:
                tensors[f"curve.{kind}.{index}"] = torch.tensor(made.curves[kind][index], dtype=torch.float64)
        _make_room(file.parent)
        write_tensors(file, tensors)
    read = load_file(file)
    context.log({"event": "calibration", "file": str(file)})
    return Calibration(
        {kind: [read[f"curve.{kind}.{index}"].tolist() for index in layers] for kind in UNITS},
        {kind: [read[f"fisher.{kind}.{index}"] for index in layers] for kind in UNITS},
    )


def _make_room(folder: Path) -> None:
    """Keep only the newest of earlier calibrations."""
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    for file in files[: max(0, len(files) - CACHED + 1)]:
        file.unlink(missing_ok=True)


def _calibrate(model: nn.Module, context: Context, by: str, examples: int) -> Calibration:
    if by == "mask-search":
        gates = gate_fisher(model, context, examples)
        return Calibration(mask_search.curves(gates), gates)
    outputs = output_fisher(model, context, examples)
    return Calibration(second_order.curves(model, context.calibration_batches(examples, BATCH), outputs), outputs)


def _chooser(by: str, fisher: Mapping[str, list[Tensor]], chosen: Sizes) -> Callable[[Layer, str, Moments], list[int]]:
    """Return what chooses the units of a block that stay, of as many as planned."""

    def choose(layer: Layer, kind: str, moments: Moments) -> list[int]:
        count = layer.units(kind)
        stay = chosen[kind][layer.index] if kind in chosen else count
        if stay == count:
            return list(range(count))
        if by == "mask-search":
            return mask_search.rearranged(fisher[kind][layer.index], stay)
        gone, _ = second_order.order_of(layer, kind, moments, fisher[kind][layer.index], stay)
        return sorted(set(range(count)) - set(gone))

    return choose
