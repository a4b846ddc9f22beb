"""The top passages of several encoders for a query under several instructions, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from rich.console import Console
from rich.markup import escape as as_text
from rich.table import Table

from dualview.records import Passage

OBEYS, BREAKS = "✓", "✗"
_LONGEST_SHOWN = 240  # characters of a passage on a page


@dataclass(frozen=True)
class Hit:
    passage: Passage
    obeys: bool | None  # the instruction, by the benchmark's labels; None: not judged


@dataclass(frozen=True)
class Found:
    """The top passages of each encoder under one instruction."""

    query: str
    instruction: str
    hits: dict[str, list[Hit]]  # encoder -> best first


def print_found(found: Sequence[Found], console: Console | None = None) -> None:
    """One table per instruction, with a column per encoder and a row per rank."""
    console = console or Console()
    for search in found:
        table = Table(title=as_text(_asked(search)), title_justify="left", title_style="bold", expand=True)
        for encoder, hits in search.hits.items():
            table.add_column(as_text(_heading(encoder, hits)), no_wrap=True, overflow="ellipsis", ratio=1)
        for place in zip(*search.hits.values(), strict=True):
            table.add_row(*(as_text(f"{_mark(hit)}{hit.passage.full_text}") for hit in place))
        console.print(table)
    if any(hit.obeys is not None for search in found for hits in search.hits.values() for hit in hits):
        console.print(
            f"{OBEYS} relevant under this instruction, {BREAKS} not, by the labels or metadata", style="dim"
        )


def found_html(found: Sequence[Found]) -> str:
    """The same as HTML."""
    parts = []
    for search in found:
        heads = "".join(f"<th>{escape(_heading(encoder, hits))}" for encoder, hits in search.hits.items())
        rows = "".join(
            f"<tr>{''.join(f'<td>{_cell(hit)}</td>' for hit in place)}</tr>"
            for place in zip(*search.hits.values(), strict=True)
        )
        parts.append(
            f'<h3>{escape(_asked(search))}</h3><div class="wide"><table class="found"><tr>{heads}</tr>{rows}</table></div>'
        )
    return "\n".join(parts)


def _asked(found: Found) -> str:
    return f"{found.query}. {found.instruction}" if found.instruction else found.query


def _heading(encoder: str, hits: Sequence[Hit]) -> str:
    judged = [hit.obeys for hit in hits if hit.obeys is not None]
    return f"{encoder} ({sum(judged)} of {len(judged)} obey)" if judged else encoder


def _mark(hit: Hit) -> str:
    return {True: f"{OBEYS} ", False: f"{BREAKS} ", None: ""}[hit.obeys]


def _cell(hit: Hit) -> str:
    text = hit.passage.full_text
    shown = text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"
    return f"{_mark(hit)}{escape(shown)}"
