"""The edits that change a model for good, and the journal that writes them down.

Techniques decide; surgery does; the journal remembers. Every edit is one function that changes the model in place,
appends one JSON record to the model's journal, and works on empty (meta) tensors too: `niwaki.checkpoint` loads a model
by replaying its journal on a base without weights.
"""

# B batch, T tokens, D hidden, H heads, N neurons, O outputs, I inputs

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, Literal, ParamSpec, cast

import torch
from torch import nn

from niwaki.anatomy import FAMILIES, Layer, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.empty import EmptyAttention
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear
from niwaki.residual import residual_of

Record = dict[str, Any]
Parameters = ParamSpec("Parameters")
EDITS: dict[str, Callable[..., nn.Module]] = {}


def journal_of(model: nn.Module) -> list[Record]:
    """Return the model's journal: its first record tells how to build the base, the others are edits in order."""
    journal: list[Record] | None = getattr(model, "niwaki_journal", None)
    if journal is None:
        config = model.config.to_dict()  # type: ignore[union-attr,operator]
        journal = [{"edit": "build", "architecture": type(model).__name__, "config": json.loads(json.dumps(config))}]
        model.niwaki_journal = journal  # type: ignore[assignment]
    return journal


def edit(
    function: Callable[Concatenate[nn.Module, Parameters], None],
) -> Callable[Concatenate[nn.Module, Parameters], nn.Module]:
    """Make a function an edit: it journals itself, after it succeeded, and returns the model."""

    @functools.wraps(function)
    def journaled(model: nn.Module, /, *positional: Parameters.args, **arguments: Parameters.kwargs) -> nn.Module:
        if positional:
            raise TypeError(f"{function.__name__} takes its arguments by name")
        journal = journal_of(model)
        function(model, *positional, **arguments)
        journal.append({"edit": function.__name__, **arguments})
        return model

    EDITS[function.__name__] = journaled
    return journaled


@edit
def keep_layers(model: nn.Module, *, layers: list[int]) -> None:
    """Keep the layers of these indices, in this order.

    Args:
        model: any model of a known family.
        layers: indices, ascending, from 0.
    """
    anatomy = anatomy_of(model)
    _check_indices(layers, anatomy.num_layers, "layers")
    kept = nn.ModuleList([anatomy.layer_list[index] for index in layers])
    parent, _, name = anatomy.layers_name.rpartition(".")
    setattr(model.get_submodule(parent), name, kept)
    _number_layers(kept)
    setattr(model.config, anatomy.family.config_layers, len(layers))
    kinds = getattr(model.config, "layer_types", None)
    if kinds:  # full or sliding attention, one word a layer
        model.config.layer_types = [kinds[index] for index in layers]  # type: ignore[union-attr]


@edit
def narrow_heads(model: nn.Module, *, layer: int, heads: list[int]) -> None:
    """Keep these attention heads of one layer: rows of query, key and value, and columns of the output projection.

    Where several heads share one key and value head, they stay or go together: what is left is as regular as it was.
    With none left the layer attends no more: what stays of the attention is its output bias, without any product.

    Args:
        model: any model of a known family.
        layer: index of the layer, from 0.
        heads: indices of (query) heads, ascending, from 0; whole groups of those that share keys and values.
    """
    part = _layer(model, layer)
    _check_indices(heads, part.heads, f"heads of layer {layer}", least=0)
    linears = {role: _linear(part, role) for role in ("query", "key", "value", "output")}
    rows = _rows_of_units(heads, part.head_size)
    shared_rows = _rows_of_units(_whole_groups(heads, part.group_size, f"heads of layer {layer}"), part.head_size)
    for role, index, dim in (
        ("query", rows, 0),
        ("key", shared_rows, 0),
        ("value", shared_rows, 0),
        ("output", rows, 1),
    ):
        narrow_linear(linears[role], index, dim=dim)
    if part.family.heads:
        setattr(part.attention, part.family.heads, len(heads))
    if part.family.all_head_size:
        setattr(part.attention, part.family.all_head_size, len(rows))
    if not heads:
        _put(model, part.name_of("attention"), _empty_attention(part))
    else:
        _note_even_heads(model)


@edit
def narrow_neurons(model: nn.Module, *, layer: int, neurons: list[int]) -> None:
    """Keep these feed-forward neurons of one layer: rows of the up (and gate) projection, columns of the down one.

    With none left, what stays of the feed-forward is the bias of the down projection.
    """
    part = _layer(model, layer)
    _check_indices(neurons, part.neurons, f"neurons of layer {layer}", least=0)
    index = torch.tensor(neurons, dtype=torch.int64)
    for role in ("up", "gate") if part.family.gate else ("up",):
        narrow_linear(_linear(part, role), index, dim=0)
    narrow_linear(_linear(part, "down"), index, dim=1)
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
    _check_indices(channels, residual.width, "channels")
    linears = {name: _as_linear(model.get_submodule(name), name) for name in (*residual.writers, *residual.readers)}
    tables = {name: model.get_submodule(name) for name in residual.tables}
    for name, table in tables.items():
        if not isinstance(table, nn.Embedding):
            raise NiwakiError(
                f"{name} is a {type(table).__name__}", expected="a table that is not packed into bits yet"
            )
    index = torch.tensor(channels)
    for table in tables.values():
        _narrow(table, "weight", index, dim=1)
        table.embedding_dim = len(channels)  # type: ignore[assignment]
    for name in residual.norms:
        norm = model.get_submodule(name)
        for parameter in ("weight", "bias"):
            _narrow(norm, parameter, index, dim=0)
        if hasattr(norm, "normalized_shape"):
            norm.normalized_shape = (len(channels),)  # type: ignore[assignment]
    for name in residual.writers:
        narrow_linear(linears[name], index, dim=0)
    for name in residual.readers:
        narrow_linear(linears[name], index, dim=1)
    model.config.hidden_size = len(channels)  # type: ignore[union-attr]
    if tables and hasattr(model.config, "embedding_size"):
        model.config.embedding_size = len(channels)
    tie_head(model)


@edit
def narrow_vocabulary(model: nn.Module, *, tokens: list[int]) -> None:
    """Keep these tokens' rows of the word table, and of an output head over the vocabulary; ids count anew from 0.

    The ids that the config names follow. What shared a tensor with the table shares the narrowed one.

    Args:
        model: any model of a known family.
        tokens: ids, ascending, `fixed_tokens` among them.
    """
    anatomy = anatomy_of(model)
    table = word_table(model)
    _check_indices(tokens, table.num_embeddings, "tokens")
    new = {old: index for index, old in enumerate(tokens)}
    if missing := sorted(fixed_tokens(model) - new.keys()):
        raise NiwakiError(f"tokens {missing} would go", expected="what the model itself names among those that stay")
    head = anatomy.vocabulary_head
    if head is not None:
        model.tie_weights()  # type: ignore[operator]  # built on the meta device, a model has lost its ties
    index = torch.tensor(tokens, device=table.weight.device)
    wide = [table.weight, *(head.parameters(recurse=False) if head else ())]
    narrow = {
        id(one): (one, nn.Parameter(one.detach().index_select(0, index), requires_grad=one.requires_grad))
        for one in wide
    }
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in narrow:
                setattr(module, name, narrow[id(parameter)][1])
    table.num_embeddings = len(tokens)
    if table.padding_idx is not None:
        table.padding_idx = new[table.padding_idx]
    if isinstance(head, nn.Linear):
        head.out_features = len(tokens)
    for name, value in _named_tokens(model).items():
        ids = [new.get(one, one) for one in value]
        setattr(model.config, name, ids if isinstance(getattr(model.config, name), list) else ids[0])
    model.config.vocab_size = len(tokens)  # type: ignore[union-attr]


def word_table(model: nn.Module) -> nn.Embedding:
    """Return the word table (V, D), or say that it is packed."""
    table = anatomy_of(model).word_embeddings
    if not isinstance(table, nn.Embedding):
        raise NiwakiError(f"the word table is a {type(table).__name__}", expected="one not packed into bits yet")
    return table


def fixed_tokens(model: nn.Module) -> set[int]:
    """Return the ids of the tokens that the model itself names, so that none of them can go.

    Where positions count from the padding's id (RoBERTa), every token before it stays too: the padding keeps its id.
    """
    table = word_table(model)
    fixed = {one for value in _named_tokens(model).values() for one in value if 0 <= one < table.num_embeddings}
    if table.padding_idx is not None:
        fixed.add(table.padding_idx)
    for module in anatomy_of(model).embeddings.modules():
        if isinstance(module, nn.Embedding) and module is not table and module.padding_idx is not None:
            fixed |= set(range(module.padding_idx + 1))
    return fixed


def vocabulary_of(records: Sequence[Record]) -> list[int] | None:
    """Return, for each token after these edits, its id before them; None when all ids are as they were."""
    ids: list[int] | None = None
    for record in records:
        if record["edit"] == "narrow_vocabulary":
            ids = list(record["tokens"]) if ids is None else [ids[token] for token in record["tokens"]]
    return ids


def _named_tokens(model: nn.Module) -> dict[str, list[int]]:
    """Return the ids of each entry of the config that names tokens (`pad_token_id` and the like)."""
    config: dict[str, Any] = model.config.to_dict()  # type: ignore[union-attr,operator]
    named = {name: value for name, value in config.items() if name.endswith("token_id") and value is not None}
    return {name: value if isinstance(value, list) else [value] for name, value in named.items()}


@edit
def quantize_linear(
    model: nn.Module,
    *,
    module: str,
    bits: int = 8,
    activations: Literal["dynamic", "static", "none"] = "dynamic",
    scale: float | None = None,
    zero_point: int | None = None,
) -> None:
    """Store a linear's weight (O, I) as integers with one scale an output channel.

    Args:
        model: any model.
        module: dotted name of the linear.
        bits: bits of a weight; 8.
        activations: "dynamic" (their range is taken at run time), "static" (`scale` and `zero_point` given) or "none".
        scale: of static activations, above 0.
        zero_point: of static activations, 0 to 255.
    """
    linear = model.get_submodule(module)
    if not isinstance(linear, nn.Linear):
        raise NiwakiError(f"{module} is a {type(linear).__name__}", expected="a linear that is not packed yet")
    packed = QuantizedLinear.from_linear(
        linear, activations=activations, activation_scale=scale, activation_zero_point=zero_point
    )
    _put(model, module, packed)
    tie_head(model)


@edit
def quantize_embedding(model: nn.Module, *, module: str, bits: int = 8) -> None:
    """Store an embedding table (V, D) as integers with one scale a row.

    A language head tied to it and packed as well goes on sharing it: both are rounded row by row, to the same integers.
    """
    table = model.get_submodule(module)
    if not isinstance(table, nn.Embedding):
        raise NiwakiError(f"{module} is a {type(table).__name__}", expected="an embedding that is not packed yet")
    _put(model, module, QuantizedEmbedding.from_embedding(table))
    tie_head(model)


def tied_names(model: nn.Module) -> tuple[str, str] | None:
    """Return the dotted names of language head and word table where they may be one tensor, in a known family."""
    known = getattr(getattr(model, "config", None), "model_type", None) in FAMILIES
    return anatomy_of(model).tied_names if known else None


def tie_head(model: nn.Module) -> None:
    """Let a tied language head and the word table be one tensor again, where both hold the same numbers.

    Putting a module or a tensor in the place of another undoes it. This is no edit: it changes no number.
    """
    names = tied_names(model)
    if names is not None:
        head, table = (model.get_submodule(name) for name in names)
        weights = cast("tuple[torch.Tensor, torch.Tensor]", (head.weight, table.weight))
        if not weights[0].is_meta and torch.equal(*weights):
            head.weight = table.weight


@edit
def sparsify_linear(model: nn.Module, *, module: str, kept: int) -> None:
    """Store a linear's weight (O, I) sparse: in the file only the weights that are not zero, and a bitmap.

    The zeros were decided, and the others trained or solved for, by whoever calls; here they are counted, and lose
    their sign (a mask times a negative weight is -0.0, whose bits are not zero). In memory the linear stays what it is,
    so it can be trained, narrowed, quantized and exported as any other.

    Args:
        model: any model.
        module: dotted name of the linear.
        kept: how many weights may be other than zero.
    """
    linear = model.get_submodule(module)
    if not isinstance(linear, nn.Linear):
        raise NiwakiError(f"{module} is a {type(linear).__name__}", expected="a linear that is not packed yet")
    if linear.weight.is_meta:
        return
    found = int(linear.weight.count_nonzero())
    if found > kept:
        raise NiwakiError(f"{module} has {found} weights that are not zero", expected=f"at most {kept}")
    with torch.no_grad():
        linear.weight.masked_fill_(linear.weight == 0, 0.0)


def is_sparse(model: nn.Module) -> bool:
    """Say whether weights of the model are to be stored sparse."""
    journal: list[Record] = getattr(model, "niwaki_journal", None) or []
    return any(record["edit"] == "sparsify_linear" for record in journal)


def narrow_linear(linear: nn.Linear, index: torch.Tensor, dim: int) -> None:
    """Keep these rows (`dim` 0) or columns (`dim` 1) of a linear, in place."""
    for name, buffer in linear.named_buffers(recurse=False):  # a mask goes where its weights go
        if buffer.shape == linear.weight.shape:
            setattr(linear, name, buffer.index_select(dim, index.to(buffer.device)))
    _narrow(linear, "weight", index, dim)
    if dim == 0:
        _narrow(linear, "bias", index, dim=0)
    linear.out_features, linear.in_features = linear.weight.shape


def _narrow(module: nn.Module, name: str, index: torch.Tensor, dim: int) -> None:
    """Keep these rows or columns of a module's parameter, where it has it."""
    value = getattr(module, name, None)
    if value is not None:
        # index_select copies what is chosen into contiguous memory, and keeps meta tensors meta
        chosen = value.detach().index_select(dim, index.to(value.device))
        setattr(module, name, nn.Parameter(chosen, value.requires_grad))


def _empty_attention(layer: Layer) -> EmptyAttention:
    """Return what stands in for a layer's attention once it has no heads."""
    family = layer.family
    inside = family.output.startswith(f"{family.attention}.")
    output = family.output.removeprefix(f"{family.attention}.") if inside else ""
    return EmptyAttention(layer.attention, output, family.heads, family.head_size)


def replay(model: nn.Module, records: Sequence[Record]) -> nn.Module:
    """Do the edits of a journal again, in order; the `build` record is skipped."""
    for record in records:
        arguments = dict(record)
        name = arguments.pop("edit")
        if name == "build":
            continue
        if name not in EDITS:
            raise NiwakiError(
                f"the journal has an edit {name!r}",
                expected=f"one of {', '.join(sorted(EDITS))}",
                fix="pip install --upgrade niwaki",
            )
        EDITS[name](model, **arguments)
    return model


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    module.train(model.training)
    setattr(model.get_submodule(parent), leaf, module)


def _layer(model: nn.Module, index: int) -> Layer:
    layers = anatomy_of(model).layers
    _check_indices([index], len(layers), "layer")
    return layers[index]


def _linear(layer: Layer, role: str) -> nn.Linear:
    return _as_linear(layer.part(role), layer.name_of(role))


def _as_linear(module: nn.Module, name: str) -> nn.Linear:
    if not isinstance(module, nn.Linear):
        raise NiwakiError(f"{name} is a {type(module).__name__}", expected="a linear that is not packed into bits yet")
    return module


def _check_indices(indices: Sequence[int], count: int, what: str, least: int = 1) -> None:
    good = len(indices) >= least and all(0 <= index < count for index in indices)
    if not good or sorted(set(indices)) != list(indices):
        number = "one or more " if least else ""
        shown = f"{list(indices)}" if len(indices) <= 32 else f"[{indices[0]}, ..., {indices[-1]}]"
        raise NiwakiError(f"{what} are {shown}", expected=f"{number}indices in 0..{count - 1}, ascending")


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


def _number_layers(layers: nn.ModuleList) -> None:
    """Tell each layer its place anew, where it knows it: a decoder finds its kept keys and values by it."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]


def _note_even_heads(model: nn.Module) -> None:
    """Write the number of heads into the config when all layers agree and Transformers accepts such a config."""
    anatomy = anatomy_of(model)
    family, config = anatomy.family, model.config
    counts = {(layer.heads, layer.key_value_heads) for layer in anatomy.layers}
    heads, key_value_heads = next(iter(counts))
    if not family.config_heads or len(counts) > 1 or int(config.hidden_size) % heads:  # type: ignore[union-attr,arg-type]
        return
    setattr(config, family.head_size, anatomy.layers[0].head_size)
    setattr(config, family.config_heads, heads)
    setattr(config, family.config_key_value_heads, key_value_heads)


def _note_even_neurons(model: nn.Module) -> None:
    """Write the feed-forward width into the config when all layers agree, so that plain Transformers can build it."""
    anatomy = anatomy_of(model)
    widths = {layer.neurons for layer in anatomy.layers}
    if len(widths) == 1 and widths != {0}:
        setattr(model.config, anatomy.family.config_neurons, widths.pop())


def is_plain(model: nn.Module) -> bool:
    """Say whether plain Transformers can build the edited model from its config alone."""
    try:
        with torch.device("meta"):
            plain = type(model)(model.config)
    except ValueError:  # a width that the heads do not divide
        return False
    return _shapes(plain) == _shapes(model)


def _shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
