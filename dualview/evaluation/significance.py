"""How sure a mean over queries is: bootstrap intervals and a paired randomisation test.

Queries are drawn, not seeds of training: two runs of one recipe may differ by more than these
intervals say. Everything is a function of its arguments.
"""

# Q = queries, S = samples

from collections.abc import Mapping
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 1_000_000  # numbers drawn at a time, so that memory does not grow with the samples


class Interval(NamedTuple):
    """A mean and its 95% interval."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference, its 95% interval, and the probability of one as large if the arms were alike."""

    mean: float
    low: float
    high: float
    p_value: float
    num_queries: int
    num_needed: (
        int  # queries at which four of five samples would tell such a difference from 0; 0 where it is 0
    )


def bootstrap_interval(values_Q: ArrayLike, samples: int, seed: int) -> Interval:
    """Percentile bootstrap of the mean over queries. Raises ValueError without queries. [Efron 1979]"""
    values_Q = _as_values(values_Q)
    rng = np.random.default_rng(seed)
    means_S = np.concatenate(
        [
            values_Q[rng.integers(len(values_Q), size=(rows, len(values_Q)))].mean(axis=1)
            for rows in _blocks(samples, len(values_Q))
        ]
    )
    low, high = np.percentile(means_S, [2.5, 97.5])
    return Interval(float(values_Q.mean()), float(low), float(high))


def sign_flip_test(differences_Q: ArrayLike, samples: int, seed: int) -> float:
    """Two-sided p-value of a mean difference: how often random signs give one as large.

    The observed signs count as one sample, so p is never 0. [Smucker et al., CIKM 2007]
    """
    differences_Q = _as_values(differences_Q)
    observed = abs(differences_Q.sum())
    tolerance = 1e-9 * np.abs(differences_Q).sum()  # equal sums in another order of signs must count as equal
    rng = np.random.default_rng(seed)
    as_large = 0
    for rows in _blocks(samples, len(differences_Q)):
        signs = rng.choice([-1.0, 1.0], size=(rows, len(differences_Q)))
        as_large += int((np.abs(signs @ differences_Q) >= observed - tolerance).sum())
    return (1 + as_large) / (1 + samples)


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], samples: int, seed: int
) -> Difference:
    """First minus second over the same queries, by paired bootstrap: both arms share each draw of queries.

    Raises ValueError where the queries are not the same.
    """
    if first.keys() != second.keys():
        raise ValueError("a paired difference needs the same queries in both arms")
    differences_Q = np.array([first[query_id] - second[query_id] for query_id in sorted(first)])
    interval = bootstrap_interval(differences_Q, samples, seed)
    needed = (_POWER * differences_Q.std() / interval.mean) ** 2 if interval.mean else 0.0
    # As many as the sign-flip test must have to give p < 0.05 at all.
    num_needed = max(6, ceil(needed)) if interval.mean else 0
    p_value = sign_flip_test(differences_Q, samples, seed)
    return Difference(*interval, p_value, len(differences_Q), num_needed)


_POWER = 2.8  # quantiles of the normal distribution at 97.5% and at 80%: a test at 5% with a power of 80%


def _as_values(values_Q: ArrayLike) -> NDArray[np.float64]:
    values_Q = np.asarray(values_Q, dtype=np.float64)
    if values_Q.ndim != 1 or not len(values_Q):
        raise ValueError(f"expected one value a query and at least one query, found shape {values_Q.shape}")
    return values_Q


def _blocks(samples: int, num_queries: int) -> list[int]:
    rows = max(1, BLOCK // num_queries)
    return [min(rows, samples - start) for start in range(0, samples, rows)]
