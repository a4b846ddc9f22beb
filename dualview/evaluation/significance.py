"""Uncertainty of a mean over queries: bootstrap intervals and a paired randomisation test.

The bootstrap draws topics, each with all of its scored queries, because ten instructions for one query carry much less
information than ten queries. It does not draw training seeds: two runs of one recipe may differ by more than these
intervals. Results depend only on the arguments, and not on the order of a mapping.
"""

# Q = queries with a score, T = topics, R = arms or repeats, S = samples

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

Key = tuple[str, str]  # id of the topic, id of the query

BLOCK = 1_000_000  # numbers drawn at a time, so that memory does not grow with the samples


class Interval(NamedTuple):
    """A mean and its 95% interval; infinite for a single topic, which does not show how topics vary."""

    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """A mean difference, its 95% interval, and the probability of one as large if the arms were equivalent."""

    mean: float
    low: float
    high: float
    p_value: float
    num_topics: int
    # Topics needed to detect a difference of this size with a power of 80%; 0 if it is 0.
    num_needed: int


@dataclass(frozen=True)
class ByTopic:
    """Scores of one or more arms over the same queries, summed by topic."""

    sums_RT: NDArray[np.float64]
    counts_T: NDArray[np.int64]  # queries of each topic

    @classmethod
    def of(cls, arms: Sequence[Mapping[Key, float]]) -> Self:
        """Raises ValueError if there is no query, or if two arms have different queries."""
        if not arms or not arms[0]:
            raise ValueError("expected at least one query")
        if any(arm.keys() != arms[0].keys() for arm in arms):
            raise ValueError("expected the same queries in all arms")
        keys = sorted(arms[0])
        starts_T = [
            place for place, (topic, _) in enumerate(keys) if not place or topic != keys[place - 1][0]
        ]
        values_RQ = np.array([[arm[key] for key in keys] for arm in arms], np.float64)
        return cls(np.add.reduceat(values_RQ, starts_T, axis=1), np.diff([*starts_T, len(keys)]))

    @property
    def num_topics(self) -> int:
        return len(self.counts_T)

    def mean(self) -> float:
        """Mean over queries and arms: each topic is weighted by its number of queries."""
        return float(self.sums_RT.sum() / (len(self.sums_RT) * self.counts_T.sum()))

    def mean_of(self, arms_R: NDArray[np.int64], topics_T: NDArray[np.int64]) -> float:
        """The same over resampled arms and topics."""
        drawn = self.sums_RT[arms_R][:, topics_T]
        return float(drawn.sum() / (len(arms_R) * self.counts_T[topics_T].sum()))

    def interval(self, means_S: NDArray[np.float64]) -> Interval:
        """The mean, with the 2.5th and 97.5th percentiles of its samples."""
        if self.num_topics == 1:
            return Interval(self.mean(), -np.inf, np.inf)
        low, high = np.percentile(means_S, [2.5, 97.5])
        return Interval(self.mean(), float(low), float(high))


def in_all(arms: Sequence[Mapping[Key, float]]) -> list[dict[Key, float]]:
    """The arms over the queries that all of them have: p-MRR is undefined for queries that a run file lacks."""
    common = set(arms[0]).intersection(*arms[1:]) if arms else set()
    return [{key: arm[key] for key in common} for arm in arms]


def num_topics(values: Mapping[Key, float]) -> int:
    return len({topic for topic, _ in values})


def bootstrap_interval(values: Mapping[Key, float], samples: int, seed: int) -> Interval:
    """Percentile bootstrap of the mean over queries, resampling topics. Raises ValueError without queries.

    [Efron 1979; cluster bootstrap: Davison and Hinkley 1997, section 3.8]
    """
    scores = ByTopic.of([values])
    [sums_T] = scores.sums_RT
    rng = np.random.default_rng(seed)
    means_S = []
    for rows in _blocks(samples, scores.num_topics):
        topics_ST = rng.integers(scores.num_topics, size=(rows, scores.num_topics))
        means_S.append(sums_T[topics_ST].sum(axis=1) / scores.counts_T[topics_ST].sum(axis=1))
    return scores.interval(np.concatenate(means_S))


def sign_flip_test(differences: Mapping[Key, float], samples: int, seed: int) -> float:
    """Two-sided p-value of a mean difference: how often random signs, one per topic, give one as large.

    The observed signs count as one sample, so p is never 0. [Smucker et al., CIKM 2007]
    """
    [sums_T] = ByTopic.of([differences]).sums_RT
    observed = abs(sums_T.sum())
    tolerance = 1e-9 * np.abs(sums_T).sum()  # sums that differ only by rounding count as equal
    rng = np.random.default_rng(seed)
    as_large = 0
    for rows in _blocks(samples, len(sums_T)):
        signs_ST = rng.choice([-1.0, 1.0], size=(rows, len(sums_T)))
        as_large += int((np.abs(signs_ST @ sums_T) >= observed - tolerance).sum())
    return (1 + as_large) / (1 + samples)


def paired_difference(
    first: Mapping[Key, float], second: Mapping[Key, float], samples: int, seed: int
) -> Difference:
    """First minus second by paired bootstrap: both arms share each draw of topics.

    Raises ValueError if the queries are not the same.
    """
    if first.keys() != second.keys():
        raise ValueError("a paired difference needs the same queries in both arms")
    differences = {key: first[key] - second[key] for key in first}
    interval = bootstrap_interval(differences, samples, seed)
    p_value = sign_flip_test(differences, samples, seed)
    scores = ByTopic.of([differences])
    return Difference(*interval, p_value, scores.num_topics, _num_needed(scores, interval.mean))


_POWER = 2.8  # quantiles of the normal distribution at 97.5% and at 80%: a test at 5% with a power of 80%


def _num_needed(differences: ByTopic, mean: float) -> int:
    if not mean:
        return 0
    # Spread of a mean over topics of unequal size; with one query per topic, the standard deviation.
    residuals_T = differences.sums_RT[0] - mean * differences.counts_T
    spread = np.sqrt((residuals_T**2).mean()) / differences.counts_T.mean()
    # With fewer than 6 topics the sign-flip test cannot reach p < 0.05.
    return max(6, ceil(float((_POWER * spread / mean) ** 2)))


def _blocks(samples: int, num_topics: int) -> list[int]:
    rows = max(1, BLOCK // num_topics)
    return [min(rows, samples - start) for start in range(0, samples, rows)]
