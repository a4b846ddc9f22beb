"""Exact search over a corpus in shards, one of them in memory at a time."""

# B = queries that are scored at a time, D = passages of a shard, K = k or fewer, L = wanted pairs

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dualview.retrieval.ranking import TopK, merge_top_k, top_k_of_scores

QUERIES_AT_A_TIME = 64  # scores of so many queries against a shard, or texts of so many seeds, are held

Score = Callable[[slice], NDArray[np.float32]]  # these queries -> scores (B, D) of the passages of a shard


@dataclass(frozen=True, slots=True)
class Found:
    rows: list[int]  # best first; K of them
    scores: dict[int, float]  # of these rows and of all that was wanted


def search(
    open_shard: Callable[[int], Score], shards: Sequence[range], wanted: Sequence[Sequence[int]], k: int
) -> list[Found]:
    """The k best passages of each query, one shard in memory at a time, and the scores of wanted ones.

    `shards` are the rows of each shard of the corpus, and the result is the same for any cut; `wanted` are
    rows for each query. Ties go to the later row.
    """
    wanted_L = sorted((row, query) for query, rows in enumerate(wanted) for row in rows)
    rows_L = np.array([row for row, _ in wanted_L], np.int64)
    queries_L = np.array([query for _, query in wanted_L], np.int64)
    scores_L = np.empty(len(wanted_L), np.float32)
    blocks = [
        range(start, min(start + QUERIES_AT_A_TIME, len(wanted)))
        for start in range(0, len(wanted), QUERIES_AT_A_TIME)
    ]
    best: list[list[TopK]] = [[] for _ in blocks]
    for shard, rows in enumerate(shards):
        score = open_shard(shard)
        first, last = np.searchsorted(rows_L, [rows.start, rows.stop])
        for number, block in enumerate(blocks):
            scores_BD = score(slice(block.start, block.stop))
            part = top_k_of_scores(scores_BD, np.arange(rows.start, rows.stop), k)
            best[number] = [merge_top_k([*best[number], part], k)]
            of_block = (queries_L[first:last] >= block.start) & (queries_L[first:last] < block.stop)
            pairs = first + np.flatnonzero(of_block)
            scores_L[pairs] = scores_BD[queries_L[pairs] - block.start, rows_L[pairs] - rows.start]
    found = [
        Found(rows_K.tolist(), dict(zip(rows_K.tolist(), scores_K.tolist(), strict=True)))
        for [top] in best
        for scores_K, rows_K in zip(top.scores_QK, top.ids_QK, strict=True)
    ]
    for (row, query), score_of_pair in zip(wanted_L, scores_L.tolist(), strict=True):
        found[query].scores[row] = score_of_pair
    return found
