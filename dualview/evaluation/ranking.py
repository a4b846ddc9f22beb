"""Exact search: scores, rankings and the top k over shards, with one rule for ties.

A ranking is sorted by (score, id), both descending, on float32 scores: the rule of trec_eval and of
mteb since 2.19.5.
"""

# Q = queries, D = documents of a shard, C = candidates of a query, E = embedding size, K = k or fewer

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class TopK(NamedTuple):
    """The best documents of each query, best first. K is smaller than k where there were fewer."""

    scores_QK: NDArray[np.float32]
    ids_QK: NDArray[np.str_]


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
    return rank(_inner_products(np.atleast_2d(query_E), passages_CE)[0], ids)


def top_k(queries_QE: ArrayLike, passages_DE: ArrayLike, ids: Sequence[str], k: int) -> TopK:
    """The k best passages of one shard for each query; all of them where the shard is shorter than k."""
    scores_QD = _inner_products(queries_QE, passages_DE)
    if scores_QD.shape[1] != len(ids):
        raise ValueError(f"{len(ids)} ids but {scores_QD.shape[1]} passages")
    return _best(scores_QD, np.broadcast_to(np.asarray(ids, dtype=np.str_), scores_QD.shape), k)


def merge_top_k(parts: Sequence[TopK], k: int) -> TopK:
    """The k best of all parts: the same for any cut into shards and any order of them.

    Each part holds the same queries in the same order, and each passage stands in one part only.
    """
    scores_QN = np.concatenate([part.scores_QK for part in parts], axis=1)
    ids_QN = np.concatenate([part.ids_QK for part in parts], axis=1)
    return _best(scores_QN, ids_QN, k)


def _best(scores_QN: NDArray[np.float32], ids_QN: NDArray[np.str_], k: int) -> TopK:
    _refuse_nan(scores_QN)
    best_first_QK = np.lexsort((ids_QN, scores_QN), axis=1)[:, ::-1][:, :k]
    return TopK(
        np.take_along_axis(scores_QN, best_first_QK, axis=1),
        np.take_along_axis(ids_QN, best_first_QK, axis=1),
    )


def _inner_products(queries_QE: ArrayLike, passages_DE: ArrayLike) -> NDArray[np.float32]:
    # Summed in float64, then rounded. In float32 BLAS sums in an order that depends on the shape of the
    # block: about 1% of the scores change with the cut into shards, and copies of a passage do not tie.
    return (np.asarray(queries_QE, np.float64) @ np.asarray(passages_DE, np.float64).T).astype(np.float32)


def _refuse_nan(scores: NDArray[np.float32]) -> None:
    if np.isnan(scores).any():
        raise ValueError("a score is NaN; the encoder or its training has diverged")
