"""What travels with a model that learns to do without some tokens: thresholds that are learnt, or shares that fall.

While it lasts no state leaves a batch: a token that has gone stands where it stood, and no layer behind sees it. So
whatever else watches the states finds them all in their places.
"""

# B batch, T tokens, D hidden

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from niwaki.anatomy import anatomy_of
from niwaki.layers.dropping import TokenDropper, droppers_of
from niwaki.schedules import ramp
from niwaki.technique import Companion


class Narrowing(Companion):
    """Let the share of the tokens that each layer keeps fall in a line to what it will be.

    Args:
        model: with droppers by share.
        share: at the end.
        end: progress at which it is reached.
        finish: called with the model at the very end.
    """

    def __init__(self, model: nn.Module, share: float, end: float, finish: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        self.share, self.end, self.then = share, end, finish
        self.droppers = droppers_of(model)  # a list: they are parts of the model, not of its companion
        for dropper in self.droppers:
            dropper.form = "masked"

    def step(self, progress: float) -> None:
        """Take up the share of the moment."""
        for dropper in self.droppers:
            dropper.level = 1.0 - ramp(progress, 0.0, self.end) * (1.0 - self.share)

    def ready(self, progress: float) -> bool:
        """Say whether the model drops what it will drop."""
        return progress >= self.end

    def finish(self, model: nn.Module) -> nn.Module:
        """Take tokens out from now on, as many as was learnt for."""
        for dropper in droppers_of(model):
            dropper.form = "cropped"
        return self.then(model)


class Fading(Companion):
    """Learn the thresholds with a soft mask on what layers put out; then hold them, and let what is below be unseen.

    m = sigmoid((s - threshold) / T) of each token and layer, times those of the layers before: once faded, a token does
    not come back, as it will not when it has been dropped. The mask stands on a layer's output, behind its last norm,
    which would undo it. The loss gains `penalty` times the mean of the masks over tokens and layers.

    Args:
        model: with droppers by threshold, where these begin.
        unit: in which thresholds are learnt, the mean score 1 / n.
        temperature: T.
        penalty: weight of the mean of the mask.
        rate: learning rate of the thresholds, in units.
        end: progress at which the soft phase ends.
        finish: called with the model at the very end.

    References:
        Kim et al. 2022, Learned Token Pruning for Transformers, section 3, soft and hard pruning.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        unit: float,
        temperature: float,
        penalty: float,
        rate: float,
        end: float,
        finish: Callable[[nn.Module], nn.Module],
    ) -> None:
        super().__init__()
        self.unit, self.temperature, self.penalty, self.rate, self.end = unit, temperature, penalty, rate, end
        self.then, self.is_soft = finish, True
        self.droppers: list[TokenDropper] = []
        self.masks: list[Tensor] = []
        self._real_BT: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        for layer in anatomy_of(model).layers:
            dropper = getattr(layer.attention, "dropper", None)
            if isinstance(dropper, TokenDropper):
                dropper.form = "masked"
                place = len(self.droppers)
                self.droppers.append(dropper)
                self._handles.append(dropper.register_forward_hook(self._weigh(place)))
                self._handles.append(layer.module.register_forward_hook(self._fade))
        device = next(model.parameters()).device
        starts = torch.tensor([dropper.level / unit for dropper in self.droppers], device=device)
        self.thresholds = nn.Parameter(starts)

    def _weigh(self, place: int) -> Any:
        """Return what takes the soft mask of one layer from its scores, and lets all tokens stay."""

        def weigh(dropper: TokenDropper, inputs: tuple[Tensor, Tensor], stays_BT: Tensor) -> Tensor | None:
            if not (self.is_soft and dropper.training):
                return None
            scores_BT, real_BT = inputs
            mask_BT = torch.sigmoid((scores_BT - self.thresholds[place] * self.unit) / self.temperature)
            fixed_BT = torch.zeros_like(real_BT)
            fixed_BT[:, 0] = True
            fixed_BT |= (real_BT.sum(dim=1) < dropper.from_length)[:, None]
            mask_BT = mask_BT.masked_fill(fixed_BT, 1.0)
            self.masks.append(mask_BT * self.masks[-1] if self.masks else mask_BT)
            self._real_BT = real_BT
            return real_BT

        return weigh

    def _fade(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
        """Multiply what a layer puts out by the mask up to here."""
        if not (self.is_soft and module.training and self.masks):
            return None
        return output * self.masks[-1][:, :, None].to(output.dtype)

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return the thresholds, with a rate of their own and no decay."""
        return [{"params": [self.thresholds], "lr": self.rate, "weight_decay": 0.0}]

    def step(self, progress: float) -> None:
        """Forget the masks of the last batch; when the soft phase has ended, hold the thresholds."""
        self.masks.clear()
        self.is_soft = progress < self.end
        for dropper, level in zip(self.droppers, self.levels(), strict=True):
            dropper.level = level

    def levels(self) -> list[float]:
        """Return the thresholds as scores, none below 0."""
        return [min(1.0, max(0.0, one * self.unit)) for one in self.thresholds.detach().tolist()]

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted mean of the masks over layers and tokens that are not padding."""
        if not (self.is_soft and self.masks):
            return {}
        assert self._real_BT is not None
        return {"mask": self.penalty * torch.stack([mask_BT[self._real_BT].mean() for mask_BT in self.masks]).mean()}

    def ready(self, progress: float) -> bool:
        """Say whether the thresholds are what they will be."""
        return progress >= self.end

    def finish(self, model: nn.Module) -> nn.Module:
        """Stop weighing, take tokens out from now on, and fit."""
        for handle in self._handles:
            handle.remove()
        for dropper, level in zip(self.droppers, self.levels(), strict=True):
            dropper.form, dropper.level = "cropped", level
        return self.then(model)
