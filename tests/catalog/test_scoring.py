"""Scores of query vectors equal the metrics of evaluation over the rankings."""

import numpy as np
import pytest

from dualview.catalog.instructions import Case, Clause, obeying
from dualview.catalog.scoring import Catalog, score
from dualview.evaluation.metrics import ndcg, p_mrr, pair_accuracy, precision

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(80, 6)).astype(np.float32)
LABELS = RNG.choice(np.array([0, 1, -1], np.int8), size=(80, 2), p=[0.5, 0.4, 0.1])
TOPIC = np.arange(30)
CASE = Case(
    0,
    "reversal",
    {"original": "", "changed": ""},
    {"original": (Clause(True, 0),), "changed": (Clause(False, 0), Clause(True, 1))},
    {},
)
QUERIES = {view: RNG.normal(size=(1, 6)) for view in ("original", "changed")}


@pytest.fixture(scope="module")
def scores():
    return {
        name: value[0] for name, value in score(Catalog(VECTORS, LABELS, {0: TOPIC}), [CASE], QUERIES).items()
    }


RANKINGS = {
    view: [str(place) for place in np.argsort(-(VECTORS @ QUERIES[view][0].astype(np.float32)))]
    for view in QUERIES
}
OBEY = {view: obeying(LABELS, CASE.clauses[view]) for view in QUERIES}


def ids(is_in_D, among=TOPIC):
    return [str(place) for place in among if is_in_D[place]]


STOPPED = ids((OBEY["original"] == 1) & (OBEY["changed"] == 0))
BEGUN = ids((OBEY["original"] == 0) & (OBEY["changed"] == 1))


def test_p_mrr_and_pairs(scores):
    assert scores["p-MRR"] == pytest.approx(p_mrr(RANKINGS["original"], RANKINGS["changed"], STOPPED))
    right = [
        pair_accuracy(RANKINGS["original"], STOPPED, BEGUN),
        pair_accuracy(RANKINGS["changed"], BEGUN, STOPPED),
    ]
    assert scores["pair accuracy"] == pytest.approx(np.mean(right))
    before, after = ({id: rank for rank, id in enumerate(RANKINGS[view])} for view in ("original", "changed"))
    both = [before[a] < before[b] and after[b] < after[a] for a in STOPPED for b in BEGUN]
    assert scores["both right"] == pytest.approx(np.mean(both))


def test_a_filter_is_always_obeyed():
    found = score(Catalog(VECTORS, LABELS, {0: TOPIC}), [CASE], QUERIES, filtered=True)
    assert found["both right"] == found["pair accuracy"] == found["precision@10 obeying"] == 1
    assert found["p-MRR"] > 0


def test_relevance_topicality_and_obedience(scores):
    def mean(value):
        return np.mean([value(RANKINGS[view], OBEY[view]) for view in QUERIES])

    everything = range(len(VECTORS))
    assert scores["nDCG@10"] == pytest.approx(mean(lambda r, o: ndcg(r, dict.fromkeys(ids(o == 1), 1), 10)))
    assert scores["nDCG@10 topic"] == pytest.approx(
        mean(lambda r, _: ndcg(r, dict.fromkeys(map(str, TOPIC), 1), 10))
    )
    assert scores["precision@10 obeying"] == pytest.approx(
        mean(lambda r, o: precision(r, dict.fromkeys(ids(o == 1, everything), 1), 10))
    )
