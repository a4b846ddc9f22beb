"""What is searched and what is relevant.

A topic is what the bootstrap draws; its views are the searches that are scored together: one of plain retrieval,
two of a pair of instructions, ten of ten instructions for one query.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dualview.records import Passage

Grades = Mapping[str, int]  # passage -> relevance, as judged


@dataclass(frozen=True, slots=True)
class View:
    """One search."""

    id: str  # the query's name in run files
    query: str
    instruction: str  # "": none
    grades: Grades
    candidates: tuple[str, ...] | None = None  # exactly these are ranked; None: every passage


@dataclass(frozen=True, slots=True)
class Topic:
    id: str
    views: Mapping[str, View]
    dropped: frozenset[str] = frozenset()  # passages that the instruction takes away: p-MRR is over them
    labels: Mapping[str, str] = field(default_factory=dict)  # scores are also reported apart by these


@dataclass(frozen=True, slots=True)
class Collection:
    name: str
    passages: Mapping[str, Passage]
    topics: tuple[Topic, ...]

    @property
    def views(self) -> list[View]:
        return [view for topic in self.topics for view in topic.views.values()]
