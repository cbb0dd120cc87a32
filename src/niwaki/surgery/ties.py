"""A language head and the word table that are one tensor."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.anatomy import FAMILIES, anatomy_of


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
        stored = head.state_dict(keep_vars=True)
        for name, tensor in table.state_dict(keep_vars=True).items():  # a weight, or codes and centroids
            own = stored.get(name)
            if own is not None and not own.is_meta and torch.equal(own, tensor):
                setattr(head, name, tensor)
