from collections.abc import Callable
from itertools import pairwise
import random

import numpy as np
from numpy.typing import NDArray
import pytest

from dualview.retrieval.ranking import inner_products
from dualview.retrieval.search import search


def vectors(num: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num, 24)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 10, 40, 200])  # 40 and 200: more than a shard of 3 or 7, than all of them
@pytest.mark.parametrize("num_shards", [1, 3, 7, 101])
def test_search_equals_a_full_matrix_product_for_any_cut(num_shards: int, k: int) -> None:
    passages, queries = vectors(101, 0), vectors(150, 1)
    passages[1::2] = passages[:-1:2]  # copies, so that there are ties
    wanted = [random.Random(q).sample(range(101), k=q % 4) for q in range(150)]
    cuts = np.linspace(0, 101, num_shards + 1).astype(int).tolist()
    shards = [range(start, stop) for start, stop in pairwise(cuts)]

    def open_shard(shard: int) -> Callable[[slice], NDArray[np.float32]]:
        return lambda some: inner_products(queries[some], passages[shards[shard].start : shards[shard].stop])

    matrix = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    for scores, rows, found in zip(matrix, wanted, search(open_shard, shards, wanted, k), strict=True):
        best = sorted(range(101), key=lambda row: (scores[row], row), reverse=True)[:k]
        assert found.rows == best
        assert found.scores == {row: scores[row] for row in (*best, *rows)}
