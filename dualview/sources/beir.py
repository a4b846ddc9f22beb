"""Examples from a BEIR folder: positives from its relevance judgements, hard negatives mined from its corpus.

These examples have no instruction and no instruction negatives yet. A corpus takes 16 bytes of memory per passage;
its texts are read from the file on demand.
"""

# N = passages of the corpus

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
import hashlib
from itertools import zip_longest
import json
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from dualview.beir import Row, check_qrels, read_qrels, read_rows
from dualview.config.base import fingerprint
from dualview.config.sources import BeirSource, Mining
from dualview.errors import InputError
from dualview.records import Passage, SourceExample
from dualview.retrieval.embeddings import text_key
from dualview.storage import S3Store, arrow_filesystem, check_reachable, open_store

_MAX_GAP_BYTES = 2**16  # reading over a gap of this size is cheaper than another request
_MAX_SPAN_BYTES = 2**23
_NUM_READERS = 8  # concurrent requests; an object store takes tens of milliseconds to answer one


BLANK = text_key("")


@dataclass(frozen=True)
class Corpus:
    """The passages of a corpus.jsonl by row, counted from 0."""

    url: str
    starts: NDArray[np.int64]  # (N + 1,): byte offset of each row, and the file's size
    texts: NDArray[np.uint64]  # (N,): keys of title and text together; BLANK if both are empty

    def __len__(self) -> int:
        return len(self.texts)

    def read(self, rows: Sequence[int]) -> list[Passage]:
        """Read the passages at these rows, in the given order."""
        filesystem, path = arrow_filesystem(self.url)
        with filesystem.open_input_file(path) as file, ThreadPoolExecutor(_NUM_READERS) as readers:

            def read_span(span: list[int]) -> list[tuple[int, Passage]]:
                start = int(self.starts[span[0]])
                content = file.read_at(int(self.starts[span[-1] + 1]) - start, start)
                return [
                    (row, _passage(content[self.starts[row] - start : self.starts[row + 1] - start]))
                    for row in span
                ]

            passages = dict(pair for pairs in readers.map(read_span, self._spans(rows)) for pair in pairs)
        return [passages[row] for row in rows]

    def _spans(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """Split the distinct rows, ascending, into spans to read with one request each."""
        span: list[int] = []
        for row in sorted(set(rows)):
            is_near = span and (
                self.starts[row] - self.starts[span[-1] + 1] <= _MAX_GAP_BYTES
                and self.starts[row + 1] - self.starts[span[0]] <= _MAX_SPAN_BYTES
            )
            if span and not is_near:
                yield span
                span = []
            span.append(row)
        if span:
            yield span


def _passage(line: bytes) -> Passage:
    passage = Row("", 0, json.loads(line)).passage()
    # An example's passage needs a text, and a title alone reads the same as a text.
    return passage if passage.text.strip() else replace(passage, text=passage.title, title="")


@dataclass(frozen=True, slots=True)
class JudgedQuery:
    """A query with positives. Passages are rows of the corpus."""

    id: str
    text: str
    positives: tuple[int, ...]  # highest grade first
    relevant: tuple[int, ...]  # every passage with a grade above 0: never negatives


@dataclass(frozen=True)
class BeirCollection:
    corpus: Corpus
    queries: tuple[JudgedQuery, ...]  # in the order of queries.jsonl
    checksums: Mapping[str, str]  # of everything that determines rankings and examples


def read_collection(source: BeirSource) -> BeirCollection:
    """Read the folder's corpus and its queries with positives, and check every row of the three files.

    A positive with neither title nor text makes no example. Raises InputError if a file is missing, a row is invalid,
    a judgement names an unknown query or passage, or a query has no positive.
    """
    store = open_store(source.path)
    if isinstance(store, S3Store):
        check_reachable(store)
    folder = store.url  # absolute: workers also read passages, and run in other folders
    qrels_url, queries_url = f"{folder}/{source.qrels}", f"{folder}/queries.jsonl"
    qrels = read_qrels(qrels_url)
    for id, grades in qrels.items():
        if max(grades.values()) < source.min_grade:
            raise InputError(
                f"{qrels_url}: query {id!r} has no passage of grade {source.min_grade} or more;"
                " remove the query, or lower min_grade"
            )
    texts = _read_queries(queries_url, qrels)
    judged = {id for grades in qrels.values() for id in grades}
    corpus, ids, rows = _read_corpus(f"{folder}/corpus.jsonl", judged)
    if len(texts) < len(qrels) or len(rows) < len(judged):
        check_qrels(qrels_url, texts, rows)
    queries = tuple(
        query
        for id, text in texts.items()
        if (query := _judged_query(id, text, qrels[id], rows, corpus, source)).positives
    )
    if not queries:
        raise InputError(f"{folder}/corpus.jsonl: no positive has a title or a text")
    digest = hashlib.sha256()
    for column in (ids, corpus.texts, corpus.starts):
        digest.update(column.data)
    checksums = {
        "corpus": digest.hexdigest(),
        "queries": fingerprint(texts),
        "qrels": fingerprint(qrels),
    }
    return BeirCollection(corpus, queries, checksums)


def _read_queries(url: str, judged: Collection[str]) -> dict[str, str]:
    """The texts of the judged queries."""
    texts: dict[str, str] = {}
    for row in read_rows(url):
        id, text = row.id(), row.text("text")
        if id not in judged:
            continue
        if id in texts:
            raise InputError(f"{row.where}: duplicate id {id!r}")
        if not text.strip():
            raise InputError(f"{row.where}: query {id!r} has no text")
        texts[id] = text
    return texts


def _read_corpus(url: str, judged: Collection[str]) -> tuple[Corpus, NDArray[np.uint64], dict[str, int]]:
    """Return the corpus, a digest of each passage's id, and the rows of the judged passages."""
    starts, ids, texts, rows = array("q"), array("Q"), array("Q"), dict[str, int]()
    for number, row in enumerate(read_rows(url)):
        passage = row.passage()
        starts.append(row.start)
        ids.append(text_key(passage.id))
        texts.append(text_key(passage.full_text))
        if passage.id in judged:
            rows.setdefault(passage.id, number)
    filesystem, path = arrow_filesystem(url)
    starts.append(filesystem.get_file_info(path).size)
    ids_N = np.frombuffer(ids, np.uint64)
    if len(np.unique(ids_N)) < len(ids_N):
        _refuse_repeated_ids(url, ids_N)
    return Corpus(url, np.frombuffer(starts, np.int64), np.frombuffer(texts, np.uint64)), ids_N, rows


def _refuse_repeated_ids(url: str, ids_N: NDArray[np.uint64]) -> None:
    """Raise InputError if an id, and not only its digest, occurs twice. Reads the file again."""
    digests, counts = np.unique(ids_N, return_counts=True)
    suspects, seen = set(digests[counts > 1].tolist()), set[str]()
    for row in read_rows(url):
        id = row.text("_id")
        if id in seen:
            raise InputError(f"{row.where}: duplicate id {id!r}")
        if text_key(id) in suspects:
            seen.add(id)


def _judged_query(
    id: str,
    text: str,
    grades: Mapping[str, int],
    rows: Mapping[str, int],
    corpus: Corpus,
    source: BeirSource,
) -> JudgedQuery:
    readable = [
        passage_id
        for passage_id, grade in grades.items()
        if grade >= source.min_grade and corpus.texts[rows[passage_id]] != BLANK
    ]
    best_first = sorted(readable, key=lambda passage_id: -grades[passage_id])  # stable
    return JudgedQuery(
        id,
        text,
        positives=tuple(rows[passage_id] for passage_id in best_first[: source.max_positives]),
        relevant=tuple(rows[passage_id] for passage_id, grade in grades.items() if grade > 0),
    )


def check_mining(mining: Mining) -> None:
    """Raises InputError if the settings contradict each other."""
    if mining.bm25 is None and mining.dense is None:
        raise InputError("mining: `bm25` and `dense` are both null; expected settings for at least one")
    if mining.first_rank > mining.last_rank:
        raise InputError(
            f"mining: `first_rank` {mining.first_rank} is greater than `last_rank` {mining.last_rank};"
            " expected a window such as 1 to 100"
        )


def choose_negatives(
    rankings: Sequence[Sequence[int]],
    scores: Mapping[int, float],
    positive: int,
    relevant: Collection[int],
    texts: NDArray[np.uint64],
    mining: Mining,
) -> list[int]:
    """Choose the rows of one example's hard negatives, hardest first, alternating between retrievers.

    `rankings` holds each retriever's rows, best first; rows within the rank window are candidates. `scores` holds one
    retriever's scores of all candidates and the positive. A candidate must score at least the relative margin below
    the positive, otherwise it is likely to be relevant. [NV-Retriever, 2407.15831, TopK-PercPos] Relevant passages,
    copies of their text, blank passages and repeated texts are never chosen.
    """
    max_score = scores[positive] - mining.relative_margin * abs(scores[positive])
    windows = [
        [row for row in rows[mining.first_rank - 1 : mining.last_rank] if scores[row] <= max_score]
        for rows in rankings
    ]
    relevant = {positive, *relevant}
    seen = {BLANK, *(int(texts[row]) for row in relevant)}
    chosen: list[int] = []
    for row in (row for turn in zip_longest(*windows) for row in turn if row is not None):
        if len(chosen) == mining.num_negatives:
            break
        if int(texts[row]) not in seen:
            seen.add(int(texts[row]))
            chosen.append(row)
    return chosen


def example_of(query: JudgedQuery, positive: Passage, negatives: Sequence[Passage]) -> SourceExample:
    """Build an example that still lacks an instruction and instruction negatives."""
    return SourceExample(
        id=f"{quote(query.id, safe='')}/{quote(positive.id, safe='')}",  # unique per pair
        query_id=query.id,
        query=query.text,
        instruction="",
        positive=positive,
        instruction_negatives=(),
        hard_negatives=tuple(negatives),
    )
