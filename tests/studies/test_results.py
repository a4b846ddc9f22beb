"""Intervals over topics and training seeds."""

import numpy as np
import pytest

from dualview.evaluation.significance import ByTopic
from dualview.studies.results import seed_and_topic_interval


def alone(matrix):
    """Seeds x queries, each query the only one of its topic."""
    return ByTopic(matrix, np.ones(matrix.shape[1], np.int64))


def test_seeds_widen_the_interval():
    alike = np.tile(np.linspace(0, 1, 50), (3, 1))
    apart = alike + np.array([[-0.2], [0.0], [0.2]])
    narrow, wide = (seed_and_topic_interval(alone(matrix), 500, seed=0) for matrix in (alike, apart))
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_the_interval_is_that_of_draws_of_topics_with_all_their_queries():
    """Compared with a plain loop, with topics of unequal size and two seeds."""
    rng = np.random.default_rng(1)
    topics = [rng.normal(rng.normal(0, 1), 0.3, (2, size)) for size in (1, 5, 2, 9, 3, 4, 7, 1, 2, 6)]
    seeds = [
        {
            (f"t{number}", f"q{place}"): value
            for number, own in enumerate(topics)
            for place, value in enumerate(own[seed])
        }
        for seed in range(2)
    ]
    interval = seed_and_topic_interval(ByTopic.of(seeds), 4000, seed=0)
    means = []
    for _ in range(4000):
        drawn_seeds = rng.integers(2, size=2)
        drawn = [topics[number][drawn_seeds] for number in rng.integers(10, size=10)]
        means.append(np.concatenate(drawn, axis=1).mean())
    assert interval.mean == pytest.approx(np.concatenate(topics, axis=1).mean())
    low, high = np.percentile(means, [2.5, 97.5])
    # two independent draws of 4,000: an end's standard error is about a fiftieth of the width
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.1 * (high - low))


@pytest.mark.parametrize(
    ("spread_of_seeds", "least", "most"),
    [
        (0.0, 0.91, 0.98),
        (0.03, 0.89, 0.97),  # as much as the mean over the queries does
        (0.06, 0.82, 0.92),
        (0.30, 0.68, 0.80),  # of three seeds the bootstrap's interval is from the least to the largest
    ],
)
def test_three_seeds_cover_the_truth_as_often_as_the_readme_says(spread_of_seeds, least, most):
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        of_queries, of_seeds = rng.normal(0, 0.3, (1, 100)), rng.normal(0, spread_of_seeds, (3, 1))
        scores = alone(of_queries + of_seeds + rng.normal(0, 0.1, (3, 100)))
        interval = seed_and_topic_interval(scores, 300, seed=0)
        covered += interval.low <= 0 <= interval.high
    assert least <= covered / 300 <= most
