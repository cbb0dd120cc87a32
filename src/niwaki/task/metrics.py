"""Metrics: of classification in percent, so that a difference is in points; of language modelling in nats.

A metric knows what of a model's logits it needs (`outcome_of`), so that logits of whole texts are never kept.
"""

# N rows, C classes

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from niwaki.errors import NiwakiError, closest


def accuracy(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Return the share of right predictions, 0 to 100 percent.

    The one to take when classes are about equally frequent and all mistakes cost the same.
    """
    from sklearn.metrics import accuracy_score

    return 100.0 * float(accuracy_score(labels, predictions))


def f1(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Return the harmonic mean of precision and recall, 0 to 100 percent.

    With two classes it is the F1 of class 1 (as GLUE counts MRPC and QQP); with more, the plain mean over the
    classes that occur in labels or predictions (macro F1), so that rare classes weigh as much as frequent
    ones. A class that is never predicted rightly counts 0.
    """
    from sklearn.metrics import f1_score

    if num_classes == 2:
        return 100.0 * float(f1_score(labels, predictions, labels=[1], average="macro", zero_division=0))
    return 100.0 * float(f1_score(labels, predictions, average="macro", zero_division=0))


def mcc(predictions: np.ndarray, labels: np.ndarray, num_classes: int) -> float:
    """Return Matthews' correlation of predictions and labels, -100 to 100 percent; 0 is chance.

    The one to take when classes are unbalanced (as GLUE counts CoLA). It is 0 when predictions or labels hold
    a single class, where the correlation is not defined.
    """
    from sklearn.metrics import matthews_corrcoef

    if np.all(predictions == predictions[0]) or np.all(labels == labels[0]):
        return 0.0
    return 100.0 * float(matthews_corrcoef(labels, predictions))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, int], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "mcc": mcc,
}


def nats(surprises_N2: np.ndarray) -> float:
    """Return the mean surprise of a token, -log p, over all tokens of all rows: 0 is certainty.

    Args:
        surprises_N2: of each row, the sum of its tokens' surprises in nats, and the number of tokens.
    """
    total, count = surprises_N2.sum(axis=0)
    return float(total / count)


def perplexity(surprises_N2: np.ndarray) -> float:
    """Return exp(nats per token): between how many equally likely tokens the model hesitates; 1 is certainty."""
    return float(np.exp(nats(surprises_N2)))


LIKELIHOODS: dict[str, Callable[[np.ndarray], float]] = {"nats": nats, "perplexity": perplexity}


def higher_is_better(metric: str) -> bool:
    """Say whether more of a metric is better; of surprise, less is."""
    return metric not in LIKELIHOODS


def outcome_of(metric: str) -> str:
    """Name what a metric needs of a row's logits, a key of `niwaki.runtime.OUTCOMES`."""
    return "surprises" if metric in LIKELIHOODS else "classes"


def score(metric: str, predictions: np.ndarray, labels: np.ndarray | None, num_classes: int | None = None) -> float:
    """Score what a model made of each row: class ids against labels in percent, or surprises.

    Args:
        metric: "accuracy" (0 to 100), "f1" (0 to 100), "mcc" (-100 to 100), "nats" or "perplexity".
        predictions: (N,) class ids; or (N, 2), each row's surprise in nats and its number of tokens.
        labels: (N,) class ids; not looked at with surprises.
        num_classes: how many classes the task has; decides between binary and macro F1. When None, one more
            than the largest id seen.

    Raises:
        NiwakiError: for a metric that does not exist.
        ValueError: when the two are not of one length, or hold nothing.

    Example:
        >>> import numpy as np
        >>> score("accuracy", np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]))
        75.0
    """
    if metric in LIKELIHOODS:
        return LIKELIHOODS[metric](np.asarray(predictions))
    if metric not in METRICS:
        known = (*METRICS, *LIKELIHOODS)
        meant = closest(metric, known) or "accuracy"
        raise NiwakiError(f'there is no metric "{metric}"', expected=", ".join(known), fix=f'metric="{meant}"')
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"predictions {predictions.shape} and labels {labels.shape} must be one (N,), N above 0")
    if num_classes is None:
        num_classes = max(2, int(max(predictions.max(), labels.max())) + 1)
    return METRICS[metric](predictions, labels, num_classes)
