"""`prune`: narrow the layers by whole attention heads and feed-forward neurons."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator
from torch import Tensor, nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import inputs_of
from niwaki.errors import NiwakiError
from niwaki.layers.gates import Gates, choose
from niwaki.schedules import cubic
from niwaki.surgery import narrow_heads, narrow_neurons
from niwaki.technique import Companion, Context, Grain, Technique


class Prune(Technique):
    """Remove whole attention heads and feed-forward neurons: smaller matrices, faster in every runtime.

    Each unit u gets a gate g_u = 1 in the forward pass. Its importance is |dL/dg_u|, the first-order change of the loss
    L if the unit went. The least important units go: at once as a step, or little by little inside `train`, where the
    rest learns to do without them (share removed at progress p: 1 - (1 - s)^3 with s = (p - begin) / (end - begin)).

    Args:
        keep_heads: share of attention heads that stays, in (0, 1]. Heads that share keys and values go together.
        keep_neurons: share of feed-forward neurons that stays, in (0, 1].
        even: the same number in every layer; else the model's most important units stay, wherever they are.
        multiple_of: neurons in a layer are rounded to a multiple; int8 kernels want 32 or 64.
        examples: training rows for the importances, as a step. 256 to 2048.
        begin, end: progress of the training, in [0, 1], at which the first and the last units go.

    Raises:
        NiwakiError: nothing would be removed.

    Composes with: distill (recommended: the rest learns from the whole model), drop before it, quantize after it.

    References:
        Michel, Levy and Neubig 2019, Are Sixteen Heads Really Better than One?, equation 2 (importance of heads).
        Molchanov et al. 2017, Pruning Convolutional Neural Networks for Resource Efficient Inference, equation 7 (first
        order). Zhu and Gupta 2017, To Prune, or Not to Prune, equation 1 (cubic schedule).

    Example:
        >>> Prune(keep_neurons=0.5).keep_heads
        1.0
    """

    grain: ClassVar[Grain] = Grain.UNIT

    keep_heads: float = Field(1.0, gt=0, le=1)
    keep_neurons: float = Field(1.0, gt=0, le=1)
    even: bool = False
    multiple_of: int = Field(32, ge=1)
    examples: int = Field(512, ge=1)
    begin: float = Field(0.05, ge=0, le=1)
    end: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Prune:
        if self.end <= self.begin:
            raise ValueError(f"end is {self.end}, expected a progress above begin, which is {self.begin}")
        return self

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Remove the units now."""
        if self.keep_heads == self.keep_neurons == 1.0:
            return model
        gates = self.gates(model, memory=0.0)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.requires_grad_(False)
        try:
            for batch in context.calibration_batches(self.examples, batch_size=8):
                loss = context.task.loss(model(**inputs_of(batch)).logits, batch["labels"])
                loss.backward()
        finally:
            for gate in gates.values():
                gate.take_down()
            for parameter in trained:
                parameter.requires_grad_(True)
        return self.narrow(model, {kind: self.chosen(kind, gate, 1.0) for kind, gate in gates.items()})

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Stand gates in the model, to be closed little by little."""
        return Pruning(self, model)

    def gates(self, model: nn.Module, memory: float) -> dict[str, Gates]:
        """Stand gates before the kinds of units that are to be cut."""
        keeps = {"heads": self.keep_heads, "neurons": self.keep_neurons}
        return {kind: Gates(model, kind, memory) for kind, keep in keeps.items() if keep < 1.0}

    def chosen(self, kind: str, gates: Gates, done: float) -> list[list[int]]:
        """Return the units that stay when the share `done` of the pruning is done."""
        keep = self.keep_heads if kind == "heads" else self.keep_neurons
        multiple_of = self.multiple_of if kind == "neurons" else 1
        return choose(gates.importances(), 1.0 - (1.0 - keep) * done, self.even, multiple_of)

    def narrow(self, model: nn.Module, kept: dict[str, list[list[int]]]) -> nn.Module:
        """Cut the matrices down to the units that stay."""
        changed = False
        for layer in anatomy_of(model).layers:
            groups = kept.get("heads", {layer.index: list(range(layer.key_value_heads))})[layer.index]
            neurons = kept.get("neurons", {layer.index: list(range(layer.neurons))})[layer.index]
            if len(groups) < layer.key_value_heads:
                narrow_heads(model, layer=layer.index, heads=layer.heads_of(groups))
                changed = True
            if len(neurons) < layer.neurons:
                narrow_neurons(model, layer=layer.index, neurons=neurons)
                changed = True
        if not changed:
            raise NiwakiError(
                f"prune found nothing to remove with keep_heads {self.keep_heads}, keep_neurons {self.keep_neurons}",
                expected="shares small enough to remove one unit",
                fix=f"multiple_of: 1 (it is {self.multiple_of}), or smaller shares",
            )
        return model


class Pruning(Companion):
    """Close gates along the schedule while the model trains, and cut the matrices at the end."""

    def __init__(self, prune: Prune, model: nn.Module) -> None:
        super().__init__()
        self.prune = prune
        self.kinds = nn.ModuleDict(prune.gates(model, memory=0.98))
        self.done = 0.0

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return none: gates are not learnt."""
        return []

    def step(self, progress: float) -> None:
        """Close what the schedule asks for; what is closed stays closed."""
        done = cubic(progress, self.prune.begin, self.prune.end)
        for kind, gates in self.kinds.items():
            assert isinstance(gates, Gates)
            gates.forget_gradients()
            if done > self.done:
                gates.close(self.prune.chosen(kind, gates, done))
        self.done = done

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: the task's and the teacher's losses decide."""
        return {}

    def ready(self, progress: float) -> bool:
        """Judge the model only once all that goes is gone."""
        return progress >= self.prune.end

    def finish(self, model: nn.Module) -> nn.Module:
        """Take the gates down and cut the matrices."""
        kept: dict[str, list[list[int]]] = {}
        for kind, gates in self.kinds.items():
            assert isinstance(gates, Gates)
            gates.take_down()
            kept[kind] = self.prune.chosen(kind, gates, 1.0)
        return self.prune.narrow(model, kept) if kept else model
