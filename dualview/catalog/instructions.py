"""Instructions on a catalog: requirements put into words, drawn for training and for the cases of a test."""

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

Kind = Literal["another value", "reversal", "compound"]
_KINDS: tuple[Kind, ...] = ("another value", "reversal", "compound")


@dataclass(frozen=True)
class Requirement:
    """A document must have (include) or must not have the value with this number."""

    include: bool
    value: int

    @property
    def sign(self) -> int:
        return 1 if self.include else -1


Requirements = tuple[Requirement, ...]


def obeying(labels_DV: NDArray[np.int8], requirements: Sequence[Requirement]) -> NDArray[np.int8]:
    """Whether each document meets all requirements, (D,): NO if it breaks one, else UNKNOWN if one is unknown."""
    is_broken, is_unknown = np.zeros((2, len(labels_DV)), bool)
    for needed in requirements:
        labels_D = labels_DV[:, needed.value]
        is_unknown |= labels_D == UNKNOWN
        is_broken |= labels_D == (NO if needed.include else YES)
    return np.where(is_broken, NO, np.where(is_unknown, UNKNOWN, YES)).astype(np.int8)


_JOINTS = (". ", ". ", ", ", " and ", "; ")


def word(
    values: Sequence[Value], requirements: Sequence[Requirement], split: Split, rng: random.Random
) -> str:
    """An instruction in phrases and wordings of the split."""
    clauses = [
        say(needed.include, rng.choice(values[needed.value].phrases[split]), split, rng)
        for needed in requirements
    ]
    rng.shuffle(clauses)
    text, *further = clauses
    for clause in further:
        joint = rng.choice(_JOINTS)
        if joint != ". ":
            clause = clause[0].lower() + clause[1:] if clause[1:2].islower() else clause
        text = (
            text.rstrip(".") + joint + clause if joint != ". " or text[-1] in ".?" else text + joint + clause
        )
    return text


def draw_requirements(
    values: Sequence[Value], usable: Sequence[int], compound_share: float, rng: random.Random
) -> Requirements:
    """One requirement, or two on different attributes; attributes are equally likely, and so are both polarities."""
    by_attribute: dict[str, list[int]] = {}
    for number in usable:
        by_attribute.setdefault(values[number].attribute, []).append(number)
    num = 2 if rng.random() < compound_share else 1
    drawn = rng.sample(sorted(by_attribute), min(num, len(by_attribute)))
    return tuple(Requirement(rng.random() < 0.5, rng.choice(by_attribute[name])) for name in drawn)


# --- cases ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A query under two instructions; documents are numbers."""

    query: int
    kind: Kind
    instructions: Mapping[str, str]  # "original" and "changed"
    requirements: Mapping[str, Requirements]
    labels: Mapping[str, str]  # scores are also reported for each


VIEWS = ("original", "changed")
_MIN_CHANGED = 2  # documents that stop, and that begin, to be relevant
_TRIES = 40


def draw_cases(
    values: Sequence[Value],
    usable: Sequence[int],
    unseen: frozenset[int],
    labels_DV: NDArray[np.int8],
    on_topic: Mapping[int, NDArray[np.int64]],
    per_query: int,
    split: Split,
    seed: int,
) -> list[Case]:
    """Up to `per_query` cases of each query, over values that some of its on-topic documents have and others lack.

    In a reversal, the changed instruction asks for the opposite; in a compound, half of it is kept.
    """
    cases = []
    for query, documents_K in on_topic.items():
        rng = random.Random(f"{seed}:{split}:{query}")
        labels_KV = labels_DV[documents_K]
        possible = [
            number
            for number in usable
            if min((labels_KV[:, number] == label).sum() for label in (YES, NO)) > _MIN_CHANGED
        ]
        num = 0
        for _ in range(_TRIES):
            pair = _draw_pair(values, possible, rng) if num < per_query else None
            if pair is None:
                continue
            kind, original, changed = pair
            before_K, after_K = obeying(labels_KV, original), obeying(labels_KV, changed)
            stopped, begun = (before_K == YES) & (after_K == NO), (before_K == NO) & (after_K == YES)
            if min(stopped.sum(), begun.sum()) < _MIN_CHANGED:
                continue
            needed = [*original, *changed]
            cases.append(
                Case(
                    query,
                    kind,
                    {
                        name: word(values, requirements, split, rng)
                        for name, requirements in zip(VIEWS, (original, changed), strict=True)
                    },
                    {"original": original, "changed": changed},
                    {
                        "polarity": "inclusion" if all(need.include for need in needed) else "exclusion",
                        "kind": kind,
                        "range": "yes" if any(_is_range(values[need.value]) for need in needed) else "no",
                        "value": "unseen" if any(need.value in unseen for need in needed) else "seen",
                    },
                )
            )
            num += 1
    return cases


def _is_range(value: Value) -> bool:
    return value.kind in ("number", "date")


def _draw_pair(
    values: Sequence[Value], possible: Sequence[int], rng: random.Random
) -> tuple[Kind, Requirements, Requirements] | None:
    by_attribute: dict[str, list[int]] = {}
    for number in possible:
        by_attribute.setdefault(values[number].attribute, []).append(number)
    if not by_attribute:
        return None
    attribute = rng.choice(sorted(by_attribute))
    first, kind = rng.choice(by_attribute[attribute]), rng.choice(_KINDS)
    include = rng.random() < 0.5
    if kind == "another value":
        others = [number for number in by_attribute[attribute] if number != first]
        if not others:
            return None
        return kind, (Requirement(include, first),), (Requirement(include, rng.choice(others)),)
    one, opposite = Requirement(include, first), Requirement(not include, first)
    if kind == "reversal":
        return kind, (one,), (opposite,)
    others = [number for name, numbers in by_attribute.items() if name != attribute for number in numbers]
    if not others:
        return None
    kept = Requirement(rng.random() < 0.5, rng.choice(others))
    return kind, (one, kept), (opposite, kept)


def to_json(case: Case) -> dict[str, Any]:
    return asdict(case)


def from_json(row: Mapping[str, Any]) -> Case:
    requirements = {
        name: tuple(Requirement(**needed) for needed in needs) for name, needs in row["requirements"].items()
    }
    return Case(**{**row, "requirements": requirements})
