"""The edits of early exits: heads after layers, and the thresholds at which rows leave."""

# D hidden, C classes

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

from torch import nn

from niwaki.anatomy import anatomy_of, rows_of
from niwaki.errors import NiwakiError
from niwaki.exit_rule import By
from niwaki.layers.exits import ExitHead, Exits, exits_of
from niwaki.surgery.dropping import refuse_dropping
from niwaki.surgery.journal import edit

#: Units of an exit's head where nothing else is said.
WIDTH = 64


@edit
def add_exit(model: nn.Module, *, layer: int, width: int = WIDTH) -> None:
    """Put a head, with random numbers, after a layer; it lets no row leave until it has a threshold.

    Args:
        model: a classifier of a known family whose head reads the first token.
        layer: index from 0; of a family that repeats its layers the index of the run. Not the last one, where the
            model's own head is.
        width: units of the head, from 1.
    """
    refuse_dropping(model, "exit")
    anatomy = anatomy_of(model)
    head = anatomy.head
    if head is None or not anatomy.family.first_token:
        raise NiwakiError(
            f"a {type(model).__name__} has no head that reads the first token",
            expected="an encoder with a classification head",
        )
    exits = exits_of(model) or Exits()
    last = anatomy.depth - 1
    if not 0 <= layer < last or layer in exits.layers:
        taken = f", but {', '.join(map(str, exits.layers))}, where one is" if exits.layers else ""
        raise NiwakiError(
            f"an exit after layer {layer}",
            expected=f"a layer in 0..{last - 1}{taken}" if last else "a model with more than one layer",
        )
    if width < 1:
        raise NiwakiError(f"width is {width}", expected="a number of units from 1")
    new = ExitHead(rows_of(anatomy.layers[-1].part("down")), width, rows_of(head))
    new.to(next(model.parameters()).device).train(model.training)
    exits.put({**_heads(exits), layer: new}, _thresholds(exits))
    model.exits = exits


@edit
def set_thresholds(model: nn.Module, *, by: By, thresholds: list[float]) -> None:
    """Say when rows leave at the exits that a model has.

    Args:
        model: with exits.
        by: "entropy", "probability" or "patience", see `niwaki.exit_rule.sureness`.
        thresholds: one an exit, the earliest first; `niwaki.exit_rule.NEVER` where no row is to leave.
    """
    exits = exits_of(model)
    if exits is None:
        raise NiwakiError("the model has no exits", expected="a model that a train with exit in it gave exits")
    if by not in get_args(By):
        raise NiwakiError(f"by is {by!r}", expected=f"one of {', '.join(get_args(By))}")
    if len(thresholds) != len(exits.layers) or not all(math.isfinite(one) for one in thresholds):
        raise NiwakiError(f"thresholds are {thresholds}", expected=f"{len(exits.layers)} numbers, one an exit")
    exits.by, exits.thresholds = by, tuple(map(float, thresholds))


def keep_exits(model: nn.Module, layers: Sequence[int]) -> None:
    """Keep, of a model that keeps these layers alone, the exits after them; it has no exits where none is left.

    One that would stand after the last layer goes too: there is the model's own head. This is no edit: its every use
    follows from the journal.
    """
    exits = exits_of(model)
    if exits is None:
        return
    places = {layer: place for place, layer in enumerate(layers[:-1])}
    heads = {places[layer]: head for layer, head in _heads(exits).items() if layer in places}
    exits.put(heads, {places[layer]: one for layer, one in _thresholds(exits).items() if layer in places})
    if not heads:
        del model.exits


def _heads(exits: Exits) -> dict[int, nn.Module]:
    return dict(zip(exits.layers, exits.heads.values(), strict=True))


def _thresholds(exits: Exits) -> dict[int, float]:
    return dict(zip(exits.layers, exits.thresholds, strict=True))
