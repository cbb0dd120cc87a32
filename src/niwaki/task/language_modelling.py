"""Language modelling: each token of a text from those before it."""

# B batch, T tokens, V vocabulary

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.task.columns import find_text, require_column
from niwaki.task.encoded import IGNORED, Dataset
from niwaki.task.splits import read_splits
from niwaki.task.task import Rows, Task, TextRows
from niwaki.task.texts import arrange, overlaps, read_texts
from niwaki.task.tokens import check_tokenizer, encode_rows, packed, truncation_note

if TYPE_CHECKING:
    from torch import Tensor


class LanguageModelling(Task):
    """Predict each token of a text from those before it.

    Quality is the mean surprise of the texts' tokens, -log p(token | tokens before), over all tokens of the split: each
    token counts the same, whatever text it stands in. The first token of a row, which the tokenizer may have put there,
    is given and not counted; padding never is. Lower is better: 0 nats is certainty, log V is chance over V tokens.

    Args:
        data: a folder with train, validation (or dev, valid, val) and perhaps test as .csv, .tsv, .jsonl or
            .parquet; one such file, of which a tenth is held out as validation; or a hub id.
        text: the column of the text; found by its name (text, sentence, content, ...) when None.
        pack: join all texts of a split and cut the whole into rows of `max_length` tokens, as is usual for text that
            runs on (WikiText). Else each text is a row, and what is longer than `max_length` is cut off.
        metric: "nats" (per token) or "perplexity", which is exp(nats).
        max_length: tokens in a row; as many as the model takes when None.

    Raises:
        NiwakiError: for anything in the data that would make the numbers wrong; it names file, row and value.

    Example:
        >>> Task("language-modelling", data="stories/").metric
        'nats'
    """

    exports: ClassVar[bool] = False

    kind: Literal["language-modelling"] = "language-modelling"
    text: str | None = None
    pack: bool = False
    metric: Literal["nats", "perplexity"] = "nats"

    def read(self, labels: list[str] | None = None) -> Rows:
        """Read the rows as text; there are no labels, and `labels` is not looked at."""
        tables, found = read_splits(self.data)
        notes = list(found)
        first = next(tables[split] for split in ("train", "validation", "test") if split in tables)
        column, doubts = find_text(first, self.text)
        notes.extend(doubts)
        splits: dict[str, TextRows] = {}
        for split, table in tables.items():
            require_column(table, column, "text")
            texts = read_texts(table, column)
            splits[split] = TextRows(split, texts, None, np.zeros(len(texts), np.int64))
        arrange(splits, notes)
        notes.extend(overlaps(splits))
        return Rows(splits.get("train"), splits["validation"], splits.get("test"), (), tuple(notes))

    def encode(self, tokenizer: Any, max_length: int, labels: list[str] | None = None) -> Dataset:
        """Read the rows and tokenize them.

        Args:
            tokenizer: a tokenizer of Transformers.
            max_length: how many tokens the model takes; `self.max_length` may ask for fewer.
            labels: not looked at.

        Returns:
            The encoded splits, whose tokens are their own labels; its notes tell how many texts were cut.
        """
        limit = self.limit(max_length)
        rows = self.read()
        check_tokenizer(tokenizer, limit, pairs=False)
        notes = list(rows.notes)
        encoded = {}
        for split in rows.splits:
            one = replace(encode_rows(split, tokenizer, sys.maxsize if self.pack else limit), labels=None)
            one = packed(one, limit) if self.pack else one
            notes.extend([note] if (note := truncation_note(one, limit)) else [])
            encoded[split.name] = one
        return Dataset(encoded.get("train"), encoded["validation"], encoded.get("test"), (), tuple(notes))

    def check(self, model: Any) -> None:
        """Refuse a model that does not write text."""
        from niwaki.anatomy import FAMILIES, anatomy_of

        if anatomy_of(model).language_head is None:
            writing = sorted(name for name, family in FAMILIES.items() if family.language_head)
            raise NiwakiError(
                f"the model is a {type(model).__name__}, which writes no text",
                expected=f"a causal language model of the family {', '.join(writing)}",
                fix="--task text-classification, if it was fine-tuned as a classifier",
            )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean surprise, in nats, of logits (B, T, V) by the tokens (B, T), each by the logits before it."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)
