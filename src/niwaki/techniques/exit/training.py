"""The heads of exits learn while a model trains: beside it, on its frozen layers, or from its last head."""

# B batch, T tokens, D hidden, C classes

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.exiting import require_exits
from niwaki.losses import reverse_divergence
from niwaki.technique import Companion

Way = Literal["joint", "frozen", "self-distillation"]


class Exiting(Companion):
    """Watch what the layers before exits put out, and add the losses of the heads.

    The model may be judged at any moment: what is judged is its last head. Where layers are frozen that never changes.

    Args:
        model: with exits.
        way: "joint", "frozen" or "self-distillation".
        task_loss: of logits (B, C) and class ids (B,).
        fit: called with the model at the very end, gives it its thresholds.
    """

    def __init__(
        self,
        model: nn.Module,
        way: Way,
        task_loss: Callable[[Tensor, Tensor], Tensor],
        fit: Callable[[nn.Module], nn.Module],
    ) -> None:
        super().__init__()
        self.way, self.task_loss, self.fit = way, task_loss, fit
        self.model = [model]  # in a list: the model is not part of its companion
        self.seen: dict[int, Tensor] = {}
        anatomy = anatomy_of(model)
        self.depth, self.runs = anatomy.depth, [0] * anatomy.num_layers
        self._handles = [layer.module.register_forward_hook(self._watch(layer.index)) for layer in anatomy.layers]
        self.held: list[nn.Parameter] = []
        if way != "joint":
            heads = {id(parameter) for parameter in require_exits(model).parameters()}
            self.held = [one for one in model.parameters() if one.requires_grad and id(one) not in heads]
        for parameter in self.held:
            parameter.requires_grad_(False)

    def _watch(self, index: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not module.training:
                return
            # of a family that repeats its layers, each run is a place
            place = self.runs[index] * len(self.runs) + index
            self.runs[index] = (self.runs[index] + 1) % (self.depth // len(self.runs))
            self.seen[place] = output

        return hook

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return none: heads are part of the model."""
        return []

    def task_weight(self) -> float:
        """Return 0 where the layers, and so the last head, are held."""
        return 1.0 if self.way == "joint" else 0.0

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the loss of each head, by the layer it stands after."""
        exits = require_exits(self.model[0])
        losses = {}
        for layer, head in zip(exits.layers, exits.heads.values(), strict=True):
            logits_BC = head(self.seen[layer]).float()
            if self.way == "self-distillation":
                losses[f"layer-{layer}"] = reverse_divergence(logits_BC, output.logits.detach())
            else:
                # the last head's own loss weighs 1, and each exit's as much as its depth is of the whole
                weight = (layer + 1) / self.depth if self.way == "joint" else 1.0
                losses[f"layer-{layer}"] = weight * self.task_loss(logits_BC, batch["labels"])
        self.seen.clear()
        return losses

    def finish(self, model: nn.Module) -> nn.Module:
        """Stop watching, let the layers go, and fit the thresholds."""
        for handle in self._handles:
            handle.remove()
        for parameter in self.held:
            parameter.requires_grad_(True)
        return self.fit(model)
