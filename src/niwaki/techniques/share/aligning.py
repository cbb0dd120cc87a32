"""Bring layers into line before they share: the same functions, written so that their weights are near each other.

A layer stays what it is when its neurons stand in another order, or its heads; and when the queries and keys of a head
are turned together, or its values and what reads them: (R Q)^T (R K) = Q^T K for every rotation R. Of all these, the
one is taken in which a layer is nearest to the others of its group, whose mean then says more.

Source: Ainsworth, Hayase and Srinivasa 2023, Git Re-Basin, section 3.2 (orders, by linear assignment). Schönemann 1966,
A Generalized Solution of the Orthogonal Procrustes Problem (rotations).
"""

# N neurons, H heads, S width of a head, F weights that a unit, or a row of a head, reads and writes

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.surgery import can_turn, reorder_neurons, ties_of, turn_heads

#: How often each layer is brought nearer to the mean of the others.
ROUNDS = 3
Move = TypeVar("Move")


def align(model: nn.Module, groups: Sequence[Sequence[int]], roles: Sequence[str]) -> None:
    """Write the layers of each group anew, so that they are near each other; the model computes what it did.

    The last layer of a group stays as it is. Heads that cannot be turned are left alone, and models in which layers
    share already.

    Args:
        model: of a known family.
        groups: layers that are to share.
        roles: of the linears that they are to share.
    """
    if ties_of(model):
        return
    for group in groups:
        layers = [anatomy_of(model).layers[index] for index in group]
        if "up" in roles:
            orders = in_line([neurons_of(layer) for layer in layers], nearest_order, ordered)
            for layer, order_N in zip(layers, orders, strict=False):
                reorder_neurons(model, layer=layer.index, values=order_N)
        if "query" in roles and all(map(can_turn, layers)):
            turns = in_line([heads_of(layer) for layer in layers], nearest_heads, turned)
            for layer, found in zip(layers, turns, strict=False):
                turn_heads(model, layer=layer.index, values=found)


def neurons_of(layer: Layer) -> Tensor:
    """Return what each neuron reads and writes, (N, F)."""
    read = [_rows(layer, role) for role in ("up", "gate") if getattr(layer.family, role)]
    return torch.cat([*read, _weight(layer, "down").T.double()], dim=1)


def heads_of(layer: Layer) -> Tensor:
    """Return what the rows of each head read and write, (2, H, S, F): queries and keys, values and outputs."""
    queries, values = (
        torch.cat([_rows(layer, "query"), _rows(layer, "key")], dim=1),
        torch.cat([_rows(layer, "value"), _weight(layer, "output").T.double()], dim=1),
    )
    width = max(queries.shape[1], values.shape[1])
    padded = [nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in (queries, values)]
    return torch.stack([rows.unflatten(0, (-1, layer.head_size)) for rows in padded])


def nearest_order(mean_NF: Tensor, own_NF: Tensor) -> Tensor:
    """Return the order in which rows are nearest to others: which own row comes first, second, ...

    >>> nearest_order(torch.eye(3), torch.eye(3)[[2, 0, 1]]).tolist()
    [1, 2, 0]
    """
    return _assigned(mean_NF @ own_NF.T)


def ordered(own_NF: Tensor, order_N: Tensor) -> Tensor:
    """Return the rows in an order."""
    return own_NF[order_N]


def nearest_heads(mean_2HSF: Tensor, own_2HSF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of heads, and the rotations (2, H, S, S) of them in it, in which they are nearest to others."""
    products_2HHSS = torch.einsum("phsf,pgtf->phgst", mean_2HSF, own_2HSF)
    near_HH = torch.linalg.svdvals(products_2HHSS).sum(dim=(0, 3))  # how near each is to each, turned
    order_H = _assigned(near_HH)
    left, _, right = torch.linalg.svd(products_2HHSS[:, torch.arange(len(order_H)), order_H])
    return order_H, left @ right


def turned(own_2HSF: Tensor, found: tuple[Tensor, Tensor]) -> Tensor:
    """Return the heads in an order, and each turned."""
    order_H, turns_2HSS = found
    return torch.einsum("phst,phtf->phsf", turns_2HSS, own_2HSF[:, order_H])


def in_line(
    own: Sequence[Tensor], nearest: Callable[[Tensor, Tensor], Move], moved: Callable[[Tensor, Move], Tensor]
) -> list[Move]:
    """Return the moves that bring each part but the last near to the mean of the others, found again and again."""
    last = len(own) - 1
    parts, moves = {last: own[last]}, {}
    for _ in range(ROUNDS if last > 1 else 1):
        for index in reversed(range(last)):
            others = torch.stack([part for other, part in parts.items() if other != index])
            moves[index] = nearest(others.mean(dim=0), own[index])
            parts[index] = moved(own[index], moves[index])
    return [moves[index] for index in range(last)]


def _assigned(near_UU: Tensor) -> Tensor:
    """Return which column each row gets, each another one, so that the sum is greatest."""
    return torch.from_numpy(linear_sum_assignment(near_UU.cpu().numpy(), maximize=True)[1].astype(np.int64))


def _weight(layer: Layer, role: str) -> Tensor:
    return layer.part(role).get_parameter("weight").detach()


def _rows(layer: Layer, role: str) -> Tensor:
    """Return the weight of a linear with its bias as one column more."""
    bias = layer.part(role)._parameters.get("bias")
    weight_OI = _weight(layer, role).double()
    return weight_OI if bias is None else torch.cat([weight_OI, bias.detach().double()[:, None]], dim=1)
