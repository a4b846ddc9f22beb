"""Finds near-duplicates among the rows of a whole run; the first of each group is kept.

Many actors write rows to immutable shards, so rows are compared once all shards exist, in a single pass that depends
only on the rows and their order.
"""

# R = rows, P = hash functions

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
import hashlib
from typing import TypeVar

from datasketch import LeanMinHash, MinHash, MinHashLSH
import numpy as np
import pyarrow as pa

from dualview.config.generate import NearDuplicates
from dualview.runs.plan import Shard
from dualview.runs.run import NEAR_DUPLICATES_SCHEMA, GenerateRun
from dualview.runs.shards import read_shard
from dualview.storage import Store
from dualview.synthesis.words import runs, words

_ROWS_AT_ONCE = 50_000  # per index, which takes about 5 KB per row
# MinHash parameters: arbitrary, but the same for all signatures.
_SEED = 1
_SCHEME = "affine32"

Item = TypeVar("Item")
Result = TypeVar("Result")
# map, or a distributed version of it.
MapFunction = Callable[[Callable[[Item], Result], Iterable[Item]], Iterable[Result]]


@dataclass(frozen=True, slots=True)
class Signed:
    """What the comparison needs of one shard's trainable rows, in order."""

    keys: list[tuple[str, str]]  # (example id, target id)
    queries_R: np.ndarray  # uint64, a hash of the query's words
    signatures_RP: np.ndarray  # uint32


def mark_near_duplicates(
    run: GenerateRun,
    settings: NearDuplicates,
    each: "MapFunction[Shard, Signed]" = map,
) -> None:
    """Compare the trainable rows of a run whose shards all exist, and store the near-duplicates, create-only.

    If another driver has extended the plan since the run was opened, that driver compares the rows it added.
    `each` signs the shards; like `map`, it must return the results in order. Memory: 4 * num_perm bytes per row.
    """
    signed = each(partial(_sign_shard, run.store, settings), run.plan.shards)
    run.put_near_duplicates(near_duplicates(signed, settings))


def _sign_shard(store: Store, settings: NearDuplicates, shard: Shard) -> Signed:
    return sign(
        read_shard(store, shard.key, ["id", "target_id", "query", "new_instruction", "trainable"]), settings
    )


def sign(table: pa.Table, settings: NearDuplicates) -> Signed:
    """Compute the MinHash signatures of a shard's trainable rows."""
    rows = [row for row in table.to_pylist() if row["trainable"]]
    queries = [" ".join(words(row["query"])) for row in rows]
    shingled = (
        _shingles(query, row["new_instruction"], settings.ngram)
        for query, row in zip(queries, rows, strict=True)
    )
    minhashes = MinHash.generator(shingled, num_perm=settings.num_perm, seed=_SEED, scheme=_SCHEME)
    return Signed(
        keys=[(row["id"], row["target_id"]) for row in rows],
        queries_R=np.array([_hash(query) for query in queries], np.uint64),
        signatures_RP=np.array([minhash.hashvalues for minhash in minhashes], np.uint32).reshape(
            -1, settings.num_perm
        ),
    )


def _shingles(query: str, instruction: str, ngram: int) -> list[bytes]:
    """Word n-grams of the instruction (all its words if it is shorter), each prefixed with the query.

    The prefix makes the shingles of different queries disjoint.
    """
    instruction_words = words(instruction)
    ngrams = {*runs(instruction_words, ngram)} or {tuple(instruction_words)}
    return [f"{query}\n{' '.join(run)}".encode() for run in ngrams]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def near_duplicates(parts: Iterable[Signed], settings: NearDuplicates) -> pa.Table:
    """Find the rows that repeat an earlier, kept row, in NEAR_DUPLICATES_SCHEMA and in row order.

    A row is a near-duplicate if the estimated Jaccard index of its shingles and those of an earlier row that is kept
    reaches the threshold. The most similar such row is recorded, the first one on ties. The estimate's standard
    deviation is sqrt(s (1 - s) / num_perm). A pair at the threshold is missed with a probability below 1%, a pair well
    above it never.
    """
    keys: list[tuple[str, str]] = []
    queries, signatures = bytearray(), bytearray()
    for part in parts:
        keys += part.keys
        queries += part.queries_R.tobytes()
        signatures += part.signatures_RP.tobytes()
    queries_R = np.frombuffer(queries, np.uint64)
    signatures_RP = np.frombuffer(signatures, np.uint32).reshape(-1, settings.num_perm)

    # Only rows of the same query can be near-duplicates: indexing a part of the queries at a time bounds the memory.
    num_indices = 1 + len(keys) // _ROWS_AT_ONCE
    found = sorted(
        duplicate
        for index in range(num_indices)
        for duplicate in _repetitions(
            np.flatnonzero(queries_R % np.uint64(num_indices) == index), signatures_RP, settings
        )
    )
    return pa.Table.from_pylist(
        [
            {
                "seed_id": keys[row][0],
                "target_id": keys[row][1],
                "of_seed_id": keys[of][0],
                "of_target_id": keys[of][1],
                "similarity": similarity,
            }
            for row, of, similarity in found
        ],
        schema=NEAR_DUPLICATES_SCHEMA,
    )


def _repetitions(
    rows: np.ndarray, signatures_RP: np.ndarray, settings: NearDuplicates
) -> Iterator[tuple[int, int, float]]:
    """(row, the row it repeats, their similarity)."""
    # Candidates are verified below, so the index favours recall: a lower threshold, and false negatives weigh nine
    # times as much as false positives.
    index = MinHashLSH(threshold=settings.threshold - 0.1, num_perm=settings.num_perm, weights=(0.1, 0.9))
    for row in rows.tolist():
        minhash = LeanMinHash(seed=_SEED, hashvalues=signatures_RP[row], scheme=_SCHEME)
        if candidates := sorted(index.query(minhash)):
            similarities = (signatures_RP[candidates] == signatures_RP[row]).mean(axis=1)
            best = int(similarities.argmax())  # the first one on ties
            if similarities[best] >= settings.threshold:
                yield row, candidates[best], float(similarities[best])
                continue
        index.insert(row, minhash, check_duplication=False)
