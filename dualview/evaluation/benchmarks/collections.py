"""A benchmark's corpus, queries and relevance judgements.

A view is one search. A case is the views that are scored together: one for plain retrieval, two for a pair of
instructions, ten for ten instructions of one query. A topic is the unit that the bootstrap draws: all cases with the
same query, under any instructions.
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
    dropped: frozenset[str] = frozenset()  # passages that stop being relevant; p-MRR is over them
    labels: Mapping[str, str] = field(default_factory=dict)  # scores are also broken down by these
    about: frozenset[str] = frozenset()  # cases that share one of these belong to one topic


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    passages: Mapping[str, Passage]
    cases: tuple[Case, ...]

    @property
    def views(self) -> list[QueryView]:
        return [view for case in self.cases for view in case.views.values()]


def fingerprint_of(collections: Iterable[Collection]) -> str:
    """Fingerprint of corpus, queries and judgements, independent of their file format."""
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
    """Case id -> topic, named after its first case. The collections are the parts of one benchmark.

    Cases belong to one topic if they share a query, ignoring letter case and white space, or an `about`; this
    relation is transitive.
    """
    cases = [case for collection in collections for case in collection.cases]
    topic = list(range(len(cases)))  # union-find: case -> an earlier case of its topic, or itself if first

    def first(number: int) -> int:
        while topic[number] != number:
            topic[number] = topic[topic[number]]
            number = topic[number]
        return number

    seen: dict[tuple[str, str], int] = {}
    for number, case in enumerate(cases):
        queries = {" ".join(view.query.split()).casefold() for view in case.views.values()}
        shared = [("query", query) for query in queries if query] + [("about", text) for text in case.about]
        for key in shared:
            ends = sorted((first(number), first(seen.setdefault(key, number))))
            topic[ends[1]] = ends[0]
    return {case.id: cases[first(number)].id for number, case in enumerate(cases)}
