"""Score rankings case by case: each benchmark's own metrics, and mteb's for its result files."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView, topics_of
from dualview.evaluation.metrics import (
    average_precision,
    instruction_compliance,
    instruction_sensitivity,
    ndcg,
    p_mrr,
    pair_accuracy,
    precision,
    recall,
    reciprocal_rank,
)
from dualview.retrieval.ranking import Ranking


@dataclass(frozen=True, slots=True)
class QueryScore:
    """One metric of one case or view, as a fraction."""

    benchmark: str
    topic_id: str  # the unit that the bootstrap draws
    query_id: str  # of the case, or of the view
    metric: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)  # of the query: polarity, kind, ...


SCORES_SCHEMA = pa.schema(
    [
        ("encoder", pa.string()),
        ("benchmark", pa.string()),
        ("topic_id", pa.string()),
        ("query_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("labels", pa.map_(pa.string(), pa.string())),
    ]
)

Rankings = Mapping[str, Ranking]  # name of the view -> its ranking
MetricValues = Iterator[tuple[str, str, float]]  # id of the case or of one view, metric, value


def _plain(case: Case, rankings: Rankings) -> MetricValues:
    for name, view in case.views.items():
        ids, grades = rankings[name].ids, view.grades
        yield view.id, "nDCG@10", ndcg(ids, grades, 10)
        yield view.id, "MAP@1000", average_precision(ids, grades, 1000)
        yield view.id, "recall@100", recall(ids, grades, 100)
        yield view.id, "MRR", reciprocal_rank(ids, grades)


def _p_mrr(case: Case, first: Ranking, second: Ranking) -> MetricValues:
    """Omitted if undefined: if no passage is dropped, or a ranking is missing (as in mteb)."""
    if case.dropped and first.ids and second.ids:
        yield case.id, "p-MRR", p_mrr(first.ids, second.ids, case.dropped)


def _flips(case: Case, rankings: Rankings) -> MetricValues:
    """Omits pair accuracy if no passage is dropped or added, or if a run file lacks one of them."""
    original, changed = rankings["original"], rankings["changed"]
    before, after = case.views["original"].grades, case.views["changed"].grades
    yield from _p_mrr(case, original, changed)
    yield case.id, "nDCG@10", ndcg(original.ids, before, 10)
    yield case.id, "nDCG@10 changed", ndcg(changed.ids, after, 10)
    yield case.id, "MAP@1000", average_precision(original.ids, before, 1000)
    added = after.keys() - before.keys()
    if case.dropped and added and (case.dropped | added) <= set(original.ids) & set(changed.ids):
        yield (
            case.id,
            "pair accuracy",
            (
                pair_accuracy(original.ids, case.dropped, added)
                + pair_accuracy(changed.ids, added, case.dropped)
            )
            / 2,
        )


def _followir(measure: str) -> "Scorer":
    """Score is a metric of the original run: against the original labels as in mteb 2, and against the changed
    labels, which mteb 1 used as the original ones. Published Scores of 20 to 26 are of the latter kind."""

    def score(case: Case, rankings: Rankings) -> MetricValues:
        yield from _p_mrr(case, rankings["original"], rankings["changed"])
        for name, suffix in (("original", ""), ("changed", " changed")):
            yield (
                case.id,
                f"MAP@1000{suffix}",
                average_precision(rankings[name].ids, grades(case, name), 1000),
            )
            yield case.id, f"nDCG@5{suffix}", ndcg(rankings[name].ids, grades(case, name), 5)
        for name, convention in (("original", "mteb 2"), ("changed", "mteb 1")):
            value = _MEASURES[measure](rankings["original"].ids, grades(case, name))
            yield case.id, f"Score ({convention})", value

    def grades(case: Case, name: str) -> Mapping[str, int]:
        return case.views[name].grades

    return score


_MEASURES: Mapping[str, Callable[[Sequence[str], Mapping[str, int]], float]] = {
    "MAP@1000": lambda ids, grades: average_precision(ids, grades, 1000),
    "nDCG@5": lambda ids, grades: ndcg(ids, grades, 5),
    "nDCG@20": lambda ids, grades: ndcg(ids, grades, 20),
}


def _infosearch(case: Case, rankings: Rankings) -> MetricValues:
    original, instructed, reversed = (rankings[name] for name in ("original", "instructed", "reversed"))
    yield from _p_mrr(case, original, instructed)
    before, after = case.views["original"].grades, case.views["instructed"].grades
    gold = {id for id, grade in before.items() if grade > 0 and after.get(id, 0) > 0}
    if gold:
        yield case.id, "SICR", instruction_compliance(original, instructed, reversed, gold)
        wise = instruction_sensitivity(original.ids, instructed.ids, reversed.ids, gold, case.dropped)
        yield case.id, "WISE", wise
    for name, suffix in (("original", ""), ("instructed", " instructed"), ("reversed", " reversed")):
        yield case.id, f"nDCG@10{suffix}", ndcg(rankings[name].ids, case.views[name].grades, 10)


def _instructir(case: Case, rankings: Rankings) -> MetricValues:
    values = {view.id: ndcg(rankings[name].ids, view.grades, 10) for name, view in case.views.items()}
    yield from ((id, "nDCG@10", value) for id, value in values.items())
    yield case.id, "Robustness@10", min(values.values())


def _nevir(case: Case, rankings: Rankings) -> MetricValues:
    firsts = [recall(rankings[name].ids, view.grades, 1) for name, view in case.views.items()]
    yield case.id, "paired accuracy", float(all(first == 1 for first in firsts))


def _excluir(case: Case, rankings: Rankings) -> MetricValues:
    """In the top ten: the wanted passage, how far it is ahead of the unwanted one, and whether it is."""
    ids, wanted = rankings["original"].ids[:10], case.views["original"].grades
    unwanted = dict.fromkeys(case.dropped, 1)
    yield case.id, "recall@1", recall(ids, wanted, 1)
    yield case.id, "MRR@10", reciprocal_rank(ids, wanted)
    yield case.id, "delta recall@1", recall(ids, wanted, 1) - recall(ids, unwanted, 1)
    yield case.id, "delta MRR@10", reciprocal_rank(ids, wanted) - reciprocal_rank(ids, unwanted)
    yield case.id, "right rank", float(reciprocal_rank(ids, wanted) > reciprocal_rank(ids, unwanted))


Scorer = Callable[[Case, Rankings], MetricValues]


@dataclass(frozen=True, slots=True)
class BenchmarkKind:
    """How a kind of benchmark is queried and scored."""

    template: str  # joins query and instruction as its authors do
    score: Scorer
    main: str  # mteb's main_score
    apart: Mapping[str, str] = field(default_factory=dict)  # view -> key of its separate scores in mteb


_FOLLOWIR = {"original": "og", "changed": "changed"}
KINDS: Mapping[str, BenchmarkKind] = {
    "flips": BenchmarkKind("{query}. {instruction}", _flips, "p-MRR"),
    "beir": BenchmarkKind("{query}", _plain, "ndcg_at_10"),
    "trec": BenchmarkKind("{query}", _plain, "ndcg_at_10"),
    "followir MAP@1000": BenchmarkKind("{query} {instruction}", _followir("MAP@1000"), "p-MRR", _FOLLOWIR),
    "followir nDCG@5": BenchmarkKind("{query} {instruction}", _followir("nDCG@5"), "p-MRR", _FOLLOWIR),
    "followir nDCG@20": BenchmarkKind("{query} {instruction}", _followir("nDCG@20"), "p-MRR", _FOLLOWIR),
    "infosearch": BenchmarkKind("{query} {instruction}", _infosearch, "p-MRR"),
    # As in mteb. Its authors put the instruction and [SEP] before the query; set query_template for that.
    "instructir": BenchmarkKind("{query} {instruction}", _instructir, "robustness_at_10"),
    "nevir": BenchmarkKind("{query}", _nevir, "paired_accuracy"),
    "excluir": BenchmarkKind("{query}", _excluir, "mrr_at_10"),
    "mair": BenchmarkKind("{instruction} {query}", _plain, "ndcg_at_10"),
}


def score(
    kind: BenchmarkKind, collections: Sequence[Collection], rankings: Sequence[Mapping[str, Ranking]]
) -> list[QueryScore]:
    """All scores of a benchmark. rankings: for each collection, view id -> ranking, for every view."""
    topics = topics_of(collections)
    return [
        QueryScore(collection.name, topics[case.id], id, metric, value, case.labels)
        for collection, of_collection in zip(collections, rankings, strict=True)
        for case in collection.cases
        for id, metric, value in kind.score(
            case, {name: of_collection[view.id] for name, view in case.views.items()}
        )
    ]


def scores_to_table(encoder: str, scores: Iterable[QueryScore]) -> pa.Table:
    """One row per score, in SCORES_SCHEMA."""
    return pa.Table.from_pylist(
        [{"encoder": encoder, **asdict(score)} for score in scores], schema=SCORES_SCHEMA
    )


# --- mteb's result files --------------------------------------------------------------------------

MTEB_VERSION = "2.26.24"  # the version whose formulas and layout we follow
_CUTS = (1, 3, 5, 10, 20, 100, 1000)
_MTEB_NAMES = {  # our metric -> mteb's name
    "p-MRR": "p-MRR",
    "Robustness@10": "robustness_at_10",
    "paired accuracy": "paired_accuracy",
}


def mteb_result(
    kind: BenchmarkKind,
    collections: Sequence[Collection],
    rankings: Sequence[Mapping[str, Ranking]],
    scores: Iterable[QueryScore],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """mteb's result file of a task, without its confidence curves (nauc_...); adds `notes` as "dualview"."""
    views = [
        (name, view, of_collection[view.id].ids)
        for collection, of_collection in zip(collections, rankings, strict=True)
        for case in collection.cases
        for name, view in case.views.items()
    ]
    result: dict[str, Any] = _mteb_scores([(view, ids) for _, view, ids in views])
    for ours, theirs in kind.apart.items():
        result[theirs] = _mteb_scores([(view, ids) for name, view, ids in views if name == ours])
    by_metric: dict[str, list[float]] = {}
    for query_score in scores:
        by_metric.setdefault(query_score.metric, []).append(query_score.value)
    result |= {
        _MTEB_NAMES.get(metric, metric): sum(values) / len(values)
        for metric, values in by_metric.items()
        if metric in _MTEB_NAMES or "@" not in metric
    }
    result["main_score"] = result.get(kind.main)
    return {
        "dataset_revision": "local",
        "task_name": collections[0].name,
        "mteb_version": MTEB_VERSION,
        "scores": {"test": [{**result, "hf_subset": "default", "languages": ["eng-Latn"]}]},
        "evaluation_time": None,
        "kg_co2_emissions": None,
        "dualview": dict(notes),
    }


def _mteb_scores(views: Sequence[tuple[QueryView, Sequence[str]]]) -> dict[str, float]:
    """Means over queries, rounded as in mteb."""

    def mean(value: Callable[[Sequence[str], Mapping[str, int]], float]) -> float:
        return sum(value(ids, view.grades) for view, ids in views) / len(views)

    def mrr(ids: Sequence[str], grades: Mapping[str, int], k: int) -> float:
        return reciprocal_rank(ids[:k], grades)

    def hit(ids: Sequence[str], grades: Mapping[str, int], k: int) -> float:
        return float(precision(ids, grades, k) > 0)

    scores: dict[str, float] = {}
    for k in _CUTS:
        for name, metric in (
            ("ndcg", ndcg),
            ("map", average_precision),
            ("recall", recall),
            ("precision", precision),
            ("hit_rate", hit),
        ):
            scores[f"{name}_at_{k}"] = round(mean(partial(metric, k=k)), 5)
        scores[f"mrr_at_{k}"] = mean(partial(mrr, k=k))
    return scores | {"accuracy": scores["recall_at_1"]}
