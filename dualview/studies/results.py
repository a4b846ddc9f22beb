"""A study's results: intervals over topics and training seeds, paired differences, curves, and relative costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dualview.config.study import StudyConfig
from dualview.costs import TrainingCost
from dualview.evaluation.significance import ByTopic, Interval, Key, in_all
from dualview.studies.fits import Curve, PowerLaw, extrapolated, fit_power_law, worth_of
from dualview.studies.plans import Run, budget_of

# Values of one run: "BENCHMARK METRIC" -> (topic, query) -> value, as a fraction. A baseline may lack some: p-MRR is
# undefined for a query if a run file, or BM25, ranks nothing.
Values = Mapping[str, Mapping[Key, float]]
Point = tuple[str, ...]  # of the grid, without its seed
# Training seed -> values; a baseline has the single seed "".
Scores = Mapping[Point, Mapping[str, Values]]
# Metric -> mean and interval; None without values.
Intervals = Mapping[str, Interval | None]
# Values of the axes other than budget and seeds; the first axis comes first.
Recipe = tuple[str, ...]

FIT_SAMPLES = 200  # fewer than for a mean, because each is a fit; enough for the 2.5th percentile


def scores_of_runs(study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]) -> Scores:
    """Scores of the runs that have values, by point."""
    scores: dict[Point, dict[str, Values]] = {}
    for run in runs:
        if run.folder in values:
            point = tuple(value for axis, value in run.point.items() if axis != study.seeds)
            scores.setdefault(point, {})[run.point[study.seeds]] = values[run.folder]
    return scores


def scores_of_baselines(study: StudyConfig, baselines: Mapping[str, Values]) -> Scores:
    """Scores of each baseline, at the point (name, "", ...): it has no values on the other axes."""
    num_further_axes = len([axis for axis in study.axes if axis != study.seeds]) - 1
    return {(name, *[""] * num_further_axes): {"": values} for name, values in baselines.items()}


# --- intervals ------------------------------------------------------------------------------------


def seed_and_topic_interval(scores: ByTopic, samples: int, seed: int) -> Interval:
    """Bootstrap of the mean over seeds and topics, both drawn with replacement. scores: one row per seed."""
    rng = np.random.default_rng(seed)
    num_seeds, num_topics = len(scores.sums_RT), scores.num_topics
    means = [
        scores.mean_of(rng.integers(num_seeds, size=num_seeds), rng.integers(num_topics, size=num_topics))
        for _ in range(samples)
    ]
    return scores.interval(np.array(means))


def intervals_of(study: StudyConfig, of_seeds: Sequence[Values]) -> Intervals:
    """Intervals over the queries that all seeds have."""
    return {
        metric: _interval(study, in_all([values[metric] for values in of_seeds])) for metric in study.metrics
    }


def _interval(study: StudyConfig, of_seeds: Sequence[Mapping[Key, float]]) -> Interval | None:
    """None without queries."""
    if not of_seeds[0]:
        return None
    return seed_and_topic_interval(ByTopic.of(of_seeds), study.bootstrap_samples, seed=0)


@dataclass(frozen=True)
class Difference:
    """First minus second at one point of the axes after the first."""

    first: str
    second: str
    further: Point
    num_seeds: int
    intervals: Intervals


def differences(study: StudyConfig, scores: Scores, baselines: Mapping[str, Values]) -> list[Difference]:
    """Paired over the queries and seeds that both have; omits pairs without a common seed."""
    found = []
    for first, second in study.compare:
        for (recipe, *further), of_seeds in scores.items():
            if recipe != first:
                continue
            # A baseline is the same for all points and seeds.
            of_baseline = dict.fromkeys(of_seeds, baselines[second]) if second in baselines else {}
            of_second = of_baseline or scores.get((second, *further), {})
            pairs = [(values, of_second[seed]) for seed, values in of_seeds.items() if seed in of_second]
            if pairs:
                intervals = {metric: _paired_interval(study, pairs, metric) for metric in study.metrics}
                found.append(Difference(first, second, tuple(further), len(pairs), intervals))
    return found


def _paired_interval(
    study: StudyConfig, pairs: Sequence[tuple[Values, Values]], metric: str
) -> Interval | None:
    """Interval of first minus second over the queries that all runs have; None if there are none."""
    arms = in_all([values[metric] for pair in pairs for values in pair])
    return _interval(
        study,
        [
            {key: first[key] - second[key] for key in first}
            for first, second in zip(arms[::2], arms[1::2], strict=True)
        ],
    )


@dataclass(frozen=True)
class Lack:
    """A baseline lacks values of a metric for some queries that other arms have."""

    baseline: str
    metric: str
    num_missing: int
    num_queries: int


def lacks(study: StudyConfig, scores: Scores, baselines: Mapping[str, Values]) -> list[Lack]:
    found = []
    for metric in study.metrics:
        queries = {
            key for of_seeds in scores.values() for values in of_seeds.values() for key in values[metric]
        }
        for name, values in baselines.items():
            if num_missing := len(queries - values[metric].keys()):
                found.append(Lack(name, metric, num_missing, len(queries)))
    return found


# --- curves over the budget -----------------------------------------------------------------------


@dataclass(frozen=True)
class FittedCurve:
    """A recipe's scores in one metric at each budget, and the power law fitted to them."""

    recipe: Recipe
    metric: str
    curve: Curve
    scores: Sequence[Interval]  # at each budget
    fit: PowerLaw
    ahead: Interval  # at four times the largest budget


def fitted_curves(study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]) -> list[FittedCurve]:
    """A curve for each recipe with three or more budgets; none if the runs' budgets have different units."""
    if len({unit for run in runs for unit in budget_of(run)}) != 1:
        return []
    by_recipe: dict[Recipe, list[Run]] = {}
    for run in runs:
        if run.folder in values:
            by_recipe.setdefault(_recipe(study, run), []).append(run)
    fitted = []
    for recipe, of_recipe in by_recipe.items():
        budgets = sorted({_amount(run) for run in of_recipe})
        if len(budgets) < 3:
            continue
        by_budget = [
            [values[run.folder] for run in of_recipe if _amount(run) == budget] for budget in budgets
        ]
        for metric in study.metrics:
            scores = tuple(ByTopic.of([of_seed[metric] for of_seed in of_budget]) for of_budget in by_budget)
            fitted.append(_fitted(study, recipe, metric, Curve(tuple(budgets), scores)))
    return fitted


def _fitted(study: StudyConfig, recipe: Recipe, metric: str, curve: Curve) -> FittedCurve:
    return FittedCurve(
        recipe,
        metric,
        curve,
        [seed_and_topic_interval(of_seeds, study.bootstrap_samples, seed=0) for of_seeds in curve.scores],
        fit_power_law(curve.budgets, curve.means()),
        extrapolated(curve, 4 * curve.budgets[-1], FIT_SAMPLES, seed=0),
    )


def _recipe(study: StudyConfig, run: Run) -> Recipe:
    """The run's values on the first axis and on all others except budget and seeds."""
    first, *further = study.axes

    def is_of_budget(axis: str) -> bool:
        return any(key.startswith("budget") for settings in study.axes[axis].values() for key in settings)

    kept = [axis for axis in further if axis != study.seeds and not is_of_budget(axis)]
    return tuple(run.point[axis] for axis in (first, *kept))


def _amount(run: Run) -> float:
    [amount] = budget_of(run).values()
    return float(amount or 0)


@dataclass(frozen=True)
class Worth:
    """How many units the second recipe needs to match one unit of the first."""

    first: Recipe
    second: Recipe
    metric: str
    of_budget: Interval  # in units of the budget
    # Unit of cost -> cost of a unit of budget under the second recipe, relative to the first.
    ratios: Mapping[str, float | None]

    def in_unit(self, unit: str) -> tuple[float, ...] | None:
        """Mean, low and high; None if one of the recipes has no cost in this unit."""
        ratio = self.ratios[unit]
        return None if ratio is None else tuple(ratio * value for value in self.of_budget)


def worths(
    study: StudyConfig, runs: Sequence[Run], curves: Sequence[FittedCurve], costs: Mapping[str, TrainingCost]
) -> list[Worth]:
    """Worth for each pair of recipes that the study compares, at the largest budget that both have."""
    by_recipe = {(fitted.recipe, fitted.metric): fitted.curve for fitted in curves}
    recipes = list(dict.fromkeys(fitted.recipe for fitted in curves))
    found = []
    for first, second in study.compare:
        for recipe in recipes:
            other = (second, *recipe[1:])
            if recipe[0] != first or other not in recipes:
                continue
            ratios = {
                unit: _cost_ratio(study, runs, costs, (recipe, other), unit)
                for unit in units_of_cost(study, costs)
            }
            for metric in study.metrics:
                pair = by_recipe[recipe, metric], by_recipe[other, metric]
                largest = min(curve.budgets[-1] for curve in pair)  # failed runs may be missing
                of_budget = worth_of(*pair, largest, FIT_SAMPLES, seed=0)
                found.append(Worth(recipe, other, metric, of_budget, ratios))
    return found


def _cost_ratio(
    study: StudyConfig,
    runs: Sequence[Run],
    costs: Mapping[str, TrainingCost],
    pair: tuple[Recipe, Recipe],
    unit: str,
) -> float | None:
    """Cost of a unit of budget under the second recipe relative to the first; None if either is 0."""

    def cost(recipe: Recipe) -> float:
        finished = [run for run in runs if _recipe(study, run) == recipe and run.folder in costs]
        spent = sum(costs[run.folder].in_units(study.price).get(unit, 0.0) for run in finished)
        return spent / sum(map(_amount, finished)) if finished else 0.0

    first, second = map(cost, pair)
    return second / first if first and second else None


def units_of_cost(study: StudyConfig, costs: Mapping[str, TrainingCost]) -> list[str]:
    return list(dict.fromkeys(unit for cost in costs.values() for unit in cost.in_units(study.price)))
