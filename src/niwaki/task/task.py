"""The contract of a task, and the registry of its kinds."""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from niwaki.errors import NiwakiError, closest
from niwaki.task.encoded import Dataset

if TYPE_CHECKING:
    from torch import Tensor

# One line a kind: its name, and the class that knows it. The module is imported when it is first asked for.
KINDS: dict[str, str] = {
    "text-classification": "niwaki.task.text_classification:TextClassification",
    "language-modelling": "niwaki.task.language_modelling:LanguageModelling",
}


@dataclass(frozen=True, eq=False)
class TextRows:
    """Hold one split as text.

    Attributes:
        name: "train", "validation" or "test".
        texts: one text a row, never empty.
        pairs: the second text of each row, or None when rows are single texts.
        labels: (N,) int64, ids into `Rows.labels`.
    """

    name: str
    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, rows: np.ndarray, name: str) -> TextRows:
        """Return these rows under another name."""
        pairs = None if self.pairs is None else [self.pairs[row] for row in rows]
        return TextRows(name, [self.texts[row] for row in rows], pairs, self.labels[rows])


@dataclass(frozen=True, eq=False)
class Rows:
    """Hold what a task read, before any tokenizer.

    Attributes:
        train: rows to learn from, or None when the data are for measuring alone.
        validation: rows that are always there.
        test: rows for the last word, or None.
        labels: the name of each label id.
        notes: what a reader of the numbers should know about how the rows were read, one sentence each.
    """

    train: TextRows | None
    validation: TextRows
    test: TextRows | None
    labels: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def splits(self) -> tuple[TextRows, ...]:
        """Return the splits that are there, train first."""
        return tuple(split for split in (self.train, self.validation, self.test) if split is not None)


class Task(BaseModel):
    """Name the data, the loss and the metric; `Task(kind, ...)` makes an instance of the class of that kind.

    A task is a frozen value of parameters: making one reads nothing. `read` and `encode` do the work.

    Args:
        kind: one of `KINDS`, such as "text-classification".
        data: a folder with train, validation and perhaps test files; one file; or the id of a data set on the
            Hugging Face hub, with its configuration after a colon where it has several ("nyu-mll/glue:sst2").
        metric: what quality is counted by; each kind has its own, and its own default.
        max_length: cut texts to this many tokens, special ones included; what the model takes when None.

    Each kind adds its own (the names of columns).

    Raises:
        NiwakiError: for an unknown kind, an unknown parameter, or a value out of range.

    Example:
        >>> Task("text-classification", data="reviews/").metric
        'accuracy'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Whether models of this kind can be written as artifacts of other runtimes than PyTorch.
    exports: ClassVar[bool] = True

    kind: str
    data: str
    metric: str = ""
    max_length: int | None = None

    def __new__(cls, kind: str = "", **parameters: Any) -> Task:
        """Make an instance of the kind's own class when asked for a plain `Task`."""
        return super().__new__(_class_of(kind) if cls is Task else cls)

    def __init__(self, kind: str = "", **parameters: Any) -> None:
        """Check the parameters, and say what is wrong in the words of the user."""
        if kind:
            parameters["kind"] = kind
        try:
            super().__init__(**parameters)
        except ValidationError as error:
            raise _refusal(type(self), parameters, error) from None

    @field_validator("data", mode="before")
    @classmethod
    def _path_as_text(cls, data: Any) -> Any:
        """Accept a `pathlib.Path` too."""
        return os.fspath(data) if isinstance(data, os.PathLike) else data

    @field_validator("data")
    @classmethod
    def _some_data(cls, data: str) -> str:
        """Refuse an empty name."""
        if not data.strip():
            raise ValueError("a folder, a file or the id of a data set on the hub")
        return data

    @field_validator("max_length")
    @classmethod
    def _room_for_a_word(cls, max_length: int | None) -> int | None:
        """Refuse lengths that leave no room for text beside the special tokens."""
        if max_length is not None and max_length < 4:
            raise ValueError("a whole number of tokens, 4 or more")
        return max_length

    def read(self, labels: list[str] | None = None) -> Rows:
        """Read the rows as text; `labels` are the label names of a fine-tuned model, in the order of ids."""
        raise NotImplementedError(f"{type(self).__name__}.read")

    def encode(self, tokenizer: Any, max_length: int, labels: list[str] | None = None) -> Dataset:
        """Read the rows and tokenize them; `max_length` is the number of tokens the model takes."""
        raise NotImplementedError(f"{type(self).__name__}.encode")

    def check(self, model: Any) -> None:
        """Refuse a model that was made for another kind of task."""

    def limit(self, max_length: int) -> int:
        """Return how many tokens a row may have: as many as asked for, or `max_length`, which the model takes."""
        if self.max_length is not None and self.max_length > max_length:
            raise NiwakiError(
                f"max_length is {self.max_length}",
                expected=f"at most {max_length}, the number of tokens the model takes",
                fix=f"max_length={max_length}",
                place=f'task "{self.kind}"',
            )
        return self.max_length or max_length

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the scalar loss that training lowers."""
        raise NotImplementedError(f"{type(self).__name__}.loss")


def _class_of(kind: str) -> type[Task]:
    """Import and return the class of a kind."""
    if kind not in KINDS:
        meant = closest(str(kind), KINDS) or next(iter(KINDS))
        raise NiwakiError(f'there is no task "{kind}"', expected=" or ".join(KINDS), fix=f'Task("{meant}", data="...")')
    module, name = KINDS[kind].split(":")
    found: type[Task] = getattr(importlib.import_module(module), name)
    return found


def _refusal(task: type[Task], parameters: dict[str, Any], error: ValidationError) -> NiwakiError:
    """Turn the first finding of pydantic into a NiwakiError."""
    finding = error.errors()[0]
    name = str(finding["loc"][0]) if finding["loc"] else ""
    place = f'task "{parameters.get("kind", "")}"'
    known = [field for field in task.model_fields if field != "kind"]
    if finding["type"] == "extra_forbidden":
        meant = closest(name, known)
        return NiwakiError(
            f'there is no parameter "{name}"',
            expected=f"one of {', '.join(known)}",
            fix=f"{meant}={parameters[name]!r}" if meant else "",
            place=place,
        )
    if finding["type"] == "missing":
        return NiwakiError(
            f"{name} is not given",
            expected="a folder, a file or a hub id",
            fix=f'{name}="reviews/"',
            place=place,
        )
    expected = finding["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return NiwakiError(f"{name} is {finding['input']!r}", expected=expected, place=place)
