"""Walk through a model layer by layer: cut each block, and let what stays give what the whole block gave."""

# B batch, T tokens, D hidden, P tokens that are not padding, I inputs of a linear

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.surgery import narrow_heads, narrow_neurons
from niwaki.techniques.prune.readout import Moments

#: The norm that reads the sum of a block's output and the residual stream, in a layer whose norms follow the sum, and
#: in one whose norms come first: there what the feed-forward is added to leaves the layer.
NORMS = ({"heads": "attention_norm", "neurons": "output_norm"}, {"heads": "output_norm", "neurons": ""})
#: Share of the mean diagonal of the moments that holds a readout where it was.
RIDGE = 1e-4
#: Which units of a kind stay in a layer, told from what the layer's inputs are by now.
Choose = Callable[[Layer, str, Moments], list[int]]


class _Stop(Exception):
    """End a forward as soon as what was looked for is there."""


@dataclass
class Rows:
    """Hold a batch on its way: its states before the next layer, as they were and as they have become.

    Attributes:
        was_BTD, is_BTD: of the model as it was, and of the model cut so far.
        real_BT: where tokens are not padding.
        arguments: of each layer, the positional and the named ones beside the states.
    """

    was_BTD: Tensor
    is_BTD: Tensor
    real_BT: Tensor
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def through(self, layer: Layer, states_BTD: Tensor) -> Tensor:
        """Return what a layer makes of the states."""
        positional, named = self.arguments[layer.index]
        output = layer.module(states_BTD, *positional, **named)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result


@torch.no_grad()
def rebuild(model: nn.Module, batches: Iterable[dict[str, Tensor]], choose: Choose, ridge: float = RIDGE) -> nn.Module:
    """Cut every block to the units that `choose` keeps, and fit its readout anew, from the first layer to the last.

    The inputs are those of the model cut so far, and the outputs wanted are such that the sum with the residual stream
    is what it was: a layer makes up for what the layers before it lost as well.

    Args:
        model: of a known family, in eval mode.
        batches: calibration rows.
        choose: is called for each kind of units of each layer, in order.
        ridge: share of the mean diagonal of the moments that holds the weights where they were, above 0.
    """
    rows = _entered(model, batches)
    cut = False
    for layer in anatomy_of(model).layers:
        original = replace(layer, module=copy.deepcopy(layer.module))
        for kind, narrow in (("heads", narrow_heads), ("neurons", narrow_neurons)):
            moments = _moments(layer, original if cut else layer, kind, rows)
            kept = choose(layer, kind, moments)
            width, count = layer.unit_width(kind), layer.units(kind)
            cut = cut or len(kept) < count
            if not cut:
                continue
            reader = layer.reader(kind)
            columns = (torch.tensor(kept, dtype=torch.int64)[:, None] * width + torch.arange(width)).flatten()
            weight, bias = moments.readout(reader, columns, ridge)
            if len(kept) < count:
                narrow(model, layer=layer.index, **{kind: layer.heads_of(kept) if kind == "heads" else kept})
            reader.weight.copy_(weight)
            if bias is not None:
                reader.bias.copy_(bias)
        for row in rows:
            row.is_BTD = row.through(layer, row.is_BTD)
            row.was_BTD = row.through(original, row.was_BTD) if cut else row.is_BTD
    return model


def _entered(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> list[Rows]:
    """Return the batches as they stand before the first layer, with what else each layer is given: masks may differ."""
    rows: list[Rows] = []
    layers = anatomy_of(model).layers

    def hold(module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        states_BTD, *others = positional
        if module is layers[0].module:
            rows.append(Rows(states_BTD, states_BTD, batch["attention_mask"].bool(), []))
        # a layer will run several times: it keeps no keys and values between them
        named = {name: None if name == "past_key_values" else value for name, value in named.items()}
        rows[-1].arguments.append((tuple(others), named))
        if module is layers[-1].module:
            raise _Stop

    handles = [layer.module.register_forward_pre_hook(hold, with_kwargs=True) for layer in layers]
    try:
        for batch in batches:
            with contextlib.suppress(_Stop):
                model(**inputs_of(batch))
    finally:
        for handle in handles:
            handle.remove()
    return rows


def _moments(layer: Layer, original: Layer, kind: str, rows: list[Rows]) -> Moments:
    """Return the moments of what the units' reader sees now, and of what it should put out."""
    reader = layer.reader(kind)
    moments = Moments(reader.in_features, reader.out_features, bias=reader.bias is not None)
    for row in rows:
        inputs_BTI, output_BTD, is_BTD = _summed(layer, kind, row, row.is_BTD)
        was_BTD = is_BTD if original is layer else _summed(original, kind, row, row.was_BTD)[2]
        wanted_BTD = was_BTD - (is_BTD - output_BTD)
        moments.see(inputs_BTI[row.real_BT], wanted_BTD[row.real_BT])
    return moments


def _summed(layer: Layer, kind: str, row: Rows, states_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a reader's inputs and outputs, and the sum of its outputs and the residual stream, before any norm."""
    seen: dict[str, Tensor] = {}

    def read(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen["inputs"], seen["output"] = inputs[0], output

    def sum_up(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["sum"] = inputs[0]
        raise _Stop

    handles = [layer.reader(kind).register_forward_hook(read)]
    if norm := NORMS[layer.family.pre_norm][kind]:
        handles.append(layer.part(norm).register_forward_pre_hook(sum_up))
    try:
        with contextlib.suppress(_Stop):
            seen["sum"] = row.through(layer, states_BTD)
    finally:
        for handle in handles:
            handle.remove()
    return seen["inputs"], seen["output"], seen["sum"]
