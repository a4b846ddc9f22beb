from itertools import pairwise
import random

import numpy as np
from numpy.typing import NDArray
import pytest

from dualview.retrieval.ranking import by_query, inner_products
from dualview.retrieval.search import Block, Found, merge, search


def vectors(num: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((num, 24)).astype(np.float32)


@pytest.mark.parametrize(
    "k", [0, 1, 10, 40, 200]
)  # 40 and 200: more than a shard of 3 or 7, than all of them
@pytest.mark.parametrize("num_shards", [1, 3, 7, 101])
@pytest.mark.parametrize("in_parts", [False, True])
def test_search_equals_a_full_matrix_product_for_any_cut(num_shards: int, k: int, in_parts: bool) -> None:
    passages, queries = vectors(101, 0), vectors(150, 1)
    passages[1::2] = passages[:-1:2]  # copies, so that there are ties
    listed = [np.array(random.Random(q).sample(range(101), k=q % 4)) for q in range(150)]
    order = np.random.default_rng(2).permutation(101).astype(np.int32)
    cuts = np.linspace(0, 101, num_shards + 1).astype(int).tolist()

    def shard(numbers: NDArray[np.int32]) -> Block:
        return Block(numbers, lambda block: inner_products(queries[block], passages[numbers]))

    shards = [shard(order[start:stop]) for start, stop in pairwise(cuts)]
    found: Found
    if in_parts:
        found = merge([search([one], 150, k=k, listed=listed) for one in shards], k)
    else:
        found = search(shards, 150, k=k, listed=listed)
    matrix = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    by_queries = zip(by_query(found.best, 150), by_query(found.listed, 150), strict=True)
    for scores, wanted, (best, scored) in zip(matrix, listed, by_queries, strict=True):
        expected = sorted(range(101), key=lambda row: (scores[row], row), reverse=True)[:k]
        assert best == [(row, scores[row]) for row in expected]
        assert dict(scored) == {row: scores[row] for row in wanted.tolist()}
