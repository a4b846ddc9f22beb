"""Summarise query scores as means, intervals over topics, and paired differences."""

from collections.abc import Mapping, Sequence
import io
from typing import Any, TypedDict

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualview.errors import InputError
from dualview.evaluation.significance import (
    Key,
    bootstrap_interval,
    in_all,
    num_topics,
    paired_difference,
)

HEADLINE = ("p-MRR", "p-MRR inclusion", "p-MRR exclusion", "nDCG@10")
# encoder -> benchmark -> metric. Bounds over a single topic are infinite; plain_json writes them as null.
IntervalsByBenchmark = dict[str, dict[str, dict[str, dict[str, float]]]]


class Comparison(TypedDict):
    """First minus second."""

    first: str
    second: str
    benchmarks: dict[str, dict[str, dict[str, float]]]  # metric -> mean, low, high, p_value


class Summary(TypedDict):
    encoders: IntervalsByBenchmark  # ... -> mean, low, high, num_topics
    differences: list[Comparison]


def summary(scores: pa.Table, compare: Sequence[tuple[str, str]], samples: int, seed: int) -> Summary:
    """Means over queries with 95% intervals over topics, and paired differences, as fractions.

    scores: in scores.SCORES_SCHEMA, in any order. p-MRR is also reported for each label of the queries: "p-MRR
    inclusion" and "p-MRR exclusion" by polarity, "p-MRR kind=negation" and so on by other labels.
    Raises InputError if `compare` names an encoder without scores.
    """
    values = values_of(scores)
    for name in [name for pair in compare for name in pair]:
        if name not in values:
            raise InputError(f"compare: no encoder is named {name!r}; expected one of {', '.join(values)}")
    return {
        "encoders": {
            encoder: {
                benchmark: {
                    metric: {
                        **bootstrap_interval(queries, samples, seed)._asdict(),
                        "num_topics": num_topics(queries),
                    }
                    for metric, queries in sorted(metrics.items())
                }
                for benchmark, metrics in benchmarks.items()
            }
            for encoder, benchmarks in values.items()
        },
        "differences": [
            {
                "first": first,
                "second": second,
                "benchmarks": {
                    benchmark: {
                        metric: _difference(queries, of_second, samples, seed)
                        for metric, queries in sorted(metrics.items())
                        if (of_second := values[second][benchmark].get(metric, {})).keys() & queries.keys()
                    }
                    for benchmark, metrics in values[first].items()
                },
            }
            for first, second in compare
        ],
    }


def _difference(
    first: Mapping[Key, float], second: Mapping[Key, float], samples: int, seed: int
) -> dict[str, float]:
    """Paired difference over the queries that both have."""
    first, second = in_all([first, second])
    return paired_difference(first, second, samples, seed)._asdict()


def values_of(scores: pa.Table) -> dict[str, dict[str, dict[str, dict[Key, float]]]]:
    """encoder -> benchmark -> metric -> (topic id, query id) -> value, in the order of the rows."""
    values: dict[str, dict[str, dict[str, dict[Key, float]]]] = {}
    for row in scores.to_pylist():
        metrics = values.setdefault(row["encoder"], {}).setdefault(row["benchmark"], {})
        for metric in [row["metric"], *_splits(row)]:
            metrics.setdefault(metric, {})[row["topic_id"], row["query_id"]] = row["value"]
    return values


def _splits(row: dict[str, Any]) -> list[str]:
    if row["metric"] != "p-MRR":
        return []
    return [
        f"p-MRR {value}" if label == "polarity" else f"p-MRR {label}={value}"
        for label, value in row["labels"]
    ]


def print_table(
    summary: Summary, console: Console | None = None, metrics: Sequence[str] | None = None
) -> None:
    """Two tables per benchmark, metrics x encoders and metrics x differences; x100, with 95% intervals.

    metrics: those to show, in this order; None: all.
    """
    console = console or Console()
    for benchmark in dict.fromkeys(name for results in summary["encoders"].values() for name in results):
        results = {
            encoder: of_encoder[benchmark]
            for encoder, of_encoder in summary["encoders"].items()
            if benchmark in of_encoder
        }
        differences = {
            f"{pair['first']} minus {pair['second']}": pair["benchmarks"][benchmark]
            for pair in summary["differences"]
            if benchmark in pair["benchmarks"]
        }
        for columns in filter(None, (results, differences)):
            table = Table(title=escape(benchmark))
            table.add_column("metric", no_wrap=True)
            table.add_column("topics", justify="right")
            for heading in columns:
                table.add_column(escape(heading), justify="right")
            measured = {metric for cells in columns.values() for metric in cells}
            for metric in sorted(measured) if metrics is None else [m for m in metrics if m in measured]:
                cells = [of_column.get(metric) for of_column in columns.values()]
                counts = {int(cell["num_topics"]) for cell in cells if cell}
                topics = " to ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
                table.add_row(escape(metric), topics, *map(_cell, cells))
            console.print(table)
        for name, cells_of in differences.items():
            shown = {metric: cell for metric, cell in cells_of.items() if not metrics or metric in metrics}
            if weak := _too_small(shown):
                text = f"{name}: too few topics to distinguish from zero the difference in {', '.join(weak)}"
                console.print(escape(text), highlight=False, soft_wrap=True)


def _cell(cell: dict[str, float] | None) -> str:
    if not cell:
        return ""
    return in_hundredths(cell) + (f" p={cell['p_value']:.2g}" if "p_value" in cell else "")


def _too_small(metrics: dict[str, dict[str, float]]) -> list[str]:
    """Differences with too few topics to be significant, and how many they need; without p-MRR by label."""
    return [
        f"{metric} (takes about {cell['num_needed']:,.0f})"
        for metric, cell in metrics.items()
        if cell["p_value"] >= 0.05
        and cell["num_needed"] > cell["num_topics"]
        and not metric.startswith("p-MRR ")
    ]


def html_report(summary: Summary) -> str:
    """The same tables as a self-contained page."""
    console = Console(record=True, file=io.StringIO(), width=160)
    print_table(summary, console)
    return console.export_html(inline_styles=True)


def in_hundredths(cell: dict[str, float]) -> str:
    """For example "24.9 [22.1, 27.6]"; differences are signed."""
    sign = "+" if "p_value" in cell else ""
    return f"{100 * cell['mean']:{sign}.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
