"""Say which linears and embedding tables a technique that packs weights into bits takes."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.exits import exits_of


def packable(model: nn.Module, *, embeddings: bool, skip: Sequence[str], technique: str) -> tuple[list[str], list[str]]:
    """Return the dotted names of the linears and of the embedding tables to pack.

    The head stays as it is: every error in it is an error in the answer. So do the heads of exits, which are small, and
    do not run where others are calibrated. But a language head that is tied to the word table is packed with it: one
    packed table serves both.

    Args:
        model: of a known family.
        embeddings: take the embedding tables too.
        skip: dotted names, or patterns with * and ?, of modules that stay as they are.
        technique: who asks, for messages.

    Raises:
        NiwakiError: a pattern of `skip` matches nothing, or everything is packed already.
    """
    modules = dict(model.named_modules())
    check_patterns(model, skip, technique)
    tied = anatomy_of(model).tied_names
    with_table = tied is not None and embeddings and not any(_skipped(name, skip) for name in tied)
    head = None if with_table else anatomy_of(model).head
    spared = set(head.modules()) if head is not None else set()  # of a pair, both
    exits = exits_of(model)
    spared |= set(exits.modules()) if exits is not None else set()
    # one that holds a pair of factors is about to make room for it
    whole = {n: m for n, m in modules.items() if m not in spared and not list(m.children()) and not _skipped(n, skip)}
    linears = [n for n, m in whole.items() if isinstance(m, nn.Linear) and m.weight.numel()]
    tables = [n for n, m in whole.items() if isinstance(m, nn.Embedding)]
    if not linears and not tables:
        raise NiwakiError(f"{technique} found nothing to pack", expected="a model with linears that are not packed yet")
    return linears, tables if embeddings else []


def check_patterns(model: nn.Module, patterns: Sequence[str], technique: str, place: str = "skip") -> None:
    """Refuse a pattern, of the parameter `place`, that matches no module."""
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise NiwakiError(
                f"{place} has {pattern!r}, which matches no module",
                expected="a dotted module name or a pattern",
                fix=f"'*{names[-1].rpartition('.')[2]}'",
                place=technique,
            )


def _skipped(name: str, skip: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in skip)
