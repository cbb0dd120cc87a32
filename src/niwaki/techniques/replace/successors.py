"""Kinds of successors: one layer for a run of layers, and a layer with fewer neurons. Each is made by surgery."""

# N neurons, D hidden, C classes or words, B batch, T tokens

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import Batches, evaluating, input_products, inputs_of
from niwaki.errors import NiwakiError
from niwaki.layers.gates import choose
from niwaki.removal import standing
from niwaki.surgery import keep_layers, narrow_neurons

Runs = list[list[int]]


def even_runs(layers: int, keep: int) -> Runs:
    """Return so many runs of neighbouring layers, as even as can be.

    Run i ends at layer round((i + 1) layers / keep), counted from 1: the one that `distill` matches with student layer
    i + 1 when its `hidden_layers` is "uniform".

    >>> even_runs(6, 3)
    [[0, 1], [2, 3], [4, 5]]
    >>> even_runs(7, 3)
    [[0, 1], [2, 3, 4], [5, 6]]
    """
    ends = [round(part * layers / keep) for part in range(keep + 1)]
    return [list(range(begin, end)) for begin, end in pairwise(ends)]


def one_layer_each(model: nn.Module, runs: Runs, members: Sequence[int], *, mean: bool = False) -> None:
    """Keep one layer for each run.

    Args:
        model: of a known family.
        runs: indices of all its layers.
        members: the layer that stays for each run, ascending.
        mean: give it the mean of the weights of its run.
    """
    layers = list(anatomy_of(model).layer_list)
    if len(runs) < len(layers):
        keep_layers(model, layers=list(members))
    if mean:
        for member, run in zip(members, runs, strict=True):
            _average(layers[member], [layers[index] for index in run])


@torch.no_grad()
def _average(layer: nn.Module, run: Sequence[nn.Module]) -> None:
    """Give a layer, which may be of the run, the mean of the weights of a run of layers."""
    for parameters in zip(layer.parameters(), *(other.parameters() for other in run), strict=True):
        parameters[0].copy_(torch.stack(parameters[1:]).mean(dim=0))


def check_alike(model: nn.Module, runs: Runs) -> None:
    """Refuse to take the mean of layers of other shapes."""
    layers = anatomy_of(model).layer_list
    for run in runs:
        shapes = {tuple(tuple(parameter.shape) for parameter in layers[index].parameters()) for index in run}
        if len(shapes) > 1:
            raise NiwakiError(
                f"start is mean, and layers {run} are of different shapes",
                expected="layers as wide as each other",
                fix="start: best",
                place="replace",
            )


def differences(model: nn.Module, runs: Runs, batches: Batches) -> list[list[float]]:
    """Return how far each member of each run, alone in the run's place, moves the logits of the whole model.

    The mean square over classes and rows (of a language model: words and tokens that are not padding). A run of one
    layer moves nothing.

    Args:
        model: in any mode; it is run in eval mode without gradients, and left as it was.
        runs: indices of all its layers.
        batches: padded batches with an attention mask.
    """
    layers = list(anatomy_of(model).layer_list)
    sums = [[0.0] * len(run) for run in runs]
    count = 0
    with evaluating(model):
        for batch in batches:
            inputs = inputs_of(batch)
            whole = model(**inputs).logits
            for place, run in enumerate(runs):
                for number, member in enumerate(run if len(run) > 1 else []):
                    others = [layer for index, layer in enumerate(layers) if index not in run or index == member]
                    with standing(model, others):
                        squares = (model(**inputs).logits - whole).float().square().mean(dim=-1)
                    sums[place][number] += float(_real(squares, batch["attention_mask"]).sum())
            count += _real(whole[..., 0], batch["attention_mask"]).numel()
    return [[total / count for total in each] for each in sums]


def _real(values: Tensor, mask_BT: Tensor) -> Tensor:
    """Return what is there for tokens that are not padding, or what has no tokens, (B,), as it is."""
    return values[mask_BT.bool()] if values.dim() == 2 else values


def fewer_neurons(model: nn.Module, keep: float, multiple_of: int, batches: Batches) -> list[bool]:
    """Keep the most important neurons of each layer's feed-forward, and say of which layers some went.

    The importance of neuron n is ||h_n|| ||W_n||, with h_n what it puts out over real tokens and W_n its column of the
    down projection: the norm of what it adds to the layer's output.

    Args:
        model: of a known family.
        keep: share that stays in each layer, in (0, 1].
        multiple_of: the number that stays is rounded to a multiple.
        batches: padded batches with an attention mask.
    """
    layers = anatomy_of(model).layers
    squares = input_products(model, [layer.name_of("down") for layer in layers], batches, squares_only=True)
    importances = [
        squares[layer.name_of("down")].sqrt() * layer.reader("neurons").weight.detach().double().norm(dim=0)
        for layer in layers
    ]
    narrowed = []
    for layer, neurons in zip(layers, choose(importances, keep, even=True, multiple_of=multiple_of), strict=True):
        narrowed.append(len(neurons) < layer.neurons)
        if narrowed[-1]:
            narrow_neurons(model, layer=layer.index, neurons=neurons)
    return narrowed
