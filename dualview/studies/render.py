"""A study's report, as Markdown and HTML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import yaml

from dualview.config.study import StudyConfig
from dualview.costs import TrainingCost
from dualview.evaluation.html import html_page, html_table
from dualview.evaluation.significance import ByTopic, Interval
from dualview.studies.pictures import Line, curves_picture, trade_off_picture
from dualview.studies.plans import Run, budget_of, table_of
from dualview.studies.results import (
    FittedCurve,
    Intervals,
    Point,
    Scores,
    Values,
    Worth,
    differences,
    fitted_curves,
    intervals_of,
    lacks,
    scores_of_baselines,
    scores_of_runs,
    units_of_cost,
    worths,
)

MOST_WORTH = 1000  # larger or infinite values are shown as "over 1,000"


@dataclass(frozen=True)
class Table:
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    heading: str
    note: str
    tables: Sequence[Table] = ()
    pictures: Sequence[str] = ()  # SVG; omitted from Markdown
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
    """All sections that have data. values, costs, failed: by run folder; baselines: by name."""
    of_baselines = scores_of_baselines(study, baselines)
    scores = {**of_baselines, **scores_of_runs(study, runs, values)}
    intervals = {point: intervals_of(study, list(of_seeds.values())) for point, of_seeds in scores.items()}
    return [
        _scores_section(study, scores, intervals, baselines),
        *_differences_section(study, scores, baselines),
        *_curves_section(study, runs, fitted_curves(study, runs, values), costs),
        *_trade_off_section(study, intervals, of_baselines),
        *_runs_section(study, runs, values, costs),
        *_failed_section(runs, failed),
        _repeat_section(study),
    ]


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    parts = [f"# {title}\n"]
    for section in sections:
        parts += [f"## {section.heading}\n", f"{section.note}\n", *map(_markdown_table, section.tables)]
        parts += [f"- {item}\n" for item in section.items]
        if section.listing:
            parts.append(f"```yaml\n{section.listing}```\n")
    return "\n".join(parts)


def as_page(title: str, sections: Sequence[Section]) -> str:
    """A self-contained HTML page."""
    parts = []
    for section in sections:
        parts += [f"<h2>{escape(section.heading)}</h2>", f'<p class="note">{escape(section.note)}</p>']
        parts += [*section.pictures, *(html_table(table.head, table.rows) for table in section.tables)]
        if section.items:
            parts.append(f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in section.items)}</ul>")
        if section.listing:
            listing = escape(section.listing)
            parts.append(f"<details><summary>study.yaml</summary><pre>{listing}</pre></details>")
    return html_page(title, parts)


def _markdown_table(table: Table) -> str:
    lines = [table.head, ["---"] * len(table.head), *table.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


# --- sections -------------------------------------------------------------------------------------


def _scores_section(
    study: StudyConfig,
    scores: Scores,
    intervals: Mapping[Point, Intervals],
    baselines: Mapping[str, Values],
) -> Section:
    names = _short_names(study)
    rows = [
        [
            *point,
            "" if "" in of_seeds else str(len(of_seeds)),  # baselines have no seeds
            *("" if interval is None else _shown(interval) for interval in intervals[point].values()),
        ]
        for point, of_seeds in scores.items()
    ]
    return Section(
        "Scores",
        "Means x100, with 95% bootstrap intervals over topics and training seeds. With few seeds they are too narrow"
        " if scores vary more between seeds than between topics; the scores of each run are below.",
        [Table([*_axes(study), "seeds", *names.values()], rows)],
        items=[
            f"{lack.baseline} has no {names[lack.metric]} for {lack.num_missing:,} of {lack.num_queries:,} queries:"
            " its mean, and differences from it, are over the others."
            for lack in lacks(study, scores, baselines)
        ],
    )


def _differences_section(
    study: StudyConfig, scores: Scores, baselines: Mapping[str, Values]
) -> list[Section]:
    rows = [
        [
            f"{difference.first} minus {difference.second}",
            *difference.further,
            str(difference.num_seeds),
            *map(_bold_where_certain, difference.intervals.values()),
        ]
        for difference in differences(study, scores, baselines)
    ]
    if not rows:
        return []
    note = (
        "Paired over the same queries and the training seeds that both have. Bold if the interval excludes 0."
    )
    head = ["difference", *_axes(study)[1:], "seeds", *_short_names(study).values()]
    return [Section("Differences", note, [Table(head, rows)])]


def _curves_section(
    study: StudyConfig,
    runs: Sequence[Run],
    curves: Sequence[FittedCurve],
    costs: Mapping[str, TrainingCost],
) -> list[Section]:
    """Curves over the budget, and the worth of one recipe's data in another's, in each unit of cost."""
    if not curves:
        return []
    names = _short_names(study)
    [budget_unit] = {unit for run in runs for unit in budget_of(run)}
    note = (
        f"Power laws with an offset over {budget_unit}, fitted to the means (lines). Worth: how many units the second"
        " recipe needs to match one unit of the first at the largest budget, in each unit of cost. Limit and"
        " exponent are empty if the scores show too little curvature to estimate them."
    )
    recipe_axes = ["recipe", *[""] * (len(curves[0].recipe) - 1)]
    fits = Table(
        [*recipe_axes, "metric", "limit", "exponent", "at 4 x the largest budget"],
        [_fit_row(curve, names[curve.metric]) for curve in curves],
    )
    tables = [fits]
    units = units_of_cost(study, costs)
    if rows := [_worth_row(worth, names, units) for worth in worths(study, runs, curves, costs)]:
        tables.append(Table(["one of", "in", "metric", *(f"worth in {unit}" for unit in units)], rows))
    lines = [
        Line(", ".join(fitted.recipe), names[fitted.metric], fitted.curve.budgets, fitted.scores, fitted.fit)
        for fitted in curves
    ]
    return [Section("Curves", note, tables, [curves_picture(budget_unit, lines)])]


def _fit_row(fitted: FittedCurve, name: str) -> list[str]:
    fit = fitted.fit
    shape = [f"{100 * fit.limit:.1f}", f"{fit.exponent:.2f}"] if fit.is_determined else ["", ""]
    return [*fitted.recipe, name, *shape, _shown(fitted.ahead)]


def _worth_row(worth: Worth, names: Mapping[str, str], units: Sequence[str]) -> list[str]:
    shown = [_shown_worth(worth.in_unit(unit)) for unit in units]
    return [", ".join(worth.first), ", ".join(worth.second), names[worth.metric], *shown]


def _trade_off_section(
    study: StudyConfig, intervals: Mapping[Point, Intervals], of_baselines: Scores
) -> list[Section]:
    """The points that have values of both metrics."""
    if study.trade_off is None:
        return []
    points = {
        point: {metric: of_point[metric] for metric in study.trade_off}
        for point, of_point in intervals.items()
    }
    shown = {
        point: {metric: interval for metric, interval in of_point.items() if interval is not None}
        for point, of_point in points.items()
        if None not in of_point.values()
    }
    if not shown:
        return []
    # Baselines last, so that recipes have the same colours as in the curves.
    ordered = {point: shown[point] for point in sorted(shown, key=lambda point: point in of_baselines)}
    further = _axes(study)[1:]
    larger = f"; larger points are later values of {', '.join(further)}" if further else ""
    note = (
        f"{study.trade_off[0]} against {study.trade_off[1]}{larger}; bars are 95% intervals."
        " Up and to the right is better."
    )
    return [Section("Trade-off", note, pictures=[trade_off_picture(study.trade_off, ordered)])]


def _runs_section(
    study: StudyConfig, runs: Sequence[Run], values: Mapping[str, Values], costs: Mapping[str, TrainingCost]
) -> list[Section]:
    """Scores and costs of each run."""
    if not costs:
        return []
    units = units_of_cost(study, costs)
    finished = [run for run in runs if run.folder in costs]
    in_units = [costs[run.folder].in_units(study.price) for run in finished]
    rows = [
        [
            *run.point.values(),
            *(f"{100 * ByTopic.of([values[run.folder][metric]]).mean():.1f}" for metric in study.metrics),
            *(f"{of_run.get(unit, 0.0):,.6g}" for unit in units),
        ]
        for run, of_run in zip(finished, in_units, strict=True)
    ]
    total = [f"{sum(of_run.get(unit, 0.0) for of_run in in_units):,.6g}" for unit in units]
    rows.append(["all", *[""] * (len(study.axes) - 1 + len(study.metrics)), *total])
    note = (
        "Each run's means x100 and its costs: training data, floating-point operations of its matrix products,"
        " seconds times workers, and its share of the cost of generating and judging the data."
    )
    return [Section("Runs", note, [Table([*study.axes, *_short_names(study).values(), *units], rows)])]


def _failed_section(runs: Sequence[Run], failed: Mapping[str, str]) -> list[Section]:
    if not failed:
        return []
    items = [f"{run.name}: {failed[run.folder]}" for run in runs if run.folder in failed]
    return [Section("Failed", "The results above exclude these runs.", items=items)]


def _repeat_section(study: StudyConfig) -> Section:
    return Section(
        "How to reproduce",
        "Run this config with `python jobs/study.py --config FILE`. Finished work under the same output is reused.",
        listing=yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False),
    )


# --- formatting -----------------------------------------------------------------------------------


def _axes(study: StudyConfig) -> list[str]:
    """The study's axes without that of the seeds."""
    return [axis for axis in study.axes if axis != study.seeds]


def _short_names(study: StudyConfig) -> dict[str, str]:
    """Metric -> its name, without the benchmark if all metrics share one."""
    benchmarks = {metric.partition(" ")[0] for metric in study.metrics}
    return {metric: metric.partition(" ")[2] if len(benchmarks) == 1 else metric for metric in study.metrics}


def _shown(interval: Interval, sign: str = "") -> str:
    mean, low, high = (100 * value for value in interval)
    return f"{mean:{sign}.1f} [{low:.1f}, {high:.1f}]"


def _bold_where_certain(interval: Interval | None) -> str:
    if interval is None:
        return ""
    text = _shown(interval, "+")
    return text if interval.low <= 0 <= interval.high else f"**{text}**"


def _shown_worth(worth: Sequence[float] | None) -> str:
    if worth is None:
        return ""
    mean, low, high = (f"{value:.2f}" if value < MOST_WORTH else f"over {MOST_WORTH:,}" for value in worth)
    return f"{mean} [{low}, {high}]"
