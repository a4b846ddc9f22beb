from itertools import product

import numpy as np
import pytest
from scipy import stats

from dualview.evaluation import significance
from dualview.evaluation.significance import bootstrap_interval, paired_difference, sign_flip_test


def test_the_interval_covers_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(300):
        interval = bootstrap_interval(rng.normal(0.3, 0.2, size=60), samples=500, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    # binomial(300, 0.95) stays within four standard deviations (0.013 each); percentile intervals run 1% short
    assert 0.89 <= covered / 300 <= 1.0


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(1).beta(2, 5, size=80)
    interval = bootstrap_interval(values, samples=20_000, seed=0)
    reference = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    # two independent draws: each end has a standard error below 0.0003
    assert interval.low == pytest.approx(reference.confidence_interval.low, abs=0.002)
    assert interval.high == pytest.approx(reference.confidence_interval.high, abs=0.002)
    assert interval.mean == pytest.approx(values.mean())


def test_the_seed_decides_and_nothing_else(monkeypatch):
    values = np.random.default_rng(2).normal(size=50)
    once = bootstrap_interval(values, samples=1000, seed=3)
    assert bootstrap_interval(values, samples=1000, seed=3) == once
    assert bootstrap_interval(values, samples=1000, seed=4) != once
    monkeypatch.setattr(significance, "BLOCK", 70)  # one sample a block, and many blocks
    assert bootstrap_interval(values, samples=1000, seed=3) == pytest.approx(once)


def test_one_query_has_an_interval_without_width():
    assert bootstrap_interval([0.4], samples=100, seed=0) == (0.4, 0.4, 0.4)


def test_no_query_is_refused():
    with pytest.raises(ValueError, match="at least one query"):
        bootstrap_interval([], samples=100, seed=0)


def test_identical_arms_differ_by_exactly_nothing():
    values = {
        str(number): float(value) for number, value in enumerate(np.random.default_rng(0).normal(size=40))
    }
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
    first = {str(number): value + 0.1 for number, value in enumerate(difficulty)}
    second = {str(number): value + rng.normal(0, 0.05) for number, value in enumerate(difficulty)}
    difference = paired_difference(first, second, samples=2000, seed=0)
    assert difference.low > 0.05
    assert difference.high < 0.15
    assert difference.p_value == pytest.approx(1 / 2001)
    alone = bootstrap_interval(list(first.values()), samples=2000, seed=0)
    assert alone.high - alone.low > 0.3


def test_other_queries_are_refused():
    with pytest.raises(ValueError, match="same queries"):
        paired_difference({"a": 0.1}, {"b": 0.1}, samples=10, seed=0)


@pytest.mark.parametrize("differences", [[0.1, 0.2, 0.3, -0.1, 0.25, 0.3, 0.1, 0.2], [0.5, -0.4, 0.1, 0.1]])
def test_the_p_value_is_that_of_all_signs(differences):
    sums = [abs(np.dot(signs, differences)) for signs in product([-1, 1], repeat=len(differences))]
    exact = np.mean([total >= abs(sum(differences)) - 1e-12 for total in sums])
    # 20,000 draws: standard error at most 0.0036
    assert sign_flip_test(differences, samples=20_000, seed=0) == pytest.approx(exact, abs=0.015)


def test_the_number_of_queries_that_a_difference_needs():
    """By simulation: with num_needed queries a z-test at 5% finds the difference in about 80% of samples."""
    rng = np.random.default_rng(0)
    pilot = rng.normal(0.3, 1, size=4000)
    found = paired_difference(
        {str(n): float(value) for n, value in enumerate(pilot)},
        dict.fromkeys(map(str, range(4000)), 0.0),
        9,
        0,
    )
    samples = rng.choice(pilot, size=(2000, found.num_needed))
    z = samples.mean(axis=1) / samples.std(axis=1) * found.num_needed**0.5
    assert np.mean(np.abs(z) > 1.96) == pytest.approx(0.8, abs=0.04)
    few = paired_difference({"a": 1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}, 9, 0)
    assert few.num_needed == 6  # however large: the signs of five queries give no p below 0.05
