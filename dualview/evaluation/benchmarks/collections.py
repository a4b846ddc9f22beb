"""What is searched, what is relevant, and what is drawn.

A view is one search. A case is the views that are scored together: one of plain retrieval, two of a pair of
instructions, ten of ten instructions for one query. A topic is what the bootstrap draws: all the cases that ask the
same query, under whatever instructions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
import hashlib
from typing import Any

from dualview.config.base import canonical_json
from dualview.records import Passage

Grades = Mapping[str, int]  # passage -> relevance, as judged


@dataclass(frozen=True, slots=True)
class QueryView:
    """One search."""

    id: str  # the query's name in run files
    query: str
    instruction: str  # "": none
    grades: Grades
    candidates: tuple[str, ...] | None = None  # exactly these are ranked; None: every passage


@dataclass(frozen=True, slots=True)
class Case:
    id: str
    views: Mapping[str, QueryView]
    dropped: frozenset[str] = frozenset()  # passages that the instruction takes away: p-MRR is over them
    labels: Mapping[str, str] = field(default_factory=dict)  # scores are also reported apart by these
    about: frozenset[str] = frozenset()  # besides its queries: cases that share one of these are of one topic


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    passages: Mapping[str, Passage]
    cases: tuple[Case, ...]

    @property
    def views(self) -> list[QueryView]:
        return [view for case in self.cases for view in case.views.values()]


def fingerprint_of(collections: Iterable[Collection]) -> str:
    """Of all that is searched, asked and judged, whatever files it came from."""
    digest = hashlib.sha256()

    def add(*parts: Any) -> None:
        digest.update(canonical_json(parts).encode())

    for collection in collections:
        for id in sorted(collection.passages):
            add(id, collection.passages[id].full_text)
        for case in collection.cases:
            add(case.id, sorted(case.dropped), dict(case.labels), sorted(case.about))
            for name, view in case.views.items():
                add(name, view.id, view.query, view.instruction, dict(view.grades), view.candidates)
    return digest.hexdigest()[:16]


def topics_of(collections: Iterable[Collection]) -> dict[str, str]:
    """Case -> its topic, which has the name of its first case. The collections are one benchmark's parts.

    Cases are of one topic where they ask the same query, letter case and white space aside, or are `about` the same;
    also where a third one links them.
    """
    cases = [case for collection in collections for case in collection.cases]
    topic = list(range(len(cases)))  # case -> an earlier one of its topic; itself: the first

    def first(number: int) -> int:
        while topic[number] != number:
            topic[number] = topic[topic[number]]
            number = topic[number]
        return number

    seen: dict[tuple[str, str], int] = {}
    for number, case in enumerate(cases):
        queries = {" ".join(view.query.split()).casefold() for view in case.views.values()}
        shared = [("query", query) for query in queries if query] + [("about", each) for each in case.about]
        for each in shared:
            ends = sorted((first(number), first(seen.setdefault(each, number))))
            topic[ends[1]] = ends[0]
    return {case.id: cases[first(number)].id for number, case in enumerate(cases)}
