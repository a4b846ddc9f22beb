"""BM25 (bm25s) over parts of a corpus, with the same scores as one index of the whole corpus.

bm25s takes its statistics from the texts it indexes and holds all of their tokens in memory. Here the statistics
are counted first, part by part, and every part is indexed with those of the whole corpus. Only query terms have
postings. All other terms map to a single id, which preserves passage lengths.
"""

# T = distinct terms of all queries, P = passages of a part, B = queries of a block

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
import io
from operator import add
from typing import Self

import bm25s
from bm25s.scoring import (
    _build_idf_array,
    _build_scores_and_indices_for_matrix,
    _calculate_doc_freqs,
    _select_idf_scorer,
)
import numpy as np
from numpy.typing import NDArray

from dualview.config.sources import Bm25
from dualview.retrieval.ranking import Hits

_METHOD = "lucene"  # idf log(1 + (N - n + 0.5) / (n + 0.5)), never negative


def terms_of(texts: Sequence[str], settings: Bm25) -> list[list[str]]:
    """The terms of each text in their order: lower-case words of two or more characters, no stopwords."""
    terms: list[list[str]] = bm25s.tokenize(
        list(texts), stopwords=settings.stopwords, return_ids=False, show_progress=False
    )
    return terms


def vocabulary_of(queries: Iterable[Sequence[str]]) -> dict[str, int]:
    """Distinct term -> number, independent of the order of the queries."""
    return {term: number for number, term in enumerate(sorted({term for terms in queries for term in terms}))}


def numbered(texts: Iterable[Sequence[str]], vocabulary: Mapping[str, int]) -> list[list[int]]:
    """The terms of each text as numbers; T for a term that no query has."""
    unknown = len(vocabulary)
    return [[vocabulary.get(term, unknown) for term in terms] for terms in texts]


@dataclass(frozen=True)
class Statistics:
    """The corpus statistics of BM25."""

    num_passages: int
    num_terms: int  # with repetitions
    num_passages_with: NDArray[np.int64]  # (T + 1,)

    def __add__(self, other: Self) -> "Statistics":
        return Statistics(
            self.num_passages + other.num_passages,
            self.num_terms + other.num_terms,
            self.num_passages_with + other.num_passages_with,
        )


def count(passages_P: Sequence[Sequence[int]], num_distinct: int) -> Statistics:
    """The statistics of one part from its numbered terms; num_distinct is T."""
    distinct = [np.fromiter(set(terms), np.int64) for terms in passages_P]
    return Statistics(
        len(passages_P),
        sum(map(len, passages_P)),
        np.bincount(np.concatenate([np.empty(0, np.int64), *distinct]), minlength=num_distinct + 1),
    )


def total(parts: Iterable[Statistics]) -> Statistics:
    return reduce(add, parts)


def index_part(passages_P: Sequence[Sequence[int]], corpus: Statistics, settings: Bm25) -> bm25s.BM25:
    """An index of these passages with the statistics of the whole corpus; follows BM25.build_index_from_ids."""
    index = bm25s.BM25(k1=settings.k1, b=settings.b, method=_METHOD)
    num_columns = len(corpus.num_passages_with)
    scores, passages, terms = _build_scores_and_indices_for_matrix(
        corpus_token_ids=passages_P,
        idf_array=_build_idf_array(
            dict(enumerate(corpus.num_passages_with.tolist())),
            corpus.num_passages,
            _select_idf_scorer(_METHOD),
        ),
        avg_doc_len=np.float64((corpus.num_terms or 1) / corpus.num_passages),
        # of this part only: it determines the number of postings
        doc_frequencies=_calculate_doc_freqs(passages_P, range(num_columns), show_progress=False),
        k1=settings.k1,
        b=settings.b,
        delta=0.0,  # used by other methods only
        nonoccurrence_array=None,
        method=_METHOD,
        show_progress=False,
    )
    data, indices, indptr = index._np_csc(scores, passages, terms, (len(passages_P), num_columns))
    return _restored(index, data, indices, indptr, len(passages_P))


def _restored(
    index: bm25s.BM25,
    data: NDArray[np.float32],
    indices: NDArray[np.int32],
    indptr: NDArray[np.int64],
    num_passages: int,
) -> bm25s.BM25:
    index.scores = {"data": data, "indices": indices, "indptr": indptr, "num_docs": num_passages}
    index.nonoccurrence_array = None
    return index


def scores_of(index: bm25s.BM25, terms: Sequence[int]) -> NDArray[np.float32]:
    """The score (P,) of every passage of the part for a query's numbered terms; 0 without a shared term."""
    scores_P: NDArray[np.float32] = index.get_scores_from_ids(list(terms))
    return scores_P


def scores_of_all(index: bm25s.BM25, queries: Sequence[Sequence[int]], block: slice) -> NDArray[np.float32]:
    """The scores (B, P) of a block of the queries."""
    return np.stack([scores_of(index, terms) for terms in queries[block]])


def with_a_word(hits: Hits) -> Hits:
    """The hits that share a term with their query, i.e. have a score above 0."""
    shares_H = hits.scores_H > 0
    return Hits(hits.queries_H[shares_H], hits.passages_H[shares_H], hits.scores_H[shares_H])


def to_bytes(index: bm25s.BM25) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **index.scores)
    return sink.getvalue()


def from_bytes(data: bytes) -> bm25s.BM25:
    with np.load(io.BytesIO(data)) as arrays:
        return _restored(
            bm25s.BM25(method=_METHOD),
            arrays["data"],
            arrays["indices"],
            arrays["indptr"],
            int(arrays["num_docs"]),
        )
