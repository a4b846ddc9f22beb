"""Exact search: scores, rankings and the top k over shards, with one rule for ties.

Rankings are sorted by (float32 score, id), both descending, as in trec_eval and in mteb since 2.19.5.
"""

# Q = queries, D = documents of a shard, C = candidates of a query, E = embedding size, K = k or fewer, H = hits,
# L = passages listed for a query

from collections.abc import Sequence
import itertools
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Ranking(NamedTuple):
    """The passages of one query, best first."""

    ids: list[str]
    scores: list[float]  # float32 values


def rank(scores_C: ArrayLike, ids: Sequence[str]) -> list[str]:
    """The ids sorted by (float32 score, id), both descending. Raises ValueError on NaN or a length mismatch."""
    scores_C = np.asarray(scores_C, dtype=np.float32)
    if scores_C.shape != (len(ids),):
        raise ValueError(f"{len(ids)} ids but scores of shape {scores_C.shape}")
    _refuse_nan(scores_C)
    best_first = np.lexsort((np.asarray(ids, dtype=np.str_), scores_C))[::-1]
    return [ids[index] for index in best_first]


def inner_products(queries_QE: ArrayLike, passages_DE: ArrayLike) -> NDArray[np.float32]:
    """Scores (Q, D); a pair's score does not depend on the other rows of the block."""
    # Summed in float64, then rounded. In float32, BLAS sums in an order that depends on the shape of the
    # block: about 1% of the scores change with the sharding, and copies of a passage do not tie.
    return (np.asarray(queries_QE, np.float64) @ np.asarray(passages_DE, np.float64).T).astype(np.float32)


def _columns_of_best(
    scores_QD: NDArray[np.float32], passages_D: NDArray[np.int32], k: int
) -> NDArray[np.int64]:
    """Columns of the k best passages of each query, (Q, K), unordered."""
    num_queries, num_passages = scores_QD.shape
    if k >= num_passages:
        return np.broadcast_to(np.arange(num_passages), scores_QD.shape)
    columns_QK = np.empty((num_queries, k), np.int64)
    for query, scores_D in enumerate(scores_QD):
        # Sort only passages that score at least the k-th best; ties can make these more than k.
        places = np.flatnonzero(scores_D >= np.partition(scores_D, -k)[-k])
        columns_QK[query] = places[np.lexsort((passages_D[places], scores_D[places]))[::-1][:k]]
    return columns_QK


def _refuse_nan(scores: NDArray[np.float32]) -> None:
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; the encoder or its training has diverged")


class Hits(NamedTuple):
    """Scored pairs of a query and a passage. Passages are numbered in the order of their ids."""

    queries_H: NDArray[np.int32]
    passages_H: NDArray[np.int32]
    scores_H: NDArray[np.float32]


def hits_of_shard(
    scores_QD: NDArray[np.float32], passages_D: NDArray[np.int32], first_query: int, k: int
) -> Hits:
    """The k best passages of a shard for each query."""
    _refuse_nan(scores_QD)
    columns_QK = _columns_of_best(scores_QD, passages_D, k)
    queries_H = np.repeat(np.arange(len(scores_QD)), columns_QK.shape[1])
    return _hits(scores_QD, passages_D, first_query, queries_H, columns_QK.ravel())


def listed_hits(
    scores_QD: NDArray[np.float32],
    passages_D: NDArray[np.int32],
    first_query: int,
    listed: Sequence[NDArray[np.int32]],
) -> Hits:
    """All passages of a shard that are listed for a query."""
    _refuse_nan(scores_QD)
    is_listed_QD = np.stack([np.isin(passages_D, listed_L) for listed_L in listed])
    return _hits(scores_QD, passages_D, first_query, *np.nonzero(is_listed_QD))


def _hits(
    scores_QD: NDArray[np.float32],
    passages_D: NDArray[np.int32],
    first_query: int,
    queries_H: NDArray[np.int64],
    columns_H: NDArray[np.int64],
) -> Hits:
    return Hits(
        (first_query + queries_H).astype(np.int32),
        passages_D[columns_H].astype(np.int32),
        scores_QD[queries_H, columns_H],
    )


def best_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best hits of each query, best first, independent of the split into parts and of their order."""
    queries_H, passages_H, scores_H = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-passages_H, -scores_H, queries_H))
    queries_H, passages_H, scores_H = queries_H[order], passages_H[order], scores_H[order]
    places_H = np.arange(len(queries_H)) - np.searchsorted(queries_H, queries_H)
    kept = places_H < k
    return Hits(queries_H[kept], passages_H[kept], scores_H[kept])


def by_query(hits: Hits, num_queries: int) -> list[list[tuple[int, float]]]:
    """(passage number, score) of each query's hits, in order. hits: sorted by query."""
    starts = np.searchsorted(hits.queries_H, np.arange(num_queries + 1))
    return [
        list(zip(hits.passages_H[start:stop].tolist(), hits.scores_H[start:stop].tolist(), strict=True))
        for start, stop in itertools.pairwise(starts)
    ]


def rankings_of(hits: Hits, num_queries: int, ids: Sequence[str]) -> list[Ranking]:
    """One ranking per query. hits: sorted by query; ids: of all passages, ascending."""
    starts = np.searchsorted(hits.queries_H, np.arange(num_queries + 1))
    return [
        Ranking([ids[number] for number in hits.passages_H[start:stop]], hits.scores_H[start:stop].tolist())
        for start, stop in itertools.pairwise(starts)
    ]
