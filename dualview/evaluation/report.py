"""From per-query scores to means, intervals and paired differences."""

from collections.abc import Sequence
from typing import Any, TypedDict

import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualview.errors import InputError
from dualview.evaluation.significance import bootstrap_interval, paired_difference

# encoder, then benchmark, then metric. Plain values, so that JSON holds it.
Intervals = dict[str, dict[str, dict[str, dict[str, float]]]]


class Comparison(TypedDict):
    """First minus second."""

    first: str
    second: str
    benchmarks: dict[str, dict[str, dict[str, float]]]  # metric -> mean, low, high, p_value


class Summary(TypedDict):
    encoders: Intervals  # ... -> mean, low, high, num_queries
    differences: list[Comparison]


def summary(scores: pa.Table, compare: Sequence[tuple[str, str]], samples: int, seed: int) -> Summary:
    """Means over queries with 95% intervals, and paired differences, as fractions.

    scores: benchmarks.SCORES_SCHEMA. p-MRR is also given apart for each label of the queries: "p-MRR
    inclusion" and "p-MRR exclusion" by polarity, "p-MRR kind=negation" and so on by the others.
    The order of the rows changes nothing. Raises InputError where `compare` names an encoder that has no scores.
    """
    values = values_of(scores)
    for name in [name for pair in compare for name in pair]:
        if name not in values:
            raise InputError(f"compare: no encoder is named {name!r}; there are {', '.join(values)}")
    return {
        "encoders": {
            encoder: {
                benchmark: {
                    metric: {
                        **bootstrap_interval(
                            [value for _, value in sorted(queries.items())], samples, seed
                        )._asdict(),
                        "num_queries": len(queries),
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
                        metric: paired_difference(
                            queries, values[second][benchmark][metric], samples, seed
                        )._asdict()
                        for metric, queries in sorted(metrics.items())
                    }
                    for benchmark, metrics in values[first].items()
                },
            }
            for first, second in compare
        ],
    }


def values_of(scores: pa.Table) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """encoder -> benchmark -> metric -> query id -> value, in the order of the rows."""
    values: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    for row in scores.to_pylist():
        metrics = values.setdefault(row["encoder"], {}).setdefault(row["benchmark"], {})
        for metric in [row["metric"], *_splits(row)]:
            metrics.setdefault(metric, {})[row["query_id"]] = row["value"]
    return values


def _splits(row: dict[str, Any]) -> list[str]:
    if row["metric"] != "p-MRR":
        return []
    return [
        f"p-MRR {value}" if label == "polarity" else f"p-MRR {label}={value}"
        for label, value in row["labels"]
    ]


def print_table(summary: Summary) -> None:
    """Two tables a benchmark, metrics x encoders and metrics x differences: x100, with 95% intervals."""
    for benchmark in dict.fromkeys(name for results in summary["encoders"].values() for name in results):
        scores = {
            encoder: {metric: in_hundredths(cell) for metric, cell in results[benchmark].items()}
            for encoder, results in summary["encoders"].items()
            if benchmark in results
        }
        differences = {
            f"{pair['first']} minus {pair['second']}": {
                metric: f"{in_hundredths(cell)} p={cell['p_value']:.2g}"
                for metric, cell in pair["benchmarks"][benchmark].items()
            }
            for pair in summary["differences"]
            if benchmark in pair["benchmarks"]
        }
        for columns in filter(None, (scores, differences)):
            table = Table(title=escape(benchmark))
            table.add_column("metric", no_wrap=True)
            for heading in columns:
                table.add_column(escape(heading), justify="right")
            for metric in sorted({metric for cells in columns.values() for metric in cells}):
                table.add_row(escape(metric), *(cells.get(metric, "") for cells in columns.values()))
            Console().print(table)


def in_hundredths(cell: dict[str, float]) -> str:
    """For example "24.9 [22.1, 27.6]"; a difference carries its sign."""
    sign = "+" if "p_value" in cell else ""
    return f"{100 * cell['mean']:{sign}.1f} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"
