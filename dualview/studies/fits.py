"""Scaling curves: how a score grows with a budget, and how much data of one kind equals another, with intervals."""

# B = budgets, R = repeats (seeds), T = topics, S = samples

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from dualview.evaluation.significance import ByTopic, Interval

EXPONENTS = (0.01, 5.0)


@dataclass(frozen=True)
class PowerLaw:
    """score(budget) = limit - gain * (budget / unit) ** -exponent; `unit` is the smallest budget fitted."""

    limit: float
    gain: float
    exponent: float
    unit: float

    @property
    def is_determined(self) -> bool:
        """Whether the exponent is inside the search bounds; at a bound, the scores show no curvature to fit."""
        low, high = EXPONENTS
        return 1.01 * low < self.exponent < 0.99 * high

    def at(self, budget: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(
            self.limit - self.gain * (np.asarray(budget, dtype=np.float64) / self.unit) ** -self.exponent
        )

    def budget_for(self, score: float) -> float:
        """The budget at which the curve reaches a score; inf if it never does."""
        missing = (self.limit - score) / self.gain if self.gain else -1.0
        if missing <= 0:
            return float("inf")
        return float(self.unit * missing ** (-1.0 / self.exponent))


def fit_power_law(budgets_B: ArrayLike, scores_B: ArrayLike) -> PowerLaw:
    """Least-squares fit of limit, gain and exponent (within EXPONENTS). Raises ValueError for fewer than 3 budgets.

    For a given exponent the fit is linear, so only the exponent is searched.
    """
    budgets, scores = (np.asarray(values, dtype=np.float64) for values in (budgets_B, scores_B))
    if len(np.unique(budgets)) < 3:
        raise ValueError("a power law with an offset needs scores at three or more budgets")
    unit = float(budgets.min())

    def line(log_exponent: float) -> tuple[float, float, float]:
        """Limit, gain and squared error."""
        x = (budgets / unit) ** -np.exp(log_exponent)
        centred = x - x.mean()
        gain = -float(centred @ scores / (centred @ centred))
        limit = float(scores.mean() + gain * x.mean())
        return limit, gain, float(((limit - gain * x - scores) ** 2).sum())

    grid = np.log(np.geomspace(*EXPONENTS, 30))
    errors = [line(point)[2] for point in grid]
    best = int(np.argmin(errors))
    bounds = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    point = minimize_scalar(lambda log_exponent: line(log_exponent)[2], bounds=bounds, method="bounded").x
    limit, gain, _ = line(point)
    return PowerLaw(limit, gain, float(np.exp(point)), unit)


@dataclass(frozen=True)
class Curve:
    """Scores of one recipe at each budget, for all training seeds, over the same queries."""

    budgets: tuple[float, ...]
    scores: tuple[ByTopic, ...]

    def means(self) -> NDArray[np.float64]:
        return np.array([of_budget.mean() for of_budget in self.scores])

    def resampled(self, topics_T: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.float64]:
        """Means (B,) over the queries of these topics and over seeds drawn with replacement."""
        return np.array(
            [
                of_budget.mean_of(rng.integers(len(of_budget.sums_RT), size=len(of_budget.sums_RT)), topics_T)
                for of_budget in self.scores
            ]
        )


def bootstrap_fits(curves: Sequence[Curve], samples: int, seed: int) -> list[list[PowerLaw]]:
    """For each sample, a fit of every curve over the same draw of topics.

    Raises ValueError if the curves have different topics.
    """
    if len({tuple(scores.counts_T) for curve in curves for scores in curve.scores}) > 1:
        raise ValueError("the curves have different topics; expected the same ones, to share a draw")
    rng = np.random.default_rng(seed)
    num_topics = curves[0].scores[0].num_topics
    draws = (rng.integers(num_topics, size=num_topics) for _ in range(samples))
    return [
        [fit_power_law(curve.budgets, curve.resampled(topics_T, rng)) for curve in curves]
        for topics_T in draws
    ]


def interval_of(value: float, values_S: Sequence[float]) -> Interval:
    """A value with the 95% interval of its samples, which may be infinite."""
    low, high = np.percentile(np.asarray(values_S), [2.5, 97.5], method="nearest")
    return Interval(value, float(low), float(high))


def extrapolated(curve: Curve, budget: float, samples: int, seed: int) -> Interval:
    """The predicted score at a budget that was not run."""
    fitted = fit_power_law(curve.budgets, curve.means())
    values = [float(fit.at(budget)) for (fit,) in bootstrap_fits([curve], samples, seed)]
    return interval_of(float(fitted.at(budget)), values)


def worth_of(first: Curve, second: Curve, budget: float, samples: int, seed: int) -> Interval:
    """How many instances of `second` equal one of `first` at a budget.

    This is the budget at which `second` reaches first's score, divided by `budget`; inf if it never does.
    """
    fits = bootstrap_fits([first, second], samples, seed)

    def worth(of_first: PowerLaw, of_second: PowerLaw) -> float:
        return of_second.budget_for(float(of_first.at(budget))) / budget

    of_means = worth(*(fit_power_law(curve.budgets, curve.means()) for curve in (first, second)))
    return interval_of(of_means, [worth(*pair) for pair in fits])
