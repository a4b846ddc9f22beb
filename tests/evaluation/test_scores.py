from hypothesis import given, settings
from hypothesis import strategies as st
from mteb._evaluators.retrieval_metrics import (
    calculate_retrieval_scores,
    evaluate_p_mrr_change,
    make_score_dict,
    paired_accuracy,
    robustness_at_10,
)
import numpy as np
import pytest
import pytrec_eval

from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView
from dualview.evaluation.benchmarks.flips import from_flips
from dualview.evaluation.scores import KINDS, SCORES_SCHEMA, QueryScore, mteb_result, score, scores_to_table
from dualview.records import FlipCollection, FlipQuery, Passage
from dualview.retrieval.ranking import Ranking, rank

IDS = [f"d{number}" for number in range(1, 31)]
SCORES = st.one_of(st.sampled_from([-1.0, 0.0, 0.25, 0.5]), st.floats(-2, 2, allow_nan=False, width=32))
RUNS = st.dictionaries(st.sampled_from(IDS), SCORES, min_size=1)
# The first is always judged relevant: what mteb does with a query without a relevant passage is not ours to copy.
GRADES = st.dictionaries(st.sampled_from(IDS), st.integers(0, 3)).map(
    lambda grades: {"d1": 1, **grades, "d0": 1}
)
K_VALUES = (1, 3, 5, 10, 20, 100, 1000)


def _ranking(run):
    ids = rank(list(run.values()), list(run))
    return Ranking(ids, [run[id] for id in ids])


def _collection(*cases):
    return Collection("made up", {id: Passage(id, text=id) for id in ["d0", *IDS]}, cases)


def _values(scores):
    return {score.metric: score.value for score in scores}


def _mteb(runs, qrels):
    """mteb's figures for runs and qrels, without its confidence curves."""
    found = calculate_retrieval_scores(runs, qrels, K_VALUES)
    names = ("ndcg", "recall", "precision", "naucs", "mrr", "naucs_mrr", "hit_rate")
    scores = make_score_dict(_map=found.map, task_scores={}, **{name: getattr(found, name) for name in names})
    return found.all_scores, {name: value for name, value in scores.items() if "nauc" not in name}


@settings(max_examples=50, deadline=None)
@given(
    topics=st.lists(
        st.tuples(RUNS, RUNS, GRADES, GRADES, st.lists(st.sampled_from(IDS), min_size=1, unique=True)),
        min_size=1,
        max_size=3,
    )
)
def test_followir_equals_mteb(topics):
    runs, qrels, diff, ours = {}, {}, {}, []
    for number, (original, changed, before, after, dropped) in enumerate(topics):
        runs |= {f"{number}-og": original, f"{number}-changed": changed}
        qrels |= {f"{number}-og": before, f"{number}-changed": after}
        diff[str(number)] = dropped
        views = {
            "original": QueryView(f"{number}-og", "q", "i", before),
            "changed": QueryView(f"{number}-changed", "q", "j", after),
        }
        ours.append(Case(str(number), views, frozenset(dropped)))
    expected = {
        **_mteb(runs, qrels)[1],
        **evaluate_p_mrr_change(qrels, runs, diff, K_VALUES),
    }
    kind, collection = KINDS["followir MAP@1000"], _collection(*ours)
    rankings = {id: _ranking(run) for id, run in runs.items()}
    scores = score(kind, [collection], [rankings])
    result = mteb_result(kind, [collection], [rankings], scores, {})["scores"]["test"][0]
    for name, value in expected.items():
        if isinstance(value, dict):
            value = {key: figure for key, figure in value.items() if "nauc" not in key}
        # mteb rounds means to five digits, and a sum in another order may round to the other side
        assert result[name] == pytest.approx(value, abs=1.1e-5 if name != "p-MRR" else 1e-12)
    # The Score of mteb 1: the original run against the changed labels.
    swapped = {f"{number}-og": after for number, (_, _, _, after, _) in enumerate(topics)}
    evaluator = pytrec_eval.RelevanceEvaluator(swapped, {"map_cut.1000"})
    old = evaluator.evaluate({id: run for id, run in runs.items() if id.endswith("-og")})
    mine = [each.value for each in scores if each.metric == "Score (mteb 1)"]
    assert np.mean(mine) == pytest.approx(np.mean([of["map_cut_1000"] for of in old.values()]), abs=1e-9)
    mine = [each.value for each in scores if each.metric == "Score (mteb 2)"]
    assert round(np.mean(mine), 5) == pytest.approx(expected["og"]["map_at_1000"], abs=1.1e-5)


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.lists(st.tuples(RUNS, GRADES), min_size=2, max_size=4), min_size=1, max_size=3))
def test_robustness_and_paired_accuracy_equal_mteb(groups):
    runs, qrels, cases = {}, {}, []
    for key, group in enumerate(groups):
        ids = [f"{key}_q{number}" for number in range(1, len(group) + 1)]
        runs |= {id: run for id, (run, _) in zip(ids, group, strict=True)}
        qrels |= {id: grades for id, (_, grades) in zip(ids, group, strict=True)}
        cases.append(Case(str(key), {id: QueryView(id, "q", "i", qrels[id]) for id in ids}))
    all_scores, _ = _mteb(runs, qrels)
    rankings = {id: _ranking(run) for id, run in runs.items()}
    scores = score(KINDS["instructir"], [_collection(*cases)], [rankings])
    robust = [each.value for each in scores if each.metric == "Robustness@10"]
    assert np.mean(robust) == pytest.approx(robustness_at_10(qrels, runs, all_scores), abs=1e-9)
    gains = [each.value for each in scores if each.metric == "nDCG@10"]
    assert np.mean(gains) == pytest.approx(
        np.mean([of["ndcg_cut_10"] for of in all_scores.values()]), abs=1e-9
    )
    pairs = [
        Case(case.id, dict(list(case.views.items())[:2])) for case in cases
    ]  # mteb looks at the first two
    accuracy = [each.value for each in score(KINDS["nevir"], [_collection(*pairs)], [rankings])]
    assert np.mean(accuracy) == paired_accuracy(qrels, runs, all_scores)


def _ranked(*ids):
    return Ranking(list(ids), [1 - place / 10 for place in range(len(ids))])


def _infosearch(original, instructed, reversed):
    views = {
        "original": QueryView("o", "q", "", {"d1": 1, "d2": 1, "d3": 0}),
        "instructed": QueryView("i", "q", "yes", {"d1": 1, "d2": 0}),
        "reversed": QueryView("r", "q", "no", {"d1": 0, "d2": 1}),
    }
    collection = _collection(Case("t", views, frozenset(["d2"])))
    return _values(
        score(KINDS["infosearch"], [collection], [{"o": original, "i": instructed, "r": reversed}])
    )


@pytest.mark.parametrize(
    ("ranks", "compliance", "sensitivity"),
    [
        # Ranks of the gold passage: original, instructed, reversed. Two passages were relevant to the query.
        ((1, 1, 2), 1, 1),  # first, and falls under the reversal
        ((1, 1, 1), 0, 0),  # blind
        ((3, 2, 4), 1, (1 - 1 / 20) / 2**0.5),
        ((2, 1, 4), 1, 1 - 1 / 20),  # 2 is not below the number of passages that were relevant
        ((2, 3, 1), 0, -1),  # the wrong way, both times
        ((1, 3, 2), 0, -2 / 3),  # falls under the instruction
        ((3, 2, 2), 0, -1 / 3),  # rises under the reversal
    ],
)
def test_infosearch_by_hand(ranks, compliance, sensitivity):
    others = ["d2", "d3", "d4"]
    rankings = []
    for place in ranks:
        ids = [*others[: place - 1], "d1", *others[place - 1 :]]
        # The gold passage's score goes with its rank, but for the first, which may keep it.
        rankings.append(_ranked(*ids))
    values = _infosearch(*rankings)
    assert values["SICR"] == compliance
    assert values["WISE"] == pytest.approx(sensitivity)


def test_infosearch_p_mrr_is_over_what_the_instruction_takes_away():
    ranking, changed = _ranked("d2", "d1", "d3"), _ranked("d1", "d3", "d2")
    assert _infosearch(ranking, changed, ranking)["p-MRR"] == pytest.approx(1 - 1 / 3)
    # d1 has no rank in two of the runs: the rank after the last, and the score 0
    assert _infosearch(_ranked("d2"), _ranked("d1"), _ranked("d2", "d3"))["SICR"] == 0


def test_excluir_by_hand():
    collection = _collection(Case("t", {"original": QueryView("t", "q", "", {"d1": 1})}, frozenset(["d2"])))
    right = _values(score(KINDS["excluir"], [collection], [{"t": _ranked("d3", "d1", "d2")}]))
    assert right == {
        "recall@1": 0,
        "MRR@10": 0.5,
        "delta recall@1": 0,
        "delta MRR@10": pytest.approx(1 / 2 - 1 / 3),
        "right rank": 1,
    }
    neither = _values(score(KINDS["excluir"], [collection], [{"t": _ranked("d3")}]))
    assert neither["right rank"] == 0


def _flip_collection(relevant, labels=None):
    query = FlipQuery(
        id="q",
        query="tax",
        instructions={"original": "o", "changed": "c"},
        relevant=relevant,
        candidates=("a", "b", "c", "d"),
        labels=labels or {},
    )
    return from_flips(FlipCollection("stance", {id: Passage(id, text=id) for id in "abcd"}, (query,)))


def _score_flips(collection, original, changed):
    rankings = {"q-original": _ranked(*original), "q-changed": _ranked(*changed)}
    return score(KINDS["flips"], [collection], [rankings])


def test_a_retriever_that_obeys_gets_the_best_flip_scores():
    collection = _flip_collection({"original": ("a", "b"), "changed": ("c",)}, {"polarity": "exclusion"})
    scores = _score_flips(collection, "abcd", "cdab")
    assert _values(scores) == pytest.approx(
        {
            "p-MRR": ((1 - 1 / 3) + (1 - 2 / 4)) / 2,
            "nDCG@10": 1,
            "nDCG@10 changed": 1,
            "MAP@1000": 1,
            "pair accuracy": 1,
        }
    )
    assert {(score.benchmark, score.query_id, score.labels["polarity"]) for score in scores} == {
        ("stance", "q", "exclusion")
    }


def test_a_retriever_that_is_blind_to_the_instruction_gets_half_of_the_pairs():
    values = _values(
        _score_flips(_flip_collection({"original": ("a", "b"), "changed": ("c",)}), "acbd", "acbd")
    )
    assert values["p-MRR"] == 0
    assert values["pair accuracy"] == 0.5


@pytest.mark.parametrize(
    ("relevant", "undefined"),
    [
        ({"original": ("a", "b"), "changed": ("a",)}, {"pair accuracy"}),
        ({"original": ("a",), "changed": ("a", "b")}, {"pair accuracy", "p-MRR"}),
    ],
)
def test_what_is_undefined_for_a_query_has_no_row(relevant, undefined):
    values = _values(_score_flips(_flip_collection(relevant), "abcd", "abcd"))
    assert {"p-MRR", "pair accuracy"} - values.keys() == undefined


def test_a_run_that_lacks_passages_is_scored_where_that_is_defined():
    collection = _flip_collection({"original": ("a",), "changed": ("b",)})
    values = _values(_score_flips(collection, "acd", "cd"))
    assert values["p-MRR"] == pytest.approx(1 - 1 / 3)  # the rank after the last
    assert "pair accuracy" not in values
    assert "p-MRR" not in _values(_score_flips(collection, "acd", ""))


def test_plain_scores():
    collection = _collection(Case("1", {"original": QueryView("1", "wing", "", {"d2": 2, "d3": 1, "d1": 0})}))
    perfect = _values(score(KINDS["beir"], [collection], [{"1": _ranked("d2", "d3", "d1")}]))
    assert perfect == {"nDCG@10": 1, "MAP@1000": 1, "recall@100": 1, "MRR": 1}
    assert _values(score(KINDS["beir"], [collection], [{"1": _ranked("d1", "d2")}])) == pytest.approx(
        {"nDCG@10": (2 / 1.5849625) / (2 + 1 / 1.5849625), "MAP@1000": 0.25, "recall@100": 0.5, "MRR": 0.5}
    )


def test_a_missing_ranking_is_no_score_but_an_error():
    with pytest.raises(KeyError):
        score(KINDS["flips"], [_flip_collection({"original": ("a",), "changed": ("b",)})], [{}])


def test_scores_become_one_table():
    table = scores_to_table(
        "dual", [QueryScore("stance", "t", "q", "p-MRR", 0.25, {"polarity": "exclusion"})]
    )
    assert table.schema == SCORES_SCHEMA
    assert table.to_pylist() == [
        {
            "encoder": "dual",
            "benchmark": "stance",
            "topic_id": "t",
            "query_id": "q",
            "metric": "p-MRR",
            "value": 0.25,
            "labels": [("polarity", "exclusion")],
        }
    ]
    assert scores_to_table("dual", []).schema == SCORES_SCHEMA
