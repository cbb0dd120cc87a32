"""`drop`: keep some layers, and let the others go."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import block_influence
from niwaki.errors import NiwakiError
from niwaki.surgery import keep_layers
from niwaki.technique import Context, Grain, Technique


class Drop(Technique):
    """Keep whole layers and remove the others; what is left is as regular as the model was.

    At batch 1 and short inputs nothing pays more: half the layers are close to half the time, in every runtime and data
    type. A model that lost layers wants training after it; with distillation from the whole model it gets most of its
    quality back.

    Args:
        keep_layers: how many layers stay (then `by` chooses them), or which ones: indices from 0, ascending.
        by: how layers are chosen. "influence" keeps those that turn the hidden state most, by 1 - cos(input, output) on
            calibration rows; "uniform" takes every n-th and always the last; "first" and "last" take one end.
        examples: training rows that influence is measured on. 64 to 512.

    Raises:
        NiwakiError: more layers are asked for than there are.

    Composes with: everything; stands first, before units, weights and bits are cut.

    References:
        Sajjad et al. 2023, On the Effect of Dropping Layers of Pre-trained Transformer Models (first, last, every
        other). Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, equation
        1 (influence).

    Example:
        >>> Drop(keep_layers=3).by
        'influence'
    """

    grain: ClassVar[Grain] = Grain.LAYER

    keep_layers: int | tuple[int, ...]
    by: Literal["influence", "uniform", "first", "last"] = "influence"
    examples: int = Field(256, ge=1)

    @field_validator("keep_layers")
    @classmethod
    def _at_least_one(cls, value: int | tuple[int, ...]) -> int | tuple[int, ...]:
        good = (
            value >= 1
            if isinstance(value, int)
            else bool(value) and list(value) == sorted(set(value)) and value[0] >= 0
        )
        if not good:
            raise ValueError("keep_layers is a number of layers from 1, or a list of indices from 0, ascending")
        return value

    def check(self, model: nn.Module) -> None:
        """Refuse to keep layers that are not there."""
        count = anatomy_of(model).num_layers
        highest = self.keep_layers if isinstance(self.keep_layers, int) else self.keep_layers[-1] + 1
        if highest > count:
            raise NiwakiError(
                f"keep_layers is {self.keep_layers}", expected=f"layers of a model that has {count}", place=self.name
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Remove the layers now."""
        self.check(model)
        chosen = self.choose(model, context)
        if len(chosen) == anatomy_of(model).num_layers:
            return model
        return keep_layers(model, layers=chosen)

    def choose(self, model: nn.Module, context: Context) -> list[int]:
        """Return the indices of the layers that stay."""
        if not isinstance(self.keep_layers, int):
            return list(self.keep_layers)
        count, keep = anatomy_of(model).num_layers, self.keep_layers
        if self.by == "first":
            return list(range(keep))
        if self.by == "last":
            return list(range(count - keep, count))
        if self.by == "uniform":
            return [round((index + 1) * count / keep) - 1 for index in range(keep)]
        influence = block_influence(model, context.calibration_batches(self.examples))
        context.log({"event": "note", "note": "block influence", "values": influence})
        return sorted(sorted(range(count), key=lambda index: -influence[index])[:keep])
