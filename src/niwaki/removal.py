"""Remove parts of a model for a moment, and predict without them: what each is worth to the task.

Nothing is changed for good: hooks, and a shorter list of layers, stand while a block lasts. What changes a model for
good is `niwaki.surgery`.
"""

# N rows, B batch, T tokens, D hidden, U units (heads times their width, or neurons), C classes

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.batching import in_row_order, length_sorted
from niwaki.calibrate import evaluating, inputs_of, watched
from niwaki.layers.dropping import dropping
from niwaki.task import Encoded

Kind = Literal["layer", "attention", "feed-forward", "head"]


@dataclass(frozen=True)
class Part:
    """Name a part of a model that can be removed alone.

    A layer goes whole: what comes in goes out. Of an attention all heads go, of a feed-forward all neurons: the
    residual and the bias of the output projection stay, as when `surgery` cuts units away until none is left.

    Attributes:
        kind: "layer", "attention", "feed-forward" or "head".
        layer: index of the layer it is, or is in, from 0.
        head: index of a head in its layer, from 0; None for the other kinds.
    """

    kind: Kind
    layer: int
    head: int | None = None


def parts_of(model: nn.Module, heads: bool = True) -> list[Part]:
    """Return each layer, attention and feed-forward of a model, and each head where asked for, from input to output."""
    anatomy = anatomy_of(model)
    anatomy.refuse_repeated("ablate removes a part of one layer")
    parts: list[Part] = []
    for layer in anatomy.layers:
        parts += [Part(kind, layer.index) for kind in ("layer", "attention", "feed-forward")]
        if heads:
            parts += [Part("head", layer.index, head) for head in range(layer.heads)]
    return parts


def predict_without(
    model: nn.Module,
    rows: Encoded,
    parts: Sequence[Part],
    *,
    batch_size: int = 64,
    advance: Callable[[float], None] = lambda share: None,
) -> tuple[np.ndarray, dict[Part, np.ndarray]]:
    """Return the logits (N, C) of the whole model, and its logits without each part, each removed alone.

    Each batch goes through the whole model once. What is below a part's layer does not notice that the part is gone, so
    every further pass begins at that layer, from the states of the whole model: half the work, on average.

    Args:
        model: in any mode; it is run in eval mode without gradients, and left as it was.
        rows: what to predict.
        parts: what to remove.
        batch_size: rows of like length in one pass.
        advance: called after each pass with its share of all the work; the shares add up to 1.
    """
    layers = anatomy_of(model).layers
    device = next(model.parameters()).device
    batches = length_sorted(rows.lengths, batch_size)
    work = sum(len(layers) - part.layer for part in parts) + len(layers)
    tokens = sum(_area(rows, indices) for indices in batches)
    modules = {str(layer.index): layer.module for layer in layers}
    states: list[Tensor] = []  # what comes into each layer, of one batch
    whole: list[np.ndarray] = []
    without: dict[Part, list[np.ndarray]] = {part: [] for part in parts}
    with evaluating(model), dropping(model, "off"):
        for indices in batches:
            inputs = inputs_of({name: value.to(device) for name, value in rows.batch(indices).items()})
            share = _area(rows, indices) / (tokens * work)
            states.clear()
            with watched(modules, lambda _, state_BTD, __: states.append(state_BTD)):
                whole.append(model(**inputs).logits.float().cpu().numpy())
            advance(share * len(layers))
            for part in parts:
                with _removed(model, layers, part, states[part.layer]):
                    without[part].append(model(**inputs).logits.float().cpu().numpy())
                advance(share * (len(layers) - part.layer))
    return in_row_order(batches, whole), {part: in_row_order(batches, logits) for part, logits in without.items()}


def leave_one_out(
    model: nn.Module,
    rows: Encoded,
    keep: int,
    judge: Callable[[np.ndarray], tuple[float, ...]],
    told: Callable[[list[int], list[tuple[float, ...]]], None] = lambda layers, worth: None,
) -> list[int]:
    """Return the layers that stay when the one that is missed least goes, again and again, until `keep` are left.

    Each round measures the model without each of the layers that are left, one at a time.

    Args:
        model: of a known family; it is left as it was.
        rows: what is predicted.
        keep: number of layers that stay, from 1.
        judge: says how good logits (N, C) of these rows are, greater is better; later numbers break ties.
        told: called once a round with the layers that were left, and with what the model was worth without each.
    """
    modules = list(anatomy_of(model).layer_list)
    kept = list(range(len(modules)))
    while len(kept) > keep:
        with standing(model, [modules[index] for index in kept]):
            parts = [Part("layer", place) for place in range(len(kept))]
            _, without = predict_without(model, rows, parts)
        worth = [judge(without[part]) for part in parts]
        told(list(kept), worth)
        del kept[worth.index(max(worth))]
    return kept


@contextlib.contextmanager
def standing(model: nn.Module, layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let these modules be all the layers of a model while the block lasts."""
    parent, _, name = anatomy_of(model).layers_name.rpartition(".")
    place = model.get_submodule(parent)
    own = getattr(place, name)
    setattr(place, name, nn.ModuleList(layers))
    try:
        yield
    finally:
        setattr(place, name, own)


class Given(nn.Module):
    """Stand for the layers below another one, whose output is known."""

    def __init__(self, state_BTD: Tensor) -> None:
        super().__init__()
        self.state_BTD = state_BTD

    def forward(self, *arguments: object, **named: object) -> Tensor:
        """Return the known state, whatever came in."""
        return self.state_BTD


@contextlib.contextmanager
def _removed(model: nn.Module, layers: Sequence[Layer], part: Part, state_BTD: Tensor) -> Iterator[None]:
    """Take a part away while the block lasts; `state_BTD` is what comes into its layer."""
    above = [layer.module for layer in layers[part.layer + 1 :]]
    own = layers[part.layer]
    with contextlib.ExitStack() as stack:
        if part.kind == "layer":
            stack.enter_context(standing(model, [Given(state_BTD), *above]))
        else:
            stack.enter_context(standing(model, [Given(state_BTD), own.module, *above]))
            stack.enter_context(_silenced(own, part))
        yield


@contextlib.contextmanager
def _silenced(layer: Layer, part: Part) -> Iterator[None]:
    """Let the units of a part say nothing to the linear that reads them, while the block lasts."""
    units = slice(None)
    if part.head is not None:
        units = slice(part.head * layer.head_size, (part.head + 1) * layer.head_size)

    def silence(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        states_BTU = inputs[0].clone()
        states_BTU[..., units] = 0.0
        return (states_BTU, *inputs[1:])

    linear = layer.part("down" if part.kind == "feed-forward" else "output")
    handle = linear.register_forward_pre_hook(silence)
    try:
        yield
    finally:
        handle.remove()


def _area(rows: Encoded, indices: np.ndarray) -> int:
    """Return the tokens of a batch, padding included."""
    return len(indices) * int(rows.lengths[indices].max())
