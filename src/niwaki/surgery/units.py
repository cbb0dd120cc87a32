"""The edits of units: attention heads, feed-forward neurons, hidden channels and what the pooling linear puts out."""

# D hidden, H heads, N neurons

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.empty import EmptyAttention
from niwaki.residual import residual_of
from niwaki.surgery.cutting import (
    check_indices,
    layer_at,
    linear_of,
    linear_or_pair,
    narrow,
    narrow_columns,
    narrow_linear,
    put,
    table_or_pair,
)
from niwaki.surgery.dropping import take_dropper_away
from niwaki.surgery.journal import edit, is_read
from niwaki.surgery.sharing import UNIT_ROLES, layers_together, tie_again
from niwaki.surgery.ties import tie_head


@edit
def narrow_heads(model: nn.Module, *, layer: int, heads: list[int]) -> None:
    """Keep these attention heads of one layer: rows of query, key and value, and columns of the output projection.

    Where several heads share one key and value head, they stay or go together: what is left is as regular as it was.
    Layers that share these weights lose the same heads.
    With none left the layer attends no more: what stays of the attention is its output bias, without any product.

    Args:
        model: any model of a known family.
        layer: index of the layer, from 0.
        heads: indices of (query) heads, ascending, from 0; whole groups of those that share keys and values.
    """
    part = layer_at(model, layer)
    check_indices(heads, part.heads, f"heads of layer {layer}", least=1 if part.norms_inside else 0)
    rows = _rows_of_units(heads, part.head_size)
    shared_rows = _rows_of_units(_whole_groups(heads, part.group_size, f"heads of layer {layer}"), part.head_size)
    rows_of_role = {"query": rows, "key": shared_rows, "value": shared_rows}
    _narrow_users(model, layer, "heads", rows_of_role, rows)
    for user in _users(model, layer, "heads"):
        if (mechanism := getattr(user.attention, "mechanism", None)) is not None and heads:
            mechanism.keep_heads(heads)
        if part.family.heads:
            setattr(user.attention, part.family.heads, len(heads))
        if part.family.all_head_size:
            setattr(user.attention, part.family.all_head_size, len(rows))
        if not heads:
            take_dropper_away(user)
            put(model, user.name_of("attention"), _empty_attention(user))
    if heads:
        _note_even_heads(model)


@edit
def narrow_neurons(model: nn.Module, *, layer: int, neurons: list[int]) -> None:
    """Keep these feed-forward neurons of one layer: rows of the up (and gate) projection, columns of the down one.

    With none left, what stays of the feed-forward is the bias of the down projection. Layers that share these weights
    lose the same neurons.
    """
    part = layer_at(model, layer)
    check_indices(neurons, part.neurons, f"neurons of layer {layer}", least=0)
    index = torch.tensor(neurons, dtype=torch.int64)
    wide = ("up", "gate") if part.family.gate else ("up",)
    _narrow_users(model, layer, "neurons", dict.fromkeys(wide, index), index)
    _note_even_neurons(model)


@edit
def narrow_hidden(model: nn.Module, *, channels: list[int]) -> None:
    """Keep these hidden channels: the residual width, in embeddings, norms, every layer and the head's first linear.

    Norms then take mean and variance over the channels that are left. Heads and neurons stay as wide as they are, and
    so does what the pooling linear puts out.

    Args:
        model: any model of a known family.
        channels: indices, ascending, from 0.
    """
    residual = residual_of(model)
    check_indices(channels, residual.width, "channels")
    linears = {name: linear_or_pair(model.get_submodule(name), name) for name in (*residual.writers, *residual.readers)}
    tables = {name: table_or_pair(model.get_submodule(name), name) for name in residual.tables}
    index = torch.tensor(channels)
    for table in tables.values():
        narrow_columns(table, index)
    for name in residual.norms:
        norm = model.get_submodule(name)
        for parameter in ("weight", "bias"):
            narrow(norm, parameter, index, dim=0)
        if hasattr(norm, "normalized_shape"):
            norm.normalized_shape = (len(channels),)  # type: ignore[assignment]
    for name in residual.writers:
        narrow_linear(linears[name], index, dim=0)
    for name in residual.readers:
        narrow_linear(linears[name], index, dim=1)
    model.config.hidden_size = len(channels)  # type: ignore[union-attr]
    if tables and hasattr(model.config, "embedding_size"):
        model.config.embedding_size = len(channels)
    _note_even_heads(model)
    tie_head(model)
    tie_again(model)


@edit
def narrow_pooler(model: nn.Module, *, outputs: list[int]) -> None:
    """Keep these outputs of the pooling linear: its rows, and columns of the head that reads them.

    Args:
        model: a classifier with a pooling linear.
        outputs: indices, ascending, from 0.
    """
    anatomy = anatomy_of(model)
    if anatomy.pooler is None or anatomy.head is None:
        raise NiwakiError(f"a {type(model).__name__} has no pooling linear before a head", expected="a classifier")
    pooler = linear_or_pair(anatomy.pooler, anatomy.family.pooler)
    head = linear_or_pair(anatomy.head, anatomy.family.head)
    check_indices(outputs, pooler.out_features, "outputs of the pooling linear")
    narrow_linear(pooler, torch.tensor(outputs), dim=0)
    narrow_linear(head, torch.tensor(outputs), dim=1)


def _users(model: nn.Module, layer: int, kind: str) -> list[Layer]:
    """Return a layer and those that share its units of a kind."""
    together = next(group for group in layers_together(model, kind) if layer in group)
    return [layer_at(model, index) for index in together]


def _narrow_users(
    model: nn.Module, layer: int, kind: str, rows: dict[str, torch.Tensor], columns: torch.Tensor
) -> None:
    """Narrow what has a part of a layer's units: rows of those that put them out, columns of the one that reads them.

    Each user of shared weights is narrowed alone, for biases are its own, and then all are one again.
    """
    indices = {role: (index, 0) for role, index in rows.items()} | {UNIT_ROLES[kind][-1]: (columns, 1)}
    linears = [(linear_of(user, role), *how) for user in _users(model, layer, kind) for role, how in indices.items()]
    for linear, index, dim in linears:
        narrow_linear(linear, index, dim)
    tie_again(model)


def _empty_attention(layer: Layer) -> EmptyAttention:
    """Return what stands in for a layer's attention once it has no heads."""
    family = layer.family
    inside = family.output.startswith(f"{family.attention}.")
    output = family.output.removeprefix(f"{family.attention}.") if inside else ""
    return EmptyAttention(layer.attention, output, family.heads, family.head_size)


def _whole_groups(heads: Sequence[int], size: int, what: str) -> list[int]:
    """Return the groups that these heads are, or refuse a part of one."""
    groups = sorted({head // size for head in heads})
    whole = [head for group in groups for head in range(group * size, (group + 1) * size)]
    if whole != list(heads):
        raise NiwakiError(
            f"{what} are {list(heads)}, parts of groups",
            expected=f"whole groups of {size} heads, which share their keys and values: 0..{size - 1}, "
            f"{size}..{2 * size - 1}, ...",
            fix=f"heads={whole}",
        )
    return groups


def _rows_of_units(units: Sequence[int], size: int) -> torch.Tensor:
    """Return the rows of units that are `size` rows each."""
    return torch.tensor([unit * size + row for unit in units for row in range(size)], dtype=torch.int64)


def _note_even_heads(model: nn.Module) -> None:
    """Write the number of heads into the config when all layers agree and Transformers accepts such a config.

    Where a config does not state the size of a head, heads have to make up the hidden width as Transformers divides it.
    """
    anatomy = anatomy_of(model)
    family, config = anatomy.family, model.config
    counts = {(layer.heads, layer.key_value_heads, layer.head_size) for layer in anatomy.layers}
    heads, key_value_heads, head_size = next(iter(counts))
    stated = bool(family.config_key_value_heads)
    if len(counts) > 1 or not heads or not (stated or heads * head_size == config.hidden_size):  # type: ignore[union-attr]
        return
    changed = {family.config_heads: heads}
    if stated:
        changed |= {family.config_key_value_heads: key_value_heads, family.head_size: head_size}
    if is_read(config, changed):
        for name, number in changed.items():
            setattr(config, name, number)


def _note_even_neurons(model: nn.Module) -> None:
    """Write the feed-forward width into the config when all layers agree, so that plain Transformers can build it."""
    anatomy = anatomy_of(model)
    widths = {layer.neurons for layer in anatomy.layers}
    if len(widths) == 1 and widths != {0}:
        setattr(model.config, anatomy.family.config_neurons, widths.pop())
