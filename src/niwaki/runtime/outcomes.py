"""What is kept of a batch's logits: the predicted classes, or how surprised the model was by each row's tokens.

It is worked out where the logits are, in the worker: those of a text are as many as its tokens times the vocabulary.
"""

# B batch, T tokens, C classes, V vocabulary, P tokens of a part

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.errors import NiwakiError

Array = npt.NDArray[Any]
Batch = Mapping[str, Array]
#: Tokens whose logits are widened to doubles at once: what is needed beside the logits must not be the memory's peak.
PART = 64


def classes(logits_BC: Array, batch: Batch) -> Array:
    """Return the predicted class ids (B,), one a text where texts come in windows.

    Raises:
        NiwakiError: the logits are not (B, C) finite numbers.
    """
    rows = len(batch["input_ids"])
    if logits_BC.ndim != 2 or len(logits_BC) != rows:
        raise NiwakiError(f"the output has shape {logits_BC.shape}", expected=f"logits ({rows}, classes)")
    _require_finite(logits_BC, batch)
    return np.asarray(pooled(logits_BC, batch).argmax(axis=1))


def pooled(logits_BC: Array, batch: Batch, over: Callable[..., Any] | None = None) -> Array:
    """Return the logits of each text, the mean or the largest of those of its windows, class by class.

    Args:
        logits_BC: or other numbers, of each window.
        batch: says which text a window belongs to; where it does not, each row is a text.
        over: takes the numbers of a text together; by default as the batch says.

    >>> windows = np.array([[0.0, 1.0], [4.0, 1.0], [2.0, 5.0]])  # the first text has one window, the second two
    >>> pooled(windows, {"mean_of": np.array([0, 1, 1])}).tolist()
    [[0.0, 1.0], [3.0, 3.0]]
    >>> pooled(windows, {"max_of": np.array([0, 1, 1])}).tolist()
    [[0.0, 1.0], [4.0, 5.0]]
    """
    for name, usual in (("mean_of", np.mean), ("max_of", np.max)):
        if name in batch:
            owners, take = batch[name], over or usual
            return np.stack([take(logits_BC[owners == text], axis=0) for text in range(int(owners[-1]) + 1)])
    return logits_BC


def surprises(logits_BTV: Array, batch: Batch) -> Array:
    """Return of each row (B, 2): the sum of -log p(token | tokens before) in nats, and the number of such tokens.

    The first token of a row is given; of each other one the logits at the place before it tell the probability. Rows
    are padded on the right.

    Raises:
        NiwakiError: the logits are not (B, T, V) finite numbers.

    >>> fair = np.zeros((1, 3, 4))  # each of three tokens, two of them predicted, is one of four
    >>> surprises(fair, {"input_ids": np.array([[0, 1, 2]]), "attention_mask": np.ones((1, 3))}).round(4).tolist()
    [[2.7726, 2.0]]
    """
    ids_BT = batch["input_ids"]
    if logits_BTV.ndim != 3 or logits_BTV.shape[:2] != ids_BT.shape:
        shape = f"logits ({ids_BT.shape[0]}, {ids_BT.shape[1]}, vocabulary)"
        raise NiwakiError(f"the output has shape {logits_BTV.shape}", expected=shape)
    result_B2 = np.zeros((len(ids_BT), 2))
    for row, tokens in enumerate(batch["attention_mask"].sum(axis=1).astype(int)):
        for start in range(0, tokens - 1, PART):
            end = min(start + PART, tokens - 1)
            scores_PV = logits_BTV[row, start:end].astype(np.float64)
            scores_PV -= scores_PV.max(axis=1, keepdims=True)
            right_P = scores_PV[np.arange(end - start), ids_BT[row, start + 1 : end + 1]]
            result_B2[row] += np.sum(np.log(np.exp(scores_PV).sum(axis=1)) - right_P), end - start
    _require_finite(result_B2, batch)
    return result_B2


OUTCOMES: dict[str, Callable[[Array, Batch], Array]] = {"classes": classes, "surprises": surprises}


def _require_finite(values: Array, batch: Batch) -> None:
    if not np.isfinite(values).all():
        raise NiwakiError(
            f"logits are NaN or infinite on an input of {batch['input_ids'].shape[1]} tokens",
            expected="finite logits on every row",
            fix="precision f32, or a quantization that leaves the attention mask alone",
        )
