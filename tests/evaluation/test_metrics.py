from hypothesis import given, settings
from hypothesis import strategies as st
from mteb._evaluators.retrieval_metrics import calculate_pmrr
import numpy as np
import pytest
import pytrec_eval

from dualview.evaluation.metrics import (
    average_precision,
    ndcg,
    p_mrr,
    pair_accuracy,
    precision,
    recall,
    reciprocal_rank,
)
from dualview.retrieval.ranking import rank

IDS = [f"d{number}" for number in range(1, 31)]
# Few different values, so that ties abound; a pair that differs only in float64; and arbitrary ones.
SCORES = st.one_of(
    st.sampled_from([-1.0, 0.0, 0.25, 0.5, 0.5 + 1e-12]), st.floats(-2, 2, allow_nan=False, width=32)
)
RUNS = st.dictionaries(st.sampled_from(IDS), SCORES)
GRADES = st.dictionaries(st.sampled_from(IDS), st.integers(-1, 4), min_size=1)


def _ranking(run):
    return rank(list(run.values()), list(run))


@settings(max_examples=300, deadline=None)
@given(run=RUNS, grades=GRADES, k=st.sampled_from([1, 3, 10, 1000]))
def test_equal_to_trec_eval(run, grades, k):
    measures = {f"ndcg_cut.{k}", f"map_cut.{k}", f"recall.{k}", f"P.{k}", "recip_rank"}
    expected = pytrec_eval.RelevanceEvaluator({"q": grades}, measures).evaluate({"q": run}).get("q")
    if expected is None:  # pytrec_eval leaves a query without a run out; we say 0
        expected = dict.fromkeys(
            (f"ndcg_cut_{k}", f"map_cut_{k}", f"recall_{k}", f"P_{k}", "recip_rank"), 0.0
        )
    ranking = _ranking(run)
    assert ndcg(ranking, grades, k) == pytest.approx(expected[f"ndcg_cut_{k}"], abs=1e-9)
    assert average_precision(ranking, grades, k) == pytest.approx(expected[f"map_cut_{k}"], abs=1e-9)
    assert recall(ranking, grades, k) == pytest.approx(expected[f"recall_{k}"], abs=1e-9)
    assert precision(ranking, grades, k) == pytest.approx(expected[f"P_{k}"], abs=1e-9)
    assert reciprocal_rank(ranking, grades) == pytest.approx(expected["recip_rank"], abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(
    queries=st.lists(
        st.tuples(RUNS, RUNS, st.lists(st.sampled_from(IDS), min_size=1, unique=True)), min_size=1, max_size=3
    )
)
def test_p_mrr_equal_to_mteb(queries):
    # mteb sorts the scores as they are given: float32 ones, as an evaluation hands them over
    as_float32 = [
        [{id: float(np.float32(score)) for id, score in run.items()} for run in runs] for *runs, _ in queries
    ]
    expected = calculate_pmrr(
        {f"{number}-og": original for number, (original, _) in enumerate(as_float32)},
        {f"{number}-changed": changed for number, (_, changed) in enumerate(as_float32)},
        {str(number): stopped for number, (_, _, stopped) in enumerate(queries)},
    )
    ours = [
        p_mrr(_ranking(original), _ranking(changed), stopped)
        for (original, changed), (_, _, stopped) in zip(as_float32, queries, strict=True)
    ]
    assert np.mean(ours) == pytest.approx(expected, abs=1e-12)


def test_p_mrr_is_positive_where_the_passage_drops():
    assert p_mrr(["a", "b"], ["b", "a"], ["a"]) == 0.5
    assert p_mrr(["b", "a"], ["a", "b"], ["a"]) == -0.5
    assert p_mrr(["a", "b", "c"], ["b", "c"], ["a"]) == pytest.approx(1 - 1 / 3)  # missing: rank 3


def test_pair_accuracy_counts_pairs():
    assert pair_accuracy(["a", "x", "b", "y"], relevant=["a", "b"], others=["x", "y"]) == 0.75
    assert pair_accuracy(["a", "b", "x"], relevant=["a", "b"], others=["x"]) == 1


def test_undefined_values_are_refused():
    with pytest.raises(ValueError, match="undefined"):
        p_mrr(["a"], ["a"], [])
    with pytest.raises(ValueError, match="undefined"):
        pair_accuracy(["a"], ["a"], [])
    with pytest.raises(KeyError):
        pair_accuracy(["a"], ["a"], ["not ranked"])


@given(st.permutations(range(1, 40)))
def test_p_mrr_does_not_depend_on_the_order_in_which_a_set_gives_its_passages(order):
    """To the last bit: two processes iterate over one set in two ways, and files of scores are compared."""
    ids = [f"d{number}" for number in range(60)]
    stopped = [f"d{number}" for number in order]
    assert p_mrr(ids, ids[::-1], stopped) == p_mrr(ids, ids[::-1], sorted(stopped))
