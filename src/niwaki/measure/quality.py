"""Compare two lists of predictions, or of surprises, on the same examples: difference, interval, test, changes."""

# N examples, K kinds of example, R resamples, C classes

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.measure.surprise import paired_surprise
from niwaki.task.metrics import LIKELIHOODS, score

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]


def paired_quality(
    base_predictions: npt.NDArray[Any],
    predictions: npt.NDArray[Any],
    labels: Integers | None,
    metric: str,
    *,
    num_classes: int | None = None,
    resamples: int = 5000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Score predictions and compare them with the base's on the same examples.

    Args:
        base_predictions: class ids (N,); or surprises (N, 2), each row's sum in nats and number of tokens.
        predictions: the same of this model.
        labels: class ids (N,); not looked at with surprises.
        metric: "accuracy", "f1", "mcc"; "nats" or "perplexity".
        num_classes: of the task; found from the ids when None.
        resamples: of the bootstrap, 2000 or more for a stable interval.
        seed: of the bootstrap.
        level: of the intervals, in (0, 1).

    Returns:
        `metric`, `value` (percent), `difference` (this minus base, points), `interval` (of that, points),
        `p_value` (McNemar, exact), `changed` (share, 0 to 1), `count`. With surprises value, difference and interval
        are in the metric's own unit, `value_interval` is the interval of the value itself, the p-value is that of a
        permutation test, and `changed` is None.
    """
    if metric in LIKELIHOODS:
        return paired_surprise(base_predictions, predictions, metric, resamples=resamples, seed=seed, level=level)
    assert labels is not None
    largest = max(int(ids.max()) for ids in (base_predictions, predictions, labels))
    num_classes = num_classes or max(2, largest + 1)
    value = score(metric, predictions, labels, num_classes)
    return {
        "metric": metric,
        "value": value,
        "difference": value - score(metric, base_predictions, labels, num_classes),
        "interval": bootstrap_interval(
            (base_predictions, predictions, labels), metric, num_classes, resamples=resamples, seed=seed, level=level
        ),
        "p_value": mcnemar(base_predictions == labels, predictions == labels),
        "changed": float(np.mean(base_predictions != predictions)),
        "count": len(labels),
    }


def mcnemar(base_right: npt.NDArray[np.bool_], right: npt.NDArray[np.bool_]) -> float:
    """Return the p-value of McNemar's exact test on two lists of right and wrong answers (N,).

    Only examples that exactly one of the two gets right say anything; under the null each of them falls to
    either side with probability 1/2, which is a binomial test (McNemar 1947; exact form).

    >>> import numpy as np
    >>> mcnemar(np.array([1, 1, 1, 0], dtype=bool), np.array([0, 0, 0, 0], dtype=bool))  # 3 to 0: 2 / 2**3
    0.25
    """
    from scipy.stats import binomtest

    lost, won = int(np.sum(base_right & ~right)), int(np.sum(~base_right & right))
    return float(binomtest(lost, lost + won, 0.5).pvalue) if lost + won else 1.0


def bootstrap_interval(
    examples: tuple[Integers, Integers, Integers],
    metric: str,
    num_classes: int,
    *,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return the percentile interval of the difference (this minus base, points) over resampled examples.

    `examples` are the base's predictions, these predictions and the labels, each (N,). They are drawn with
    replacement, each with its label and both predictions, so that what the two models share cancels (Efron
    and Tibshirani 1993, chapter 13). Examples of one kind (equal in all three) are alike: drawing N examples
    is drawing the K counts of kinds from a multinomial, which needs no (R, N) array.
    """
    triples_N3 = np.stack(examples, axis=1)
    kinds_K3, counts_K = np.unique(triples_N3, axis=0, return_counts=True)
    generator = np.random.default_rng(seed)
    draws_RK = generator.multinomial(len(triples_N3), counts_K / len(triples_N3), size=resamples)
    base_K, this_K, labels_K = kinds_K3.T
    this_R = metric_of_draws(metric, draws_RK, this_K, labels_K, num_classes)
    differences_R = this_R - metric_of_draws(metric, draws_RK, base_K, labels_K, num_classes)
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(differences_R, [tail, 100.0 - tail])
    return float(low), float(high)


def metric_of_draws(
    metric: str, draws_RK: Integers, predictions_K: Integers, labels_K: Integers, num_classes: int
) -> Floats:
    """Return a metric (R,), in percent, of R data sets that hold `draws_RK` examples of each kind.

    The same definitions as `niwaki.task.metrics`, from per-class counts alone.
    """
    classes_C = np.arange(num_classes)
    predicted_RC = (draws_RK @ (predictions_K[:, None] == classes_C)).astype(np.float64)
    actual_RC = (draws_RK @ (labels_K[:, None] == classes_C)).astype(np.float64)
    hits_KC = (predictions_K[:, None] == classes_C) & (labels_K == predictions_K)[:, None]
    hits_RC = (draws_RK @ hits_KC).astype(np.float64)
    if metric == "accuracy":
        return np.asarray(100.0 * hits_RC.sum(axis=1) / actual_RC.sum(axis=1))
    if metric == "f1":
        return 100.0 * _f1(hits_RC, predicted_RC, actual_RC)
    if metric == "mcc":
        return 100.0 * _mcc(hits_RC, predicted_RC, actual_RC)
    raise ValueError(f"no bootstrap for metric {metric!r}")


def _f1(hits_RC: Floats, predicted_RC: Floats, actual_RC: Floats) -> Floats:
    """Return F1 of class 1 of two, or the mean F1 of the classes that occur (R,)."""
    occurring_RC = predicted_RC + actual_RC
    f1_RC = np.divide(2.0 * hits_RC, occurring_RC, out=np.zeros_like(hits_RC), where=occurring_RC > 0)
    if hits_RC.shape[1] == 2:
        return np.asarray(f1_RC[:, 1])
    return np.asarray(f1_RC.sum(axis=1) / (occurring_RC > 0).sum(axis=1))


def _mcc(hits_RC: Floats, predicted_RC: Floats, actual_RC: Floats) -> Floats:
    """Return Matthews' correlation for any number of classes (R,) (Gorodkin 2004, equation 8)."""
    total_R = actual_RC.sum(axis=1)
    covariance_R = hits_RC.sum(axis=1) * total_R - (predicted_RC * actual_RC).sum(axis=1)
    spread_R = (total_R**2 - (predicted_RC**2).sum(axis=1)) * (total_R**2 - (actual_RC**2).sum(axis=1))
    mcc_R = np.divide(covariance_R, np.sqrt(spread_R), out=np.zeros_like(total_R), where=spread_R > 0)
    return np.asarray(mcc_R)
