"""Movement pruning: what the training moves away from zero stays, what it moves towards zero goes.

Each weight has a score S, learnt with it: the forward pass sees W * M, where M keeps the highest scores, and the
gradient goes through M as if it were S (straight-through), so that dL/dS = dL/d(W * M) * W. A score rises while W and
its gradient differ in sign, also for weights that are not seen at the moment: they may come back.

Source: Sanh, Wolf and Rush 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, section 4. For whole units:
Lagunas et al. 2021, Block Pruning For Faster Transformers, section 3.
"""

# B batch, T tokens, O outputs, I inputs, U units (heads or neurons) of a layer

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.anatomy import Layer, anatomy_of
from niwaki.schedules import cubic, in_stages
from niwaki.technique import Companion, Context
from niwaki.techniques.prune.masks import Rule
from niwaki.techniques.prune.units import chosen, narrow
from niwaki.techniques.prune.weights import STAGES, Gradual

#: Learning rate of scores, far above that of weights (Sanh et al. 2020, appendix A.1).
SCORE_RATE = 1e-2


def through(mask: Tensor, scores: Tensor) -> Tensor:
    """Return the mask as numbers; its gradient goes to the scores.

    >>> scores = torch.zeros(2, requires_grad=True)
    >>> (through(torch.tensor([True, False]), scores) * torch.tensor([3.0, 5.0])).sum().backward()
    >>> scores.grad.tolist()
    [3.0, 5.0]
    """
    return mask.to(scores.dtype) + (scores - scores.detach())


class Weights(Gradual):
    """Learn a score for each weight beside the training, and keep the highest along the cubic schedule."""

    def __init__(self, model: nn.Module, context: Context, by: str, rule: Rule, *, begin: float, end: float) -> None:
        super().__init__(model, context, by, rule, begin=begin, end=end)
        self.learnt = nn.ParameterList([torch.zeros_like(linear.weight) for linear in self.linears.values()])
        self.place = {name: index for index, name in enumerate(self.linears)}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the scores, with a rate of their own."""
        return [{"params": list(self.learnt), "lr": SCORE_RATE, "weight_decay": 0.0}]

    def masked(self, name: str, weight_OI: Tensor | None, mask_OI: Tensor) -> Tensor:
        """Return the weight that the forward pass sees; its gradient goes to weight and score."""
        assert weight_OI is not None
        return weight_OI * through(mask_OI, self.learnt[self.place[name]])

    def scores(self) -> list[Tensor]:
        """Return the scores as they are: what is gone may come back."""
        return [scores.detach() for scores in self.learnt]


class Units(Companion):
    """Learn a score for each head and neuron, keep the highest along the cubic schedule, and cut the matrices.

    The block of a unit is what reads it: its columns of the output or the down projection, so that the sum of
    dL/d(W * M) * W over the block is the gradient by a gate in front of them.
    """

    def __init__(
        self,
        model: nn.Module,
        context: Context,
        shares: Mapping[str, float],
        even: bool,
        multiple_of: int,
        *,
        begin: float,
        end: float,
    ) -> None:
        super().__init__()
        self.shares, self.even, self.multiple_of, self.begin, self.end = shares, even, multiple_of, begin, end
        self.done: Tensor
        self.register_buffer("done", torch.zeros((), dtype=torch.float64))
        layers = anatomy_of(model).layers
        device = next(model.parameters()).device
        self.learnt = nn.ParameterDict()
        self.handles: list[Any] = []
        for kind in shares:
            counts = [layer.units(kind) for layer in layers]
            self.learnt[kind] = nn.ParameterList([torch.zeros(count, device=device) for count in counts])
            for layer, count in zip(layers, counts, strict=True):
                self.register_buffer(f"{kind}_{layer.index}", torch.ones(count, dtype=torch.bool, device=device))
                self.handles.append(self._stand(layer, kind))

    def _stand(self, layer: Layer, kind: str) -> Any:
        """Stand in front of the linear that reads the units of one kind."""
        width = layer.unit_width(kind)

        def multiply(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            gate_U = through(self.get_buffer(f"{kind}_{layer.index}"), self.learnt[kind][layer.index])
            return (inputs[0] * gate_U.repeat_interleave(width).to(inputs[0].dtype), *inputs[1:])

        return layer.part("output" if kind == "heads" else "down").register_forward_pre_hook(multiply)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the scores, with a rate of their own."""
        return [{"params": list(self.learnt.parameters()), "lr": SCORE_RATE, "weight_decay": 0.0}]

    def step(self, progress: float) -> None:
        """Close what the schedule asks for."""
        done = cubic(in_stages(progress, self.begin, self.end, STAGES), self.begin, self.end)
        if done <= float(self.done):
            return
        self.done.fill_(done)
        scores = {kind: [one.detach() for one in self.learnt[kind]] for kind in self.shares}
        for kind, kept in chosen(scores, self.shares, done, self.even, self.multiple_of).items():
            for index, units in enumerate(kept):
                mask_U = self.get_buffer(f"{kind}_{index}")
                mask_U.fill_(False)
                mask_U[units] = True

    def ready(self, progress: float) -> bool:
        """Judge the model only once all that goes is gone."""
        return progress >= self.end

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the gates down and cut the matrices."""
        if not self.shares:
            return model
        self.step(1.0)
        for handle in self.handles:
            handle.remove()
        layers = anatomy_of(model).layers
        kept = {
            kind: [self.get_buffer(f"{kind}_{layer.index}").nonzero()[:, 0].tolist() for layer in layers]
            for kind in self.shares
        }
        return narrow(model, kept, self.multiple_of)
