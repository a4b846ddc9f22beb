"""A study's figures, with intervals over topics and seeds of training, as Markdown and as a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import yaml

from dualview.config.study import StudyConfig
from dualview.costs import TrainingCost
from dualview.evaluation.page import PAGE
from dualview.evaluation.significance import ByTopic, Interval, Key, in_all
from dualview.studies.fits import Curve, extrapolated, fit_power_law, worth_of
from dualview.studies.pictures import Line, curves_picture, trade_off_picture
from dualview.studies.plans import Run, budget_of, table_of

# Values of one run: "BENCHMARK METRIC" -> (topic, query) -> value, as a fraction. A baseline may lack some: p-MRR is
# undefined where a run file, or BM25, ranks nothing.
Values = Mapping[str, Mapping[Key, float]]
# A point of the grid without its seed -> seed -> values.
Cells = Mapping[tuple[str, ...], Mapping[str, Values]]

MOST_WORTH = 1000  # what is above, or never reached, is shown as such
FIT_SAMPLES = 200  # each is a fit: fewer than for a mean, and enough for the 2.5th percentile


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    heading: str
    note: str
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()  # SVG; Markdown goes without
    listing: str = ""
    items: Sequence[str] = ()


def grid_table(runs: Sequence[Run]) -> str:
    rows = table_of(runs)
    return _markdown_table(Table(list(rows[0]), [list(row.values()) for row in rows]))


def study_sections(
    study: StudyConfig,
    runs: Sequence[Run],
    values: Mapping[str, Values],
    baselines: Mapping[str, Values],
    costs: Mapping[str, TrainingCost],
    failed: Mapping[str, str],
) -> list[Section]:
    """All of it; a part without material is left out. values, costs, failed: by a run's folder; baselines: by name."""
    axes = [axis for axis in study.axes if axis != study.seeds]
    of_baselines = {(name, *[""] * (len(axes) - 1)): {"": own} for name, own in baselines.items()}
    cells = {**of_baselines, **_cells(study, runs, values)}
    units = {unit for run in runs for unit in budget_of(run)}
    curves = _curves(study, runs, values) if len(units) == 1 else {}  # budgets of one unit make a curve
    named = _short_names(study)
    intervals = {
        point: {metric: _interval(study, list(of_seeds.values()), metric) for metric in study.metrics}
        for point, of_seeds in cells.items()
    }
    sections = [
        Section(
            "Scores",
            "Means x100, with 95% bootstrap intervals over topics and seeds of training. Few seeds make them too narrow"
            " where seeds spread more than topics do; every run's own scores are below.",
            [
                Table(
                    [*axes, "seeds", *named.values()],
                    [
                        [
                            *point,
                            "" if point in of_baselines else str(len(of_seeds)),
                            *("" if own is None else _shown(own) for own in intervals[point].values()),
                        ]
                        for point, of_seeds in cells.items()
                    ],
                )
            ],
            items=_lacking(study, cells, baselines),
        )
    ]
    if rows := _differences(study, cells, baselines):
        note = "Paired: the same queries, and the seeds of training that both have. Bold where the interval does not hold 0."
        sections.append(
            Section("Differences", note, [Table(["difference", *axes[1:], "seeds", *named.values()], rows)])
        )
    if curves:
        sections.append(_curves_section(study, runs, curves, costs))
    if study.trade_off is not None and (both := _with_both(study.trade_off, intervals)):
        # Baselines last, so that recipes have the colours that they have in the curves.
        picture = trade_off_picture(
            study.trade_off,
            {point: both[point] for point in sorted(both, key=lambda point: point in of_baselines)},
        )
        larger = f"; larger points are later values of {', '.join(axes[1:])}" if axes[1:] else ""
        sections.append(
            Section(
                "Trade-off",
                f"{study.trade_off[0]} against {study.trade_off[1]}{larger}; bars are 95% intervals."
                " Up and to the right is better.",
                pictures=[picture],
            )
        )
    if costs:
        sections.append(_runs_section(study, runs, values, costs))
    if failed:
        items = [f"{run.name}: {failed[run.folder]}" for run in runs if run.folder in failed]
        sections.append(Section("Failed", "The figures above are without them.", items=items))
    listing = yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
    sections.append(
        Section(
            "How to repeat it",
            "This study, for `python jobs/study.py --config FILE`; with the same output, what stands is only read.",
            listing=listing,
        )
    )
    return sections


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}\n"]
    for section in sections:
        parts += [f"## {section.heading}\n", f"{section.note}\n", *map(_markdown_table, section.tables)]
        parts += [f"- {item}\n" for item in section.items]
        if section.listing:
            parts.append(f"```yaml\n{section.listing}```\n")
    return "\n".join(parts)


def as_page(title: str, sections: Sequence[Section]) -> str:
    """HTML that needs nothing else."""
    parts = []
    for section in sections:
        parts += [f"<h2>{escape(section.heading)}</h2>", f'<p class="note">{escape(section.note)}</p>']
        parts += [*section.pictures, *map(_html_table, section.tables)]
        if section.items:
            parts.append(f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in section.items)}</ul>")
        if section.listing:
            listing = escape(section.listing)
            parts.append(f"<details><summary>study.yaml</summary><pre>{listing}</pre></details>")
    return PAGE.format(title=escape(title), body="\n".join(parts))


def _markdown_table(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "".join(f"<tr>{''.join(map(_html_cell, row))}</tr>" for row in table.rows)
    return f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'


def _html_cell(text: str) -> str:
    plain = escape(text.strip("*"))
    return f"<td><b>{plain}</b></td>" if text.startswith("**") else f"<td>{plain}</td>"


# --- figures --------------------------------------------------------------------------------------


def _short_names(study: StudyConfig) -> dict[str, str]:
    """Of the metrics: without their benchmark where all are of one."""
    benchmarks = {metric.partition(" ")[0] for metric in study.metrics}
    return {metric: metric.partition(" ")[2] if len(benchmarks) == 1 else metric for metric in study.metrics}


def _cells(study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]) -> Cells:
    cells: dict[tuple[str, ...], dict[str, Values]] = {}
    for run in runs:
        if run.folder in values:
            point = tuple(value for axis, value in run.point.items() if axis != study.seeds)
            cells.setdefault(point, {})[run.point[study.seeds]] = values[run.folder]
    return cells


def _lacking(study: StudyConfig, cells: Cells, baselines: Mapping[str, Values]) -> list[str]:
    """Which baselines have no value for some queries that others have one for, in sentences."""
    sentences = []
    for metric, short in _short_names(study).items():
        asked = {key for of_seeds in cells.values() for own in of_seeds.values() for key in own[metric]}
        for name, own in baselines.items():
            if num_missing := len(asked - own[metric].keys()):
                sentences.append(
                    f"{name} has no {short} for {num_missing:,} of {len(asked):,} queries: its mean is over the"
                    " others, and so are differences from it."
                )
    return sentences


def seed_and_topic_interval(scores: ByTopic, samples: int, seed: int) -> Interval:
    """Bootstrap of the mean over both seeds and topics, each drawn with replacement; a seed's scores are a row."""
    rng = np.random.default_rng(seed)
    num_seeds, num_topics = len(scores.sums_RT), scores.num_topics
    means = [
        scores.mean_of(rng.integers(num_seeds, size=num_seeds), rng.integers(num_topics, size=num_topics))
        for _ in range(samples)
    ]
    return scores.interval(np.array(means))


def _interval(study: StudyConfig, of_seeds: Sequence[Values], metric: str) -> Interval | None:
    """None where there is no query that all of them have."""
    own = in_all([of_seed[metric] for of_seed in of_seeds])
    return seed_and_topic_interval(ByTopic.of(own), study.bootstrap_samples, seed=0) if own[0] else None


def _with_both(
    metrics: tuple[str, str], intervals: Mapping[tuple[str, ...], Mapping[str, Interval | None]]
) -> dict[tuple[str, ...], dict[str, Interval]]:
    """The points that have a value of each of the two."""
    found = {
        point: {metric: interval for metric in metrics if (interval := of_point[metric]) is not None}
        for point, of_point in intervals.items()
    }
    return {point: of_point for point, of_point in found.items() if of_point.keys() == set(metrics)}


def _paired_interval(
    study: StudyConfig, pairs: Sequence[tuple[Values, Values]], metric: str
) -> Interval | None:
    """Of first minus second over the queries that all runs of both have; None where there is none."""
    own = in_all([values[metric] for pair in pairs for values in pair])
    differences = [
        {key: first[key] - second[key] for key in first}
        for first, second in zip(own[::2], own[1::2], strict=True)
    ]
    if not own[0]:
        return None
    return seed_and_topic_interval(ByTopic.of(differences), study.bootstrap_samples, seed=0)


def _shown(interval: Interval, sign: str = "") -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:{sign}.1f} [{low:.1f}, {high:.1f}]"


def _difference(interval: Interval | None) -> str:
    if interval is None:
        return ""
    text = _shown(interval, "+")
    return text if interval.low <= 0 <= interval.high else f"**{text}**"


def _differences(study: StudyConfig, cells: Cells, baselines: Mapping[str, Values]) -> list[list[str]]:
    rows = []
    for first, second in study.compare:
        for (recipe, *rest), of_seeds in cells.items():
            if recipe != first:
                continue
            # A baseline is one for all points, and for all seeds.
            of_baseline = dict.fromkeys(of_seeds, baselines[second]) if second in baselines else {}
            others = of_baseline or cells.get((second, *rest), {})
            pairs = [(own, others[seed]) for seed, own in of_seeds.items() if seed in others]
            if not pairs:
                continue
            intervals = [_paired_interval(study, pairs, metric) for metric in study.metrics]
            rows.append([f"{first} minus {second}", *rest, str(len(pairs)), *map(_difference, intervals)])
    return rows


# Values of the axes that are neither the budget's nor the seeds' -> metric -> scores by budget.
Curves = Mapping[tuple[str, ...], Mapping[str, Curve]]


def _curves(study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values]) -> Curves:
    """Where there are three budgets or more."""
    by_recipe: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        if run.folder in values:
            by_recipe.setdefault(_recipe(study, run), []).append(run)
    curves = {}
    for recipe, own in by_recipe.items():
        budgets = sorted({_amount(run) for run in own})
        if len(budgets) < 3:
            continue
        of_budgets = [[values[run.folder] for run in own if _amount(run) == budget] for budget in budgets]
        curves[recipe] = {
            metric: Curve(
                tuple(budgets), tuple(ByTopic.of([run[metric] for run in each]) for each in of_budgets)
            )
            for metric in study.metrics
        }
    return curves


def _recipe(study: StudyConfig, run: Run) -> tuple[str, ...]:
    """The first axis and those that are neither the budget's nor the seeds'."""
    first, *others = study.axes

    def is_of_budget(axis: str) -> bool:
        return any(key.startswith("budget") for settings in study.axes[axis].values() for key in settings)

    rest = [axis for axis in others if axis != study.seeds and not is_of_budget(axis)]
    return tuple(run.point[axis] for axis in (first, *rest))


def _amount(run: Run) -> float:
    [amount] = budget_of(run).values()
    return float(amount or 0)


def _curves_section(
    study: StudyConfig, runs: Sequence[Run], curves: Curves, costs: Mapping[str, TrainingCost]
) -> Section:
    """Curves over the budget, and what one recipe's unit is worth in another's, in each unit of cost."""
    named = _short_names(study)
    lines, fitted = [], []
    for recipe, of_metrics in curves.items():
        for metric, curve in of_metrics.items():
            fit = fit_power_law(curve.budgets, curve.means())
            means = [
                seed_and_topic_interval(of_seeds, study.bootstrap_samples, seed=0)
                for of_seeds in curve.scores
            ]
            lines.append(Line(", ".join(recipe), named[metric], curve.budgets, means, fit))
            ahead = extrapolated(curve, 4 * curve.budgets[-1], FIT_SAMPLES, seed=0)
            shape = [f"{100 * fit.limit:.1f}", f"{fit.exponent:.2f}"] if fit.is_determined else ["", ""]
            fitted.append([*recipe, named[metric], *shape, _shown(ahead)])
    units = _units(study, costs)
    worths = []
    for first, second in study.compare:
        for recipe in curves:
            other = (second, *recipe[1:])
            if recipe[0] != first or other not in curves:
                continue
            ratios = [_cost_ratio(study, runs, costs, (recipe, other), unit) for unit in units]
            for metric in study.metrics:
                pair = curves[recipe][metric], curves[other][metric]
                largest = min(curve.budgets[-1] for curve in pair)  # what failed may be missing
                worth = worth_of(*pair, largest, FIT_SAMPLES, seed=0)
                shown = ["" if ratio is None else _worth(worth, ratio) for ratio in ratios]
                worths.append([", ".join(recipe), ", ".join(other), named[metric], *shown])
    [budget_unit] = {unit for run in runs for unit in budget_of(run)}
    note = (
        f"Power laws with an offset over {budget_unit}, fitted to the means (lines). Worth: how many units of the second"
        " recipe bring it where one unit of the first brought the first, at the largest budget, for each way of"
        " counting what was spent. Limit and exponent are left empty where the scores do not bend enough to tell them."
    )
    recipe_axes = ["recipe", *[""] * (len(next(iter(curves))) - 1)]
    tables = [Table([*recipe_axes, "metric", "limit", "exponent", "at 4 x the largest budget"], fitted)]
    if worths:
        tables.append(Table(["one of", "in", "metric", *(f"worth in {unit}" for unit in units)], worths))
    return Section("Curves", note, tables, [curves_picture(budget_unit, lines)])


def _cost_ratio(
    study: StudyConfig,
    runs: Sequence[Run],
    costs: Mapping[str, TrainingCost],
    pair: tuple[tuple[str, ...], tuple[str, ...]],
    unit: str,
) -> float | None:
    """What a unit of budget costs the second recipe beside the first; None where it costs one of them nothing."""

    def cost(recipe: tuple[str, ...]) -> float:
        own = [run for run in runs if _recipe(study, run) == recipe and run.folder in costs]
        spent = sum(costs[run.folder].in_units(study.price).get(unit, 0.0) for run in own)
        return spent / sum(map(_amount, own)) if own else 0.0

    first, second = map(cost, pair)
    return second / first if first and second else None


def _units(study: StudyConfig, costs: Mapping[str, TrainingCost]) -> list[str]:
    return list(dict.fromkeys(unit for cost in costs.values() for unit in cost.in_units(study.price)))


def _worth(worth: Interval, ratio: float) -> str:
    mean, low, high = (ratio * value for value in worth)
    shown = [f"{value:.2f}" if value < MOST_WORTH else f"over {MOST_WORTH:,}" for value in (mean, low, high)]
    return f"{shown[0]} [{shown[1]}, {shown[2]}]"


def _runs_section(
    study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values], costs: Mapping[str, TrainingCost]
) -> Section:
    """Each run alone: what it scored, and what it cost."""
    units = _units(study, costs)
    finished = [run for run in runs if run.folder in costs]
    in_units = [costs[run.folder].in_units(study.price) for run in finished]
    rows = [
        [
            *run.point.values(),
            *(f"{100 * ByTopic.of([values[run.folder][metric]]).mean():.1f}" for metric in study.metrics),
            *(f"{own.get(unit, 0.0):,.6g}" for unit in units),
        ]
        for run, own in zip(finished, in_units, strict=True)
    ]
    total = [f"{sum(own.get(unit, 0.0) for own in in_units):,.6g}" for unit in units]
    rows.append(["all", *[""] * (len(study.axes) - 1 + len(study.metrics)), *total])
    note = (
        "Each run's means x100, and its costs: what was trained on, floating-point operations of its matrix products,"
        " seconds times workers, and the share of what writing and judging its data took."
    )
    return Section("Runs", note, [Table([*study.axes, *_short_names(study).values(), *units], rows)])
