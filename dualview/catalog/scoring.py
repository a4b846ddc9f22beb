"""Scores query vectors on cases: whether the ranking of the whole catalog follows the instruction and keeps the topic."""

# D = documents, E = embedding size, C = cases, K = documents on a query's topic

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dualview.catalog.attributes import NO, YES
from dualview.catalog.instructions import VIEWS, Case, obeying
from dualview.evaluation.metrics import ndcg, rank_change

METRICS = ("p-MRR", "pair accuracy", "both right", "nDCG@10", "nDCG@10 topic", "precision@10 obeying")
_CUT = 10


class Catalog(NamedTuple):
    """What cases are scored against."""

    vectors_DE: NDArray[np.float32]
    labels_DV: NDArray[np.int8]
    on_topic: Mapping[int, NDArray[np.int64]]  # query -> documents


def score(
    catalog: Catalog,
    cases: Sequence[Case],
    vectors: Mapping[str, NDArray[np.floating]],
    *,
    filtered: bool = False,
) -> dict[str, NDArray[np.float64]]:
    """Each metric of each case, (C,), as fractions. vectors: view -> the queries' vectors (C, E).

    filtered: documents that obey by their metadata come first, as after a filter.

    p-MRR, over the on-topic documents that stop being relevant; both rankings are of the whole catalog. Pair accuracy, of
    the pairs of an on-topic document that stops and one that begins to be relevant: the share ranked as the instruction
    says, mean of both views; both right: in both views. nDCG@10, mean of both views: documents that are on topic and obey
    are relevant; nDCG@10 topic: documents on topic, whether they obey or not. Precision@10 obeying: documents that
    obey, on topic or not; unknown ones do not.
    """
    values = np.zeros((len(METRICS), len(cases)))
    for number, case in enumerate(cases):
        scores = {view: catalog.vectors_DE @ vectors[view][number].astype(np.float32) for view in VIEWS}
        if filtered:
            for view, scores_D in scores.items():
                scores_D[obeying(catalog.labels_DV, case.clauses[view]) != YES] -= (
                    2 * np.abs(scores_D).max() + 1
                )
        values[:, number] = _score(catalog, case, scores)
    return dict(zip(METRICS, values, strict=True))


def _score(catalog: Catalog, case: Case, scores: Mapping[str, NDArray[np.floating]]) -> list[float]:
    topic_K = catalog.on_topic[case.query]
    obey = {view: obeying(catalog.labels_DV[topic_K], case.clauses[view]) for view in VIEWS}
    stopped = topic_K[(obey["original"] == YES) & (obey["changed"] == NO)]
    begun = topic_K[(obey["original"] == NO) & (obey["changed"] == YES)]
    before, after = (_ranks(scores[view], stopped) for view in VIEWS)
    changes = list(map(rank_change, before.tolist(), after.tolist()))
    right = {
        view: (sign * (scores[view][stopped][:, None] - scores[view][begun])) > 0
        for view, sign in (("original", 1), ("changed", -1))
    }
    relevance, topicality, obedience = [], [], []
    for view in VIEWS:
        top = _top(scores[view])
        relevance.append(_ndcg(top, topic_K[obey[view] == YES]))
        topicality.append(_ndcg(top, topic_K))
        obedience.append(float((obeying(catalog.labels_DV[top], case.clauses[view]) == YES).mean()))
    return [
        float(np.mean(changes)),
        float((right["original"].mean() + right["changed"].mean()) / 2),
        float((right["original"] & right["changed"]).mean()),
        float(np.mean(relevance)),
        float(np.mean(topicality)),
        float(np.mean(obedience)),
    ]


def _ranks(scores_D: NDArray[np.floating], documents: NDArray[np.int64]) -> NDArray[np.int64]:
    ascending = np.sort(scores_D)
    return len(scores_D) - np.searchsorted(ascending, scores_D[documents], side="right") + 1


def _top(scores_D: NDArray[np.floating]) -> NDArray[np.int64]:
    best = np.argpartition(-scores_D, min(_CUT, len(scores_D)) - 1)[:_CUT]
    return best[np.argsort(-scores_D[best], kind="stable")]


def _ndcg(top: NDArray[np.int64], relevant: NDArray[np.int64]) -> float:
    return ndcg(list(map(str, top)), dict.fromkeys(map(str, relevant), 1), _CUT)
