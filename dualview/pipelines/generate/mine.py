"""Mining on Ray: a BEIR folder becomes seeds with hard negatives, as Parquet under the output of a run.

    mined/plan.json                       what is mined; created once
    mined/work/bm25-statistics.npy        of the whole corpus
    mined/work/bm25-000017.npz            the index of a shard of the corpus
    mined/work/passages-000017.npy        its vectors
    mined/work/queries-000003.npy         the vectors of a shard of the queries
    mined/part-000003.parquet             their seeds, in SEED_SCHEMA

Each object is created whole or not at all, and what stands is not made again. What lies under `work` can be
deleted once all parts stand.
"""

# Q = queries of a shard, B = queries that are scored at a time, D = passages of a shard, E = embedding size,
# K = last_rank or fewer, L = looked-up pairs of a query and a passage, N = passages of the corpus

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
import io
from typing import Any, get_args
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, TaskPoolStrategy

from dualview.config.base import ENCODING_GROUP
from dualview.config.sources import BeirSource, DenseRetriever, Mining
from dualview.distributed.cluster import ENCODING_ENVIRONMENT, errors_of_workers, join_cluster
from dualview.models import Side, check_model, model_fingerprint
from dualview.progress import Progress
from dualview.records import SEED_SCHEMA, Seed, seeds_to_table
from dualview.retrieval import bm25
from dualview.retrieval.ranking import inner_products
from dualview.retrieval.search import QUERIES_AT_A_TIME, Score, search
from dualview.runs.manifest import claim
from dualview.sources.beir import (
    BeirCollection,
    Corpus,
    JudgedQuery,
    check_mining,
    choose_negatives,
    read_collection,
    seed_of,
)
from dualview.storage import Store, arrow_filesystem, check_reachable, open_store

PLAN_KEY = "mined/plan.json"
STATISTICS_KEY = "mined/work/bm25-statistics.npy"


@dataclass(frozen=True)
class Mined:
    """The seeds of a finished mining: files in the layout of the `tuples` source."""

    files: tuple[str, ...]
    num_queries: int
    num_seeds: int
    num_negatives: int


def mine(source: BeirSource, output: str) -> Mined:
    """Brings the mining under this output to its end, whatever of it stands already.

    The seeds do not depend on the number of actors, nor on the sizes of shards. Raises InputError where the
    folder or the settings are not as expected, or the output holds seeds of others.
    """
    check_mining(source.mining)
    store = open_store(output)
    check_reachable(store)
    if source.mining.dense:
        check_model(source.mining.dense.model)
    collection = read_collection(source)
    claim(store, PLAN_KEY, _plan(source, collection), notes={})
    num_parts = -(-len(collection.queries) // source.mining.queries_per_shard)
    to_do = _missing(store, _part_key, num_parts)
    print(
        f"{output}: {len(collection.corpus):,} passages, {len(collection.queries):,} queries with positives;"
        f" {num_parts} parts of seeds, {len(to_do)} to do"
    )
    if to_do:
        join_cluster(source.mining.actors)
        _mine_parts(source.mining, store, collection, to_do)
    return _summary(store, len(collection.queries), num_parts)


def _plan(source: BeirSource, collection: BeirCollection) -> dict[str, Any]:
    """All that decides the seeds, and how they are cut."""
    settings = source.model_dump(mode="json", exclude={"path": True, "qrels": True, "mining": {"actors"}})
    dense, sides = source.mining.dense, get_args(Side)
    encoder = {side: model_fingerprint(dense.model, side) for side in sides} if dense else None
    return {**settings, "inputs": dict(collection.checksums), "encoder": encoder}


def _part_key(part: int) -> str:
    return f"mined/part-{part:06d}.parquet"


def _index_key(shard: int) -> str:
    return f"mined/work/bm25-{shard:06d}.npz"


def _vectors_key(side: Side, shard: int) -> str:
    return f"mined/work/{'queries' if side == 'query' else 'passages'}-{shard:06d}.npy"


def _missing(store: Store, key: Callable[[int], str], num: int) -> list[int]:
    there = {entry.key for entry in store.list("mined/")}
    return [index for index in range(num) if key(index) not in there]


def _summary(store: Store, num_queries: int, num_parts: int) -> Mined:
    files = tuple(f"{store.url}/{_part_key(part)}" for part in range(num_parts))
    num_seeds = num_negatives = 0
    for file in files:
        filesystem, path = arrow_filesystem(file)
        with filesystem.open_input_file(path) as content:
            metadata = pq.read_metadata(content)
        num_seeds += metadata.num_rows
        num_negatives += int(metadata.metadata[b"num_negatives"])
    return Mined(files, num_queries, num_seeds, num_negatives)


@dataclass(frozen=True)
class _Work:
    """What every process knows; large things are in Ray's object store, once a node."""

    mining: Mining
    store: Store
    corpus: Any  # reference to the Corpus
    queries: Sequence[Any]  # reference to the JudgedQuery of each shard
    vocabulary: Any  # reference to term -> number
    num_passages: int
    num_queries: int

    def rows_of(self, side: Side, shard: int) -> range:
        """Of queries or passages."""
        size, num = (
            (self.mining.queries_per_shard, self.num_queries)
            if side == "query"
            else (self.mining.passages_per_shard, self.num_passages)
        )
        return range(shard * size, min((shard + 1) * size, num))

    @property
    def num_shards(self) -> int:
        """Of the corpus."""
        return -(-self.num_passages // self.mining.passages_per_shard)


def _mine_parts(mining: Mining, store: Store, collection: BeirCollection, to_do: list[int]) -> None:
    queries, size = collection.queries, mining.queries_per_shard
    vocabulary: Mapping[str, int] = {}
    if mining.bm25:
        vocabulary = bm25.vocabulary_of(bm25.terms_of([query.text for query in queries], mining.bm25))
    work = _Work(
        mining=mining,
        store=store,
        corpus=ray.put(collection.corpus),
        queries=[ray.put(queries[start : start + size]) for start in range(0, len(queries), size)],
        vocabulary=ray.put(vocabulary),
        num_passages=len(collection.corpus),
        num_queries=len(queries),
    )
    if mining.dense:
        _encode(mining.dense, work, to_do)
    if mining.bm25:
        _index(work)
    for _ in _on_tasks(_mine_part, work, [_unit(work, "query", part) for part in to_do], "mining", "queries"):
        pass


def _index(work: _Work) -> None:
    to_do = _missing(work.store, _index_key, work.num_shards)
    if to_do and not work.store.list(STATISTICS_KEY):
        units = [_unit(work, "document", shard) for shard in range(work.num_shards)]
        rows = _on_tasks(_count_shard, work, units, "counting terms", "passages")
        statistics = bm25.total(_statistics_from_bytes(row["statistics"]) for row in rows)
        work.store.put_new(STATISTICS_KEY, _statistics_to_bytes(statistics), uuid4().hex)
    units = [_unit(work, "document", shard) for shard in to_do]
    for _ in _on_tasks(_index_shard, work, units, "indexing", "passages"):
        pass


def _encode(dense: DenseRetriever, work: _Work, parts: Sequence[int]) -> None:
    """The corpus, and the queries of these parts."""
    there = {entry.key for entry in work.store.list("mined/work/")}
    sides: dict[Side, Sequence[int]] = {"document": range(work.num_shards), "query": parts}
    units = [
        _unit(work, side, shard)
        for side, shards in sides.items()
        for shard in shards
        if _vectors_key(side, shard) not in there
    ]
    if not units:
        return
    actors = work.mining.actors
    rows = _dataset(units).map(
        EncodeShard,
        fn_constructor_args=(work, dense),
        compute=ActorPoolStrategy(size=min(actors.num, len(units))),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        runtime_env=ENCODING_ENVIRONMENT,
    )
    for _ in _watched(rows, units, "encoding", "texts"):
        pass


# --- how shards spread ----------------------------------------------------------------------------

Unit = dict[str, Any]  # side, shard, and how many rows the shard has


def _unit(work: _Work, side: Side, shard: int) -> Unit:
    return {"side": side, "shard": shard, "rows": len(work.rows_of(side, shard))}


def _dataset(units: Sequence[Unit]) -> ray.data.Dataset:
    return ray.data.from_items(list(units), override_num_blocks=len(units))


def _on_tasks(
    do: Callable[[Unit, _Work], Unit], work: _Work, units: Sequence[Unit], label: str, things: str
) -> Iterator[Unit]:
    """INPUT shard numbers -> FAN-OUT tasks, an object each -> OUTPUT what they return, in any order.

    Tasks and not actors: counting, indexing and mining take place in the same processes, which are slow to
    start.
    """
    if units:
        actors = work.mining.actors
        pool = TaskPoolStrategy(size=min(actors.num, len(units)))
        rows = _dataset(units).map(do, fn_args=(work,), compute=pool, num_cpus=actors.cpus)
        yield from _watched(rows, units, label, things)


def _watched(rows: ray.data.Dataset, units: Sequence[Unit], label: str, things: str) -> Iterator[Unit]:
    total = sum(unit["rows"] for unit in units)
    with errors_of_workers(), Progress(label, total, things, trail=None) as progress:
        for row in rows.iter_rows():
            progress.advance(row["rows"])
            yield row


# --- one shard ------------------------------------------------------------------------------------


def _count_shard(unit: Unit, work: _Work) -> Unit:
    """Counts the terms of a shard's passages."""
    terms, num_distinct = _terms_of_passages(unit, work)
    return {**unit, "statistics": _statistics_to_bytes(bm25.count(terms, num_distinct))}


def _index_shard(unit: Unit, work: _Work) -> Unit:
    """Puts the BM25 index of a shard's passages."""
    assert work.mining.bm25 is not None
    statistics = _statistics_from_bytes(work.store.get(STATISTICS_KEY))
    terms, _ = _terms_of_passages(unit, work)
    index = bm25.index_part(terms, statistics, work.mining.bm25)
    work.store.put_new(_index_key(unit["shard"]), bm25.to_bytes(index), uuid4().hex)
    return unit


def _terms_of_passages(unit: Unit, work: _Work) -> tuple[list[list[int]], int]:
    """The numbered terms of each passage, and how many distinct terms queries have."""
    assert work.mining.bm25 is not None
    vocabulary: Mapping[str, int] = ray.get(work.vocabulary)
    terms = bm25.terms_of(_texts(unit, work), work.mining.bm25)
    return bm25.numbered(terms, vocabulary), len(vocabulary)


def _texts(unit: Unit, work: _Work) -> list[str]:
    if unit["side"] == "query":
        return [query.text for query in ray.get(work.queries[unit["shard"]])]
    corpus: Corpus = ray.get(work.corpus)
    return [passage.full_text for passage in corpus.read(work.rows_of("document", unit["shard"]))]


def _statistics_to_bytes(statistics: bm25.Statistics) -> bytes:
    return _npy(
        np.array([statistics.num_passages, statistics.num_terms, *statistics.num_passages_with], np.int64)
    )


def _statistics_from_bytes(data: bytes) -> bm25.Statistics:
    num_passages, num_terms, *_ = numbers = np.load(io.BytesIO(data))
    return bm25.Statistics(int(num_passages), int(num_terms), numbers[2:])


class EncodeShard:
    """Puts the vectors of a shard of passages or queries; an actor, because it holds an encoder."""

    def __init__(self, work: _Work, dense: DenseRetriever) -> None:
        from dualview.retrieval.encoder import check_length, encode_texts, load_encoder

        self.work, self.dense, self.encode_texts = work, dense, encode_texts
        self.encoder = load_encoder(dense.model, trust_remote_code=dense.trust_remote_code)
        check_length(self.encoder, "max_query_tokens", dense.max_query_tokens)
        check_length(self.encoder, "max_passage_tokens", dense.max_passage_tokens)
        if ray.get_gpu_ids():
            self.encoder.to("cuda")

    def __call__(self, unit: Unit) -> Unit:
        side, texts = unit["side"], _texts(unit, self.work)
        vectors = [
            self.encode_texts(
                self.encoder,
                texts[start : start + ENCODING_GROUP],
                side=side,
                max_tokens=self.dense.max_query_tokens if side == "query" else self.dense.max_passage_tokens,
                precision=self.dense.precision,
            ).numpy()
            for start in range(0, len(texts), ENCODING_GROUP)
        ]
        key = _vectors_key(side, unit["shard"])
        self.work.store.put_new(key, _npy(np.concatenate(vectors)), uuid4().hex)
        return unit


def _npy(numbers: NDArray[Any]) -> bytes:
    sink = io.BytesIO()
    np.save(sink, numbers)
    return sink.getvalue()


def _mine_part(unit: Unit, work: _Work) -> Unit:
    """Puts the seeds of a shard of queries."""
    queries: Sequence[JudgedQuery] = ray.get(work.queries[unit["shard"]])
    corpus: Corpus = ray.get(work.corpus)
    rankings, scores = _candidates(work, queries, unit["shard"])
    # In memory first: pyarrow's own S3 streams leave a broken object behind when writing fails.
    sink, num_negatives = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, SEED_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            some = slice(start, start + QUERIES_AT_A_TIME)
            seeds = _seeds(work.mining, corpus, queries[some], rankings[some], scores[some])
            num_negatives += sum(len(seed.hard_negatives) for seed in seeds)
            writer.write_table(seeds_to_table(seeds))
        writer.add_key_value_metadata({"num_negatives": str(num_negatives)})
    work.store.put_new(_part_key(unit["shard"]), sink.getvalue().to_pybytes(), uuid4().hex)
    return unit


def _candidates(
    work: _Work, queries: Sequence[JudgedQuery], part: int
) -> tuple[list[list[list[int]]], list[Mapping[int, float]]]:
    """Each query's rankings, and the scores of all that stands in them and of its positives.

    Scores are the encoder's where there is one, and BM25's otherwise: what the encoder puts near the
    positive may well be relevant, and what only shares the query's words is what we are after.
    """
    mining, store = work.mining, work.store
    shards = [work.rows_of("document", shard) for shard in range(work.num_shards)]
    wanted = [list(query.positives) for query in queries]
    rankings: list[list[list[int]]] = [[] for _ in queries]
    scores: list[Mapping[int, float]] = []
    if mining.bm25:
        terms = bm25.numbered(
            bm25.terms_of([query.text for query in queries], mining.bm25), ray.get(work.vocabulary)
        )
        found = search(_by_bm25(store, terms), shards, wanted, mining.last_rank)
        scores = [of_query.scores for of_query in found]
        for query, of_query in enumerate(found):
            rows = [row for row in of_query.rows if of_query.scores[row] > 0]  # others share no term
            rankings[query].append(rows)
            wanted[query] += rows
    if mining.dense:
        vectors_QE = np.load(io.BytesIO(store.get(_vectors_key("query", part))))
        found = search(_by_vectors(store, vectors_QE), shards, wanted, mining.last_rank)
        scores = [of_query.scores for of_query in found]
        for query, of_query in enumerate(found):
            rankings[query].append(of_query.rows)
    return rankings, scores


def _seeds(
    mining: Mining,
    corpus: Corpus,
    queries: Sequence[JudgedQuery],
    rankings: Sequence[Sequence[Sequence[int]]],
    scores: Sequence[Mapping[int, float]],
) -> list[Seed]:
    chosen = [
        (
            query,
            positive,
            choose_negatives(of_query, scores_of_query, positive, query.relevant, corpus.texts, mining),
        )
        for query, of_query, scores_of_query in zip(queries, rankings, scores, strict=True)
        for positive in query.positives
    ]
    # Without negatives nothing can be made of it.
    chosen = [(query, positive, negatives) for query, positive, negatives in chosen if negatives]
    rows = sorted({row for _, positive, negatives in chosen for row in (positive, *negatives)})
    passages = dict(zip(rows, corpus.read(rows), strict=True))
    return [
        seed_of(query, passages[positive], [passages[row] for row in negatives])
        for query, positive, negatives in chosen
    ]


# --- scores of a shard ----------------------------------------------------------------------------


def _by_bm25(store: Store, queries: Sequence[Sequence[int]]) -> Callable[[int], Score]:
    def open_shard(shard: int) -> Score:
        index = bm25.from_bytes(store.get(_index_key(shard)))
        return lambda some: np.stack([bm25.scores_of(index, terms) for terms in queries[some]])

    return open_shard


def _by_vectors(store: Store, queries_QE: NDArray[np.float32]) -> Callable[[int], Score]:
    def open_shard(shard: int) -> Score:
        passages_DE = np.load(io.BytesIO(store.get(_vectors_key("document", shard))))
        return lambda some: inner_products(queries_QE[some], passages_DE)

    return open_shard
