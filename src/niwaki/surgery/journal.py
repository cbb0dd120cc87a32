"""The journal: what was done to a model, written down by the edits themselves, and done again to load it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, Concatenate, ParamSpec

import torch
from torch import nn

from niwaki.anatomy import FAMILIES, anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.attention import mechanisms_of
from niwaki.layers.dropping import droppers_of

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
    """Make a function an edit: it journals itself, after it succeeded, and returns the model.

    An argument named `values` holds tensors that the file will hold: it is not journalled.
    """

    @functools.wraps(function)
    def journaled(model: nn.Module, /, *positional: Parameters.args, **arguments: Parameters.kwargs) -> nn.Module:
        if positional:
            raise TypeError(f"{function.__name__} takes its arguments by name")
        journal = journal_of(model)
        function(model, *positional, **arguments)
        told = {name: value for name, value in arguments.items() if name != "values"}
        journal.append({"edit": function.__name__, **told})
        return model

    EDITS[function.__name__] = journaled
    return journaled


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


def is_plain(model: nn.Module) -> bool:
    """Say whether plain Transformers can build the edited model from its config alone, and fill all of its places."""
    if any(record["edit"] == "tie_weights" for record in journal_of(model)):
        return False  # the file holds a shared weight once
    if not is_read(model.config, {}) or any(mechanisms_of(model)) or droppers_of(model):
        return False
    try:
        with torch.device("meta"):
            plain = type(model)(model.config)
    except ValueError:  # a width that the heads do not divide
        return False
    return _shapes(plain) == _shapes(model) and _heads(plain) == _heads(model)


def is_read(config: Any, changed: dict[str, int]) -> bool:
    """Say whether Transformers accepts a config with these numbers changed, as it reads it from a file."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        type(config).from_dict({**config.to_dict(), **changed})
    except (StrictDataclassError, ValueError):
        return False
    return True


def _heads(model: nn.Module) -> list[tuple[int, int]]:
    """Return number and size of the heads of each layer: 2 of 8 and 4 of 4 have matrices of one shape."""
    if model.config.model_type not in FAMILIES:  # type: ignore[union-attr,operator]
        return []
    return [(layer.heads, layer.head_size) for layer in anatomy_of(model).layers]


def _shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}
