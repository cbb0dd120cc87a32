"""What the data say of each matrix, and the walk through the layers that factors them now."""

# O outputs, I inputs, R rank

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import cross_products, frozen, input_products, inputs_of
from niwaki.layers.factored import FactoredLinear
from niwaki.surgery import factor_linear
from niwaki.technique import Context
from niwaki.techniques.factor.ranks import Ranks
from niwaki.techniques.factor.truncate import Spectrum, by_fisher, by_size, refitted, spectrum

#: Rows of which the mean gradient is squared.
BATCH = 8


def metrics(model: nn.Module, names: Sequence[str], by: str, context: Context, examples: int) -> dict[str, Tensor]:
    """Return what an error in each matrix is weighed by; nothing by "svd"."""
    if by == "svd":
        return {}
    if by == "fisher":
        fisher = weight_fisher(model, names, context, examples)
        return {name: by_fisher(fisher_OI) for name, fisher_OI in fisher.items()}
    batches = context.calibration_batches(examples)
    products = input_products(model, names, batches, squares_only=by == "asvd")
    return {name: by_size(squares_I) for name, squares_I in products.items()} if by == "asvd" else products


def weight_fisher(model: nn.Module, names: Sequence[str], context: Context, examples: int) -> dict[str, Tensor]:
    """Return what stands in for the Fisher information of each weight (O, I): the sum over batches of (dL/dw)^2.

    L is the mean loss of the rows in a batch. Fisher's would square the gradient of each row; in the square of a mean,
    gradients of rows that point apart cancel.
    """
    weights = {name: linear_at(model, name).weight for name in names}
    fisher = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with frozen(model):
        for weight in weights.values():
            weight.requires_grad_(True)
        try:
            for batch in context.calibration_batches(examples, batch_size=BATCH):
                loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
                gradients = torch.autograd.grad(loss, list(weights.values()))
                for total_OI, gradient_OI in zip(fisher.values(), gradients, strict=True):
                    total_OI += gradient_OI.square()
        finally:
            for weight in weights.values():
                weight.requires_grad_(False)
    return fisher


def losses_by_rank(
    model: nn.Module, names: Sequence[str], by: str, context: Context, examples: int
) -> dict[str, Tensor]:
    """Return for each matrix (K + 1,) what 0, 1, ..., K ranks cost: the share lost, times what the whole is worth.

    A matrix is worth the sum over its weights of F w^2, with F as in `weight_fisher`. By the Fisher information itself
    that would be twice the loss's growth without the matrix, to second order.
    """
    worth = {
        name: float((fisher_OI * linear_at(model, name).weight.detach().square()).sum())
        for name, fisher_OI in weight_fisher(model, names, context, examples).items()
    }
    spectra = spectra_of(model, names, by, context, examples)
    return {name: worth[name] * one.lost_K for name, one in spectra.items()}


def spectra_of(model: nn.Module, names: Sequence[str], by: str, context: Context, examples: int) -> dict[str, Spectrum]:
    """Take matrices apart, all of them in the model as it is, a layer at a time."""
    found: dict[str, Spectrum] = {}
    for group in groups_of(model, names, by):
        weighed = metrics(model, group, by, context, examples)
        found |= {name: spectrum(linear_at(model, name).weight, weighed.get(name)) for name in group}
    return found


def factor_now(model: nn.Module, ranks: Ranks, by: str, context: Context, examples: int) -> dict[str, float]:
    """Put pairs in the places of the matrices, layer by layer, and return the share that each has lost.

    By "asvd" and "whitened" a layer is judged by the inputs that the layers before, factored, put out. By "whitened"
    the outer matrices are then fitted to what the linears put out in the model as it was.
    """
    names = [name for name, rank in ranks.items() if rank is not None]
    whole = copy.deepcopy(model) if by == "whitened" else None
    lost: dict[str, float] = {}
    for group in groups_of(model, names, by):
        weighed = metrics(model, group, by, context, examples)
        crossed: Mapping[str, Tensor] = {}
        if whole is not None and lost:  # else the inputs are those of the whole model
            crossed = cross_products(model, whole, group, context.calibration_batches(examples))
        for name in group:
            weight_OI, rank = linear_at(model, name).weight, cast(int, ranks[name])
            one = spectrum(weight_OI, weighed.get(name))
            inner_RI, outer_OR = one.pair(rank)
            if name in crossed:
                outer_OR = refitted(weight_OI, inner_RI, outer_OR, weighed[name], crossed[name])
            pair = FactoredLinear.of(inner_RI.to(weight_OI), outer_OR.to(weight_OI))
            factor_linear(model, module=name, rank=rank, values=pair)
            lost[name] = float(one.lost_K[rank])
    return lost


def groups_of(model: nn.Module, names: Sequence[str], by: str) -> list[list[str]]:
    """Return the names that are looked at together: of a layer each, then the others; all at once by gradients."""
    if by == "fisher":
        return [list(names)] if names else []
    layers = [[name for name in names if name.startswith(f"{layer.path}.")] for layer in anatomy_of(model).layers]
    inside = {name for group in layers for name in group}
    return [group for group in (*layers, [name for name in names if name not in inside]) if group]


def linear_at(model: nn.Module, name: str) -> nn.Linear:
    """Return a linear by its name."""
    return cast(nn.Linear, model.get_submodule(name))
