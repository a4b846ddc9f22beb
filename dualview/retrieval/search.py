"""Exact search over a sharded corpus, with one shard in memory at a time."""

# Q = queries, B = queries scored at a time, D = passages of a shard, E = embedding size,
# L = passages listed for a query

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualview.retrieval.embeddings import Unit, read_vectors
from dualview.retrieval.ranking import Hits, best_hits, hits_of_shard, inner_products, listed_hits
from dualview.storage import Store

QUERIES_AT_A_TIME = 64  # bounds memory: their scores against a shard, or the texts of as many examples


class Block(NamedTuple):
    """Passages that are scored together."""

    passages_D: NDArray[np.int32]  # passage numbers, which are in the order of the ids
    score: Callable[[slice], NDArray[np.float32]]  # slice of the queries -> (B, D)


class Found(NamedTuple):
    best: Hits  # the k best passages of each query
    listed: Hits  # all passages listed for each query


_NONE = Hits(np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.float32))


def search(
    shards: Iterable[Block],
    num_queries: int,
    *,
    k: int = 0,
    listed: Sequence[NDArray[np.int32]] | None = None,
) -> Found:
    """The k best passages of each query, and all passages listed for it; both sorted.

    The result does not depend on the sharding. Ties go to the passage with the larger number.
    """
    found = Found(_NONE, _NONE)
    for passages_D, score in shards:
        parts = [found]
        for start in range(0, num_queries, QUERIES_AT_A_TIME):
            block = slice(start, min(start + QUERIES_AT_A_TIME, num_queries))
            scores_BD = score(block)
            best = hits_of_shard(scores_BD, passages_D, start, k) if k else _NONE
            parts.append(
                Found(
                    best,
                    _NONE if listed is None else listed_hits(scores_BD, passages_D, start, listed[block]),
                )
            )
        found = merge(parts, k)
    return found


def merge(parts: Sequence[Found], k: int) -> Found:
    """Merge the results of `search` over parts of a corpus."""
    listed = [part.listed for part in parts]
    return Found(
        best_hits([part.best for part in parts], k),
        best_hits(listed, sum(len(hits.scores_H) for hits in listed)),
    )


def by_vectors(store: Store, units: Iterable[Unit], queries_QE: NDArray[np.float32]) -> Iterable[Block]:
    """Cached passage vectors as shards; scores are inner products."""
    for unit in units:
        passages_DE = read_vectors(store, unit)

        def score(block: slice, passages_DE: NDArray[np.float32] = passages_DE) -> NDArray[np.float32]:
            return inner_products(queries_QE[block], passages_DE)

        yield Block(unit.numbers_D, score)
