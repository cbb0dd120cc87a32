"""Second-order removal: units go one by one, the others take over, and the loss prices what is lost."""

# D hidden, U units, I inputs, O outputs

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from niwaki.anatomy import UNITS, Layer
from niwaki.techniques.prune.readout import Moments
from niwaki.techniques.prune.rebuild import rebuild
from niwaki.techniques.prune.removal import removal_order

#: Share of the mean diagonal added to the inputs' Hessian. More, and units that do the same no longer stand out.
DAMPING = 1e-4
#: Share of the mean diagonal added to the Fisher information of the outputs, which fewer rows decide.
FISHER_DAMPING = 0.01
#: How many groups the units of a block go in; within a group they are chosen one by one.
GROUPS = 192


def curves(
    model: nn.Module, batches: Iterable[dict[str, Tensor]], fisher: Mapping[str, list[Tensor]]
) -> dict[str, list[list[float]]]:
    """Return what the loss grows by, about, when 0, 1, 2, ... units of each block have gone and the others took over.

    With W the reader's weights, H the Hessian of its inputs and M the Fisher information of its outputs, the error D in
    W costs 1/2 trace(M D H D^T) / tokens: one measure for all blocks, heads and neurons alike.
    """
    found: dict[str, list[list[float]]] = {kind: [] for kind in UNITS}

    def look(layer: Layer, kind: str, moments: Moments) -> list[int]:
        _, errors = order_of(layer, kind, moments, fisher[kind][layer.index])
        tokens = max(1.0, moments.count)
        found[kind].append([0.5 * error / tokens for error in errors])
        return list(range(layer.units(kind)))

    rebuild(model, batches, look)
    return found


def order_of(
    layer: Layer, kind: str, moments: Moments, fisher_DD: Tensor, stay: int = 0
) -> tuple[list[int], list[float]]:
    """Return the order units of a block go in until so many stay, and the error on the way."""
    weight_OI = layer.reader(kind).weight
    units = layer.units(kind)
    fisher_DD = fisher_DD.double()
    floor = FISHER_DAMPING * float(fisher_DD.diagonal().mean()) + 1e-30
    root_DD = torch.linalg.cholesky(fisher_DD + floor * torch.eye(len(fisher_DD), dtype=torch.float64))
    priced_OI = root_DD.T @ weight_OI.detach().double()
    return removal_order(priced_OI, moments.hessian, layer.unit_width(kind), DAMPING, max(1, units // GROUPS), stay)
