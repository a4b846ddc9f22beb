"""What the stages of `dualview adapt` found, as tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dualview.catalog.page import ORDER, cell_text, usage
from dualview.config.adapt import AdaptConfig

_SHOWN = ("p-MRR", "both right", "nDCG@10", "nDCG@10 topic")


def print_adapted(config: AdaptConfig, found: Mapping[str, Any], console: Console | None = None) -> None:
    """A table of what the index can obey; after the test also its scores, and how to use the encoder."""
    console = console or Console()
    console.print(_probe_table(config, found["probe"]))
    if "test" not in found:
        return
    console.print(_scores_table(found["test"]))
    console.print(f"{config.output}/report.html\n", highlight=False, soft_wrap=True)
    console.print(usage(config, found["train"]["strength"]), markup=False, highlight=False, soft_wrap=True)


def _probe_table(config: AdaptConfig, probe: Mapping[str, Any]) -> Table:
    table = Table(title=f"What this index of {config.noun} can obey")
    table.add_column("attribute")
    table.add_column("values", justify="right")
    table.add_column("AUC", justify="right")
    table.add_column("least known")
    for name in dict.fromkeys(value["attribute"] for value in probe["values"]):
        values = [value for value in probe["values"] if value["attribute"] == name]
        aucs = [value["auc"] or 0.0 for value in values]
        can = sum(auc >= config.draft.min_auc for auc in aucs)
        least = values[aucs.index(min(aucs))]
        weak = "" if can == len(values) else f"{least['value']} ({min(aucs):.2f}): too weak for instructions"
        table.add_row(
            escape(name), f"{can} of {len(values)}", f"{min(aucs):.2f} to {max(aucs):.2f}", escape(weak)
        )
    return table


def _scores_table(scores: Mapping[str, Any]) -> Table:
    table = Table(title=f"Test on {scores['num_cases']} pairs of instructions, x100")
    table.add_column("")
    table.add_column("strength", justify="right")
    for metric in _SHOWN:
        table.add_column(metric, justify="right")
    for name in ORDER:
        row = scores["rows"][name]
        strength = "" if not row["strength"] else f"{row['strength']:g}"
        shown = _SHOWN if name != "ceiling" else ("both right",)
        cells = [cell_text(row["metrics"][metric]) if metric in shown else "" for metric in _SHOWN]
        table.add_row(name, strength, *cells)
    return table
