"""Text classification: one label for a text, or for a pair of texts."""

# N rows, B batch, C classes

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.task.columns import Columns, find_columns, require_column
from niwaki.task.encoded import Dataset
from niwaki.task.labels import LabelColumn, ids_of, names_of, read_labels, require_labels
from niwaki.task.splits import read_splits
from niwaki.task.tables import Table
from niwaki.task.task import Rows, Task, TextRows
from niwaki.task.texts import arrange, overlaps, read_texts
from niwaki.task.tokens import check_tokenizer, encode_in_windows, encode_rows, truncation_note, windows_note

if TYPE_CHECKING:
    from torch import Tensor


class TextClassification(Task):
    """Give each text, or pair of texts, one of C classes.

    Args:
        data: a folder with train, validation (or dev, valid, val) and perhaps test as .csv, .tsv, .jsonl or
            .parquet; one such file, of which a tenth is held out as validation; or a hub id.
        text: the column of the text; found by its name (text, sentence, review, content, ...) when None.
        text_pair: the column of the second text; found (text and text_pair, sentence1 and sentence2, premise
            and hypothesis, question and sentence, ...) when neither column is named.
        label: the column of the label; found (label, labels, class, category, ...) when None.
        metric: "accuracy", "f1" (of class 1 with two classes, macro with more) or "mcc"; all in percent.
        max_length: cut texts to this many tokens; as many as the model takes when None.
        long: what becomes of longer texts in the split that quality is reported on: "truncate", or read them in
            windows of that many tokens, each a quarter over the one before, and take the "mean" or the "max" of the
            windows' logits, class by class. A text's time is that of all its windows. Training and selection rows are
            cut in any case.

    Labels are whole numbers or words. Their ids are those of the fine-tuned model if its label names are
    given, else their rank: numbers by value, words by alphabet, so that ids are the same each time. A test
    split without labels (missing, or all -1) is left out, with a note.

    Raises:
        NiwakiError: for anything in the data that would make the numbers wrong; it names file, row and value.

    Example:
        >>> Task("text-classification", data="reviews/", text="review", metric="f1").text
        'review'
    """

    kind: Literal["text-classification"] = "text-classification"
    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    metric: Literal["accuracy", "f1", "mcc"] = "accuracy"
    long: Literal["truncate", "mean", "max"] = "truncate"

    def read(self, labels: list[str] | None = None) -> Rows:
        """Read the rows as text.

        Args:
            labels: the label names of a fine-tuned model in the order of their ids; labels of the data are
                matched with them by name without regard to case, and numbers 0 to C - 1 are taken as ids.

        Returns:
            The splits, with label ids. Without a validation split, a tenth of train is held out, with the
            classes in proportion.
        """
        tables, found = read_splits(self.data)
        notes = list(found)
        first = next(tables[split] for split in ("train", "validation", "test") if split in tables)
        columns, chosen = find_columns(first, self.text, self.text_pair, self.label)
        notes.extend(chosen)
        targets = _targets(tables, columns, notes)
        names = tuple(labels) if labels else names_of(next(iter(targets.values())))
        source = "the model" if labels else next(iter(targets))
        splits: dict[str, TextRows] = {}
        for split, column in targets.items():
            ids, note = ids_of(column, names, source)
            notes.extend([note] if note and note not in notes else [])
            splits[split] = _text_rows(split, tables[split], columns, ids)
        _check_train(splits, targets)
        arrange(splits, notes)
        notes.extend([*_remarks(splits, names), *overlaps(splits)])
        return Rows(splits.get("train"), splits["validation"], splits.get("test"), names, tuple(notes))

    def encode(self, tokenizer: Any, max_length: int, labels: list[str] | None = None) -> Dataset:
        """Read the rows and tokenize them.

        Args:
            tokenizer: a tokenizer of Transformers.
            max_length: how many tokens the model takes; `self.max_length` may ask for fewer.
            labels: as in `read`.

        Returns:
            The encoded splits; its notes tell how many texts were cut, or read in windows.
        """
        limit = self.limit(max_length)
        rows = self.read(labels)
        check_tokenizer(tokenizer, limit, pairs=rows.validation.pairs is not None)
        encoded = {split.name: encode_rows(split, tokenizer, limit) for split in rows.splits}
        if self.long != "truncate":
            last = rows.validation if rows.test is None else rows.test
            encoded[last.name] = encode_in_windows(last, tokenizer, limit, self.long)
        told = [tell(split, limit) for split in encoded.values() for tell in (truncation_note, windows_note)]
        cuts = [note for note in told if note]
        return Dataset(
            encoded.get("train"),
            encoded["validation"],
            encoded.get("test"),
            rows.labels,
            (*rows.notes, *cuts),
        )

    def check(self, model: Any) -> None:
        """Refuse a language model, which has no classes."""
        from niwaki.anatomy import anatomy_of

        if anatomy_of(model).language_head is not None:
            raise NiwakiError(
                "the model writes text and has no fine-tuned classification head",
                expected="a model fine-tuned on the task",
                fix="niwaki finetune MODEL --data YOUR_DATA --out base, or --task language-modelling",
            )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy, in nats, of logits (B, C) and class ids (B,)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, labels)


def _targets(tables: dict[str, Table], columns: Columns, notes: list[str]) -> dict[str, LabelColumn]:
    """Read the labels of each split, train first, and leave out a test split that has none."""
    targets: dict[str, LabelColumn] = {}
    for split in [name for name in ("train", "validation", "test") if name in tables]:
        if split == "test" and targets and _without_labels(tables[split], columns.label, targets):
            notes.append(f"the test split was left out: its rows have no labels ({tables[split].source})")
            continue
        require_column(tables[split], columns.label, "label")
        targets[split] = read_labels(tables[split], columns.label)
        require_labels(targets[split])
    return targets


def _without_labels(test: Table, label: str, others: dict[str, LabelColumn]) -> bool:
    """Say whether a test split has no labels: no column, none filled in, or all -1 where -1 is no class."""
    if label not in test.columns:
        return True
    column = read_labels(test, label)
    return column.absent and ("-1" not in next(iter(others.values())).distinct or not column.distinct)


def _text_rows(split: str, table: Table, columns: Columns, labels: np.ndarray) -> TextRows:
    """Read the texts of a split."""
    require_column(table, columns.text, "text")
    texts = read_texts(table, columns.text)
    if columns.text_pair is None:
        return TextRows(split, texts, None, labels)
    require_column(table, columns.text_pair, "text_pair")
    return TextRows(split, texts, read_texts(table, columns.text_pair), labels)


def _check_train(splits: dict[str, TextRows], targets: dict[str, LabelColumn]) -> None:
    """Refuse to learn from a single class, also where the model brings the names of others."""
    if "train" in splits and len(np.unique(splits["train"].labels)) == 1:
        names_of(targets["train"])


def _remarks(splits: dict[str, TextRows], names: tuple[str, ...]) -> list[str]:
    """Return notes on splits that make numbers easy to misread."""
    notes = []
    for some, other in zip(sorted(names, key=str.casefold), sorted(names, key=str.casefold)[1:], strict=False):
        if some.casefold() == other.casefold():
            notes.append(f'"{some}" and "{other}" were read as two classes')
    for split in splits.values():
        present = len(np.unique(split.labels))
        if present == 1:
            notes.append(f'all {split.name} labels are "{names[int(split.labels[0])]}"; f1 and mcc say little')
        elif present < len(names):
            notes.append(f"{len(names) - present} of {len(names)} classes do not occur in {split.name}")
    return notes
