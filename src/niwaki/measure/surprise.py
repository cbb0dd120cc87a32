"""Compare how surprised two language models are by the same texts: difference, interval, test."""

# N rows (texts), R resamples; (N, 2) holds each row's surprise in nats and its number of tokens

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from niwaki.task.metrics import LIKELIHOODS

Floats = npt.NDArray[np.floating[Any]]
#: Numbers drawn at once: what bounds the memory of a bootstrap over many rows.
DRAWN = 4_000_000


def paired_surprise(
    base_N2: Floats, this_N2: Floats, metric: str, *, resamples: int, seed: int, level: float = 0.95
) -> dict[str, Any]:
    """Score the surprises of a model and compare them with the base's on the same texts.

    Texts are what is drawn, each with all its tokens and both models' surprises: tokens of one text are no independent
    examples. Intervals are percentiles over resampled texts (Efron and Tibshirani 1993, chapter 13).

    Args:
        base_N2: of the base.
        this_N2: of this model, on the same tokens.
        metric: "nats" or "perplexity".
        resamples: of bootstrap and permutations.
        seed: of both.
        level: of the intervals, in (0, 1).
    """
    summarize = LIKELIHOODS[metric]
    values_R, differences_R = [], []
    for draws_RN in _draws(len(this_N2), resamples, np.random.default_rng(seed)):
        base_R, this_R = (_of_draws(summarize, draws_RN, rows_N2) for rows_N2 in (base_N2, this_N2))
        values_R.append(this_R)
        differences_R.append(this_R - base_R)
    value = summarize(this_N2)
    return {
        "metric": metric,
        "higher_is_better": False,
        "value": value,
        "value_interval": _middle(np.concatenate(values_R), level),
        "difference": value - summarize(base_N2),
        "interval": _middle(np.concatenate(differences_R), level),
        "p_value": permutation_p_value(this_N2[:, 0] - base_N2[:, 0], resamples, seed),
        "changed": None,
        "count": len(this_N2),
    }


def permutation_p_value(differences_N: Floats, resamples: int, seed: int) -> float:
    """Return the two-sided p-value of a paired permutation test on each text's difference.

    Under the null either model might have given either number, so each difference might as well have the other sign
    (Fisher 1935); the p-value is the share of drawn signs whose sum is as far from 0, the observed one among them.

    >>> permutation_p_value(np.zeros(4), 99, seed=0)
    1.0
    """
    observed = abs(differences_N.sum()) * (1 - 1e-12)  # a sum in another order is the same sum
    generator = np.random.default_rng(seed)
    extreme = 0
    for count in _parts(len(differences_N), resamples):
        signs_RN = generator.integers(0, 2, size=(count, len(differences_N))) * 2 - 1
        extreme += int(np.sum(np.abs(signs_RN @ differences_N) >= observed))
    return (extreme + 1) / (resamples + 1)


def _draws(rows: int, resamples: int, generator: np.random.Generator) -> Any:
    """Yield how often each row is drawn, (R, N), some resamples at a time."""
    for count in _parts(rows, resamples):
        yield generator.multinomial(rows, np.full(rows, 1.0 / rows), size=count)


def _parts(rows: int, resamples: int) -> list[int]:
    """Cut a number of resamples into parts that fit into memory."""
    size = max(1, DRAWN // rows)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _of_draws(summarize: Callable[[Floats], float], draws_RN: Any, rows_N2: Floats) -> Floats:
    """Return the metric of each resample (R,)."""
    return np.array([summarize(total_2[None]) for total_2 in draws_RN @ rows_N2])


def _middle(values_R: Floats, level: float) -> tuple[float, float]:
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(values_R, [tail, 100.0 - tail])
    return float(low), float(high)
