"""`drop`: keep some layers, and let the others go."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import nn

from niwaki.anatomy import anatomy_of
from niwaki.calibrate import angular_distances, block_influence
from niwaki.errors import NiwakiError
from niwaki.removal import leave_one_out
from niwaki.surgery import keep_layers
from niwaki.task import score
from niwaki.technique import Context, Grain, Technique


class Drop(Technique):
    """Keep whole layers and remove the others; what is left is as regular as the model was.

    At batch 1 and short inputs nothing pays more: half the layers are close to half the time, in every runtime and data
    type. A model that lost layers wants training after it; with distillation from the whole model it gets most of its
    quality back.

    Args:
        keep_layers: how many layers stay (then `by` chooses them), or which ones: indices from 0, ascending.
        by: how layers are chosen. "influence" keeps those that turn the hidden state most, by 1 - cos(input, output).
            "angular" removes the one run of neighbours that turns it least, by arccos(cos(input, output)) / pi over
            the whole run. "leave-one-out" removes the layer that the task misses least (by its metric, then its loss),
            and measures again among the rest. "uniform" takes every n-th and always the last, so that half the layers
            are every second one; "first" and "last" take one end.
        examples: rows to look at: training rows for influence and angular, selection rows for leave-one-out. 64 to 512;
            more for leave-one-out, which counts mistakes.

    Raises:
        NiwakiError: more layers are asked for than there are, or the data have no train split.

    Composes with: everything; stands first, before units, weights and bits are cut.

    References:
        Sajjad et al. 2023, On the Effect of Dropping Layers of Pre-trained Transformer Models (first, last, every
        other). Men et al. 2024, ShortGPT: Layers in Large Language Models are More Redundant Than You Expect, equation
        1 (influence). Gromov et al. 2024, The Unreasonable Ineffectiveness of the Deeper Layers, section 3.2 (angular).

    Example:
        >>> Drop(keep_layers=3).by
        'influence'
    """

    grain: ClassVar[Grain] = Grain.LAYER

    keep_layers: int | tuple[int, ...]
    by: Literal["influence", "angular", "leave-one-out", "uniform", "first", "last"] = "influence"
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
        anatomy_of(model).refuse_repeated(self.name, "prune, factor or quantize, which cut the layer for all its uses")
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
        if self.by == "first" or keep == count:
            return list(range(keep))
        if self.by == "last":
            return list(range(count - keep, count))
        if self.by == "uniform":
            return [round((index + 1) * count / keep) - 1 for index in range(keep)]
        if self.by == "angular":
            return self._beside_idle_run(model, context, keep)
        if self.by == "leave-one-out":
            return self._most_missed(model, context, keep)
        influence = block_influence(model, context.calibration_batches(self.examples))
        context.log({"event": "note", "note": "block influence", "values": influence})
        return sorted(sorted(range(count), key=lambda index: -influence[index])[:keep])

    def _beside_idle_run(self, model: nn.Module, context: Context, keep: int) -> list[int]:
        """Return the layers on both sides of the run that turns the hidden state least."""
        count = anatomy_of(model).num_layers
        distances = angular_distances(model, context.calibration_batches(self.examples), count - keep)
        context.log({"event": "note", "note": f"angular distance of {count - keep} layers", "values": distances})
        start = distances.index(min(distances))
        return [*range(start), *range(start + count - keep, count)]

    def _most_missed(self, model: nn.Module, context: Context, keep: int) -> list[int]:
        """Return the layers that are left when the one missed least has gone, again and again."""
        rows = context.data.selection(context.seed)[1].sample(self.examples, context.seed)
        if rows.labels is None:
            raise NiwakiError(
                f"leave-one-out on {context.task.kind}",
                expected="a task that tells classes",
                fix="by: influence, or by: angular",
            )
        labels, ids = torch.from_numpy(rows.labels), rows.labels

        def judge(logits_NC: np.ndarray) -> tuple[float, float]:
            quality = score(context.task.metric, logits_NC.argmax(-1), ids, logits_NC.shape[-1])
            return quality, -float(context.task.loss(torch.from_numpy(logits_NC), labels))

        def told(layers: list[int], worth: list[tuple[float, ...]]) -> None:
            without = {str(layer): list(values) for layer, values in zip(layers, worth, strict=True)}
            context.log({"event": "note", "note": f"{context.task.metric} and -loss without each", "values": without})

        return leave_one_out(model, rows, keep, judge, told)
