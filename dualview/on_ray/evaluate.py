"""Evaluation on Ray: actors encode, the driver ranks, every query's value is kept."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dualview.config import Beir, EvaluateConfig, FactbookFlips, Flips
from dualview.errors import InputError
from dualview.evaluation.benchmarks import (
    QueryScore,
    read_beir,
    read_flips,
    score_adhoc,
    score_flips,
    scores_to_table,
)
from dualview.evaluation.ranking import rank_candidates, top_k
from dualview.evaluation.report import Summary, summary
from dualview.models import check_model
from dualview.on_ray.cluster import join_cluster
from dualview.on_ray.encoding import Job, Vectors, encode
from dualview.records import AdhocCollection, FlipCollection
from dualview.shards import claim
from dualview.sources import factbook
from dualview.storage import check_reachable, open_store

SCORES_KEY = "scores.parquet"
ADHOC_DEPTH = 1000
VIEWS = ("original", "changed")

Collection = FlipCollection | AdhocCollection


def evaluate(config: EvaluateConfig) -> Summary:
    """Scores every encoder on every benchmark; a finished evaluation is only read.

    Leaves `scores.parquet` under the output: one row for each encoder, benchmark, query and metric.
    Returns the summary: means with bootstrap intervals, and paired differences.
    """
    store = open_store(config.output)
    check_reachable(store)
    _check_comparisons(config)
    for model in config.encoders.values():
        check_model(model)
    collections = [open_benchmark(benchmark) for benchmark in config.benchmarks]
    claim(
        store, "config.json", config.model_dump(mode="json", exclude={"actors", "rows_per_shard"}), notes={}
    )
    if store.list(SCORES_KEY):
        print(f"{config.output} is finished; nothing to do")
    else:
        join_cluster(config.actors)
        vectors = encode(
            _jobs(config, collections),
            config.actors,
            texts_per_unit=config.rows_per_shard,
            precision=config.precision,
            trust_remote_code=config.trust_remote_code,
        )
        tables = [
            scores_to_table(
                name,
                [
                    score
                    for collection in collections
                    for score in _score(
                        config, collection, vectors[f"{name} query"], vectors[f"{name} document"]
                    )
                ],
            )
            for name in config.encoders
        ]
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), sink)
        store.put_new(SCORES_KEY, sink.getvalue().to_pybytes(), attempt="driver")
    table = pq.read_table(pa.BufferReader(store.get(SCORES_KEY)))
    return summary(table, config.compare, config.bootstrap_samples, config.seed)


def _check_comparisons(config: EvaluateConfig) -> None:
    for name in (name for pair in config.compare for name in pair):
        if name not in config.encoders:
            raise InputError(
                f"compare: `{name}` is none of the encoders; expected one of {', '.join(config.encoders)}"
            )


def open_benchmark(settings: FactbookFlips | Flips | Beir) -> Collection:
    match settings:
        case FactbookFlips():
            return factbook.collection(settings.split, settings.num_queries, settings.seed)
        case Flips():
            return read_flips(settings)
        case Beir():
            return read_beir(settings)


def _instructed(config: EvaluateConfig, query: str, instruction: str) -> str:
    return config.query_template.format(query=query, instruction=instruction)


def _jobs(config: EvaluateConfig, collections: list[Collection]) -> dict[str, Job]:
    """What each encoder must read: every distinct query and every distinct passage once."""
    queries: dict[str, None] = {}
    passages: dict[str, None] = {}
    for collection in collections:
        passages |= dict.fromkeys(passage.full_text for passage in collection.passages.values())
        match collection:
            case FlipCollection():
                queries |= dict.fromkeys(
                    _instructed(config, query.query, query.instructions[view])
                    for query in collection.queries
                    for view in VIEWS
                )
            case AdhocCollection():
                queries |= dict.fromkeys(collection.queries.values())
    jobs = {}
    for name, model in config.encoders.items():
        jobs[f"{name} query"] = Job(model, "query", config.max_query_tokens, list(queries))
        jobs[f"{name} document"] = Job(model, "document", config.max_passage_tokens, list(passages))
    return jobs


def _score(
    config: EvaluateConfig, collection: Collection, queries: Vectors, passages: Vectors
) -> list[QueryScore]:
    ids = list(collection.passages)
    of_passage = {id: passages[passage.full_text] for id, passage in collection.passages.items()}
    match collection:
        case FlipCollection():
            rankings = {
                view: {
                    query.id: rank_candidates(
                        queries[_instructed(config, query.query, query.instructions[view])],
                        np.stack([of_passage[id] for id in query.candidates]),
                        query.candidates,
                    )
                    for query in collection.queries
                }
                for view in VIEWS
            }
            return score_flips(collection, rankings)
        case AdhocCollection():
            queries_QE = np.stack([queries[text] for text in collection.queries.values()])
            best = top_k(queries_QE, np.stack(list(of_passage.values())), ids, ADHOC_DEPTH)
            return score_adhoc(
                collection, {q: row.tolist() for q, row in zip(collection.queries, best.ids_QK, strict=True)}
            )
