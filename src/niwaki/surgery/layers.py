"""The edit of whole layers."""

from __future__ import annotations

from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.surgery.cutting import check_indices
from niwaki.surgery.exits import keep_exits
from niwaki.surgery.journal import edit


@edit
def keep_layers(model: nn.Module, *, layers: list[int]) -> None:
    """Keep the layers of these indices, in this order, and the exits after them.

    Args:
        model: any model of a known family.
        layers: indices, ascending, from 0.
    """
    anatomy = anatomy_of(model)
    anatomy.refuse_repeated("keep_layers")
    check_indices(layers, anatomy.num_layers, "layers")
    kept = nn.ModuleList([anatomy.layer_list[index] for index in layers])
    parent, _, name = anatomy.layers_name.rpartition(".")
    setattr(model.get_submodule(parent), name, kept)
    _number_layers(kept)
    keep_exits(model, layers)
    setattr(model.config, anatomy.family.config_layers, len(layers))
    kinds = getattr(model.config, "layer_types", None)
    if kinds:  # full or sliding attention, one word a layer
        model.config.layer_types = [kinds[index] for index in layers]  # type: ignore[union-attr]


def _number_layers(layers: nn.ModuleList) -> None:
    """Tell each layer its place anew, where it knows it: a decoder finds its kept keys and values by it."""
    for index, layer in enumerate(layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = index  # type: ignore[assignment]
