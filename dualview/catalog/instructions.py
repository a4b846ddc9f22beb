"""Instructions on a catalog: clauses put into words, drawn for training and for the cases of a test."""

# D = documents, V = values, K = documents on a query's topic

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
import random
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dualview.catalog.attributes import NO, UNKNOWN, YES
from dualview.catalog.vocabulary import Value
from dualview.catalog.wordings import Split, say

CaseKind = Literal["another value", "reversal", "compound"]
_KINDS: tuple[CaseKind, ...] = ("another value", "reversal", "compound")


@dataclass(frozen=True)
class Clause:
    """A document must have (include) or must not have the value with this number."""

    include: bool
    value: int

    @property
    def sign(self) -> int:
        return 1 if self.include else -1

    @property
    def opposite(self) -> "Clause":
        return Clause(not self.include, self.value)


Clauses = tuple[Clause, ...]  # all of an instruction


def obeying(labels_DV: NDArray[np.int8], clauses: Clauses) -> NDArray[np.int8]:
    """Whether each document obeys all clauses, (D,): NO if it breaks one, else UNKNOWN if one is unknown."""
    is_broken, is_unknown = np.zeros((2, len(labels_DV)), bool)
    for clause in clauses:
        labels_D = labels_DV[:, clause.value]
        is_unknown |= labels_D == UNKNOWN
        is_broken |= labels_D == (NO if clause.include else YES)
    return np.where(is_broken, NO, np.where(is_unknown, UNKNOWN, YES)).astype(np.int8)


def word(values: Sequence[Value], clauses: Clauses, split: Split, rng: random.Random) -> str:
    """An instruction in phrases and wordings of the split, its clauses in any order."""
    said = [
        say(clause.include, rng.choice(values[clause.value].phrases[split]), split, rng) for clause in clauses
    ]
    rng.shuffle(said)
    text = said[0]
    for further in said[1:]:
        joint = rng.choice(_JOINTS)
        text = f"{text} {further}" if joint == "." else f"{text.rstrip('.')}{joint} {_lower(further)}"
    return text


_JOINTS = (".", ".", ",", " and", ";")


def _lower(sentence: str) -> str:
    """The sentence as a clause within another: "I" and names in capitals stay."""
    is_word = sentence[1:2].islower()
    return sentence[0].lower() + sentence[1:] if is_word else sentence


def by_attribute(values: Sequence[Value], numbers: Sequence[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number in numbers:
        found.setdefault(values[number].attribute, []).append(number)
    return found


def draw_clauses(
    values: Sequence[Value], numbers: Sequence[int], compound_share: float, rng: random.Random
) -> Clauses:
    """One clause, or two on different attributes; attributes are equally likely, and so are both polarities."""
    of_attribute = by_attribute(values, numbers)
    num = 2 if rng.random() < compound_share else 1
    drawn = rng.sample(sorted(of_attribute), min(num, len(of_attribute)))
    return tuple(Clause(rng.random() < 0.5, rng.choice(of_attribute[name])) for name in drawn)


# --- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A query, by its number, under two instructions."""

    query: int
    kind: CaseKind
    instructions: Mapping[str, str]  # by view
    clauses: Mapping[str, Clauses]
    labels: Mapping[str, str]  # scores are also reported for each


VIEWS = ("original", "changed")
_MIN_CHANGED = 2  # documents that stop, and that begin, to be relevant
_TRIES = 40


def draw_cases(
    values: Sequence[Value],
    numbers: Sequence[int],
    unseen: frozenset[int],
    labels_DV: NDArray[np.int8],
    on_topic: Mapping[int, NDArray[np.int64]],
    per_query: int,
    split: Split,
    seed: int,
) -> list[Case]:
    """Up to `per_query` cases of each query, over those of the values that divide its on-topic documents.

    In a reversal, the changed instruction asks for the opposite; in a compound, half of it is kept.
    """
    cases: list[Case] = []
    for query, documents_K in on_topic.items():
        rng = random.Random(f"{seed}:{split}:{query}")
        labels_KV = labels_DV[documents_K]
        dividing = by_attribute(values, [number for number in numbers if _divides(labels_KV[:, number])])
        of_query: list[Case] = []
        for _ in range(_TRIES if dividing else 0):
            drawn = _draw_pair(dividing, rng)
            if drawn is None or not _changes(labels_KV, *drawn[1:]):
                continue
            kind, *pair = drawn
            clauses = dict(zip(VIEWS, pair, strict=True))
            instructions = {view: word(values, clauses[view], split, rng) for view in VIEWS}
            of_query.append(Case(query, kind, instructions, clauses, _labels(kind, values, unseen, pair)))
            if len(of_query) == per_query:
                break
        cases += of_query
    return cases


def _divides(labels_K: NDArray[np.int8]) -> bool:
    return bool(min((labels_K == label).sum() for label in (YES, NO)) > _MIN_CHANGED)


def _changes(labels_KV: NDArray[np.int8], original: Clauses, changed: Clauses) -> bool:
    before_K, after_K = obeying(labels_KV, original), obeying(labels_KV, changed)
    num_stopped = ((before_K == YES) & (after_K == NO)).sum()
    num_begun = ((before_K == NO) & (after_K == YES)).sum()
    return bool(min(num_stopped, num_begun) >= _MIN_CHANGED)


def _draw_pair(
    dividing: Mapping[str, list[int]], rng: random.Random
) -> tuple[CaseKind, Clauses, Clauses] | None:
    """None if the drawn kind is impossible for the drawn attribute."""
    attribute = rng.choice(sorted(dividing))
    kind = rng.choice(_KINDS)
    first = Clause(rng.random() < 0.5, rng.choice(dividing[attribute]))
    if kind == "reversal":
        return kind, (first,), (first.opposite,)
    if kind == "another value":
        others = [number for number in dividing[attribute] if number != first.value]
        return (kind, (first,), (Clause(first.include, rng.choice(others)),)) if others else None
    others = [number for name, numbers in dividing.items() if name != attribute for number in numbers]
    if not others:
        return None
    kept = Clause(rng.random() < 0.5, rng.choice(others))
    return kind, (first, kept), (first.opposite, kept)


def _labels(
    kind: CaseKind, values: Sequence[Value], unseen: frozenset[int], pair: Sequence[Clauses]
) -> dict[str, str]:
    clauses = [clause for of_view in pair for clause in of_view]
    has_range = any(values[clause.value].kind in ("number", "date") for clause in clauses)
    return {
        "polarity": "inclusion" if all(clause.include for clause in clauses) else "exclusion",
        "kind": kind,
        "range": "yes" if has_range else "no",
        "value": "unseen" if any(clause.value in unseen for clause in clauses) else "seen",
    }


def to_json(case: Case) -> dict[str, Any]:
    return asdict(case)


def from_json(row: Mapping[str, Any]) -> Case:
    clauses = {
        view: tuple(Clause(**clause) for clause in of_view) for view, of_view in row["clauses"].items()
    }
    return Case(**{**row, "clauses": clauses})
