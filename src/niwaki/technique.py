"""The contract of a technique: what it cuts, what it does at once, and what travels with a model in training."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.anatomy import longest_input, longest_read
from niwaki.batching import length_sorted
from niwaki.checkpoint import narrow_tokenizer, reaching
from niwaki.errors import NiwakiError
from niwaki.parameters import Parameters
from niwaki.parts import Parts
from niwaki.surgery import Record, journal_of, replay, vocabulary_of
from niwaki.task import Dataset, Encoded, Task


class Grain(IntEnum):
    """Say what a technique cuts, from coarse to fine; inside one `Train`, grains strictly descend (law 2)."""

    NONE = 0
    LAYER = 4
    UNIT = 3
    WEIGHT = 2
    BIT = 1


def _no_log(event: dict[str, Any]) -> None:
    """Drop a log record."""


@dataclass(frozen=True)
class Context:
    """Hold what a step may look at: the task and its rows, the base, and where to write.

    Attributes:
        task: the task, with its loss and metric.
        data: its encoded splits. A technique may look at `train` and at the selection rows, never at `evaluation`.
        tokenizer: the one that `data` was encoded with: the base's, without what a step took from the vocabulary.
        base: the model as it was handed in, in eval mode, with frozen parameters (the default teacher).
        seed: of everything random in this run.
        workspace: folder of this step; what is in it survives an interruption and vanishes when the step is done.
        cache: folder shared by runs, for outputs that cost much (teacher outputs).
        log: called with one JSON-able record an event.
        progress: draw progress bars.
        base_ids: (V,) the base's id of each token of `tokenizer`; None while they are the same.
        parts: where the weights are. A technique that `streams` asks for those of a module before it looks at them.
    """

    task: Task
    data: Dataset
    tokenizer: Any
    base: nn.Module
    seed: int
    workspace: Path
    cache: Path
    log: Callable[[dict[str, Any]], None] = field(default=_no_log)
    progress: bool = False
    base_ids: np.ndarray | None = None
    parts: Parts = field(default_factory=Parts)

    @property
    def train(self) -> Encoded:
        """Return the training rows, or say that there are none."""
        if self.data.train is None:
            raise NiwakiError(
                f"{self.task.data} has no train split",
                expected="rows to train or calibrate on",
                fix=f"{self.task.data}/train.csv",
            )
        return self.data.train

    def as_read_by(self, model: nn.Module) -> Context:
        """Return the context with the rows and the tokenizer that the model reads, in the token ids that it has now.

        What the model took from the vocabulary, and how much longer texts it reads, stands in its journal; until then
        this is the context itself. The base, a teacher of what is longer too, reads as far as the model does.
        """
        edits = journal_of(model)[len(journal_of(self.base)) :]
        ids = vocabulary_of(edits)
        is_narrowed = ids is not None and not (self.base_ids is not None and np.array_equal(self.base_ids, ids))
        is_longer = longest_read(model) > longest_read(self.base)
        if not is_narrowed and not is_longer:
            return self
        here = replace(self, base=_reading_on(self.base, edits)) if is_longer else self
        tokenizer = reaching(self.tokenizer, longest_read(model)) if is_longer else self.tokenizer
        if ids is not None and is_narrowed:
            tokens = ids if self.base_ids is None else np.searchsorted(self.base_ids, ids).tolist()
            tokenizer = narrow_tokenizer(tokenizer, tokens)
            here = replace(here, base_ids=np.array(ids))
        longest = longest_input(model, tokenizer, self.task.max_length)
        data = self.task.encode(tokenizer, longest, list(self.data.labels))
        return replace(here, data=data, tokenizer=tokenizer)

    def for_base(self, rows: Encoded) -> Encoded:
        """Return rows of `data` with the ids that the base has for the same tokens: what a teacher reads."""
        return rows if self.base_ids is None else rows.renumbered(self.base_ids)

    def calibration_batches(
        self, count: int, batch_size: int = 32, length: int | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Yield padded batches of `count` seeded training rows, on the CPU; of long ones the first `length` tokens.

        Rows of like length share a batch, so that little of it is padding.
        """
        rows = self.train
        chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(self.seed))[:count].numpy()
        lengths = rows.lengths[chosen] if length is None else np.minimum(rows.lengths[chosen], length)
        for indices in length_sorted(lengths, batch_size):
            batch = rows.batch(chosen[indices])
            yield {name: value[:, :length] if value.dim() == 2 else value for name, value in batch.items()}


def _reading_on(base: nn.Module, edits: Sequence[Record]) -> nn.Module:
    """Return a copy of the base that reads as far as a model after these edits; its journal stays that of the base."""
    longer, journal = copy.deepcopy(base), journal_of(base)
    for record in edits:
        if record["edit"] == "extend_positions" and record["tokens"] > longest_read(longer):
            replay(longer, [record])
    longer.niwaki_journal = list(journal)  # type: ignore[assignment]
    return longer.requires_grad_(False)


class Companion(nn.Module):
    """Travel with a model through one training; its state is saved, moved and synchronised like any module's."""

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Return optimizer groups of the companion's own parameters."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [{"params": parameters, "lr": learning_rate}] if parameters else []

    def forward_arguments(self) -> dict[str, Any]:
        """Return keyword arguments the model's forward needs beside the batch."""
        return {}

    def task_weight(self) -> float:
        """Return the factor on the task's own loss; the factors of all companions multiply."""
        return 1.0

    def step(self, progress: float) -> None:
        """Act before each forward; `progress` is the share of the training that is done, from 0; at the last step 1."""

    def loss(self, output: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return weighted scalar losses by name, to be added to the task's."""
        return {}

    def ready(self, progress: float) -> bool:
        """Say whether the model, as it is since the step at `progress`, may be judged for "best on validation"."""
        return True

    def finish(self, model: nn.Module) -> nn.Module:
        """Make the change permanent and leave no scaffolding."""
        return model


class Technique(Parameters):
    """Hold a technique's parameters; `apply` changes a model now, `accompany` prepares it for training."""

    grain: ClassVar[Grain] = Grain.NONE
    #: Several layers read one weight after it: units are cut for all of them or not at all.
    ties: ClassVar[bool] = False
    #: It fits something on the selection rows to the model as it then is: a training that it stands in leaves those
    #: rows alone, and no step may follow the last fit.
    fits: ClassVar[bool] = False
    #: Layers let go of tokens: behind them stand fewer states than there are tokens.
    drops_tokens: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """Name the technique after its class, unless it names itself."""
        super().__pydantic_init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__.lower()

    @property
    def cuts(self) -> Grain:
        """Return what these parameters cut; the class's grain unless a technique says otherwise."""
        return self.grain

    def cuts_tied(self, *, meanwhile: bool = False, in_train: bool = False) -> bool:
        """Say whether it leaves layers that share their weights as they are, or cuts all of them alike.

        Args:
            meanwhile: while they are becoming one, in the same train; else after it.
            in_train: inside a train, else as a step of its own.
        """
        return self.cuts == Grain.NONE if meanwhile else self.cuts not in (Grain.UNIT, Grain.WEIGHT)

    @property
    def can_apply(self) -> bool:
        """Say whether the technique can stand as a step of its own."""
        return type(self).apply is not Technique.apply

    @property
    def can_accompany(self) -> bool:
        """Say whether the technique can stand inside `train`."""
        return type(self).accompany is not Technique.accompany

    @property
    def at_once(self) -> str:
        """Return, in words, which setting keeps the technique out of `train`, where one does."""
        return f"by {self.by}" if hasattr(self, "by") else ""

    @property
    def without_dropping(self) -> str:
        """Return, where it needs every token in every layer, what to write so that tokens may be dropped; else nothing.

        What needs them stands in no train that drops tokens, nor behind one.
        """
        return ""

    @property
    def without_holding(self) -> str:
        """Return, where inside `train` it holds the model's weights, what to write so that they learn; else nothing.

        Beside it may stand what packs weights as they are into bits, and nothing that needs them to learn.
        """
        return ""

    @property
    def streams(self) -> bool:
        """Say whether `apply` looks at one layer after the other, through `Context.parts`, and so needs no more memory.

        Given a `niwaki.parts.Plan` it must do the same edits without looking at any weight.
        """
        return False

    def family(self) -> dict[str, Technique]:
        """Return, by name, the single techniques that one with a list of targets stands for; else nothing."""
        return {}

    def check(self, model: nn.Module) -> None:
        """Refuse, before any work begins, what cannot be done to this model."""

    def check_accompany(self) -> None:
        """Refuse, as a recipe is read, parameters with which it cannot stand inside `train`."""

    def check_export(self, model: nn.Module, formats: Collection[str]) -> None:
        """Refuse, before any work begins, what these formats ("onnx", "openvino") cannot hold."""

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Change the model now and return it."""
        raise NiwakiError(
            f"{self.name} cannot stand as a step of its own",
            expected="a place inside train, where it accompanies the training",
            fix=f"- train: {{together: [{{{self.name}: {{...}}}}]}}",
        )

    def accompany(self, model: nn.Module, context: Context) -> Companion:
        """Prepare the model for training and return what travels with it."""
        raise NiwakiError(
            f"{self.name} cannot stand inside train",
            expected="a step of its own, before or after train",
            fix=f"- {self.name}: {{...}}",
        )

    def run(self, model: nn.Module, context: Context) -> nn.Module:
        """Run as a step of a recipe."""
        return self.apply(model, context)
