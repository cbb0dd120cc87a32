"""A language head and the word table that are one tensor."""

from __future__ import annotations

from typing import cast

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
        weights = cast("tuple[torch.Tensor, torch.Tensor]", (head.weight, table.weight))
        if not weights[0].is_meta and torch.equal(*weights):
            head.weight = table.weight
