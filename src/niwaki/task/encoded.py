"""Encoded rows: ragged splits, flat in memory, and the batches made from them."""

# N rows, B batch, T tokens

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from niwaki.errors import NiwakiError
from niwaki.task.windows import Windows

if TYPE_CHECKING:
    from torch import Tensor


#: The label of padding, which no loss counts: that of PyTorch's cross entropy.
IGNORED = -100


@dataclass(frozen=True, eq=False)
class Encoded:
    """Hold one split as token ids, row after row in one flat array.

    Row i is `tokens[offsets[i]:offsets[i + 1]]`. Nothing is padded until `batch` pads to its longest row.

    Attributes:
        name: "train", "validation", "test" or what a selection was called.
        tokens: (total,) int32 token ids, the special tokens included.
        types: (total,) int8 token types, 0 for the first text and 1 for the second; None for single texts and
            for models that know no types.
        offsets: (N + 1,) int64, where each row begins; the first is 0 and the last is total.
        labels: (N,) int64 class ids; None where each token is the label of those before it.
        truncated: how many texts of the split were cut to the longest length allowed. A selection keeps the
            number of the split that it was taken from.
        pad: the token id that fills short rows of a batch.
        windows: how rows longer than the model reads are cut when they come into a batch; None where none is longer.
    """

    name: str
    tokens: np.ndarray
    types: np.ndarray | None
    offsets: np.ndarray
    labels: np.ndarray | None
    truncated: int = 0
    pad: int = 0
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Return the number of tokens of each row, (N,) int64."""
        return np.diff(self.offsets)

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256, in hexadecimal, of all that a model can see of these rows."""
        digest = hashlib.sha256(str(self.pad).encode())
        for array in (self.tokens, self.types, self.offsets, self.labels):
            digest.update(b"none" if array is None else f"{array.dtype}{array.shape}".encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
        digest.update(b"" if self.windows is None else repr(self.windows).encode())
        return digest.hexdigest()

    def tokens_of(self, row: int) -> np.ndarray:
        """Return the token ids of one row, (T,) int32."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def select(self, indices: Sequence[int] | np.ndarray, name: str | None = None) -> Encoded:
        """Return the rows of these indices, in their order."""
        rows = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            name=name or self.name,
            tokens=self._gather(self.tokens, rows),
            types=None if self.types is None else self._gather(self.types, rows),
            offsets=np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64),
            labels=None if self.labels is None else self.labels[rows],
        )

    def sample(self, count: int, seed: int) -> Encoded:
        """Return about `count` rows with the classes in proportion, or these very rows where there are no more."""
        labels = np.zeros(len(self), np.int64) if self.labels is None else self.labels
        return self if count >= len(self) else self.select(stratified_rows(labels, count, seed))

    def renumbered(self, ids: np.ndarray) -> Encoded:
        """Return the rows with token id i written as `ids[i]`, the padding too."""
        return replace(self, tokens=ids[self.tokens].astype(np.int32), pad=int(ids[self.pad]))

    def in_windows(self, indices: Sequence[int] | np.ndarray) -> tuple[Encoded, np.ndarray]:
        """Return the windows of these rows, each a row by itself, and which of `indices` each belongs to, from 0."""
        rows = np.asarray(indices, dtype=np.int64)
        assert self.windows is not None
        pieces = [self.windows.cut(self.tokens_of(int(row))) for row in rows]
        owners = np.repeat(np.arange(len(rows)), [len(some) for some in pieces])
        flat = [window for some in pieces for window in some]
        cut = replace(
            self,
            tokens=np.concatenate(flat) if flat else self.tokens[:0],
            offsets=np.concatenate([[0], np.cumsum([len(window) for window in flat])]).astype(np.int64),
            labels=None if self.labels is None else self.labels[rows][owners],
            windows=None,
        )
        return cut, owners

    def batch(self, indices: Sequence[int] | np.ndarray, pad: int | None = None) -> dict[str, Tensor]:
        """Return rows as tensors on the CPU, padded on the right to the longest of them.

        Args:
            indices: which rows, in the order wanted.
            pad: fill with this token id; with the tokenizer's own when None.

        Returns:
            `input_ids` (B, T), `attention_mask` (B, T) with 1 for tokens and 0 for padding, `token_type_ids`
            (B, T) when the rows have types, and `labels`, (B,), or (B, T) where tokens are the labels: the ids, and
            IGNORED for padding; all int64. Rows that are read in windows come as their windows, one after the other.
        """
        import torch

        if self.windows is not None:
            cut, _ = self.in_windows(indices)
            return cut.batch(range(len(cut)), pad)
        rows = np.asarray(indices, dtype=np.int64)
        lengths_B = self.lengths[rows]
        mask_BT = np.arange(lengths_B.max(initial=0)) < lengths_B[:, None]
        arrays = {"input_ids": self._padded(self.tokens, rows, mask_BT, self.pad if pad is None else pad)}
        arrays["attention_mask"] = mask_BT.astype(np.int64)
        if self.types is not None:
            arrays["token_type_ids"] = self._padded(self.types, rows, mask_BT, 0)
        labels_BT = np.where(mask_BT, arrays["input_ids"], IGNORED)
        arrays["labels"] = labels_BT if self.labels is None else self.labels[rows]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _gather(self, flat: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return the chosen rows of a flat array, one after the other."""
        pieces = [flat[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        return np.concatenate(pieces) if pieces else flat[:0]

    def _padded(self, flat: np.ndarray, rows: np.ndarray, mask_BT: np.ndarray, fill: int) -> np.ndarray:
        """Return the chosen rows as (B, T) int64; assigning to a mask goes row by row, as the pieces do."""
        padded_BT = np.full(mask_BT.shape, fill, dtype=np.int64)
        padded_BT[mask_BT] = self._gather(flat, rows)
        return padded_BT


@dataclass(frozen=True, eq=False)
class Dataset:
    """Hold the encoded splits of a task.

    Attributes:
        train: rows to learn from, or None when the data are for measuring alone.
        validation: rows that are always there.
        test: rows for the last word, or None.
        labels: the name of each class id.
        notes: what a reader of the numbers should know about the data, one sentence each.
        held: the selection rows, where they are held out of `train` already.
    """

    train: Encoded | None
    validation: Encoded
    test: Encoded | None
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()
    held: Encoded | None = None

    @property
    def evaluation(self) -> Encoded:
        """Return the split that numbers are reported on and no technique sees: test, else validation."""
        return self.validation if self.test is None else self.test

    @cached_property
    def fingerprint(self) -> str:
        """Return the sha256, in hexadecimal, of all splits and label names."""
        splits = [split.fingerprint if split else "none" for split in (self.train, self.validation, self.test)]
        return hashlib.sha256("\n".join([*splits, *self.labels]).encode()).hexdigest()

    def selection(self, seed: int) -> tuple[Encoded, Encoded]:
        """Return the rows to train on and the rows that "best on validation" may look at.

        With a test split the latter are the validation rows. Without one the validation rows are what is
        reported, and choosing by them would flatter the result, so rows are held out of train: 5% of it, at
        most 1,000, with the classes in proportion.

        Raises:
            NiwakiError: when there is no train split, or it is too small to hold rows out.
        """
        if self.train is None:
            raise NiwakiError("the data have no train split", expected="rows to learn from", fix="add a train.csv")
        if self.held is not None:
            return self.train, self.held
        if self.test is not None:
            return self.train, self.validation
        classes = np.zeros(len(self.train), np.int64) if self.train.labels is None else self.train.labels
        held = stratified_rows(classes, min(1000, round(0.05 * len(self.train))), seed)
        if not len(held):
            raise NiwakiError(
                f"something is to be chosen, and no row of train ({len(self.train)}) can be held out to choose by",
                expected="a class with two rows at least, or a test split, beside which validation is chosen by",
                fix="add rows to train, or a test.csv",
            )
        rest = np.setdiff1d(np.arange(len(self.train)), held)
        return self.train.select(rest), self.train.select(held, name="selection")

    def holding_out(self, seed: int) -> Dataset:
        """Return the splits with the selection rows out of `train`, so that none who is given them learns from them."""
        train, held = self.selection(seed)
        return replace(self, train=train, held=held)


def stratified_rows(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose about `count` row numbers, ascending, with the classes in proportion to their size.

    The rows are shuffled, brought in the order of their class, and taken at even distances. The only row of a
    class is never taken, so what remains has every class. At least one row is taken where any may be.

    Args:
        labels: (N,) class ids.
        count: how many rows; at least 1 are given.
        seed: of the shuffle.

    Example:
        >>> [int(row) for row in stratified_rows(np.array([0] * 8 + [1] * 4), count=3, seed=0) // 8]
        [0, 0, 1]
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    classes, sizes = np.unique(labels, return_counts=True)
    order = order[np.isin(labels[order], classes[sizes > 1])]
    count = min(max(count, 1), len(order))
    # The middle of each of `count` equal stretches.
    positions = ((np.arange(count) + 0.5) * len(order) / max(count, 1)).astype(np.int64)
    return np.sort(order[positions])
