"""Exact search: scores, rankings and the top k over shards, with one rule for ties.

A ranking is sorted by (score, id), both descending, on float32 scores: the rule of trec_eval and of
mteb since 2.19.5.
"""

# Q = queries, D = documents of a shard, C = candidates of a query, E = embedding size, K = k or fewer, H = hits

from collections.abc import Sequence
import itertools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Ranking(NamedTuple):
    """The passages of one query, best first."""

    ids: list[str]
    scores: list[float]  # float32 values


class TopK(NamedTuple):
    """The best documents of each query, best first. K is smaller than k where there were fewer."""

    scores_QK: NDArray[np.float32]
    ids_QK: NDArray[Any]  # of the kind that was asked for


# Names, or an array of anything that sorts: the numbers of rows, where names would not fit in memory.
Ids = Sequence[str] | NDArray[Any]


def rank(scores_C: ArrayLike, ids: Sequence[str]) -> list[str]:
    """The ids sorted by (float32 score, id), both descending. Raises ValueError on NaN or a length mismatch."""
    scores_C = np.asarray(scores_C, dtype=np.float32)
    if scores_C.shape != (len(ids),):
        raise ValueError(f"{len(ids)} ids but scores of shape {scores_C.shape}")
    _refuse_nan(scores_C)
    best_first = np.lexsort((np.asarray(ids, dtype=np.str_), scores_C))[::-1]
    return [ids[index] for index in best_first]


def rank_candidates(query_E: ArrayLike, passages_CE: ArrayLike, ids: Sequence[str]) -> list[str]:
    """The candidates of one query, best first by inner product."""
    return rank(inner_products(np.atleast_2d(query_E), passages_CE)[0], ids)


def inner_products(queries_QE: ArrayLike, passages_DE: ArrayLike) -> NDArray[np.float32]:
    """Scores (Q, D); a pair's score does not depend on what else stands in the block."""
    # Summed in float64, then rounded. In float32 BLAS sums in an order that depends on the shape of the
    # block: about 1% of the scores change with the cut into shards, and copies of a passage do not tie.
    return (np.asarray(queries_QE, np.float64) @ np.asarray(passages_DE, np.float64).T).astype(np.float32)


def top_k_of_scores(scores_QD: NDArray[np.float32], ids: Ids, k: int) -> TopK:
    """The k best passages of one shard for each query; all of them where the shard is shorter than k."""
    if scores_QD.shape[1] != len(ids):
        raise ValueError(f"{len(ids)} ids but {scores_QD.shape[1]} passages")
    ids_D = ids if isinstance(ids, np.ndarray) else np.asarray(ids, dtype=np.str_)
    return _best(scores_QD, np.broadcast_to(ids_D, scores_QD.shape), k)


def merge_top_k(parts: Sequence[TopK], k: int) -> TopK:
    """The k best of all parts: the same for any cut into shards and any order of them.

    Each part holds the same queries in the same order, and each passage stands in one part only.
    """
    scores_QN = np.concatenate([part.scores_QK for part in parts], axis=1)
    ids_QN = np.concatenate([part.ids_QK for part in parts], axis=1)
    return _best(scores_QN, ids_QN, k)


def _best(scores_QN: NDArray[np.float32], ids_QN: NDArray[Any], k: int) -> TopK:
    _refuse_nan(scores_QN)
    num_queries, num = scores_QN.shape
    best_first_QK = np.empty((num_queries, min(k, num)), dtype=np.int64)
    for query, (scores_N, ids_N) in enumerate(zip(scores_QN, ids_QN, strict=True)):
        # Only what scores no less than the k-th best is sorted; copies of it may make these more than k.
        places = np.flatnonzero(scores_N >= np.partition(scores_N, -k)[-k]) if k < num else np.arange(num)
        best_first = np.lexsort((ids_N[places], scores_N[places]))[::-1][:k]
        best_first_QK[query] = places[best_first]
    return TopK(
        np.take_along_axis(scores_QN, best_first_QK, axis=1),
        np.take_along_axis(ids_QN, best_first_QK, axis=1),
    )


def _refuse_nan(scores: NDArray[np.float32]) -> None:
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; the encoder or its training has diverged")


class Hits(NamedTuple):
    """Scored pairs of a query and a passage. Passages are numbered in the order of their ids."""

    queries_H: NDArray[np.int32]
    passages_H: NDArray[np.int32]
    scores_H: NDArray[np.float32]


def hits_of_shard(
    scores_QD: NDArray[np.float32],
    passages_D: NDArray[np.int32],
    first_query: int,
    candidates: Sequence[NDArray[np.int32]] | None,
    k: int,
) -> Hits:
    """The k best passages of a shard for each query, or those that are among a query's candidates, all of them."""
    num_queries = len(scores_QD)
    if candidates is None:
        best = top_k_of_scores(scores_QD, passages_D, k)
        queries_QK = np.broadcast_to(np.arange(num_queries)[:, None], best.ids_QK.shape)
        queries_H, passages_H, scores_H = (
            queries_QK.ravel(),
            best.ids_QK.ravel(),
            best.scores_QK.ravel(),
        )
    else:
        _refuse_nan(scores_QD)
        wanted_QD = np.stack([np.isin(passages_D, wanted_C) for wanted_C in candidates])
        queries_H, columns_H = np.nonzero(wanted_QD)
        passages_H, scores_H = passages_D[columns_H], scores_QD[queries_H, columns_H]
    return Hits((first_query + queries_H).astype(np.int32), passages_H.astype(np.int32), scores_H)


def best_hits(parts: Sequence[Hits], k: int) -> Hits:
    """The k best of each query, best first: the same for any cut into parts and any order of them."""
    queries_H, passages_H, scores_H = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort((-passages_H, -scores_H, queries_H))
    queries_H, passages_H, scores_H = queries_H[order], passages_H[order], scores_H[order]
    places_H = np.arange(len(queries_H)) - np.searchsorted(queries_H, queries_H)
    kept = places_H < k
    return Hits(queries_H[kept], passages_H[kept], scores_H[kept])


def rankings_of(hits: Hits, num_queries: int, ids: Sequence[str]) -> list[Ranking]:
    """One for each query, from sorted hits; `ids` are the passages' in ascending order."""
    starts = np.searchsorted(hits.queries_H, np.arange(num_queries + 1))
    return [
        Ranking([ids[number] for number in hits.passages_H[start:stop]], hits.scores_H[start:stop].tolist())
        for start, stop in itertools.pairwise(starts)
    ]
