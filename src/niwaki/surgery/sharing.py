"""The edits of weights that several layers share: one parameter read by many, and what each adds to it."""

# O outputs, I inputs, R rank

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.relaxed import RelaxedLinear
from niwaki.surgery.cutting import as_linear, put
from niwaki.surgery.journal import Record, edit, journal_of

#: What stays a module's own where weights are shared: they belong to one use.
OWN = ("bias", "activation_scale", "activation_zero_point")


@edit
def tie_weights(model: nn.Module, *, modules: list[str], values: Tensor | None = None) -> None:
    """Let the weights (O, I) of these linears be one parameter; their biases stay their own.

    The parameter stands once in the file, and counts once. Edits that come after keep it one: it is packed once, and
    layers that read it cannot be narrowed.

    Args:
        model: any model.
        modules: dotted names of two linears or more, all of one shape.
        values: the weight; by default that of the first.
    """
    linears = [as_linear(model.get_submodule(name), name) for name in modules]
    shapes = {name: tuple(linear.weight.shape) for name, linear in zip(modules, linears, strict=True)}
    if len(shapes) < 2 or len(set(shapes.values())) > 1:
        raise NiwakiError(f"weights to tie are {shapes}", expected="two linears or more, all of one shape")
    first = linears[0].weight
    weight = nn.Parameter((first if values is None else values.to(first)).detach().clone(), first.requires_grad)
    for linear in linears:
        linear.weight = weight


@edit
def relax_linear(model: nn.Module, *, module: str, rank: int, values: tuple[Tensor, Tensor] | None = None) -> None:
    """Add a low-rank difference of its own to a linear, which is `<module>.shared` from then on.

    Args:
        model: any model.
        module: dotted name of the linear (O, I).
        rank: R, from 1.
        values: U (O, R) and V (R, I); by default without numbers, which the file will hold.
    """
    relaxed = RelaxedLinear(as_linear(model.get_submodule(module), module), rank)
    if values is not None:
        with torch.no_grad():
            relaxed.up.weight.copy_(values[0])  # type: ignore[operator,union-attr]
            relaxed.down.weight.copy_(values[1])  # type: ignore[operator,union-attr]
    put(model, module, relaxed)


def ties_of(model: nn.Module) -> list[list[str]]:
    """Return the dotted names of the modules that share a weight, one list a weight, as the journal tells them."""
    journal: list[Record] = getattr(model, "niwaki_journal", None) or []
    ties: list[list[str]] = []
    for record in journal:
        if record["edit"] == "tie_weights":
            again = set(record["modules"])
            ties = [[name for name in tie if name not in again] for tie in ties] + [list(record["modules"])]
        elif record["edit"] == "relax_linear":
            ties = [[f"{name}.shared" if name == record["module"] else name for name in tie] for tie in ties]
        elif record["edit"] == "keep_layers" and ties:
            ties = [_renumbered(tie, f"{anatomy_of(model).layers_name}.", record["layers"]) for tie in ties]
    return [tie for tie in ties if len(tie) > 1]


def tie_again(model: nn.Module) -> None:
    """Let what was packed of a shared weight be shared: the integers, codes and scales of the first that was packed.

    Putting a module in the place of another undoes a tie. What differs in kind, as after other bits for one layer, is
    left apart. This is no edit: its every use follows from the journal.
    """
    for tie in ties_of(model):
        first: dict[object, dict[str, Tensor]] = {}
        for name in tie:
            module = model.get_submodule(name)
            stored = {
                key: tensor
                for key, tensor in module.state_dict(keep_vars=True).items()
                if key not in OWN and "." not in key
            }
            kind = (type(module), *((key, tensor.shape, tensor.dtype) for key, tensor in stored.items()))
            for key, tensor in first.setdefault(kind, stored).items():
                setattr(module, key, tensor)


def refuse_tied(model: nn.Module, modules: Sequence[str]) -> None:
    """Refuse to narrow one of several modules that share a weight."""
    for tie in ties_of(model):
        for name in modules:
            if any(one in (name, f"{name}.shared") for one in tie):
                raise NiwakiError(
                    f"{name} shares its weight with {', '.join(one for one in tie if not one.startswith(name))}",
                    expected="layers that share nothing: one of them cannot be narrowed alone",
                    fix="prune before share",
                )


def _renumbered(tie: Sequence[str], prefix: str, kept: Sequence[int]) -> list[str]:
    """Return the names that are left when these layers are kept, numbered anew.

    >>> _renumbered(["layer.0.up", "layer.2.up", "layer.3.up"], "layer.", [1, 2, 3])
    ['layer.1.up', 'layer.2.up']
    """
    names = []
    for name in tie:
        index, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            names.append(name)
        elif int(index) in kept:
            names.append(f"{prefix}{list(kept).index(int(index))}.{rest}")
    return names
