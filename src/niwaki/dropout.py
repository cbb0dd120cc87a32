"""Train with another dropout than the model came with."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def dropout_of(model: nn.Module, chance: float | None) -> Iterator[None]:
    """Set every dropout of a model, in [0, 1), and put back what it was; None leaves all as it is.

    That of attention probabilities is a module in encoders and a number in decoders.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1))
    >>> with dropout_of(model, 0.0):
    ...     print(model[1].p)
    0.0
    >>> model[1].p
    0.1
    """
    if chance is None:
        yield
        return
    kept: list[tuple[nn.Module, str, float]] = []
    for module in model.modules():
        name = "p" if isinstance(module, nn.Dropout) else "attention_dropout"
        if isinstance(before := getattr(module, name, None), float):
            kept.append((module, name, before))
            setattr(module, name, chance)
    try:
        yield
    finally:
        for module, name, before in kept:
            setattr(module, name, before)
