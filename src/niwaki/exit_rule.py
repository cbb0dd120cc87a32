"""When a row may leave at an exit: how sure the heads are, against a threshold for each.

One rule in NumPy serves the model in PyTorch and the chain of artifacts, so that both let the same rows go.
"""

# E exits, B rows, C classes

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
By = Literal["entropy", "probability", "patience"]
#: A threshold that no row reaches: sureness is at most 1, and patience at most the number of exits.
NEVER = 1000.0


def sureness(by: By, logits_EBC: Array) -> Array:
    """Return (E, B), of each exit and row how sure the heads are; a row leaves at its threshold.

    Args:
        by: entropy, 1 less the entropy of the classes' probabilities over that of equal ones, in [0, 1]; probability,
            the highest of them, in [1 / C, 1]; patience, how many heads in a row, this one the last, predict one class,
            from 1 on.
        logits_EBC: of the exits so far, the earliest first.

    References:
        Xin et al. 2020, DeeBERT, section 3.2 (entropy); Liu et al. 2020, FastBERT (normalised).
        Zhou et al. 2020, BERT Loses Patience (patience).

    >>> logits = np.array([[[0.0, 0.0], [5.0, 0.0]], [[0.0, 9.0], [9.0, 0.0]]])
    >>> sureness("patience", logits).tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    >>> sureness("probability", logits).round(3).tolist()
    [[0.5, 0.993], [1.0, 1.0]]
    """
    logits = np.asarray(logits_EBC, np.float64)
    if by == "patience":
        return _agreeing(logits.argmax(axis=2))
    shifted = logits - logits.max(axis=2, keepdims=True)
    log_EBC = shifted - np.log(np.exp(shifted).sum(axis=2, keepdims=True))
    if by == "probability":
        return np.asarray(np.exp(log_EBC).max(axis=2))
    entropy_EB = -(np.exp(log_EBC) * log_EBC).sum(axis=2)
    return np.asarray(np.clip(1 - entropy_EB / np.log(logits.shape[2]), 0, 1))


def _agreeing(classes_EB: Array) -> Array:
    """Return (E, B), how many exits in a row up to each predict what it predicts."""
    counts = np.ones(classes_EB.shape)
    for place in range(1, len(classes_EB)):
        same_B = classes_EB[place] == classes_EB[place - 1]
        counts[place] += same_B * counts[place - 1]
    return counts


def leaving(by: By, thresholds_E: Array, logits_EBC: Array) -> Array:
    """Return (B,), at which exit each row leaves; E, the number of exits, where it stays to the end.

    >>> leaving("probability", np.array([0.9, 0.9]), np.array([[[0.0, 0.0], [5.0, 0.0]], [[0.0, 9.0], [9.0, 0.0]]]))
    array([1, 0])
    """
    leaves_EB = sureness(by, logits_EBC) >= np.asarray(thresholds_E)[:, None]
    always = np.ones((1, leaves_EB.shape[1]), bool)
    return np.asarray(np.concatenate([leaves_EB, always]).argmax(axis=0))
