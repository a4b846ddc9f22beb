"""Mining on Ray: turns a BEIR folder into source examples with hard negatives, as Parquet under a run's output.

    mined/plan.json                       the settings and inputs; created once
    mined/work/bm25-statistics.npy        statistics of the whole corpus
    mined/work/bm25-000017.npz            the index of a shard of the corpus
    mined/work/embeddings/                vectors of passages and queries, see retrieval/embeddings.py, unless
                                          `embeddings` names another place
    mined/part-000003.parquet             the examples of a shard of queries, in EXAMPLE_SCHEMA

Each object is created whole or not at all, and existing ones are kept. `work` can be deleted once all parts exist.
"""

# Q = queries of a shard, E = embedding size

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
import io
import logging
from typing import Any
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import TaskPoolStrategy

from dualview.arrow import EXAMPLE_SCHEMA, examples_to_table
from dualview.config.renames import with_new_names
from dualview.config.sources import BeirSource, DenseRetriever, Mining
from dualview.distributed.cluster import errors_of_workers, join_cluster
from dualview.distributed.embeddings import ensure_embeddings
from dualview.models import SIDES, Side, check_model, model_fingerprint, saved_settings
from dualview.progress import Progress
from dualview.records import SourceExample
from dualview.retrieval import bm25
from dualview.retrieval.embeddings import EmbeddingSpec, Unit, Wanted, gather, keys_of, locate
from dualview.retrieval.ranking import by_query
from dualview.retrieval.search import QUERIES_AT_A_TIME, Block, by_vectors, search
from dualview.runs.manifest import pin_embedding_cache, pin_manifest
from dualview.sources.beir import (
    BeirCollection,
    Corpus,
    JudgedQuery,
    check_mining,
    choose_negatives,
    example_of,
    read_collection,
)
from dualview.storage import Store, arrow_filesystem, check_reachable, open_store

logger = logging.getLogger(__name__)

PLAN_KEY = "mined/plan.json"
STATISTICS_KEY = "mined/work/bm25-statistics.npy"


@dataclass(frozen=True)
class Mined:
    """The mined examples: files in the layout of the `tuples` source."""

    files: tuple[str, ...]
    num_queries: int
    num_examples: int
    num_negatives: int


def mine(source: BeirSource, output: str) -> Mined:
    """Finishes the mining under this output, new or interrupted.

    The examples depend neither on the number of actors nor on the shard sizes. Raises InputError if the folder or
    the settings are invalid, or if the output holds examples of other settings.
    """
    check_mining(source.mining)
    store = open_store(output)
    check_reachable(store)
    if source.mining.dense:
        check_model(source.mining.dense.model)
        if source.mining.dense.embeddings is not None:
            pin_embedding_cache(open_store(source.mining.dense.embeddings))
    collection = read_collection(source)
    pin_manifest(
        store, PLAN_KEY, _plan(source, collection), metadata={}, deciding=partial(with_new_names, BeirSource)
    )
    num_parts = -(-len(collection.queries) // source.mining.queries_per_shard)
    to_do = _missing(store, _part_key, num_parts)
    logger.info(
        f"{output}: {len(collection.corpus):,} passages, {len(collection.queries):,} queries with positives;"
        f" {num_parts} parts of examples, {len(to_do)} to do"
    )
    if to_do:
        join_cluster(source.mining.actors)
        _mine_parts(source.mining, store, collection, to_do)
    return _summary(store, len(collection.queries), num_parts)


def _plan(source: BeirSource, collection: BeirCollection) -> dict[str, Any]:
    """Everything that determines the examples and their division into parts."""
    settings = source.model_dump(
        mode="json",
        exclude={"path": True, "qrels": True, "mining": {"actors": True, "dense": {"embeddings"}}},
    )
    dense = source.mining.dense
    encoder = {side: model_fingerprint(dense.model, side) for side in SIDES} if dense else None
    return {**settings, "inputs": dict(collection.checksums), "encoder": encoder}


def _part_key(part: int) -> str:
    return f"mined/part-{part:06d}.parquet"


def _index_key(shard: int) -> str:
    return f"mined/work/bm25-{shard:06d}.npz"


def _missing(store: Store, key: Callable[[int], str], num: int) -> list[int]:
    existing = {entry.key for entry in store.list("mined/")}
    return [index for index in range(num) if key(index) not in existing]


def _summary(store: Store, num_queries: int, num_parts: int) -> Mined:
    files = tuple(f"{store.url}/{_part_key(part)}" for part in range(num_parts))
    num_examples = num_negatives = 0
    for file in files:
        filesystem, path = arrow_filesystem(file)
        with filesystem.open_input_file(path) as content:
            metadata = pq.read_metadata(content)
        num_examples += metadata.num_rows
        num_negatives += int(metadata.metadata[b"num_negatives"])
    return Mined(files, num_queries, num_examples, num_negatives)


@dataclass(frozen=True)
class _Work:
    """What every process needs; large data are in Ray's object store, once per node."""

    mining: Mining
    store: Store
    corpus: Any  # reference to the Corpus
    queries: Sequence[Any]  # reference to the JudgedQuery of each shard
    vocabulary: Any  # reference to term -> number
    passage_units: Any  # reference to the units that hold the corpus' vectors
    num_passages: int
    num_queries: int

    def rows_of(self, side: Side, shard: int) -> range:
        """The row numbers of a shard of queries or passages."""
        size, num = (
            (self.mining.queries_per_shard, self.num_queries)
            if side == "query"
            else (self.mining.passages_per_shard, self.num_passages)
        )
        return range(shard * size, min((shard + 1) * size, num))

    @property
    def num_shards(self) -> int:
        """Shards of the corpus."""
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
        passage_units=None,
        num_passages=len(collection.corpus),
        num_queries=len(queries),
    )
    if mining.dense:
        work = replace(work, passage_units=ray.put(_encode(mining.dense, work, collection)))
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


def _encode(dense: DenseRetriever, work: _Work, collection: BeirCollection) -> list[Unit]:
    """Encodes the queries and the corpus. Returns the units of the corpus."""
    mining, specs, corpus = work.mining, specs_of(dense), collection.corpus
    queries = [query.text for query in collection.queries]
    wanted = [
        Wanted(
            dense.model,
            specs["query"],
            keys_of(queries),
            lambda numbers: [queries[number] for number in numbers],
            list,
            mining.queries_per_shard,
        ),
        Wanted(
            dense.model,
            specs["document"],
            corpus.texts,
            list,
            partial(_read_passages, work.corpus),
            mining.passages_per_shard,
        ),
    ]
    store = _vectors_store(dense, work.store)
    ensure_embeddings(store, wanted, mining.actors, trust_remote_code=dense.trust_remote_code)
    return locate(store, specs["document"], corpus.texts)


def specs_of(dense: DenseRetriever) -> dict[Side, EmbeddingSpec]:
    """What determines the vectors of each side."""
    saved = saved_settings(dense.model)
    max_tokens: dict[Side, int] = {"query": dense.max_query_tokens, "document": dense.max_passage_tokens}
    return {
        side: EmbeddingSpec(
            model_fingerprint(dense.model, side),
            side,
            saved.pooling,
            saved.prompts[side],
            max_tokens[side],
            dense.precision,
        )
        for side in SIDES
    }


def _vectors_store(dense: DenseRetriever, output: Store) -> Store:
    return open_store(dense.embeddings or f"{output.url}/mined/work/embeddings")


def _read_passages(corpus: Any, rows: Sequence[int]) -> list[str]:
    corpus_here: Corpus = ray.get(corpus)
    return [passage.full_text for passage in corpus_here.read(rows)]


# --- distribution over the cluster ----------------------------------------------------------------

Task = dict[str, Any]  # side, shard number, number of rows of the shard


def _unit(work: _Work, side: Side, shard: int) -> Task:
    return {"side": side, "shard": shard, "rows": len(work.rows_of(side, shard))}


def _dataset(units: Sequence[Task]) -> ray.data.Dataset:
    return ray.data.from_items(list(units), override_num_blocks=len(units))


def _on_tasks(
    do: Callable[[Task, _Work], Task], work: _Work, units: Sequence[Task], label: str, things: str
) -> Iterator[Task]:
    """INPUT shard numbers -> FAN-OUT tasks, an object each -> OUTPUT their results, in any order.

    Tasks instead of actors, so that counting, indexing and mining share processes, which are slow to start.
    """
    if units:
        actors = work.mining.actors
        pool = TaskPoolStrategy(size=min(actors.num, len(units)))
        rows = _dataset(units).map(do, fn_args=(work,), compute=pool, num_cpus=actors.cpus)
        yield from _watched(rows, units, label, things)


def _watched(rows: ray.data.Dataset, units: Sequence[Task], label: str, things: str) -> Iterator[Task]:
    total = sum(unit["rows"] for unit in units)
    with errors_of_workers(), Progress(label, total, things, trail=None) as progress:
        for row in rows.iter_rows():
            progress.advance(row["rows"])
            yield row


# --- one shard ------------------------------------------------------------------------------------


def _count_shard(unit: Task, work: _Work) -> Task:
    """Counts the terms of a shard's passages."""
    terms, num_distinct = _terms_of_passages(unit, work)
    return {**unit, "statistics": _statistics_to_bytes(bm25.count(terms, num_distinct))}


def _index_shard(unit: Task, work: _Work) -> Task:
    """Puts the BM25 index of a shard's passages."""
    assert work.mining.bm25 is not None
    statistics = _statistics_from_bytes(work.store.get(STATISTICS_KEY))
    terms, _ = _terms_of_passages(unit, work)
    index = bm25.index_part(terms, statistics, work.mining.bm25)
    work.store.put_new(_index_key(unit["shard"]), bm25.to_bytes(index), uuid4().hex)
    return unit


def _terms_of_passages(unit: Task, work: _Work) -> tuple[list[list[int]], int]:
    """The numbered terms of each passage, and the number of distinct terms of the queries."""
    assert work.mining.bm25 is not None
    vocabulary: Mapping[str, int] = ray.get(work.vocabulary)
    texts = _read_passages(work.corpus, work.rows_of("document", unit["shard"]))
    terms = bm25.terms_of(texts, work.mining.bm25)
    return bm25.numbered(terms, vocabulary), len(vocabulary)


def _statistics_to_bytes(statistics: bm25.Statistics) -> bytes:
    sink = io.BytesIO()
    np.save(
        sink,
        np.array([statistics.num_passages, statistics.num_terms, *statistics.num_passages_with], np.int64),
    )
    return sink.getvalue()


def _statistics_from_bytes(data: bytes) -> bm25.Statistics:
    num_passages, num_terms, *_ = numbers = np.load(io.BytesIO(data))
    return bm25.Statistics(int(num_passages), int(num_terms), numbers[2:])


def _mine_part(unit: Task, work: _Work) -> Task:
    """Puts the examples of a shard of queries."""
    queries: Sequence[JudgedQuery] = ray.get(work.queries[unit["shard"]])
    corpus: Corpus = ray.get(work.corpus)
    rankings, scores = _candidates(work, queries)
    # In memory first: pyarrow's own S3 streams leave a broken object behind when writing fails.
    sink, num_negatives = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, EXAMPLE_SCHEMA, compression="zstd") as writer:
        for start in range(0, len(queries), QUERIES_AT_A_TIME):
            block = slice(start, start + QUERIES_AT_A_TIME)
            examples = _examples(work.mining, corpus, queries[block], rankings[block], scores[block])
            num_negatives += sum(len(example.hard_negatives) for example in examples)
            writer.write_table(examples_to_table(examples))
        writer.add_key_value_metadata({"num_negatives": str(num_negatives)})
    work.store.put_new(_part_key(unit["shard"]), sink.getvalue().to_pybytes(), uuid4().hex)
    return unit


def _candidates(
    work: _Work, queries: Sequence[JudgedQuery]
) -> tuple[list[list[list[int]]], list[Mapping[int, float]]]:
    """Each query's rankings, and the scores of its ranked passages and of its positives.

    The scores are the encoder's if there is one, otherwise BM25's: a passage that the encoder scores close to the
    positive may well be relevant, while one that only shares the query's words is the hard negative we want.
    """
    mining = work.mining
    texts = [query.text for query in queries]
    listed = [list(query.positives) for query in queries]
    rankings: list[list[list[int]]] = [[] for _ in queries]
    scores: list[Mapping[int, float]] = []

    def rank(shards: Iterable[Block], *, shares_a_word: bool) -> None:
        nonlocal scores
        found = search(shards, len(texts), k=mining.last_rank, listed=[np.array(rows) for rows in listed])
        best = bm25.with_a_word(found.best) if shares_a_word else found.best
        of_queries = by_query(best, len(texts))
        scores = [
            {**dict(of_listed), **dict(ranked)}
            for ranked, of_listed in zip(of_queries, by_query(found.listed, len(texts)), strict=True)
        ]
        for query, ranked in enumerate(of_queries):
            rows = [row for row, _ in ranked]
            rankings[query].append(rows)
            listed[query] += rows

    if mining.bm25:
        terms = bm25.numbered(bm25.terms_of(texts, mining.bm25), ray.get(work.vocabulary))
        rank(_by_bm25(work, terms), shares_a_word=True)
    if mining.dense:
        store, spec = _vectors_store(mining.dense, work.store), specs_of(mining.dense)["query"]
        queries_QE = gather(store, locate(store, spec, keys_of(texts)))
        rank(by_vectors(store, ray.get(work.passage_units), queries_QE), shares_a_word=False)
    return rankings, scores


def _examples(
    mining: Mining,
    corpus: Corpus,
    queries: Sequence[JudgedQuery],
    rankings: Sequence[Sequence[Sequence[int]]],
    scores: Sequence[Mapping[int, float]],
) -> list[SourceExample]:
    chosen = [
        (
            query,
            positive,
            choose_negatives(of_query, scores_of_query, positive, query.relevant, corpus.texts, mining),
        )
        for query, of_query, scores_of_query in zip(queries, rankings, scores, strict=True)
        for positive in query.positives
    ]
    # An example needs negatives.
    chosen = [(query, positive, negatives) for query, positive, negatives in chosen if negatives]
    rows = sorted({row for _, positive, negatives in chosen for row in (positive, *negatives)})
    passages = dict(zip(rows, corpus.read(rows), strict=True))
    return [
        example_of(query, passages[positive], [passages[row] for row in negatives])
        for query, positive, negatives in chosen
    ]


def _by_bm25(work: _Work, queries: Sequence[Sequence[int]]) -> Iterator[Block]:
    for number in range(work.num_shards):
        index = bm25.from_bytes(work.store.get(_index_key(number)))
        rows = work.rows_of("document", number)
        yield Block(
            np.arange(rows.start, rows.stop, dtype=np.int32), partial(bm25.scores_of_all, index, queries)
        )
