"""Move what is large in the inputs of linears into their weights, or what AWQ finds, and fold it away where it can be.

Which linears read one tensor, which part of the layer puts it out, and whether that part takes the factors, says
`niwaki.surgery.scaling`. A factor that no part takes is a multiplication in front of the product.
"""

# O outputs, I inputs, R channels of the part that linears read

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.calibrate import Sizes
from niwaki.grid import Grid
from niwaki.surgery import scale_inputs, ties_of
from niwaki.surgery.scaling import for_channels, for_inputs, readers_of, takes_factors
from niwaki.techniques.quantize.rounding import awq_factors


@dataclass(frozen=True)
class Readers:
    """Name linears that read one tensor.

    Attributes:
        names: their dotted names.
        layer: the layer they stand in, where the part that they read takes factors; else none.
        source: that part's role.
    """

    names: tuple[str, ...]
    layer: Layer | None = None
    source: str = ""


def smoothing_factors(inputs_I: Tensor, weights_I: Tensor, strength: float) -> Tensor:
    """Return s_j = max|X_j|^a / max|W_j|^(1 - a), and 1 where input or weights are all zero.

    Source: Xiao et al. 2023, SmoothQuant, equation 4.

    >>> smoothing_factors(torch.tensor([16.0, 1.0, 0.0]), torch.tensor([1.0, 4.0, 1.0]), 0.5)
    tensor([4.0000, 0.5000, 1.0000])
    """
    factors_I = inputs_I.double() ** strength / weights_I.double() ** (1.0 - strength)
    return torch.where((inputs_I > 0) & (weights_I > 0), factors_I, 1.0).float().clamp(1e-5, 1e5)


def smooth(
    model: nn.Module, names: Collection[str], packed: Collection[str], sizes: Mapping[str, Sizes], strength: float
) -> dict[str, Tensor]:
    """Make the inputs of linears flatter and their weights less so; fold what can be folded.

    Args:
        model: is changed where a part of it takes the factors, and stays the same function.
        names: linears whose inputs are rounded.
        packed: linears that are packed, and may be changed for it.
        sizes: of the inputs of `names`.
        strength: the exponent a, in (0, 1].

    Returns:
        for each linear whose factors are not folded, what its columns are still to be multiplied by, (I,).
    """
    left: dict[str, Tensor] = {}
    for readers in reading_together(model, names, packed):
        inputs_I = torch.stack([sizes[name].largest_I for name in readers.names]).amax(dim=0)
        weights_I = torch.stack([_weight(model, name).abs().amax(dim=0) for name in readers.names]).amax(dim=0).cpu()
        if readers.layer is None:
            left |= dict.fromkeys(readers.names, smoothing_factors(inputs_I, weights_I, strength))
            continue
        inputs_R, weights_R = (for_channels(one_I, readers.layer, readers.source) for one_I in (inputs_I, weights_I))
        _fold(model, readers, smoothing_factors(inputs_R, weights_R, strength))
    return left


def fold_awq(
    model: nn.Module, grids: Mapping[str, Grid], packed: Collection[str], products: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    """Fold AWQ's factors into the parts that linears read, where they take them; linears of one part share theirs.

    Args:
        model: is changed, and stays the same function.
        grids: what each linear that AWQ rounds is rounded to.
        packed: linears that are packed, and may be changed for it.
        products: X^T X of their inputs, as they were; of a model without weights there are none.

    Returns:
        of each linear whose factors are folded, the sum of squares of its inputs as they are now, (I,).
    """
    changed: dict[str, Tensor | None] = {}
    for readers in reading_together(model, grids, packed):
        if readers.layer is None:
            continue
        products_II = products.get(readers.names[0])
        if products_II is None:
            scale_inputs(model, layer=readers.layer.index, source=readers.source)
            changed |= dict.fromkeys(readers.names)
            continue
        size_R = for_channels(products_II.diagonal().double().sqrt(), readers.layer, readers.source)
        factors_I = awq_factors(
            [_weight(model, name).cpu() for name in readers.names],
            products_II,
            [grids[name] for name in readers.names],
            for_inputs(size_R, readers.layer, readers.source),
        )
        _fold(model, readers, for_channels(factors_I, readers.layer, readers.source))
        changed |= dict.fromkeys(readers.names, products_II.diagonal() / factors_I.square())
    return changed


def divided(products_II: Tensor, factors_I: Tensor) -> Tensor:
    """Return X^T X of inputs that are divided by these factors."""
    factors_I = factors_I.to(products_II)
    return products_II / factors_I[:, None] / factors_I


def reading_together(model: nn.Module, names: Collection[str], packed: Collection[str]) -> Iterator[Readers]:
    """Yield the linears in the order of a forward pass, those together that read one tensor, or share a weight.

    A part takes factors only where all that read it are among `names`, and where it is a norm or itself packed: what
    is to stay as it is does. What several layers share takes none, and is multiplied in all of them by the same.

    Args:
        model: of a known family.
        names: linears.
        packed: linears that will be packed, and are not yet.
    """
    rest, ties = dict.fromkeys(names), ties_of(model)
    tied = {name for tie in ties for name in tie}
    found_all: list[Readers] = []
    for layer in anatomy_of(model).layers:
        for source, roles in readers_of(layer).items():
            found = [name for name in map(layer.name_of, roles) if name in rest]
            if not found:
                continue
            is_free = source.endswith("norm") or layer.name_of(source) in packed
            alone = tied.isdisjoint((layer.name_of(source), *found))
            folds = takes_factors(layer, source) and is_free and alone and len(found) == len(roles)
            found_all.append(Readers(tuple(found), layer, source) if folds else Readers(tuple(found)))
            for name in found:
                del rest[name]
    yield from _joined([*found_all, *(Readers((name,)) for name in rest)], ties)


def _joined(readers: list[Readers], ties: list[list[str]]) -> list[Readers]:
    """Join those that hold modules of one tie, in the place of the first.

    >>> one, two, three = Readers(("q0", "k0")), Readers(("down0",)), Readers(("q1", "k1"))
    >>> [each.names for each in _joined([one, two, three], [["q0", "q1"], ["k0", "k1"]])]
    [('q0', 'k0', 'q1', 'k1'), ('down0',)]
    """
    joined = list(readers)
    for tie in ties:
        held = [one for one in joined if not set(one.names).isdisjoint(tie)]
        if len(held) > 1:
            whole = Readers(tuple(name for one in held for name in one.names))
            joined = [whole if one is held[0] else one for one in joined if one not in held[1:]]
    return joined


def _fold(model: nn.Module, readers: Readers, factors_R: Tensor) -> None:
    assert readers.layer is not None
    device = _weight(model, readers.names[0]).device
    scale_inputs(model, layer=readers.layer.index, source=readers.source, values=factors_R.to(device))


def _weight(model: nn.Module, name: str) -> Tensor:
    return cast(nn.Linear, model.get_submodule(name)).weight.detach()
