"""The edit that moves a factor of each channel out of a part of a layer and into the linears that read it."""

# I inputs of the linears, R channels of the part they read, K key and value heads, S heads that share one, W its width

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer
from niwaki.errors import NiwakiError
from niwaki.surgery.cutting import layer_at, linear_of
from niwaki.surgery.journal import edit
from niwaki.surgery.sharing import refuse_tied

#: The linears that read one tensor, by the part of the layer that puts it out.
READERS: dict[str, tuple[str, ...]] = {
    "attention_norm": ("query", "key", "value"),
    "value": ("output",),
    "output_norm": ("up", "gate"),
    "up": ("down",),
}


def readers_of(layer: Layer) -> dict[str, tuple[str, ...]]:
    """Return `READERS` with the roles that the layer's family has."""
    family = layer.family
    return {source: tuple(role for role in roles if getattr(family, role)) for source, roles in READERS.items()}


def takes_factors(layer: Layer, source: str) -> bool:
    """Say whether dividing what a part puts out, and multiplying what reads it, leaves the layer the same function.

    Values: attention adds them up, channel by channel, and the output projection alone reads the sums. Norms: where
    they stand inside the residual branch; behind the sum, their output is the residual stream itself, which others read
    too. The up projection: where a gate multiplies it; an activation function in between is not linear.
    """
    family = layer.family
    return {"value": True, "up": bool(family.gate)}.get(source, family.pre_norm)


@edit
def scale_inputs(model: nn.Module, *, layer: int, source: str, values: Tensor | None = None) -> None:
    """Divide each channel that a part of a layer puts out, and multiply the weights that read it: the same function.

    Args:
        model: any model of a known family.
        layer: index of the layer, from 0.
        source: the part: "value", in pre-norm families also "attention_norm" and "output_norm", in those with a gate
            also "up".
        values: what each channel is divided by, above 0, (R,); of values in grouped-query attention one for each of
            their own channels. The numbers are in the weights: without values only the edit is written down.
    """
    part = layer_at(model, layer)
    if source not in READERS or not takes_factors(part, source):
        known = [name for name in READERS if takes_factors(part, name)]
        raise NiwakiError(f"source is {source!r}", expected=f"{', '.join(known)}, in the family {part.family.name}")
    roles = readers_of(part)[source]
    linears = [linear_of(part, role) for role in roles]
    refuse_tied(
        model, [part.name_of(role) for role in (source, *roles)], "scale_inputs", "factors in front of products"
    )
    if values is None:
        return
    if not bool((torch.isfinite(values) & (values > 0)).all()):
        raise NiwakiError(f"layer {layer}, {source}: factors that are not above 0", expected="numbers above 0")
    with torch.no_grad():
        for name, tensor in part.part(source).named_parameters(recurse=False):
            tensor.div_(values[:, None] if name == "weight" and tensor.dim() == 2 else values)
        for linear in linears:
            linear.weight.mul_(for_inputs(values, part, source))


def for_inputs(values_R: Tensor, layer: Layer, source: str) -> Tensor:
    """Return what stands at the channels of a source as it stands at the inputs of its readers, (I,).

    They are the same, but for values that several heads share.
    """
    sharing = _sharing(layer, source)
    if sharing == 1:
        return values_R
    return values_R.view(-1, 1, layer.head_size).expand(-1, sharing, -1).flatten()


def for_channels(values_I: Tensor, layer: Layer, source: str) -> Tensor:
    """Return the largest of what stands at the inputs that are one channel of the source, (R,)."""
    sharing = _sharing(layer, source)
    return values_I if sharing == 1 else values_I.view(-1, sharing, layer.head_size).amax(dim=1).flatten()


def _sharing(layer: Layer, source: str) -> int:
    return layer.group_size if source == "value" else 1
