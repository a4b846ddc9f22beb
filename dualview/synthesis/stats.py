"""Statistics of a generate run, counted shard by shard in constant memory."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualview.provenance import Code
from dualview.records import ACCEPTED, NEAR_DUPLICATE
from dualview.runs.manifest import read_codes
from dualview.runs.plan import Plan
from dualview.runs.run import GenerateRun
from dualview.synthesis.words import words

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NUM_EXAMPLES = 5
_COUNTED = [
    "id",
    "query",
    "instruction",
    "new_instruction",
    "status",
    "trainable",
    "verdicts",
    "drafts",
    "rewordings",
    "prompt_tokens",
    "completion_tokens",
    "lineage",
]
# Lineage fields that vary by row or attempt and say nothing about the origin.
_PLACES = {"run", "shard", "attempt"}


@dataclass
class VerdictCounts:
    """One judge's verdicts under one condition."""

    right: int = 0
    wrong: int = 0
    undecided: int = 0  # no margin, or one below the minimum
    unlabelled: int = 0  # the example has no label
    surpluses: Counter[float] = field(default_factory=Counter)  # rounded to 0.1


@dataclass
class ShownRow:
    status: str
    query: str
    instruction: str
    answer: str  # the new instruction, or the answer given instead
    positive: str
    target: str  # "" if there is none


@dataclass
class Stats:
    """`statuses` counts every row once: accepted ones that repeat another as near_duplicate."""

    num_shards: int
    num_missing_shards: int
    compared: bool  # near-duplicates have been searched for, or need not be
    statuses: Counter[str] = field(default_factory=Counter)
    num_trainable: int = 0
    drafts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (condition, status)
    rewordings: Counter[tuple[str, str]] = field(default_factory=Counter)
    verdict_counts: dict[tuple[str, str], VerdictCounts] = field(default_factory=dict)  # (judge, condition)
    # Lengths in words of accepted rows' "query", "original instruction" and "new instruction".
    lengths: dict[str, Counter[int]] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    origins: Counter[tuple[tuple[str, Any], ...]] = field(default_factory=Counter)  # lineages without _PLACES
    validation: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # judge -> its result
    codes: Sequence[
        tuple[Code, Mapping[str, str]]
    ] = ()  # versions that worked on the run, with their libraries
    accepted_examples: list[ShownRow] = field(default_factory=list)
    rejected_examples: list[ShownRow] = field(
        default_factory=list
    )  # one per reason, for the first reasons found

    @property
    def finished(self) -> bool:
        return not self.num_missing_shards and self.compared

    @property
    def num_rows(self) -> int:
        return self.statuses.total()

    @property
    def accepted_share(self) -> float:
        return self.statuses[ACCEPTED] / self.num_rows if self.num_rows else 0.0


def run_stats(run: GenerateRun) -> Stats:
    """Compute the statistics of a run, finished or not. Read-only."""
    stats = Stats(
        num_shards=len(run.plan.shards),
        num_missing_shards=len(run.missing()),
        compared=not run.lacks_near_duplicates,
        validation=run.validation,
        codes=read_codes(run.store),
    )
    minima = min_margins(run.plan)
    for table in run.tables():
        _count(stats, table, minima)
    if num_repeated := run.near_duplicates().num_rows:
        stats.statuses.update({ACCEPTED: -num_repeated, NEAR_DUPLICATE: num_repeated})
        stats.num_trainable -= num_repeated
    return stats


def min_margins(plan: Plan) -> dict[str, float]:
    """Map each LLM judge, without its prompt's hash, to its minimum absolute margin."""
    judges = plan.settings.get("judges", ())
    return {f"llm:{judge['prompt']}": judge["min_margin"] for judge in judges if judge["kind"] == "llm"}


def _count(stats: Stats, table: pa.Table, minima: Mapping[str, float]) -> None:
    for index, row in enumerate(table.select(_COUNTED).to_pylist()):
        stats.statuses[row["status"]] += 1
        stats.num_trainable += row["trainable"]
        stats.drafts.update((draft["condition"], draft["status"]) for draft in row["drafts"])
        stats.rewordings.update((reworded["condition"], reworded["status"]) for reworded in row["rewordings"])
        stats.prompt_tokens += row["prompt_tokens"]
        stats.completion_tokens += row["completion_tokens"]
        stats.origins[_origin(row["lineage"])] += 1
        for verdict in row["verdicts"]:
            counts_of_judge = stats.verdict_counts.setdefault(
                (verdict["judge"], verdict["condition"]), VerdictCounts()
            )
            _count_verdict(counts_of_judge, verdict, minima.get(verdict["judge"].partition("@")[0], 0.0))
        if row["status"] == ACCEPTED:
            for name, column in (
                ("query", "query"),
                ("original instruction", "instruction"),
                ("new instruction", "new_instruction"),
            ):
                stats.lengths.setdefault(name, Counter())[len(words(row[column]))] += 1
        _keep_example(stats, row["status"], table, index)


def _count_verdict(counts_of_judge: VerdictCounts, verdict: Mapping[str, Any], min_margin: float) -> None:
    margin = verdict["margin"]
    if verdict["expected"] is None:
        counts_of_judge.unlabelled += 1
    elif margin is None or abs(margin) < min_margin:
        counts_of_judge.undecided += 1
    else:
        surplus = margin if verdict["expected"] else -margin
        counts_of_judge.surpluses[round(surplus, 1)] += 1
        if surplus >= 0:
            counts_of_judge.right += 1
        else:
            counts_of_judge.wrong += 1


def _origin(lineage: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, ", ".join(value) if isinstance(value, list) else value)
        for name, value in lineage.items()
        if name not in _PLACES
    )


def _keep_example(stats: Stats, status: str, table: pa.Table, index: int) -> None:
    if status == ACCEPTED:
        kept, wanted = stats.accepted_examples, True
    else:
        kept = stats.rejected_examples
        wanted = status not in {example.status for example in kept}
    if not wanted or len(kept) == NUM_EXAMPLES:
        return
    [row] = table.slice(index, 1).to_pylist()
    target = [passage for passage in row["instruction_negatives"] if passage["id"] == row["target_id"]]
    last_answer = row["drafts"][-1]["answer"] if row["drafts"] else ""
    kept.append(
        ShownRow(
            status=status,
            query=row["query"],
            instruction=row["instruction"],
            answer=row["new_instruction"] or last_answer,
            positive=_text(row["positive"]),
            target=_text(target[0]) if target else "",
        )
    )


def _text(passage: Mapping[str, Any]) -> str:
    return f"{passage['title'] or ''} {passage['text']}".strip()


Number = TypeVar("Number", int, float)


def quantiles(counts: Mapping[Number, int], shares: Sequence[float] = QUANTILES) -> list[Number]:
    """For each share, the smallest value with at least this share of all values at or below it. Needs a value."""
    values = sorted(counts)
    num_up_to = np.cumsum([counts[value] for value in values])
    positions = np.searchsorted(num_up_to, np.asarray(shares) * num_up_to[-1])
    return [values[position] for position in positions]


# --- tables ---------------------------------------------------------------------------------------

Rows = list[list[str]]  # the first is the heading


def state(stats: Stats) -> str:
    """Describe in one sentence whether the run is finished."""
    if stats.num_missing_shards:
        done = stats.num_shards - stats.num_missing_shards
        return f"not finished: {done:,} of {stats.num_shards:,} shards exist, and only their rows are counted"
    if not stats.compared:
        return "not finished: all shards exist, but their rows have not been searched for near-duplicates"
    return f"finished: {stats.num_rows:,} rows in {stats.num_shards:,} shards"


def funnel(stats: Stats) -> Rows:
    ordered = sorted(stats.statuses.items(), key=lambda item: (item[0] != ACCEPTED, -item[1], item[0]))
    return [
        ["status", "rows", "share"],
        *([name, f"{count:,}", f"{count / stats.num_rows:.1%}"] for name, count in ordered if count),
    ]


def margins(stats: Stats) -> Rows:
    rows = [["judge", "condition", "right", "wrong", "undecided", "no label", *_headings()]]
    for (judge, condition), counts_of_judge in sorted(stats.verdict_counts.items()):
        counts = (
            counts_of_judge.right,
            counts_of_judge.wrong,
            counts_of_judge.undecided,
            counts_of_judge.unlabelled,
        )
        rows.append(
            [judge, condition, *(f"{count:,}" for count in counts), *_cells(counts_of_judge.surpluses, ".1f")]
        )
    return rows


def lengths(stats: Stats) -> Rows:
    return [
        ["words of the", *_headings(), "longest"],
        *([name, *_cells(counts, "d"), f"{max(counts)}"] for name, counts in stats.lengths.items()),
    ]


def parts(stats: Stats) -> Rows:
    """Drafts and rewordings; a row may have several."""
    return [
        ["", "of the instruction", "status", "number"],
        *(
            [name, condition, status, f"{count:,}"]
            for name, counts in (("drafts", stats.drafts), ("rewordings", stats.rewordings))
            for (condition, status), count in sorted(counts.items())
        ),
    ]


def validation(stats: Stats) -> Rows:
    rows = [["judge", "figure", "value"]]
    for judge, result in stats.validation.items():
        for name, value in result.items():
            rows.append(
                [judge, name.replace("_", " "), f"{value:.3f}" if isinstance(value, float) else str(value)]
            )
    return rows


def made_by(stats: Stats) -> Rows:
    """Rows by code version: several lines if the run was continued with another version."""
    counts: Counter[str] = Counter()
    for origin, count in stats.origins.items():
        counts[str(dict(origin)["code_version"])] += count
    return [["code", "rows"], *([name, f"{count:,}"] for name, count in counts.most_common())]


def codes(stats: Stats) -> Rows:
    """Code versions that worked on the run and their libraries, including drivers that made no row."""
    return [
        ["version", "files", "commit", "libraries"],
        *(
            [
                code.version,
                code.files,
                f"{code.commit or 'unknown'}{', changed since' if code.dirty else ''}",
                ", ".join(f"{name} {version}" for name, version in libraries.items()),
            ]
            for code, libraries in stats.codes
        ),
    ]


def _headings() -> list[str]:
    return [f"{share:.0%}" for share in QUANTILES]


def _cells(counts: Mapping[Number, int], layout: str) -> list[str]:
    return [format(value, layout) for value in quantiles(counts)] if counts else ["-"] * len(QUANTILES)


def print_stats(stats: Stats, console: Console | None = None) -> None:
    """Print tables and examples to a terminal."""
    console = console or Console()
    console.print(state(stats), highlight=False)
    for title, rows in (
        ("outcomes", funnel(stats)),
        ("verdicts and their surplus: the margin towards the expected label (quantiles)", margins(stats)),
        ("lengths of accepted rows (quantiles)", lengths(stats)),
        ("drafts and rewordings", parts(stats)),
        ("judge validation", validation(stats)),
        ("code that made the rows", made_by(stats)),
    ):
        if len(rows) > 1:
            console.print(_rich(title, rows))
    console.print(
        f"accepted {stats.accepted_share:.1%}; trainable {stats.num_trainable:,}; tokens:"
        f" {stats.prompt_tokens:,} prompt, {stats.completion_tokens:,} completion",
        highlight=False,
    )
    for example in (*stats.accepted_examples, *stats.rejected_examples):
        console.print(f"\n[bold]{example.status}[/bold]")
        for name in ("query", "instruction", "positive", "answer", "target"):
            text = " ".join(getattr(example, name).split())
            shown = text if len(text) <= 300 else f"{text[:300]}..."
            console.print(f"  {name:<11} {escape(shown)}", highlight=False)


def _rich(title: str, rows: Rows) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0]:
        table.add_column(name, overflow="fold")  # never truncate names
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    return table
