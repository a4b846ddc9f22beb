"""Evaluation on Ray: actors encode, the driver ranks, every query's value is kept."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from dualview.config import Beir, EvaluateConfig, FactbookFlips, Flips
from dualview.encoder import encode_texts, load_encoder
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
from dualview.progress import Progress
from dualview.records import AdhocCollection, FlipCollection
from dualview.shards import claim
from dualview.sources import factbook
from dualview.storage import check_reachable, open_store

SCORES_KEY = "scores.parquet"
ADHOC_DEPTH = 1000
VIEWS = ("original", "changed")

Collection = FlipCollection | AdhocCollection
Vectors = dict[str, NDArray[np.float32]]  # text -> unit vector (E,)


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
    claim(store, "config.json", config.model_dump(mode="json", exclude={"actors", "rows_per_shard"}))
    if store.list(SCORES_KEY):
        print(f"{config.output} is finished; nothing to do")
    else:
        join_cluster(config.actors)
        texts = _texts(config, collections)
        tables = []
        for name, vectors in _encode(config, texts).items():
            scores = [score for collection in collections for score in _score(config, collection, vectors)]
            tables.append(scores_to_table(name, scores))
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


def _texts(config: EvaluateConfig, collections: list[Collection]) -> dict[str, int]:
    """Every distinct text that an encoder must read, and its limit in tokens."""
    limits: dict[str, int] = {}
    for collection in collections:
        limits |= {p.full_text: config.max_passage_tokens for p in collection.passages.values()}
        match collection:
            case FlipCollection():
                queries = [
                    _instructed(config, query.query, query.instructions[view])
                    for query in collection.queries
                    for view in VIEWS
                ]
            case AdhocCollection():
                queries = list(collection.queries.values())
        limits |= dict.fromkeys(queries, config.max_query_tokens)
    return limits


def _encode(config: EvaluateConfig, limits: dict[str, int]) -> dict[str, Vectors]:
    """Vectors of all texts by every encoder. A unit of work is one encoder and some texts of one limit."""
    by_limit = {
        limit: [text for text, own in limits.items() if own == limit] for limit in set(limits.values())
    }
    size = config.rows_per_shard
    units = [
        {"encoder": name, "max_tokens": limit, "texts": texts[start : start + size]}
        for name in config.encoders
        for limit, texts in sorted(by_limit.items())
        for start in range(0, len(texts), size)
    ]
    dataset = ray.data.from_items(
        [{"unit": index, **unit} for index, unit in enumerate(units)], override_num_blocks=len(units)
    ).map(
        EncodeUnit,
        fn_constructor_args=(config,),
        compute=ActorPoolStrategy(size=config.actors.num),
        num_cpus=config.actors.cpus,
        num_gpus=config.actors.gpus,
    )
    vectors: dict[str, Vectors] = {name: {} for name in config.encoders}
    with Progress("encoding", total=len(limits) * len(config.encoders), unit="texts", trail=None) as progress:
        for row in dataset.iter_rows():
            unit = units[row["unit"]]
            matrix = np.frombuffer(row["vectors"], dtype=np.float32).reshape(len(unit["texts"]), -1)
            vectors[unit["encoder"]] |= dict(zip(unit["texts"], matrix, strict=True))
            progress.advance(len(matrix))
    return vectors


class EncodeUnit:
    """An actor that holds the encoder it was last asked for."""

    def __init__(self, config: EvaluateConfig) -> None:
        self.config = config
        self.name = ""

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        if unit["encoder"] != self.name:
            self.name = unit["encoder"]
            self.encoder = load_encoder(
                self.config.encoders[self.name], trust_remote_code=self.config.trust_remote_code
            )
            if ray.get_gpu_ids():
                self.encoder.to("cuda")
        vectors = encode_texts(
            self.encoder,
            list(unit["texts"]),
            max_tokens=int(unit["max_tokens"]),
            precision=self.config.precision,
        )
        return {"unit": unit["unit"], "vectors": vectors.numpy().tobytes()}


def _score(config: EvaluateConfig, collection: Collection, vectors: Vectors) -> list[QueryScore]:
    ids = list(collection.passages)
    of_passage = {id: vectors[passage.full_text] for id, passage in collection.passages.items()}
    match collection:
        case FlipCollection():
            rankings = {
                view: {
                    query.id: rank_candidates(
                        vectors[_instructed(config, query.query, query.instructions[view])],
                        np.stack([of_passage[id] for id in query.candidates]),
                        query.candidates,
                    )
                    for query in collection.queries
                }
                for view in VIEWS
            }
            return score_flips(collection, rankings)
        case AdhocCollection():
            queries_QE = np.stack([vectors[text] for text in collection.queries.values()])
            best = top_k(queries_QE, np.stack(list(of_passage.values())), ids, ADHOC_DEPTH)
            return score_adhoc(
                collection, {q: row.tolist() for q, row in zip(collection.queries, best.ids_QK, strict=True)}
            )
