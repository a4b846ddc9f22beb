import numpy as np
import pytest

from dualview.retrieval.ranking import (
    best_hits,
    hits_of_shard,
    inner_products,
    merge_top_k,
    rank,
    rank_candidates,
    rankings_of,
    top_k_of_scores,
)


def top_k(queries, passages, ids, k):
    return top_k_of_scores(inner_products(queries, passages), ids, k)


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
    with pytest.raises(ValueError, match="NaN"):
        top_k([[1.0]], [[float("nan")]], ["a"], k=1)
    with pytest.raises(ValueError, match="1 ids"):
        rank([0.1, 0.2], ["a"])
    with pytest.raises(ValueError, match="3 ids"):
        top_k([[1.0]], [[1.0], [2.0]], ["a", "b", "c"], k=1)


def test_rank_candidates_equals_a_plain_sort():
    passages, ids = _passages_with_copies(101)
    query = np.random.default_rng(1).standard_normal(48).astype(np.float32)
    scores = (passages.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    assert rank_candidates(query, passages, ids) == [id for _, id in _sorted_by_rule(scores, ids)]


@pytest.mark.parametrize("k", [1, 10, 150])  # 150: more than any shard of 3 or 7, and than all passages
@pytest.mark.parametrize("num_shards", [1, 3, 7])
def test_top_k_over_shards_equals_a_plain_sort(num_shards, k):
    passages, ids = _passages_with_copies(101)
    queries = np.random.default_rng(1).standard_normal((5, 48)).astype(np.float32)
    rng = np.random.default_rng(num_shards)
    for _ in range(5):
        shards = np.array_split(rng.permutation(len(ids)), num_shards)
        parts = [top_k(queries, passages[shard], [ids[i] for i in shard], k) for shard in shards]
        merged = merge_top_k(parts, k)
        for query, scores_K, ids_K in zip(queries, merged.scores_QK, merged.ids_QK, strict=True):
            scores = (passages.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
            expected = _sorted_by_rule(scores, ids)[:k]
            assert list(zip(scores_K.tolist(), ids_K.tolist(), strict=True)) == expected


def test_merging_in_steps_equals_merging_at_once():
    passages, ids = _passages_with_copies(60)
    parts = [top_k(passages[:4], passages[i : i + 20], ids[i : i + 20], 10) for i in (0, 20, 40)]
    at_once = merge_top_k(parts, 10)
    in_steps = merge_top_k([parts[2], merge_top_k(parts[:2], 10)], 10)
    np.testing.assert_array_equal(in_steps.ids_QK, at_once.ids_QK)
    np.testing.assert_array_equal(in_steps.scores_QK, at_once.scores_QK)


def test_an_empty_shard_adds_nothing():
    passages, ids = _passages_with_copies(8)
    full = top_k(passages[:2], passages, ids, 5)
    merged = merge_top_k([top_k(passages[:2], passages[:0], [], 5), full], 5)
    np.testing.assert_array_equal(merged.ids_QK, full.ids_QK)


def test_numbers_of_rows_rank_like_names_that_sort_the_same_way():
    passages, _ = _passages_with_copies(101)
    rows = np.arange(101)
    names = [f"{row:03d}" for row in rows]
    by_name, by_row = (top_k(passages[:7], passages, ids, 20) for ids in (names, rows))
    np.testing.assert_array_equal(by_row.ids_QK, by_name.ids_QK.astype(np.int64))
    np.testing.assert_array_equal(by_row.scores_QK, by_name.scores_QK)


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
            parts.append(hits_of_shard(scores[block], shard, start, candidates and candidates[block], k))
    rng.shuffle(parts)
    rankings = rankings_of(best_hits([best_hits(parts[:1], k), *parts[1:]], k), 5, ids)
    matrix = (queries.astype(np.float64) @ passages.astype(np.float64).T).astype(np.float32)
    for q, (scores, ranking) in enumerate(zip(matrix, rankings, strict=True)):
        wanted = range(101) if candidates is None else candidates[q]
        expected = _sorted_by_rule([scores[n] for n in wanted], [ids[n] for n in wanted])[:k]
        assert list(zip(ranking.scores, ranking.ids, strict=True)) == expected
