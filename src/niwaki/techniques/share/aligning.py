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

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.surgery import ties_of

#: How often each layer is brought nearer to the mean of the others.
ROUNDS = 3
#: What stands in the same order, or is turned by the same rotation: pairs of what is read and what is written.
_TURNED = (("query", "key"), ("value", "output"))
#: What reads the input of the feed-forward: up, and gate where there is one.
_READ = ("up", "gate")


def align(model: nn.Module, groups: Sequence[Sequence[int]], roles: Sequence[str]) -> None:
    """Write the layers of each group anew, so that they are near each other; the model computes what it did.

    The last layer of a group stays as it is. Heads are left alone where several share keys and values, where positions
    turn them, and where attention has other weights than its projections.

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
            _in_line(layers, neurons_of, nearest_order, _reorder)
        if "query" in roles and all(can_turn(layer) for layer in layers):
            _in_line(layers, heads_of, nearest_heads, _turn)


def can_turn(layer: Layer) -> bool:
    """Say whether heads of a layer may change places and be turned."""
    own = {id(parameter) for pair in _TURNED for role in pair for parameter in layer.part(role).parameters()}
    has_more = any(id(parameter) not in own for parameter in layer.attention.parameters())
    return not (has_more or layer.group_size > 1 or layer.family.config_key_value_heads)


def neurons_of(layer: Layer) -> Tensor:
    """Return what each neuron reads and writes, (N, F)."""
    read = [_rows(layer, role) for role in _READ if getattr(layer.family, role)]
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


def nearest_order(mean_NF: Tensor, own_NF: Tensor) -> tuple[Tensor]:
    """Return the order in which rows are nearest to others: which own row comes first, second, ...

    >>> nearest_order(torch.eye(3), torch.eye(3)[[2, 0, 1]])
    (tensor([1, 2, 0]),)
    """
    return (_assigned(mean_NF @ own_NF.T),)


def nearest_heads(mean_2HSF: Tensor, own_2HSF: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of heads, and the rotations (2, H, S, S) of them in it, in which they are nearest to others."""
    products_2HHSS = torch.einsum("phsf,pgtf->phgst", mean_2HSF, own_2HSF)
    near_HH = torch.linalg.svdvals(products_2HHSS).sum(dim=(0, 3))  # how near each is to each, turned
    order_H = _assigned(near_HH)
    left, _, right = torch.linalg.svd(products_2HHSS[:, torch.arange(len(order_H)), order_H])
    return order_H, left @ right


def _assigned(near_UU: Tensor) -> Tensor:
    """Return which column each row gets, each another one, so that the sum is greatest."""
    return torch.from_numpy(linear_sum_assignment(near_UU.cpu().numpy(), maximize=True)[1].astype(np.int64))


def _in_line(
    layers: Sequence[Layer],
    parts_of: Callable[[Layer], Tensor],
    nearest: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    move: Callable[..., None],
) -> None:
    """Bring each layer but the last nearer to the mean of those that are in line already, again and again."""
    parts = {len(layers) - 1: parts_of(layers[-1])}
    for _ in range(ROUNDS if len(layers) > 2 else 1):
        for index in reversed(range(len(layers) - 1)):
            others = torch.stack([part for other, part in parts.items() if other != index])
            move(layers[index], *nearest(others.mean(dim=0), parts_of(layers[index])))
            parts[index] = parts_of(layers[index])


@torch.no_grad()
def _reorder(layer: Layer, order_N: Tensor) -> None:
    """Put the neurons of a layer in this order."""
    for role in _READ:
        if getattr(layer.family, role):
            for parameter in layer.part(role).parameters():
                parameter.copy_(parameter[order_N])
    weight_DN = layer.part("down").get_parameter("weight")
    weight_DN.copy_(weight_DN[:, order_N])


def _turn(layer: Layer, order_H: Tensor, turns_2HSS: Tensor) -> None:
    """Put the heads of a layer in this order, and turn each."""
    for roles, turn_HSS in zip(_TURNED, turns_2HSS, strict=True):
        for role in roles:
            _turn_rows(layer, role, order_H, turn_HSS)


@torch.no_grad()
def _turn_rows(layer: Layer, role: str, order_H: Tensor, turn_HSS: Tensor) -> None:
    """Turn the rows of a projection, or the columns of the one that reads the values."""
    for name, parameter in layer.part(role).named_parameters():
        if role == "output" and name == "bias":
            continue
        rows = (parameter.T if role == "output" else parameter).double().unflatten(0, (-1, layer.head_size))
        turned = torch.einsum("hst,ht...->hs...", turn_HSS, rows[order_H]).flatten(0, 1)
        parameter.copy_(turned.T if role == "output" else turned)


def _weight(layer: Layer, role: str) -> Tensor:
    return layer.part(role).get_parameter("weight").detach()


def _rows(layer: Layer, role: str) -> Tensor:
    """Return the weight of a linear with its bias as one column more."""
    bias = layer.part(role)._parameters.get("bias")
    weight_OI = _weight(layer, role).double()
    return weight_OI if bias is None else torch.cat([weight_OI, bias.detach().double()[:, None]], dim=1)
