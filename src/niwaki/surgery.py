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
from typing import Any, Concatenate, Literal, ParamSpec

import torch
from torch import nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.linear import QuantizedEmbedding, QuantizedLinear

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
    setattr(model.config, anatomy.family.config_layers, len(layers))


@edit
def narrow_heads(model: nn.Module, *, layer: int, heads: list[int]) -> None:
    """Keep these attention heads of one layer: rows of query, key and value, and columns of the output projection."""
    part = _layer(model, layer)
    _check_indices(heads, part.heads, f"heads of layer {layer}")
    size = part.head_size
    rows = torch.cat([torch.arange(head * size, (head + 1) * size) for head in heads])
    for role in ("query", "key", "value"):
        narrow_linear(_linear(part, role), rows, dim=0)
    narrow_linear(_linear(part, "output"), rows, dim=1)
    setattr(part.attention, part.family.heads, len(heads))
    if part.family.all_head_size:
        setattr(part.attention, part.family.all_head_size, len(rows))


@edit
def narrow_neurons(model: nn.Module, *, layer: int, neurons: list[int]) -> None:
    """Keep these feed-forward neurons of one layer: rows of the up projection and columns of the down projection."""
    part = _layer(model, layer)
    _check_indices(neurons, part.neurons, f"neurons of layer {layer}")
    index = torch.tensor(neurons)
    narrow_linear(_linear(part, "up"), index, dim=0)
    narrow_linear(_linear(part, "down"), index, dim=1)
    _note_even_neurons(model)


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


@edit
def quantize_embedding(model: nn.Module, *, module: str, bits: int = 8) -> None:
    """Store an embedding table (V, D) as integers with one scale a row."""
    table = model.get_submodule(module)
    if not isinstance(table, nn.Embedding):
        raise NiwakiError(f"{module} is a {type(table).__name__}", expected="an embedding that is not packed yet")
    _put(model, module, QuantizedEmbedding.from_embedding(table))


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
    index = index.to(linear.weight.device)
    for name, buffer in linear.named_buffers(recurse=False):  # a mask goes where its weights go
        if buffer.shape == linear.weight.shape:
            setattr(linear, name, buffer.index_select(dim, index))
    # new_empty keeps meta tensors meta; index_select copies the chosen rows into contiguous memory
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, index), linear.weight.requires_grad)
    if dim == 0 and linear.bias is not None:
        linear.bias = nn.Parameter(linear.bias.detach().index_select(0, index), linear.bias.requires_grad)
    linear.out_features, linear.in_features = linear.weight.shape


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
    linear = layer.part(role)
    if not isinstance(linear, nn.Linear):
        raise NiwakiError(
            f"{layer.name_of(role)} is a {type(linear).__name__}", expected="a linear that is not packed into bits yet"
        )
    return linear


def _check_indices(indices: Sequence[int], count: int, what: str) -> None:
    good = bool(indices) and all(0 <= index < count for index in indices)
    if not good or sorted(set(indices)) != list(indices):
        raise NiwakiError(f"{what} are {list(indices)}", expected=f"one or more indices in 0..{count - 1}, ascending")


def _note_even_neurons(model: nn.Module) -> None:
    """Write the feed-forward width into the config when all layers agree, so that plain Transformers can build it."""
    anatomy = anatomy_of(model)
    widths = {layer.neurons for layer in anatomy.layers}
    if len(widths) == 1:
        setattr(model.config, anatomy.family.config_neurons, widths.pop())


def is_plain(model: nn.Module) -> bool:
    """Say whether plain Transformers can build the edited model from its config alone."""
    with torch.device("meta"):
        plain = type(model)(model.config)
    return _shapes(plain) == _shapes(model)


def _shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
