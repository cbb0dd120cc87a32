"""Prune single weights of the layers' matrices, at once or little by little; surgery then stores them sparse."""

# O outputs, I inputs

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.calibrate import input_products
from niwaki.errors import NiwakiError
from niwaki.surgery import sparsify_linear
from niwaki.technique import Context
from niwaki.techniques.prune import sparsegpt
from niwaki.techniques.prune.masks import GONE, Rule, in_groups, in_rows, masks
from niwaki.techniques.prune.scheduled import Scheduled
from niwaki.techniques.prune.sensitivity import weight_importances

#: In how many stages weights go in training. Choosing among ten million takes as long as a training step.
STAGES = 50


def matrices_of(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linears whose weights are pruned, by dotted name: those inside the layers."""
    found: dict[str, nn.Linear] = {}
    for name in anatomy_of(model).linear_names():
        linear = model.get_submodule(name)
        if not isinstance(linear, nn.Linear):
            raise NiwakiError(
                f"{name} is a {type(linear).__name__}",
                expected="a linear that is not packed into bits yet",
                fix="prune before quantize",
            )
        found[name] = linear
    return found


def check(model: nn.Module, rule: Rule) -> None:
    """Refuse matrices that are packed, and widths that the M of N:M does not divide."""
    for name, linear in matrices_of(model).items():
        if rule.pattern is not None and linear.in_features % rule.pattern[1]:
            kept, group = rule.pattern
            raise NiwakiError(
                f"prune has pattern {kept}:{group}, and {name} has {linear.in_features} inputs",
                expected=f"an M that divides every width, or widths that are multiples of {group}",
                fix=f"keep_weights: {kept / group:g}, or a multiple_of: {group} where neurons are pruned before",
            )


def at_once(model: nn.Module, context: Context, by: str, rule: Rule, examples: int) -> nn.Module:
    """Remove weights now.

    Args:
        model: of a known family.
        context: with training rows, where the method looks at inputs.
        by: "magnitude", "first-order", "random", "wanda" or "sparsegpt".
        rule: how many stay.
        examples: training rows to look at.
    """
    check(model, rule)
    if by in ("wanda", "sparsegpt"):
        for layer in anatomy_of(model).layers:
            _solve_layer(model, layer, context, by, rule, examples)
    else:
        matrices = list(matrices_of(model).values())
        if by == "first-order":
            scores = weight_importances(model, matrices, context, examples)
        else:
            scores = magnitudes(matrices) if by == "magnitude" else random(matrices, context.seed)
        for linear, mask in zip(matrices, masks(scores, rule), strict=True):
            _set(linear, linear.weight.detach() * mask)
    return store(model)


def _solve_layer(model: nn.Module, layer: Layer, context: Context, by: str, rule: Rule, examples: int) -> None:
    """Prune one layer's matrices by what they read, when all layers before it are pruned."""
    linears = {name: linear for name, linear in matrices_of(model).items() if name.startswith(f"{layer.path}.")}
    batches = context.calibration_batches(examples)
    products = input_products(model, list(linears), batches, squares_only=by == "wanda")
    for name, linear in linears.items():
        weight_OI, products_II = linear.weight.detach(), products[name].to(linear.weight.device)
        if by == "sparsegpt":
            _set(linear, sparsegpt.solve(weight_OI, products_II, rule))
        else:
            _set(linear, weight_OI * wanda(weight_OI, products_II, rule))


def wanda(weight_OI: Tensor, squares_I: Tensor, rule: Rule) -> Tensor:
    """Return which weights stay: in each row, those with the highest |W_ij| ||X_j||.

    Args:
        weight_OI: the matrix.
        squares_I: sum over real tokens of the squares of each input, ||X_j||^2.
        rule: share or pattern.

    Source: Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models, equation 1.
    """
    scores_OI = weight_OI.abs().double() * squares_I.sqrt()
    return in_rows(scores_OI, rule.keep) if rule.pattern is None else in_groups(scores_OI, rule.pattern)


def magnitudes(matrices: list[nn.Linear]) -> list[Tensor]:
    """Return |W| of each matrix."""
    return [linear.weight.detach().abs().float() for linear in matrices]


def random(matrices: list[nn.Linear], seed: int) -> list[Tensor]:
    """Return scores that mean nothing: the control."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.rand(linear.weight.shape, generator=generator) for linear in matrices)
    return [scores.to(linear.weight.device) for scores, linear in zip(drawn, matrices, strict=True)]


def store(model: nn.Module) -> nn.Module:
    """Say of each matrix with zeros that it is stored sparse."""
    changed = False
    for name, linear in matrices_of(model).items():
        kept = int(linear.weight.count_nonzero())
        if kept < linear.weight.numel():
            sparsify_linear(model, module=name, kept=kept)
            changed = True
    if not changed:
        raise NiwakiError("prune found nothing to remove", expected="a share small enough to remove one weight")
    return model


def _set(linear: nn.Linear, weight_OI: Tensor) -> None:
    with torch.no_grad():
        linear.weight.copy_(weight_OI)


class Gradual(Scheduled):
    """Take weights away along the cubic schedule while the model trains.

    Each matrix has a buffer `mask`, beside its weight and saved with it, and multiplies its weight by it in the forward
    pass. So what is gone is zero and has no gradient; what the optimizer still does to it beneath the mask (momentum,
    decay) is never seen, and ends when training does.
    """

    stages = STAGES

    def __init__(self, model: nn.Module, context: Context, by: str, rule: Rule, *, begin: float, end: float) -> None:
        super().__init__(begin=begin, end=end)
        check(model, rule)
        self.by, self.rule, self.seed = by, rule, context.seed
        self.matrices = [matrices_of(model)]  # in a list: the model is not part of its companion
        self.handles: list[Any] = []
        for name, linear in self.linears.items():
            linear.register_buffer("mask", torch.ones_like(linear.weight, dtype=torch.bool))
            self.handles += [
                linear.register_forward_pre_hook(lambda module, inputs, name=name: self.cover(name, module)),
                linear.register_forward_hook(lambda module, inputs, output: uncover(module), always_call=True),
            ]

    @property
    def linears(self) -> Mapping[str, nn.Linear]:
        """Return the matrices by name."""
        return self.matrices[0]

    def cover(self, name: str, linear: nn.Module) -> None:
        """Put the masked weight before the parameter, for one forward pass."""
        # the parameter, or what another companion put before it
        linear.__dict__["weight"] = self.masked(name, cast(Tensor, linear.weight), linear.get_buffer("mask"))

    def masked(self, name: str, weight_OI: Tensor, mask_OI: Tensor) -> Tensor:
        """Return the weight that the forward pass sees."""
        return weight_OI * mask_OI

    def take(self, done: float) -> None:
        """Mask the weights that matter least now."""
        for linear, mask in zip(self.linears.values(), masks(self.scores(), self.rule, done), strict=True):
            linear.get_buffer("mask").copy_(mask)

    def scores(self) -> list[Tensor]:
        """Return what decides now; what is gone stays gone."""
        linears = list(self.linears.values())
        scores = magnitudes(linears) if self.by == "magnitude" else random(linears, self.seed)
        return [one.masked_fill(~linear.get_buffer("mask"), GONE) for one, linear in zip(scores, linears, strict=True)]

    def finish(self, model: nn.Module) -> nn.Module:
        """Write the zeros into the weights and take the masks down."""
        self.step(1.0)
        for handle in self.handles:
            handle.remove()
        for linear in matrices_of(model).values():
            if "mask" in linear._buffers:
                _set(linear, linear.weight.detach() * linear.get_buffer("mask"))
                del linear.mask
        return store(model)


def uncover(linear: nn.Module) -> None:
    """Take the masked weight away; the parameter is seen again."""
    linear.__dict__.pop("weight", None)
