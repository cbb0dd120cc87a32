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
from niwaki.surgery.journal import Record, edit

#: What stays a module's own where weights are shared: they belong to one use.
OWN = ("bias", "activation_scale", "activation_zero_point")
#: The linears that have a part of each unit of a kind.
UNIT_ROLES = {"heads": ("query", "key", "value", "output"), "neurons": ("up", "gate", "down")}


@edit
def tie_weights(model: nn.Module, *, modules: list[str], values: Tensor | None = None) -> None:
    """Let the weights (O, I) of these linears be one parameter; their biases stay their own.

    The parameter stands once in the file, and counts once. Edits that come after keep it one: it is packed once, and
    units that it is a part of are cut for all its users.

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
            relaxed.up.get_parameter("weight").copy_(values[0])
            relaxed.down.get_parameter("weight").copy_(values[1])
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
        elif record["edit"] == "factor_linear":
            ties = [half for tie in ties for half in _halves(tie, record["module"])]
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


def users_of(model: nn.Module, module: str) -> list[str]:
    """Return the dotted names of the modules that share a weight with this one, itself among them."""
    return next((tie for tie in ties_of(model) if module in tie), [module])


def firsts_of(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return the names without those of modules whose weight stands under another of the names already."""
    others = {name: tie[0] for tie in ties_of(model) for name in tie[1:]}
    return [name for name in names if others.get(name) not in names]


def layers_together(model: nn.Module, kind: str) -> list[list[int]]:
    """Return the layers, those in one list whose units of a kind ("heads" or "neurons") read the same weights.

    What counts is that parameters are one, so that layers are found, too, that are becoming one in a training.
    """
    groups: list[tuple[set[int], list[int]]] = []
    for layer in anatomy_of(model).layers:
        parts = [layer.part(role) for role in UNIT_ROLES[kind] if getattr(layer.family, role)]
        weights, members = {id(one) for part in parts for one in part.parameters()}, [layer.index]
        for one in [group for group in groups if group[0] & weights]:
            groups.remove(one)
            weights, members = weights | one[0], [*one[1], *members]
        groups.append((weights, sorted(members)))
    return sorted(members for _, members in groups)


def refuse_tied(model: nn.Module, names: Sequence[str], what: str, fix: str) -> None:
    """Refuse what would change the weights of modules that share them with others.

    Args:
        model: any model.
        names: dotted names of the modules.
        what: is asked for, as "scale_inputs".
        fix: what to do instead.
    """
    for tie in ties_of(model):
        for name in [name for name in names if name in tie]:
            others = ", ".join(one for one in tie if one != name)
            raise NiwakiError(
                f"{what}: {name} shares its weight with {others}", expected="weights of one use alone", fix=fix
            )


def _halves(tie: list[str], module: str) -> list[list[str]]:
    """Return the ties of the two factors that took the places of what was tied, or the tie as it was."""
    return [[f"{name}.{half}" for name in tie] for half in ("inner", "outer")] if module in tie else [tie]


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
