"""A study's figures as Markdown: means, paired differences and curves, with intervals over queries and seeds."""

# Q = queries

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dualview.config import StudyConfig
from dualview.evaluation.significance import Interval
from dualview.studies.fits import Curve, extrapolated, fit_power_law, worth_of
from dualview.studies.plans import Run, budget_of, table_of

# Values of one run: metric -> query id -> value, as a fraction.
Values = Mapping[str, Mapping[str, float]]


def grid_table(runs: Sequence[Run]) -> str:
    rows = table_of(runs)
    return markdown_table(list(rows[0]), [list(row.values()) for row in rows])


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cells_of(
    study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]
) -> dict[tuple[str, ...], list[Values]]:
    """Runs by their point without the seed; of each the values of its seeds. values: by a run's folder."""
    cells: dict[tuple[str, ...], list[Values]] = {}
    for run in runs:
        point = tuple(value for axis, value in run.point.items() if axis != study.seeds)
        if run.folder in values:
            cells.setdefault(point, []).append(values[run.folder])
    return cells


def _matrix(of_seeds: Sequence[Values], metric: str) -> NDArray[np.float64]:
    """(seeds, Q), queries in one order."""
    queries = sorted(of_seeds[0][metric])
    return np.array([[of_seed[metric][query] for query in queries] for of_seed in of_seeds])


def seed_and_query_interval(matrix: NDArray[np.float64], samples: int, seed: int) -> Interval:
    """Bootstrap of the mean over both seeds and queries, each drawn with replacement."""
    rng = np.random.default_rng(seed)
    num_seeds, num_queries = matrix.shape
    means = [
        matrix[rng.integers(num_seeds, size=num_seeds)][:, rng.integers(num_queries, size=num_queries)].mean()
        for _ in range(samples)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(matrix.mean()), float(low), float(high))


def report(
    study: StudyConfig,
    runs: Sequence[Run],
    values: Mapping[str, Values],
    costs: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, str],
) -> str:
    """All of it: figures, differences, curves where there are three budgets, costs, what failed."""
    cells = cells_of(study, runs, values)
    axes = [axis for axis in study.axes if axis != study.seeds]
    parts = [
        f"# Study\n\nx100, with 95% intervals over queries and {len(study.axes[study.seeds])} seeds of training.\n"
    ]
    parts.append(
        markdown_table(
            [*axes, "seeds", *study.metrics],
            [
                [
                    *point,
                    str(len(of_seeds)),
                    *(_shown(_interval(study, of_seeds, metric)) for metric in study.metrics),
                ]
                for point, of_seeds in cells.items()
            ],
        )
    )
    if rows := _differences(study, cells):
        parts.append("## Differences\n\nPaired: the same queries, and the same seeds of training.\n")
        parts.append(markdown_table(["difference", *axes[1:], *study.metrics], rows))
    if rows := _curves(study, runs, values):
        parts.append(
            "## Curves\n\nPower law with an offset, fitted to the means. *Worth*: how many instances of the second are worth"
            " one of the first, at the largest budget.\n"
        )
        parts.append(markdown_table(["", "metric", "limit", "exponent", "at 4 x the largest budget"], rows))
        parts.append(markdown_table(["first, second", "metric", "worth"], _worths(study, runs, values)))
    parts.append("## Costs\n")
    parts.append(
        markdown_table(
            [*study.axes, "spent", "steps", "seconds"],
            [
                [
                    *run.point.values(),
                    ", ".join(f"{amount:,} {unit}" for unit, amount in budget_of(run).items()),
                    str(costs[run.folder]["steps"]),
                    f"{costs[run.folder]['seconds_since_resume']:.0f}",
                ]
                for run in runs
                if run.folder in costs
            ],
        )
    )
    if failed:
        parts.append("## Failed\n")
        parts += [f"- {run.name}: {failed[run.folder]}\n" for run in runs if run.folder in failed]
    return "\n".join(parts)


def _interval(study: StudyConfig, of_seeds: Sequence[Values], metric: str) -> Interval:
    return seed_and_query_interval(_matrix(of_seeds, metric), study.bootstrap_samples, seed=0)


def _shown(interval: Interval, sign: str = "") -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:{sign}.1f} [{low:.1f}, {high:.1f}]"


def _differences(study: StudyConfig, cells: Mapping[tuple[str, ...], list[Values]]) -> list[list[str]]:
    rows = []
    for first, second in study.compare:
        for (recipe, *rest), of_seeds in cells.items():
            others = cells.get((second, *rest), [])
            if recipe != first or len(others) != len(of_seeds):
                continue
            differences = [_matrix(of_seeds, metric) - _matrix(others, metric) for metric in study.metrics]
            intervals = [seed_and_query_interval(own, study.bootstrap_samples, seed=0) for own in differences]
            rows.append(
                [f"{first} minus {second}", *rest, *(_shown(interval, "+") for interval in intervals)]
            )
    return rows


def curve_of(
    study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values], recipe: str, metric: str
) -> Curve | None:
    """A recipe's scores by budget; None where there are fewer than three budgets."""
    recipes = next(iter(study.axes))
    by_budget: dict[float, list[NDArray[np.float64]]] = {}
    for run in runs:
        if run.point[recipes] == recipe and run.folder in values:
            [amount] = budget_of(run).values()
            by_budget.setdefault(float(amount or 0), []).append(_matrix([values[run.folder]], metric)[0])
    if len(by_budget) < 3:
        return None
    return Curve(tuple(sorted(by_budget)), tuple(tuple(by_budget[budget]) for budget in sorted(by_budget)))


def _curves(study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]) -> list[list[str]]:
    rows = []
    for recipe in next(iter(study.axes.values())):
        for metric in study.metrics:
            if (curve := curve_of(study, runs, values, recipe, metric)) is None:
                continue
            fit = fit_power_law(curve.budgets, curve.means())
            ahead = extrapolated(curve, 4 * curve.budgets[-1], _FIT_SAMPLES, seed=0)
            rows.append([recipe, metric, f"{100 * fit.limit:.1f}", f"{fit.exponent:.2f}", _shown(ahead)])
    return rows


# Each is a fit: fewer than for a mean, and enough for the 2.5th percentile.
_FIT_SAMPLES = 200


def _worths(study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]) -> list[list[str]]:
    rows = []
    for first, second in study.compare:
        for metric in study.metrics:
            pair = [curve_of(study, runs, values, recipe, metric) for recipe in (first, second)]
            if pair[0] is None or pair[1] is None:
                continue
            budget = min(curve.budgets[-1] for curve in pair if curve is not None)
            mean, low, high = worth_of(pair[0], pair[1], budget, _FIT_SAMPLES, seed=0)
            rows.append([f"{first}, {second}", metric, f"{mean:.2f} [{low:.2f}, {high:.2f}]"])
    return rows
