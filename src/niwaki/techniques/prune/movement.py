"""Movement pruning: what the training moves away from zero stays, what it moves towards zero goes.

Each weight has a score S, learnt with it: the forward pass sees W * M, where M keeps the highest scores, and the
gradient goes through M as if it were S (straight-through), so that dL/dS = dL/d(W * M) * W. A score rises while W and
its gradient differ in sign, also for weights that are not seen at the moment: they may come back.

Source: Sanh, Wolf and Rush 2020, Movement Pruning: Adaptive Sparsity by Fine-Tuning, section 4. For whole units:
Lagunas et al. 2021, Block Pruning For Faster Transformers, section 3.
"""

# O outputs, I inputs

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from niwaki.layers.gates import Gates
from niwaki.technique import Context
from niwaki.techniques.prune import units, weights
from niwaki.techniques.prune.masks import Rule

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


class Weights(weights.Gradual):
    """Learn a score for each weight beside the training, and keep the highest along the cubic schedule."""

    def __init__(self, model: nn.Module, context: Context, by: str, rule: Rule, *, begin: float, end: float) -> None:
        super().__init__(model, context, by, rule, begin=begin, end=end)
        self.learnt = nn.ParameterList([torch.zeros_like(linear.weight) for linear in self.linears.values()])
        self.place = {name: index for index, name in enumerate(self.linears)}

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the scores, with a rate of their own."""
        return [{"params": list(self.learnt), "lr": SCORE_RATE, "weight_decay": 0.0}]

    def masked(self, name: str, weight_OI: Tensor, mask_OI: Tensor) -> Tensor:
        """Return the weight that the forward pass sees; its gradient goes to weight and score."""
        return weight_OI * through(mask_OI, self.learnt[self.place[name]])

    def scores(self) -> list[Tensor]:
        """Return the scores as they are: what is gone may come back."""
        return [scores.detach() for scores in self.learnt]


class Scores(Gates):
    """Gates whose gradient goes to a score of each unit, closed ones too."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        super().__init__(model, kind, by="movement")
        for scores in self.gates:
            nn.init.zeros_(scores)

    def value(self, index: int) -> Tensor:
        """Return what one layer's units are multiplied by."""
        return through(self.mask(index), self.gates[index])


class Units(units.Gradual):
    """Learn a score for each head and neuron, keep the highest along the cubic schedule, and cut the matrices.

    The block of a unit is what reads it: its columns of the output or the down projection, so that the sum of
    dL/d(W * M) * W over the block is the gradient by a gate in front of them.
    """

    stages = weights.STAGES

    def gates_on(self, model: nn.Module, kind: str) -> Scores:
        """Stand gates with scores on the units of one kind."""
        return Scores(model, kind)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the scores, with a rate of their own."""
        return [{"params": list(self.parameters()), "lr": SCORE_RATE, "weight_decay": 0.0}]

    def importances(self, kind: str) -> list[Tensor]:
        """Return the scores as they are: what is gone may come back."""
        return [scores.detach() for scores in self.gates(kind).gates]
