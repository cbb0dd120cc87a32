"""First-order pruning of single weights: what the loss would change by, to first order, if the weight were zero.

A weight W that goes changes the loss L by about -W dL/dW. Over a whole training set that is near zero where the model
has learnt, so what counts is its size batch by batch: |W| times a moving average of |dL/dW|.

Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, section 3.1. Zhang et al. 2022, PLATON:
Pruning Large Transformer Models with Upper Confidence Bound of Weight Importance, section 3 (the average over steps).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.technique import Context
from niwaki.techniques.prune import weights
from niwaki.techniques.prune.masks import GONE, Rule
from niwaki.techniques.prune.units import MEMORY


class Weights(weights.Gradual):
    """Gather |dL/dW| of each weight while the training lasts, and keep those of highest |W| |dL/dW|."""

    def __init__(self, model: nn.Module, context: Context, by: str, rule: Rule, *, begin: float, end: float) -> None:
        super().__init__(model, context, by, rule, begin=begin, end=end)
        for index, linear in enumerate(self.linears.values()):
            self.register_buffer(f"slopes_{index}", torch.zeros_like(linear.weight))
            self.handles.append(linear.weight.register_hook(self._remember(index)))

    def _remember(self, index: int) -> Callable[[Tensor], None]:
        def remember(slope_OI: Tensor) -> None:
            if float(self.done) < 1.0:
                self.get_buffer(f"slopes_{index}").lerp_(slope_OI.abs(), 1.0 - MEMORY)

        return remember

    def scores(self) -> list[Tensor]:
        """Return what decides now; what is gone stays gone."""
        return [
            (linear.weight.detach().abs() * self.get_buffer(f"slopes_{index}")).masked_fill(
                ~linear.get_buffer("mask"), GONE
            )
            for index, linear in enumerate(self.linears.values())
        ]
