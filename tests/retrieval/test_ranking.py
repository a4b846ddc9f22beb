import numpy as np
import pytest

from dualview.retrieval.ranking import (
    best_hits,
    hits_of_shard,
    inner_products,
    listed_hits,
    rank,
    rankings_of,
)


def _sorted_by_rule(scores, ids):
    return sorted(zip(np.float32(scores).tolist(), ids, strict=True), reverse=True)


def _passages_with_copies(num, seed=0):
    """Vectors in which every other passage is a copy, so that ties abound, with ids in no order."""
    rng = np.random.default_rng(seed)
    passages = rng.standard_normal((num, 48)).astype(np.float32)
    passages[1::2] = passages[0 : num - 1 : 2]
    order = rng.permutation(num)
    return passages[order], [f"d{number}" for number in rng.permutation(num)]


def test_rank_breaks_ties_by_id_descending():
    assert rank([0.5, 0.9, 0.5, 0.5], ["b", "a", "d10", "d9"]) == ["a", "d9", "d10", "b"]


def test_rank_ties_what_float32_cannot_tell_apart():
    assert rank([1.0 + 1e-12, 1.0], ["a", "b"]) == ["b", "a"]
    assert rank([1.0 + 1e-6, 1.0], ["a", "b"]) == ["a", "b"]


def test_rank_of_nothing():
    assert rank([], []) == []


def test_nan_and_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        rank([0.1, float("nan")], ["a", "b"])
    scores, passages = np.array([[float("nan")]], np.float32), np.arange(1, dtype=np.int32)
    with pytest.raises(ValueError, match="NaN"):
        hits_of_shard(scores, passages, 0, k=1)
    with pytest.raises(ValueError, match="NaN"):
        listed_hits(scores, passages, 0, [passages])
    with pytest.raises(ValueError, match="1 ids"):
        rank([0.1, 0.2], ["a"])


@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("num_shards", [1, 3, 7, 101])
@pytest.mark.parametrize("listed", [False, True])
def test_hits_over_shards_equal_a_plain_sort(num_shards, k, listed):
    passages, names = _passages_with_copies(101)
    ids = sorted(names)
    queries = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    rng = np.random.default_rng(num_shards)
    candidates = [np.sort(rng.choice(101, 20 * q, replace=False)) for q in range(5)] if listed else None
    parts = []
    for shard in np.array_split(rng.permutation(101).astype(np.int32), num_shards):
        scores = inner_products(queries, passages[shard])
        for start in (0, 2):  # two blocks of queries
            block = slice(start, start + 3 if start else 2)
            hits = (
                listed_hits(scores[block], shard, start, candidates[block])
                if candidates
                else hits_of_shard(scores[block], shard, start, k)
            )
            parts.append(hits)
    rng.shuffle(parts)
    rankings = rankings_of(best_hits([best_hits(parts[:1], k), *parts[1:]], k), 5, ids)
    matrix = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    for q, (scores, ranking) in enumerate(zip(matrix, rankings, strict=True)):
        wanted = range(101) if candidates is None else candidates[q]
        expected = _sorted_by_rule([scores[n] for n in wanted], [ids[n] for n in wanted])[:k]
        assert list(zip(ranking.scores, ranking.ids, strict=True)) == expected
