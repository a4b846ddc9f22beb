"""Collections from folders, and the scores of rankings on them, query by query."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa

from dualview.beir import Row, check_qrels, read_qrels, read_rows
from dualview.config import Beir, Flips
from dualview.errors import InputError
from dualview.evaluation.metrics import (
    average_precision,
    ndcg,
    p_mrr,
    pair_accuracy,
    recall,
    reciprocal_rank,
)
from dualview.records import AdhocCollection, FlipCollection, FlipQuery, Passage

# --- reading --------------------------------------------------------------------------------------


def read_flips(settings: Flips) -> FlipCollection:
    """The folder's queries under the two named instructions.

    corpus.jsonl stands in the folder or in its parent, which several splits may share. Candidates of
    every query are all passages that are relevant to some query; the rest of the corpus is left out.
    Raises InputError where a file is missing or a row is wrong.
    """
    folder = Path(settings.path)
    own, shared = folder / "corpus.jsonl", folder.parent / "corpus.jsonl"
    corpus_path = own if own.exists() or not shared.exists() else shared
    corpus = _read_corpus(corpus_path)
    names = {"original": settings.original, "changed": settings.changed}
    rows = _rows_by_id(folder / "queries.jsonl")
    relevant = {id: _flip(row, names, corpus) for id, row in rows.items()}
    candidates = tuple(sorted({id for views in relevant.values() for ids in views.values() for id in ids}))
    return FlipCollection(
        name=settings.name,
        passages={id: corpus[id] for id in candidates},
        queries=tuple(
            FlipQuery(
                id=id,
                query=row.text("query"),
                instructions={view: _instruction(row, name) for view, name in names.items()},
                relevant=relevant[id],
                candidates=candidates,
            )
            for id, row in rows.items()
        ),
    )


def read_beir(settings: Beir) -> AdhocCollection:
    """The folder's corpus, and the queries that qrels.tsv judges (queries.jsonl may hold other splits too).

    Raises InputError where a file is missing or a row is wrong.
    """
    folder = Path(settings.path)
    passages = _read_corpus(folder / "corpus.jsonl")
    texts = {id: row.text("text") for id, row in _rows_by_id(folder / "queries.jsonl").items()}
    qrels_path = str(folder / "qrels.tsv")
    qrels = read_qrels(qrels_path)
    check_qrels(qrels_path, texts, passages)
    for query_id, grades in qrels.items():
        if max(grades.values()) <= 0:
            raise InputError(f"{qrels_path}: the query {query_id!r} has no relevant passage")
    return AdhocCollection(
        name=settings.name,
        passages=passages,
        queries={id: text for id, text in texts.items() if id in qrels},
        qrels=qrels,
    )


def _read_corpus(path: Path) -> dict[str, Passage]:
    return {id: row.passage() for id, row in _rows_by_id(path).items()}


def _rows_by_id(path: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    for row in read_rows(str(path)):
        id = row.text("_id")
        if id in rows:
            raise InputError(f"{row.where}: the id {id!r} stands there a second time")
        rows[id] = row
    return rows


def _instruction(row: Row, name: str) -> str:
    instructions = row.columns.get("instructions")
    if not isinstance(instructions, dict) or not isinstance(instructions.get(name), str):
        raise InputError(f"{row.where}: `instructions` must map {name!r} to a text, found {instructions!r}")
    return str(instructions[name])


def _flip(row: Row, names: Mapping[str, str], corpus: Mapping[str, Passage]) -> dict[str, tuple[str, ...]]:
    """view -> ids of the relevant passages, each once."""
    relevant = {view: _relevant(row, name, corpus) for view, name in names.items()}
    if set(relevant["original"]) == set(relevant["changed"]):
        first, second = names.values()
        raise InputError(
            f"{row.where}: {first!r} and {second!r} have the same relevant passages; "
            "expected that some passage changes its label"
        )
    return relevant


def _relevant(row: Row, name: str, corpus: Mapping[str, Passage]) -> tuple[str, ...]:
    relevant = row.columns.get("relevant")
    ids = relevant.get(name) if isinstance(relevant, dict) else None
    if not isinstance(ids, list) or not ids:
        raise InputError(
            f"{row.where}: `relevant` must map {name!r} to a list of at least one passage id, found {ids!r}"
        )
    for id in ids:
        if not isinstance(id, str) or id not in corpus:
            raise InputError(f"{row.where}: the relevant passage {id!r} is not in corpus.jsonl")
    return tuple(dict.fromkeys(ids))  # people's label files name a passage twice now and then


# --- scoring --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class QueryScore:
    """One metric of one query, as a fraction."""

    benchmark: str
    query_id: str
    metric: str
    value: float
    labels: Mapping[str, str] = field(default_factory=dict)  # of the query: polarity, kind, ...


SCORES_SCHEMA = pa.schema(
    [
        ("encoder", pa.string()),
        ("benchmark", pa.string()),
        ("query_id", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("labels", pa.map_(pa.string(), pa.string())),
    ]
)


def score_flips(
    collection: FlipCollection, rankings: Mapping[str, Mapping[str, Sequence[str]]]
) -> list[QueryScore]:
    """p-MRR, pair accuracy, and nDCG@10 under each instruction; MAP@1000 under the original one.

    rankings: "original" and "changed" -> query id -> candidates, best first. Every query must be there
    (KeyError). A metric is left out for a query where it is undefined: p-MRR where no passage stops
    being relevant, pair accuracy where in addition none becomes relevant.
    """
    scores = []
    for query in collection.queries:
        original, changed = rankings["original"][query.id], rankings["changed"][query.id]
        grades = {view: dict.fromkeys(ids, 1) for view, ids in query.relevant.items()}
        stopped = grades["original"].keys() - grades["changed"].keys()
        became = grades["changed"].keys() - grades["original"].keys()
        values = {}
        if stopped:
            values["p-MRR"] = p_mrr(original, changed, stopped)
        values["nDCG@10"] = ndcg(original, grades["original"], 10)
        values["nDCG@10 changed"] = ndcg(changed, grades["changed"], 10)
        values["MAP@1000"] = average_precision(original, grades["original"], 1000)
        if stopped and became:
            values["pair accuracy"] = (
                pair_accuracy(original, stopped, became) + pair_accuracy(changed, became, stopped)
            ) / 2
        scores += [
            QueryScore(collection.name, query.id, metric, value, query.labels)
            for metric, value in values.items()
        ]
    return scores


def score_adhoc(collection: AdhocCollection, rankings: Mapping[str, Sequence[str]]) -> list[QueryScore]:
    """nDCG@10, MAP@1000, recall@100 and MRR from query id -> passages, best first.

    Every query must be there (KeyError), with its first 1000 passages or all there are.
    """
    scores = []
    for query_id, grades in collection.qrels.items():
        ranking = rankings[query_id]
        values = {
            "nDCG@10": ndcg(ranking, grades, 10),
            "MAP@1000": average_precision(ranking, grades, 1000),
            "recall@100": recall(ranking, grades, 100),
            "MRR": reciprocal_rank(ranking, grades),
        }
        scores += [QueryScore(collection.name, query_id, metric, value) for metric, value in values.items()]
    return scores


def scores_to_table(encoder: str, scores: Iterable[QueryScore]) -> pa.Table:
    """One row a score, in SCORES_SCHEMA."""
    return pa.Table.from_pylist(
        [{"encoder": encoder, **asdict(score)} for score in scores], schema=SCORES_SCHEMA
    )
