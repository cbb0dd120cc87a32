"""Take calibration rows through a model layer by layer, and keep their hidden states in between."""

# B batch, T tokens, D hidden, I inputs of a linear

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.calibrate import Batches, evaluating, inputs_of, products_over
from niwaki.layers.dropping import dropping
from niwaki.parts import Parts


class Walk:
    """Know the hidden states of calibration rows in front of one layer, and take them through it.

    Every layer runs twice a batch, whatever the depth: once to see what its linears read, and once, changed, to give
    the next layer its input. Numbers are those of whole passes through the model.

    Args:
        model: its layers may be changed on the way, but only those behind which the rows are not yet.
        batches: padded batches with an attention mask.
        parts: where the weights are, and where hidden states wait.
    """

    def __init__(self, model: nn.Module, batches: Batches, parts: Parts) -> None:
        self.model = model
        self.masks: list[Tensor] = []
        self.hidden, self.arguments = parts.kept("hidden"), parts.kept("arguments")
        anatomy = anatomy_of(model)
        # no keys and values are kept: a layer that runs twice would find its own
        extra = {"use_cache": False} if anatomy.language_head is not None else {}
        begin = anatomy.prefix + anatomy.family.embeddings
        with parts.held(model, begin, changed=False), evaluating(model), dropping(model, "off"):
            for batch in batches:
                calls = entered(anatomy.layers, partial(model, **inputs_of(batch), **extra))
                self.masks.append(batch["attention_mask"])
                self.hidden.append(calls[0][0][0])
                self.arguments.append([(positional[1:], named) for positional, named in calls])

    def products(self, layer: Layer, names: Sequence[str]) -> dict[str, Tensor]:
        """Return X^T X (I, I), in 32 bits, of the inputs of linears of the layer in front of which the rows are."""
        with evaluating(layer.module), dropping(layer.module, "off"):
            passes = ((self.masks[index], run) for index, run in self._passes(layer))
            modules = {name: self.model.get_submodule(name) for name in names}
            return products_over(modules, passes, dtype=torch.float32)

    def go_through(self, layer: Layer) -> None:
        """Take the rows through the layer in front of which they are, as it is now."""
        with evaluating(layer.module), dropping(layer.module, "off"):
            for index, run in self._passes(layer):
                self.hidden[index] = run()

    def _passes(self, layer: Layer) -> Iterator[tuple[int, Callable[[], Tensor]]]:
        """Yield for each batch its index, and what runs the layer on it."""
        for index in range(len(self.masks)):
            positional, named = self.arguments[index][layer.index]
            yield index, partial(layer.module, self.hidden[index], *positional, **named)


def entered(layers: Sequence[Layer], run: Callable[[], object]) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Return with what arguments a pass through the model calls each layer, if none of them changes anything.

    The layers themselves are not run, and neither is what stands behind them.
    """
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def stand_in(*positional: Any, **named: Any) -> Any:
        calls.append((positional, named))
        if len(calls) == len(layers):
            raise _LastLayer
        return positional[0]

    for layer in layers:
        layer.module.forward = stand_in
    try:
        with contextlib.suppress(_LastLayer):
            run()
    finally:
        for layer in layers:
            del layer.module.forward
    return calls


class _LastLayer(Exception):
    """End a pass through a model from within."""
