"""What else can be done with the query vector and no training: the rows that an instruction encoder is compared with.

Each row is a pair of vectors for a query and an instruction: `base` and `added`; the query vector at a strength is
base + strength * added.
"""

# C = cases, E = embedding size, V = values

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualview.catalog.instructions import Case, Clauses
from dualview.catalog.vocabulary import Value

Encode = Callable[[Sequence[str]], NDArray[np.float32]]  # queries of the untouched encoder
_NUM_PHRASES = 3


class QueryVectors(NamedTuple):
    """One row's vectors of one view of each case, (C, E)."""

    base_CE: NDArray[np.floating]
    added_CE: NDArray[np.floating]

    def at(self, strength: float) -> NDArray[np.floating]:
        return self.base_CE + strength * self.added_CE


def phrase_vectors(values: Sequence[Value], encode: Encode) -> NDArray[np.float32]:
    """The mean vector of some phrases of each value, (V, E)."""
    phrases = [list(value.phrases["train"])[:_NUM_PHRASES] for value in values]
    vectors = iter(encode([phrase for of_value in phrases for phrase in of_value]))
    return np.stack([np.mean([next(vectors) for _ in of_value], axis=0) for of_value in phrases])


def signed_sums(
    asked: Sequence[Clauses], vectors_VE: NDArray[np.floating], *, only_excluded: bool = False
) -> NDArray[np.floating]:
    """Wanted minus unwanted: the vectors of included values less those of excluded ones, (C, E)."""
    sums = np.zeros((len(asked), vectors_VE.shape[1]))
    for number, clauses in enumerate(asked):
        for clause in clauses:
            if not (only_excluded and clause.include):
                sums[number] += clause.sign * vectors_VE[clause.value]
    return sums


def rows_of(
    view: str,
    cases: Sequence[Case],
    queries: Sequence[str],  # all, by number
    values: Sequence[Value],
    phrases_VE: NDArray[np.float32],
    directions_VE: NDArray[np.floating],
    encode: Encode,
) -> dict[str, QueryVectors]:
    """The rows of one view of each case.

    untouched: the encoder reads query and instruction. subtraction: it reads the query and what is included; vectors of
    what is excluded are subtracted. DEO: wanted minus unwanted from the vector of query and instruction, which is where its
    objective is stationary [2603.09185; the parts of the instruction are given, not found by a language model].
    arithmetic: the same from the query's vector. probe: the query plus the probe's own directions.
    """
    asked = [case.clauses[view] for case in cases]
    texts = [queries[case.query] for case in cases]
    query_CE = encode(texts)
    with_instruction_CE = encode(
        [f"{text}. {case.instructions[view]}" for text, case in zip(texts, cases, strict=True)]
    )
    with_included_CE = encode(
        [". ".join([text, *_included(clauses, values)]) for text, clauses in zip(texts, asked, strict=True)]
    )
    none = np.zeros_like(query_CE)
    wanted = signed_sums(asked, phrases_VE)
    return {
        "query alone": QueryVectors(query_CE, none),
        "untouched": QueryVectors(with_instruction_CE, none),
        "subtraction": QueryVectors(with_included_CE, signed_sums(asked, phrases_VE, only_excluded=True)),
        "DEO": QueryVectors(with_instruction_CE, wanted),
        "arithmetic": QueryVectors(query_CE, wanted),
        "probe": QueryVectors(query_CE, signed_sums(asked, directions_VE)),
    }


def _included(clauses: Clauses, values: Sequence[Value]) -> list[str]:
    return [values[clause.value].phrases["train"][0] for clause in clauses if clause.include]
