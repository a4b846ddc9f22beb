from itertools import product

import numpy as np
import pytest
from scipy import stats

from dualview.evaluation import significance
from dualview.evaluation.significance import bootstrap_interval, in_all, paired_difference, sign_flip_test


def alone(values):
    """Values of queries that are each the only one of their topic."""
    return {(f"{number:05d}", f"{number:05d}"): float(value) for number, value in enumerate(values)}


def grouped(topics):
    """Topics of several queries each."""
    return {
        (f"{topic:05d}", f"{topic}_{number}"): float(value)
        for topic, values in enumerate(topics)
        for number, value in enumerate(values)
    }


def topics_of_instructions(rng, num_topics, num_queries):
    """A topic is easy or hard under all of its instructions."""
    return 0.3 + rng.normal(0, 0.2, (num_topics, 1)) + rng.normal(0, 0.1, (num_topics, num_queries))


@pytest.mark.parametrize("num_queries", [1, 10])
def test_the_interval_covers_the_truth_about_95_times_in_100(num_queries):
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        values = grouped(topics_of_instructions(rng, 60, num_queries))
        interval = bootstrap_interval(values, samples=500, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    # binomial(300, 0.95) stays within four standard deviations (0.013 each); percentile intervals run 1% short
    assert 0.89 <= covered / 300 <= 1.0


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(1).beta(2, 5, size=80)
    interval = bootstrap_interval(alone(values), samples=20_000, seed=0)
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    # two independent draws: each end has a standard error below 0.0003
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.002)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.002)
    assert interval.mean == pytest.approx(values.mean())


TOPICS = [[0.9, 0.8, 0.95], [0.1], [0.5, 0.4], [0.3, 0.35, 0.2, 0.3], [0.7], [0.65, 0.6]]


def test_the_interval_is_that_of_all_draws_of_topics():
    """With topics of unequal size: the mean over all queries of the topics drawn."""
    means = [np.mean(np.concatenate(draw)) for draw in product(TOPICS, repeat=len(TOPICS))]
    interval = bootstrap_interval(grouped(TOPICS), samples=100_000, seed=0)
    assert interval.mean == pytest.approx(np.mean(np.concatenate(TOPICS)))
    # 46,656 draws: the ends of 100,000 samples have a standard error below 0.001
    assert (interval.low, interval.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.005)


def test_ten_instructions_that_say_the_same_tell_nothing_more_than_one():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.1, 1, 40), rng.normal(0, 1, 40)
    once = paired_difference(alone(first), alone(second), samples=1000, seed=0)
    first, second = (grouped([[value] * 10 for value in values]) for values in (first, second))
    assert paired_difference(first, second, samples=1000, seed=0) == pytest.approx(once)
    assert once.num_topics == 40


def test_the_seed_decides_and_nothing_else(monkeypatch):
    values = grouped(np.random.default_rng(2).normal(size=(50, 3)))
    once = bootstrap_interval(values, samples=1000, seed=3)
    assert bootstrap_interval(dict(reversed(values.items())), samples=1000, seed=3) == once
    assert bootstrap_interval(values, samples=1000, seed=4) != once
    monkeypatch.setattr(significance, "BLOCK", 70)  # one sample a block, and many blocks
    assert bootstrap_interval(values, samples=1000, seed=3) == pytest.approx(once)


@pytest.mark.parametrize("values", [[0.4], [0.3, 0.5]])
def test_one_topic_shows_nothing_of_how_topics_differ(values):
    assert bootstrap_interval(grouped([values]), samples=100, seed=0) == pytest.approx((0.4, -np.inf, np.inf))
    difference = paired_difference(grouped([values]), grouped([[0.0] * len(values)]), samples=100, seed=0)
    assert (difference.p_value, difference.num_topics, difference.num_needed) == (1, 1, 6)


def test_no_query_is_refused():
    with pytest.raises(ValueError, match="at least one query"):
        bootstrap_interval({}, samples=100, seed=0)


def test_identical_arms_differ_by_exactly_nothing():
    values = alone(np.random.default_rng(0).normal(size=40))
    assert paired_difference(values, dict(reversed(values.items())), samples=500, seed=0) == (
        0,
        0,
        0,
        1,
        40,
        0,
    )


def test_pairing_finds_what_the_spread_of_the_queries_hides():
    rng = np.random.default_rng(0)
    difficulty = rng.normal(0, 1, size=100)
    first, second = alone(difficulty + 0.1), alone(difficulty + rng.normal(0, 0.05, 100))
    difference = paired_difference(first, second, samples=2000, seed=0)
    assert difference.low > 0.05
    assert difference.high < 0.15
    assert difference.p_value == pytest.approx(1 / 2001)
    own = bootstrap_interval(first, samples=2000, seed=0)
    assert own.high - own.low > 0.3


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="same queries"):
        paired_difference({("a", "a"): 0.1}, {("b", "b"): 0.1}, samples=10, seed=0)


def test_what_all_arms_have():
    arms = [{("t", "1"): 1.0, ("t", "2"): 2.0, ("u", "1"): 3.0}, {("t", "2"): 4.0, ("u", "1"): 5.0}]
    assert in_all(arms) == [{("t", "2"): 2.0, ("u", "1"): 3.0}, {("t", "2"): 4.0, ("u", "1"): 5.0}]
    assert in_all([*arms, {("t", "1"): 6.0}]) == [{}, {}, {}]


@pytest.mark.parametrize(
    "topics",
    [
        [[0.1], [0.2], [0.3], [-0.1], [0.25], [0.3], [0.1], [0.2]],
        [[0.5], [-0.4], [0.1], [0.1]],
        [[0.1, 0.2, 0.3, -0.1], [0.25, 0.3], [0.1], [-0.2, 0.05]],  # of 16 assignments, not of 512
    ],
)
def test_the_p_value_is_that_of_all_signs_of_topics(topics):
    sums = [sum(topic) for topic in topics]
    flipped = [abs(np.dot(signs, sums)) for signs in product([-1, 1], repeat=len(sums))]
    exact = np.mean([total >= abs(sum(sums)) - 1e-12 for total in flipped])
    # 20,000 draws: standard error at most 0.0036
    assert sign_flip_test(grouped(topics), samples=20_000, seed=0) == pytest.approx(exact, abs=0.015)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9)], ids=["alike", "of unlike size"])
def test_the_number_of_topics_that_a_difference_needs(sizes):
    """By simulation: with num_needed topics a z-test at 5% finds the difference in about 80% of samples."""
    rng = np.random.default_rng(0)
    pilot = [rng.normal(rng.normal(0.3, 1), 0.5, rng.integers(*sizes, endpoint=True)) for _ in range(4000)]
    values = grouped(pilot)
    found = paired_difference(values, dict.fromkeys(values, 0.0), 9, 0)
    sums, counts = np.array([topic.sum() for topic in pilot]), np.array([len(topic) for topic in pilot])
    drawn = rng.integers(len(pilot), size=(2000, found.num_needed))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    residuals = sums[drawn] - means[:, None] * counts[drawn]
    z = means / (residuals.std(axis=1) / counts[drawn].mean(axis=1)) * found.num_needed**0.5
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.04)


def test_few_topics_give_no_small_p_however_large_the_difference():
    few = paired_difference(alone([1.0, 1.0]), alone([0.0, 0.0]), 9, 0)
    assert few.num_needed == 6  # the signs of five topics give no p below 0.05
