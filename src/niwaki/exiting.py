"""Run a model that has exits: what every head says, or layer by layer without the rows that have left.

The model is only read, so several threads may run one that is in eval mode.
"""

# B batch, T tokens, D hidden, C classes, E exits, N rows, R rows that are left

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.batching import in_row_order, length_sorted
from niwaki.calibrate import evaluating, inputs_of
from niwaki.errors import NiwakiError
from niwaki.exit_rule import leaving
from niwaki.layers.exits import Exits, exits_of
from niwaki.layers.linear import rows_independent
from niwaki.task import Encoded

#: Rows that are asked at once.
BATCH = 64


def require_exits(model: nn.Module) -> Exits:
    """Return a model's exits.

    Raises:
        NiwakiError: it has none.
    """
    exits = exits_of(model)
    if exits is None:
        raise NiwakiError("the model has no exits", expected="a model with exits", fix="- train: {together: [exit]}")
    return exits


def all_logits(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return what every exit says and, last, what the model says, (E + 1, B, C), in one pass; no row leaves.

    Args:
        model: with exits, in any mode.
        batch: padded rows, on the model's device.

    Raises:
        NiwakiError: the model has no exits.
    """
    exits, inputs = require_exits(model), inputs_of(batch)
    found: list[Tensor] = []
    hidden_BTD, begin = None, 0
    for layer, head in zip(exits.layers, exits.heads.values(), strict=True):
        hidden_BTD = run_layers(model, inputs, begin, layer + 1, hidden_BTD)
        found.append(head(hidden_BTD))
        begin = layer + 1
    return torch.stack([*found, run_layers(model, inputs, begin, None, hidden_BTD)])


def all_logits_of(model: nn.Module, rows: Encoded, advance: Callable[[float], None] = lambda share: None) -> np.ndarray:
    """Return `all_logits` (E + 1, N, C) of all rows, in their order: what a model says to each that comes alone.

    Batches hold rows of like length; where the ranges of activations would be those of a batch, a row is asked alone.

    Args:
        model: with exits.
        rows: of the task.
        advance: called after each batch with its share of the rows.
    """
    device = next(model.parameters()).device
    batches = length_sorted(rows.lengths, BATCH if rows_independent(model) else 1)
    parts = []
    with evaluating(model):
        for indices in batches:
            batch = {name: value.to(device) for name, value in rows.batch(indices).items()}
            parts.append(all_logits(model, batch).float().cpu().numpy().swapaxes(0, 1))
            advance(len(indices) / len(rows))
    return in_row_order(batches, parts).swapaxes(0, 1)


def classify(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the logits (B, C) that each row leaves with, and at which exit, (B,): E where it went to the end.

    A layer computes the rows that are left, and no others: who leaves is taken out of the batch, and so are columns
    that were padding for all but them. What a row gets is what it would get alone, up to the rounding of sums.

    Args:
        model: with exits; it is run in eval mode without gradients.
        batch: padded rows, on the model's device.

    Raises:
        NiwakiError: the model has no exits.
    """
    exits = require_exits(model)
    with evaluating(model):
        left = _Left(inputs_of(batch))
        logits_BC, exit_B = None, torch.full((len(left.rows_R),), len(exits.layers))
        begin = 0
        for place, (layer, head) in enumerate(zip(exits.layers, exits.heads.values(), strict=True)):
            left.hidden_RTD = run_layers(model, left.inputs, begin, layer + 1, left.hidden_RTD)
            begin = layer + 1
            left.said.append(head(left.hidden_RTD))
            leaves_R = left.leaving(exits)
            logits_BC = left.said[-1].new_zeros(len(exit_B), left.said[-1].shape[1]) if logits_BC is None else logits_BC
            gone_R = left.rows_R[leaves_R]
            logits_BC[gone_R], exit_B[gone_R.cpu()] = left.said[-1][leaves_R], place
            left.keep(~leaves_R)
            if not len(left.rows_R):
                return logits_BC, exit_B
        assert logits_BC is not None
        logits_BC[left.rows_R] = run_layers(model, left.inputs, begin, None, left.hidden_RTD)
    return logits_BC, exit_B


class _Left:
    """Hold the rows of a batch that are left: their places in it, inputs, states, and what exits said to them."""

    def __init__(self, inputs: dict[str, Tensor]) -> None:
        self.inputs = inputs
        ids_BT = inputs["input_ids"]
        self.rows_R = torch.arange(len(ids_BT), device=ids_BT.device)
        self.hidden_RTD: Tensor | None = None
        self.said: list[Tensor] = []

    def leaving(self, exits: Exits) -> Tensor:
        """Return (R,), which rows leave at the last of the exits that have spoken."""
        place = len(self.said) - 1
        said_ERC = torch.stack(self.said).float().cpu().numpy()
        at_R = leaving(exits.by, np.array(exits.thresholds[: place + 1]), said_ERC)
        return torch.from_numpy(at_R == place).to(self.rows_R.device)

    def keep(self, stays_R: Tensor) -> None:
        """Take the other rows out, and the columns that none of those that stay has a token in."""
        if bool(stays_R.all()):
            return
        self.rows_R, self.said = self.rows_R[stays_R], [logits[stays_R] for logits in self.said]
        self.inputs = {name: value[stays_R] for name, value in self.inputs.items()}
        assert self.hidden_RTD is not None
        self.hidden_RTD = self.hidden_RTD[stays_R]
        if "attention_mask" in self.inputs and len(self.rows_R):
            used_T = self.inputs["attention_mask"].bool().any(dim=0)
            tokens = int(used_T.nonzero().max()) + 1
            self.inputs = {name: value[:, :tokens] for name, value in self.inputs.items()}
            self.hidden_RTD = self.hidden_RTD[:, :tokens]


class _Reached(Exception):
    """End a pass through a model from within, with the states that came so far."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


def run_layers(
    model: nn.Module, inputs: dict[str, Tensor], begin: int, end: int | None = None, hidden_BTD: Tensor | None = None
) -> Tensor:
    """Run some of a model's layers, as the model itself does; return the states, or at its end the logits.

    The model's own forward runs, with its masks and its head. In the place of embeddings stands what is there already,
    and layers that have run pass it on.

    Args:
        model: an encoder of a known family.
        inputs: of the rows, with as many tokens as the states.
        begin: the first layer to run; where a family repeats its layers, each run counts.
        end: the layer before which to stop; None runs to the logits.
        hidden_BTD: states before the first layer; None begins with the embeddings.
    """
    anatomy, places = anatomy_of(model), count()

    def stand_in(run: Callable[..., Any]) -> Callable[..., Any]:
        def forward(states_BTD: Tensor, *positional: Any, **named: Any) -> Any:
            place = next(places)
            if place == end:
                raise _Reached(states_BTD)
            return states_BTD if place < begin else run(states_BTD, *positional, **named)

        return forward

    instead: dict[nn.Module, Callable[..., Any]]
    instead = {layer.module: stand_in(layer.module.forward) for layer in anatomy.layers}
    if hidden_BTD is not None:
        instead[anatomy.embeddings] = lambda *positional, **named: hidden_BTD
        if (projection := anatomy.embedding_projection) is not None:
            instead[projection] = lambda states_BTD: states_BTD
    try:
        logits: Tensor = _with(model, instead)(**inputs).logits
    except _Reached as reached:
        return reached.states
    return logits


def _with(module: nn.Module, forwards: Mapping[nn.Module, Callable[..., Any]]) -> nn.Module:
    """Return a module in which other functions run in the place of some parts' own; itself it stays as it is.

    Only modules on the way to these parts are copied, and they share all they hold: other threads may run the module.
    """
    if module in forwards:
        other = copy.copy(module)
        other.forward = forwards[module]
        return other
    parts = {name: None if part is None else _with(part, forwards) for name, part in module._modules.items()}
    if all(part is module._modules[name] for name, part in parts.items()):
        return module
    other = copy.copy(module)
    other._modules = parts
    return other
