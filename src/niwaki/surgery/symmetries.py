"""The edits that write a layer's weights in another way, and leave what it computes: orders, and turned heads."""

# H heads, N neurons, S width of a head

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer
from niwaki.errors import NiwakiError
from niwaki.surgery.cutting import layer_at
from niwaki.surgery.journal import edit
from niwaki.surgery.sharing import UNIT_ROLES, refuse_tied

#: The linears that are turned by the same rotation, in pairs: the product of the two is what counts.
TURNED = (("query", "key"), ("value", "output"))


def can_turn(layer: Layer) -> bool:
    """Say whether heads of a layer may change places and be turned.

    Not where several share keys and values, where positions turn them, and where attention has other weights than its
    projections: feature maps, or norms of queries.
    """
    own = {id(parameter) for role in UNIT_ROLES["heads"] for parameter in layer.part(role).parameters()}
    has_more = any(id(parameter) not in own for parameter in layer.attention.parameters())
    return not (has_more or layer.group_size > 1 or layer.family.config_key_value_heads)


@edit
def reorder_neurons(model: nn.Module, *, layer: int, values: Tensor | None = None) -> None:
    """Put the feed-forward neurons of a layer in another order: the same function.

    Args:
        model: any model of a known family.
        layer: index of the layer, from 0.
        values: which neuron comes first, second, ... (N,). Without it only the edit is written down: the weights of the
            file are in that order.
    """
    part = layer_at(model, layer)
    roles = [role for role in UNIT_ROLES["neurons"] if getattr(part.family, role)]
    refuse_tied(model, [part.name_of(role) for role in roles], "reorder_neurons", "an order of neurons before share")
    if values is None:
        return
    with torch.no_grad():
        for role in roles:
            for name, parameter in part.part(role).named_parameters():
                if role != "down":
                    parameter.copy_(parameter[values])
                elif name == "weight":
                    parameter.copy_(parameter[:, values])


@edit
def turn_heads(model: nn.Module, *, layer: int, values: tuple[Tensor, Tensor] | None = None) -> None:
    """Put the heads of a layer in another order and turn each: (R Q)^T (R K) = Q^T K, so it is the same function.

    Args:
        model: any model of a known family.
        layer: index of the layer, from 0.
        values: which head comes first, second, ... (H,), and the rotations (2, H, S, S) of them in that order: of
            queries and keys, and of values and what reads them. Without them only the edit is written down.
    """
    part = layer_at(model, layer)
    if not can_turn(part):
        raise NiwakiError(
            f"heads of layer {layer} cannot be turned", expected="a key and value for each head, and nothing between"
        )
    refuse_tied(model, [part.name_of(role) for role in UNIT_ROLES["heads"]], "turn_heads", "heads turned before share")
    if values is None:
        return
    order_H, turns_2HSS = values
    for roles, turn_HSS in zip(TURNED, turns_2HSS, strict=True):
        for role in roles:
            for name, parameter in part.part(role).named_parameters():
                if role != "output":
                    _turn(parameter, part.head_size, order_H, turn_HSS)
                elif name == "weight":
                    _turn(parameter.T, part.head_size, order_H, turn_HSS)


@torch.no_grad()
def _turn(rows: Tensor, size: int, order_H: Tensor, turn_HSS: Tensor) -> None:
    """Turn the rows (H S, ...) of a parameter, in place."""
    heads = rows.double().unflatten(0, (-1, size))[order_H]
    rows.copy_(torch.einsum("hst,ht...->hs...", turn_HSS.double(), heads).flatten(0, 1))
