import numpy as np
import pytest

from dualview.evaluation.significance import ByTopic
from dualview.studies.fits import (
    Curve,
    PowerLaw,
    bootstrap_fits,
    extrapolated,
    fit_power_law,
    interval_of,
    worth_of,
)

BUDGETS = (100.0, 200.0, 400.0, 800.0, 1600.0)


@pytest.mark.parametrize("exponent", [0.2, 0.5, 1.0, 2.0])
def test_an_exact_curve_is_found_again(exponent):
    law = PowerLaw(limit=0.6, gain=0.4, exponent=exponent, unit=100.0)
    found = fit_power_law(BUDGETS, law.at(BUDGETS))
    assert (found.limit, found.gain, found.exponent) == pytest.approx((0.6, 0.4, exponent), rel=1e-3)
    assert found.budget_for(0.5) == pytest.approx(100 * 4 ** (1 / exponent), rel=1e-3)


def test_a_score_above_the_limit_is_never_reached():
    assert PowerLaw(0.6, 0.4, 0.5, 100.0).budget_for(0.7) == float("inf")


def test_two_budgets_make_no_curve():
    with pytest.raises(ValueError, match="budgets"):
        fit_power_law([100, 200, 200], [0.1, 0.2, 0.2])


def scores(values_RT):
    """A query a topic."""
    return ByTopic(np.array(values_RT), np.ones(len(values_RT[0]), np.int64))


def noisy(law, rng, num_seeds=3, num_queries=60):
    """Scores that vary between queries and between training seeds, as in a study."""
    of_query = rng.normal(0, 0.15, num_queries)
    return Curve(
        BUDGETS,
        tuple(
            scores(
                [
                    law.at(budget) + of_query + rng.normal(0, 0.004) + rng.normal(0, 0.02, num_queries)
                    for _ in range(num_seeds)
                ]
            )
            for budget in BUDGETS
        ),
    )


def test_intervals_hold_the_known_exponent_in_95_of_100_repeats():
    law = PowerLaw(limit=0.6, gain=0.4, exponent=0.7, unit=100.0)
    held = 0
    for repeat in range(100):
        curve = noisy(law, np.random.default_rng(repeat))
        own = fit_power_law(curve.budgets, curve.means())
        fits = bootstrap_fits([curve], samples=100, seed=repeat)
        _, low, high = interval_of(own.exponent, [fit.exponent for (fit,) in fits])
        held += low <= law.exponent <= high
    # 95 of 100 in the mean; fewer than 88 has a chance of 1 in 500
    assert held >= 88


def test_twice_the_data_is_worth_half():
    """The second curve is the first one at half the budget: one instance of the first is worth two of the second."""
    law = PowerLaw(limit=0.6, gain=0.4, exponent=0.7, unit=100.0)
    rng = np.random.default_rng(0)
    first, second = (
        Curve(
            BUDGETS,
            tuple(scores([law.at([times * budget] * 50) + rng.normal(0, 1e-4, 50)]) for budget in BUDGETS),
        )
        for times in (2, 1)
    )
    value, low, high = worth_of(first, second, 400.0, samples=100, seed=0)
    assert value == pytest.approx(2.0, rel=0.01)
    assert low <= 2.0 <= high
    assert high - low < 0.1


def test_extrapolation_has_an_interval_that_holds_the_truth():
    law = PowerLaw(limit=0.6, gain=0.4, exponent=0.7, unit=100.0)
    rng = np.random.default_rng(3)
    curve = Curve(
        BUDGETS,
        tuple(
            scores([law.at([budget] * 50) + rng.normal(0, 1e-3, 50) for _ in range(3)]) for budget in BUDGETS
        ),
    )
    value, low, high = extrapolated(curve, 6400.0, samples=200, seed=0)
    assert low <= float(law.at(6400.0)) <= high
    assert low <= value <= high


def test_queries_of_a_topic_are_drawn_together():
    """Ten queries of each topic that say the same: the interval is that of one."""
    once = noisy(PowerLaw(limit=0.6, gain=0.4, exponent=0.7, unit=100.0), np.random.default_rng(0))
    often = Curve(BUDGETS, tuple(ByTopic(10 * each.sums_RT, 10 * each.counts_T) for each in once.scores))
    assert extrapolated(often, 6400.0, samples=50, seed=0) == pytest.approx(
        extrapolated(once, 6400.0, samples=50, seed=0)
    )
    assert worth_of(often, often, 400.0, samples=50, seed=0) == pytest.approx(
        worth_of(once, once, 400.0, samples=50, seed=0)
    )


def test_curves_over_other_topics_share_no_draw():
    curve = noisy(PowerLaw(limit=0.6, gain=0.4, exponent=0.7, unit=100.0), np.random.default_rng(0))
    fewer = Curve(BUDGETS, tuple(ByTopic(each.sums_RT[:, 1:], each.counts_T[1:]) for each in curve.scores))
    with pytest.raises(ValueError, match="different topics"):
        bootstrap_fits([curve, fewer], samples=5, seed=0)
