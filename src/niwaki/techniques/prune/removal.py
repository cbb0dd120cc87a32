"""Remove units one by one and let the others take over what they did: the optimal brain surgeon on whole columns."""

# O outputs, I inputs, U units, W width of a unit (inputs of a head; 1 for a neuron)

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor


def inverse_hessian(gram_II: Tensor, damping: float) -> Tensor:
    """Return the inverse of X X^T with `damping` times its mean diagonal added, in double precision."""
    gram_II = gram_II.double()
    ridge = damping * float(gram_II.diagonal().mean()) + 1e-12
    eye_II = torch.eye(len(gram_II), dtype=torch.float64)
    return torch.cholesky_inverse(torch.linalg.cholesky(gram_II + ridge * eye_II))


def without(weight_OI: Tensor, inverse_II: Tensor, gone: Tensor, stay: Tensor) -> tuple[Tensor, Tensor]:
    """Take inputs away; the others' weights make up for it as well as they can.

    With S the inputs that go, P the inverse Hessian and W the weights: W <- W - W_S (P_SS)^-1 P_S: and
    P <- P - P_:S (P_SS)^-1 P_S:, which is the inverse of the Hessian without S.

    Args:
        weight_OI: the weights.
        inverse_II: the inverse Hessian.
        gone: inputs that go.
        stay: all the others.

    Returns:
        Weights and inverse of the inputs that stay.

    Source: Kurtic, Frantar and Alistarh 2023, ZipLM, section 3.
    """
    left_SI = inverse_II[gone]
    gain_SI = torch.linalg.solve(left_SI[:, gone], left_SI[:, stay])
    weight_OI = weight_OI[:, stay].addmm(weight_OI[:, gone], gain_SI, alpha=-1)
    return weight_OI, inverse_II[stay[:, None], stay].addmm(left_SI[:, stay].T, gain_SI, alpha=-1)


def increases(weight_OI: Tensor, inverse_II: Tensor, width: int) -> Tensor:
    """Return by how much the squared error grows if a unit goes and the others make up for it, (U,).

    sum over outputs of w_S (P_SS)^-1 w_S^T.
    """
    if width == 1:
        return weight_OI.square().sum(dim=0) / inverse_II.diagonal()
    blocks_UWW = inverse_II.unflatten(0, (-1, width)).unflatten(2, (-1, width)).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    weight_UWO = weight_OI.unflatten(1, (-1, width)).permute(1, 2, 0)
    moved_UWO: Tensor = torch.linalg.solve(blocks_UWW, weight_UWO)
    return (weight_UWO * moved_UWO).sum(dim=(1, 2))


def removal_order(
    weight_OI: Tensor, gram_II: Tensor, width: int, damping: float, at_once: int = 1, stay: int = 0
) -> tuple[list[int], list[float]]:
    """Remove units until so many stay, always the one that costs least.

    Args:
        weight_OI: of the linear that reads the units.
        gram_II: X X^T of its inputs.
        width: inputs a unit has.
        damping: share of the mean diagonal that is added to it.
        at_once: units between two updates of the whole; they are chosen one after the other, exactly, among the four
            times as many that cost least.
        stay: units that are left.

    Returns:
        The units from the first that goes to the last; and the squared error when 0, 1, 2, ... of them are gone.
    """
    weight_OI, inverse_II = weight_OI.double(), inverse_hessian(gram_II, damping)
    units = torch.arange(weight_OI.shape[1] // width)
    order: list[int] = []
    errors = [0.0]
    while len(units) > stay:
        count = min(at_once, len(units) - stay)
        cheapest = increases(weight_OI, inverse_II, width).argsort()[: 4 * count]
        columns = _columns(cheapest, width)
        picked, costs = _one_by_one(weight_OI[:, columns], inverse_II[columns[:, None], columns], width, count)
        gone = cheapest[picked]
        mask = torch.ones(len(units), dtype=torch.bool)
        mask[gone] = False
        order += units[gone].tolist()
        errors += [errors[-1] + total for total in accumulate(costs)]
        weight_OI, inverse_II = without(
            weight_OI, inverse_II, _columns(gone, width), _columns(mask.nonzero()[:, 0], width)
        )
        units = units[mask]
    return order, errors


def _one_by_one(weight_OI: Tensor, inverse_II: Tensor, width: int, count: int) -> tuple[list[int], list[float]]:
    """Return so many units in the order they go, and what each costs."""
    units = torch.arange(weight_OI.shape[1] // width)
    picked: list[int] = []
    costs: list[float] = []
    for _ in range(count):
        cost_U = increases(weight_OI, inverse_II, width)
        least = int(cost_U.argmin())
        picked.append(int(units[least]))
        costs.append(max(0.0, float(cost_U[least])))
        others = torch.cat([torch.arange(least), torch.arange(least + 1, len(units))])
        weight_OI, inverse_II = without(
            weight_OI, inverse_II, _columns(torch.tensor([least]), width), _columns(others, width)
        )
        units = units[others]
    return picked, costs


def _columns(units: Tensor, width: int) -> Tensor:
    """Return the inputs of these units."""
    return (units[:, None] * width + torch.arange(width)).flatten()
