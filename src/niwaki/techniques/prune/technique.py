"""The parameters of `prune`, and the method that each `by` stands for."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.errors import NiwakiError
from niwaki.layers.factored import pairs_in
from niwaki.parameters import Parameters
from niwaki.surgery import refuse_tied, ties_of
from niwaki.technique import Companion, Context, Grain, Technique
from niwaki.techniques.prune import first_order, hard_concrete, movement, units, weights
from niwaki.techniques.prune.masks import Rule, read_pattern
from niwaki.techniques.prune.post_training import METHODS, Cost, PostTraining

Share = Annotated[float, Field(gt=0, le=1)]
By = Literal[
    "first-order",
    "magnitude",
    "fisher",
    "activation",
    "random",
    "mask-search",
    "second-order",
    "hard-concrete",
    "movement",
    "wanda",
    "sparsegpt",
]
#: What each method can cut. `macs`, `latency` and `parameters` are budgets over heads and neurons (and what else the
#: method can cut) together.
CUTS: dict[str, tuple[str, ...]] = {
    "first-order": ("heads", "neurons", "hidden", "weights"),
    "magnitude": ("heads", "neurons", "hidden", "weights"),
    "fisher": ("heads", "neurons", "hidden"),
    "activation": ("heads", "neurons", "hidden"),
    "random": ("heads", "neurons", "hidden", "weights"),
    "mask-search": ("heads", "neurons", "macs", "latency"),
    "second-order": ("heads", "neurons", "macs", "latency"),
    "hard-concrete": ("parameters",),
    "movement": ("heads", "neurons", "weights"),
    "wanda": ("weights",),
    "sparsegpt": ("weights",),
}
ONLY_AT_ONCE = ("mask-search", "second-order", "wanda", "sparsegpt")
COSTS = ("latency", "macs", "parameters")
ONLY_IN_TRAIN = ("hard-concrete", "movement")


class Keep(Parameters):
    """Say what stays of a whole model's cost, in one of three ways.

    Args:
        latency: share of the layers' time in the runtime the model is made for; a list makes a run for each share.
        macs: share of the layers' multiply-accumulates.
        parameters: share of the layers' parameters.
        runtime: that latency is measured in: "onnxruntime", "openvino" or "torch".
        bits: that latency is measured at: 32, or 8 where `quantize` follows.
        length: tokens of a text that latency is measured at; by default the mean of the training rows.
    """

    name: ClassVar[str] = "keep"

    latency: Share | tuple[Share, ...] | None = None
    macs: Share | None = None
    parameters: Share | None = None
    runtime: Literal["onnxruntime", "openvino", "torch"] = "onnxruntime"
    bits: Literal[8, 32] = 32
    length: int | None = Field(None, ge=1)

    @property
    def what(self) -> str:
        """Return the cost that is bounded."""
        return next(name for name in COSTS if getattr(self, name) is not None)

    @model_validator(mode="after")
    def _one(self) -> Keep:
        given = [name for name in COSTS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"keep has {', '.join(given) or 'nothing'}, expected one of latency, macs and parameters")
        return self


class Prune(Technique):
    """Remove attention heads, feed-forward neurons, hidden channels or single weights, by one of many measures.

    What goes is chosen by `by`, all at once as a step, or little by little inside `train`, where the rest learns to do
    without it (share removed at progress p: 1 - (1 - s)^3 with s = (p - begin) / (end - begin)).

    Heads, neurons and channels leave smaller matrices, faster in every runtime. Each unit u has a gate g_u = 1 in the
    forward pass, and with the loss L an importance: "first-order" |dL/dg_u|; "fisher" the sum over batches of
    (dL/dg_u)^2; "magnitude" the norm of the unit's weights; "activation" the norm of what it puts out; "random" is the
    control.

    "hard-concrete" learns the gates: z = clamp(1.2 sigmoid((log u - log(1 - u) + log alpha) / (2/3)) - 0.1, 0, 1) on
    heads, neurons, channels, whole attentions and whole feed-forwards, u uniform, under the loss m1 (s - t) + m2 (s -
    t)^2 of the expected share s of the layers' parameters and a target t that falls to `keep`. At `end` they become 0
    or 1 within that share.

    Single weights leave zeros, that is a smaller `model.safetensors` (a bit a weight, and the weights that are left)
    and no faster runtime. Which stay: "magnitude" the highest |W_ij|; "first-order" the highest |W_ij| |dL/dW_ij|,
    summed over batches or, in training, a moving average; "wanda", in each row, the highest |W_ij| ||X_j|| over the
    inputs X; "sparsegpt" those whose removal costs most, w_j^2 / [H^-1]_jj with H = X^T X, while the others of the row
    make up for it; "movement" (in training) the highest scores S, learnt by dL/dS = dL/d(W M) W. Wanda and SparseGPT
    cut each matrix by the same share. Movement also scores heads and neurons.

    "mask-search" and "second-order" need no training. The first plans by the Fisher information F of the gates and
    swaps units until 1/2 (1 - m)^T F (1 - m) falls no more. The second removes units one by one, each time the one with
    least tr(W_S (P_SS)^-1 W_S^T M): P the inverse Hessian of the inputs, M the Fisher information of the outputs. Then
    the linears that read what stays are fitted to the whole model's outputs, layer by layer, by least squares. How much
    of each layer stays is the plan of least error within the budget.

    Args:
        keep_heads: share of attention heads that stays, in (0, 1].
        keep_neurons: share of feed-forward neurons that stays, in (0, 1].
        keep_hidden: share of hidden channels (the width between the layers) that stays, in (0, 1].
        keep_weights: share of the single weights of the layers' matrices that stays, in (0, 1]; they are stored sparse.
        pattern: "N:M" keeps N of every M weights in a row, as "2:4".
        keep: what stays of a cost of the whole model: {latency: 0.5}, {macs: 0.5} or {parameters: 0.4};
            {latency: [0.75, 0.5]} makes a run for each.
        by: how the importance is measured, and with it the method; see the card.
        even: the same share in every layer; else the model's most important units stay, wherever they are.
        multiple_of: neurons of a layer, and hidden channels, are rounded to a multiple; int8 kernels want 32 or 64.
        examples: training rows for the importances, as a step. 256 to 2048.
        begin, end: progress of the training, in [0, 1], at which the first and the last units go.
        gate_learning_rate: of the gates that "hard-concrete" learns. 0.01 (long trainings) to 0.1 (short ones).

    Raises:
        NiwakiError: nothing would be removed, the method cannot do what is asked, or N:M does not divide a width.

    Composes with: distill (recommended: the rest learns from the whole model), drop before it, quantize after it; share
        before it or beside it, whose layers lose the same units, by the sum of their importances.

    References:
        Michel, Levy and Neubig 2019, Are Sixteen Heads Really Better than One?, equation 2 (importance of heads).
        Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference, equation 7 (first
        order). Louizos, Welling and Kingma 2018, Learning Sparse Neural Networks through L0 Regularization, equations
        10 to 13 (hard-concrete). Xia, Zhong and Chen 2022, Structured Pruning Learns Compact and Accurate Models,
        section 3.1 (layers, heads, neurons and channels together). Zhu and Gupta 2017, To Prune, or Not to Prune,
        equation 1 (cubic schedule). Han et al. 2015, Learning both Weights and Connections for Efficient Neural
        Networks (magnitude). Sun et al. 2023, A Simple and Effective Pruning Approach for Large Language Models,
        equation 1 (Wanda). Frantar and Alistarh 2023, SparseGPT, algorithm 1. Sanh, Wolf and Rush 2020, Movement
        Pruning, section 4. Zhang et al. 2022, PLATON, section 3 (first order of single weights). Lagunas et al. 2021,
        Block Pruning For Faster Transformers, section 3 (movement of units). Kwon et al. 2022, A Fast Post-Training
        Pruning Framework for Transformers, section 4 (mask-search). Kurtic, Frantar and Alistarh 2023, ZipLM, section 3
        (second-order).

    Example:
        >>> Prune(keep_neurons=0.5).keep_heads
        1.0
    """

    grain: ClassVar[Grain] = Grain.UNIT

    keep_heads: float = Field(1.0, gt=0, le=1)
    keep_neurons: float = Field(1.0, gt=0, le=1)
    keep_hidden: float = Field(1.0, gt=0, le=1)
    keep_weights: float = Field(1.0, gt=0, le=1)
    pattern: str | None = None
    keep: Keep | None = None
    by: By = "first-order"
    even: bool = False
    multiple_of: int = Field(32, ge=1)
    examples: int = Field(512, ge=1)
    begin: float = Field(0.05, ge=0, le=1)
    end: float = Field(0.5, ge=0, le=1)
    gate_learning_rate: float = Field(0.05, gt=0, le=1)

    @field_validator("pattern")
    @classmethod
    def _n_of_m(cls, value: str | None) -> str | None:
        found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", value or "1:2")
        if not found or int(found[1]) >= int(found[2]):
            raise ValueError('a pattern like "2:4": so many weights stay of so many, fewer than all')
        return value

    @model_validator(mode="after")
    def _sound(self) -> Prune:
        if self.end <= self.begin:
            raise ValueError(f"end is {self.end}, expected a progress above begin, which is {self.begin}")
        for kind in self.cut:
            if kind not in CUTS[self.by]:
                able = ", ".join(by for by, kinds in CUTS.items() if kind in kinds)
                raise ValueError(f"by {self.by} cannot cut {kind}; these can: {able}")
        if self.even and self.by == "hard-concrete":
            raise ValueError("even is true, but by hard-concrete learns how much of each layer stays: leave even")
        if "weights" in self.cut and len(self.cut) > 1:
            raise ValueError(f"one prune cuts weights or units, this one cuts {', '.join(self.cut)}: write two")
        if self.keep is not None and len(self.cut) > 1:
            raise ValueError(f"keep {self.cut[-1]} decides over heads and neurons: leave keep_heads and keep_neurons")
        if self.pattern is not None and self.keep_weights < 1.0:
            raise ValueError(f"pattern {self.pattern} says what stays: leave keep_weights")
        return self

    @property
    def cut(self) -> tuple[str, ...]:
        """Return what is cut: heads, neurons, hidden, weights, or the cost that `keep` names."""
        kinds = list(self.shares)
        if self.pattern is not None or self.keep_weights < 1.0:
            kinds.append("weights")
        if self.keep is not None:
            kinds.append(self.keep.what)
        return tuple(kinds)

    @property
    def cuts(self) -> Grain:
        """Return WEIGHT where single weights are cut, else UNIT."""
        return Grain.WEIGHT if "weights" in self.cut else Grain.UNIT

    @property
    def can_apply(self) -> bool:
        """Say whether the method works without a training."""
        return self.by not in ONLY_IN_TRAIN

    @property
    def can_accompany(self) -> bool:
        """Say whether the method works inside a training."""
        return self.by not in ONLY_AT_ONCE

    def cuts_tied(self, *, meanwhile: bool = False, in_train: bool = False) -> bool:
        """Say whether units go for all layers that share them: by gates, yes."""
        weights_there = not (meanwhile and self.by == "magnitude")  # in a training they stand in two parts
        return "weights" not in self.cut and self.by not in (*METHODS, "hard-concrete") and weights_there

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work begins, what this model cannot give."""
        if not self.cuts_tied() and self.cut:
            self._check_alone(model)
        if "weights" in self.cut:
            weights.check(model, self.rule)
        if (self.by in METHODS or self.learnt_share < 1.0) and (pairs := pairs_in(model)):
            raise NiwakiError(
                f"by {self.by} counts and solves for whole matrices, and {pairs[0]} is two factors",
                expected="prune before factor",
                fix="prune before factor, or by: first-order after it",
                place=self.name,
            )
        if self.learnt_share < 1.0:
            hard_concrete.check(model, self.learnt_share, self.multiple_of)
        if self.shares and (self.even or self.by not in METHODS):
            units.check(model, self._unit_shares)
        for member in [*self.family().values()] or [self]:
            assert isinstance(member, Prune)
            if member.by in METHODS and member.cut:
                member._post_training().check(model)

    def _check_alone(self, model: nn.Module) -> None:
        """Refuse layers that share weights, or run again and again, where the method takes them one by one."""
        fix = "prune before share, or by: first-order"
        for tie in ties_of(model):
            refuse_tied(model, tie, f"prune by {self.by}", fix)
        if self.by in METHODS:
            anatomy_of(model).refuse_repeated(f"prune by {self.by}", "by: first-order")

    def family(self) -> dict[str, Technique]:
        """Return one prune for each of several latencies."""
        if self.keep is None or not isinstance(self.keep.latency, tuple):
            return {}
        members = {f"latency-{share:g}": self.keep.model_copy(update={"latency": share}) for share in self.keep.latency}
        return {name: self.model_copy(update={"keep": keep}) for name, keep in members.items()}

    def _post_training(self) -> PostTraining:
        """Return the request as the methods without a training take it."""
        cost = None
        if self.keep is not None:
            share = getattr(self.keep, self.keep.what)
            if isinstance(share, tuple):
                raise NiwakiError(
                    f"keep latency is {list(share)}",
                    expected="one share here; compress makes a run for each of several",
                )
            cost = Cost(self.keep.what, share, self.keep.runtime, self.keep.bits, self.keep.length)
        return PostTraining(self.by, self.shares, cost, self.even, self.multiple_of, self.examples)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Remove what goes now."""
        if not self.can_apply:
            return super().apply(model, context)
        if not self.cut:
            return model
        if "weights" in self.cut:
            return weights.at_once(model, context, self.by, self.rule, self.examples)
        if self.by in METHODS:
            return self._post_training().apply(model, context)
        return units.at_once(model, context, self.by, self._unit_shares, self.examples)

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Prepare the model for losing it in training."""
        if not self.can_accompany:
            return super().accompany(model, context)
        if "weights" in self.cut:
            of_weights = {"movement": movement.Weights, "first-order": first_order.Weights}.get(
                self.by, weights.Gradual
            )
            return of_weights(model, context, self.by, self.rule, begin=self.begin, end=self.end)
        if self.learnt_share < 1.0:
            return hard_concrete.Learnt(
                model,
                context,
                self.learnt_share,
                self.multiple_of,
                begin=self.begin,
                end=self.end,
                gate_learning_rate=self.gate_learning_rate,
            )
        of_units = movement.Units if self.by == "movement" else units.Gradual
        return of_units(model, context, self.by, self._unit_shares, begin=self.begin, end=self.end)

    @property
    def rule(self) -> Rule:
        """Return how many single weights stay."""
        return Rule(self.keep_weights, read_pattern(self.pattern), self.even)

    @property
    def _unit_shares(self) -> units.Shares:
        return units.Shares(self.shares, self.even, self.multiple_of)

    @property
    def learnt_share(self) -> float:
        """Return the share of the layers' parameters that hard-concrete gates are to leave; 1 for no such gates."""
        return (self.keep.parameters or 1.0) if self.keep is not None and self.by == "hard-concrete" else 1.0

    @property
    def shares(self) -> dict[str, float]:
        """Return the share that stays of each kind of unit that is cut."""
        every = {"heads": self.keep_heads, "neurons": self.keep_neurons, "hidden": self.keep_hidden}
        return {kind: share for kind, share in every.items() if share < 1.0}
