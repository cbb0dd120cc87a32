"""What a cut left, for the log: sizes and how they were rounded, and whether plain Transformers reads the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.residual import residual_of
from niwaki.surgery import is_plain

Counts = dict[str, list[int]]


def counts_of(model: nn.Module) -> Counts:
    """Return how many heads and neurons each layer has, and the hidden channels."""
    layers = anatomy_of(model).layers
    return {
        "heads": [layer.heads for layer in layers],
        "neurons": [layer.neurons for layer in layers],
        "hidden": [residual_of(model).width],
    }


def tell(
    log: Callable[[dict[str, Any]], None], model: nn.Module, before: Counts, *, even: bool, multiple_of: int
) -> None:
    """Write down what stays of each kind of units that was cut, and, of equal layers, whether the folder is plain.

    Args:
        log: of the run.
        model: as it was cut.
        before: its numbers before.
        even: whether layers were to stay equal.
        multiple_of: what neurons and channels were rounded to.
    """
    left = {kind: numbers for kind, numbers in counts_of(model).items() if numbers != before[kind]}
    shares = {f"{kind}_kept": sum(numbers) / sum(before[kind]) for kind, numbers in left.items()}
    rounded = [kind for kind in left if kind != "heads"]
    why = f", {' and '.join(rounded)} rounded to multiples of {multiple_of}, which kernels are made for"
    note = "units that stay, layer by layer" + (why if rounded and multiple_of > 1 else "")
    log({"event": "note", "note": note, **left, **shares})
    if even:
        log({"event": "note", "note": plainness(model)})


def plainness(model: nn.Module) -> str:
    """Say in words whether plain Transformers can read the saved model, and what is in the way if it cannot."""
    if is_plain(model):
        return "every layer is like the others, and the saved folder is a plain Transformers model"
    return f"the saved folder is not a plain Transformers model: {_obstacle(model)}"


def _obstacle(model: nn.Module) -> str:
    anatomy, width = anatomy_of(model), residual_of(model).width
    for kind, numbers in counts_of(model).items():
        if len(set(numbers)) > 1 or 0 in numbers:
            return f"its layers have {', '.join(map(str, numbers))} {kind}"
    layer: Layer = anatomy.layers[0]
    made = layer.heads * layer.head_size
    if not anatomy.family.config_key_value_heads and made != width:
        return (
            f"the config of a {anatomy.family.name} does not state the size of a head, which is the hidden width over "
            f"the number of heads; {layer.heads} heads of {layer.head_size} make {made}, and the hidden width is "
            f"{width}. keep_heads and keep_hidden of one share would be plain"
        )
    if width % layer.heads:
        return f"a config wants a hidden width, here {width}, that the number of heads divides, here {layer.heads}"
    return "its parts are not those that Transformers builds from the config"
