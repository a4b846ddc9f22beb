"""Checks texts for overlap with benchmark texts, which are kept as hashes."""

from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
import hashlib
import json
from typing import Any

import numpy as np

from dualview.config.generate import ContaminationTexts
from dualview.errors import InputError
from dualview.storage import S3Store, check_reachable, open_store
from dualview.synthesis.words import runs, words

# Keys of texts in .jsonl rows: BEIR's queries.jsonl (text), our flips (query, instructions), FollowIR as published by
# mteb (text, instruction) and by its authors (query, short_query, instruction_og, instruction_changed).
# `instructions` maps names to texts.
TEXT_KEYS = ("text", "query", "short_query", "instruction", "instruction_og", "instruction_changed")
_EXAMPLE = '{"query": "main ports", "instructions": {"original": "Only islands."}}'


@dataclass(frozen=True, eq=False)
class BenchmarkTexts:
    """Sorted 8-byte hashes of each run of max_shared_words + 1 words, and of each shorter text.

    A given run collides with a hash of another one with a probability of about (number of hashes) / 10**19.
    """

    max_shared_words: int
    run_hashes: np.ndarray  # uint64
    short_hashes: np.ndarray  # uint64
    checksum: str  # the same for the same texts, independent of files and order

    def overlap(self, text: str) -> bool:
        """Whether `text` shares a run of more than max_shared_words words with a benchmark text.

        A benchmark text that is too short for such a run matches only if it equals `text` up to case and punctuation.
        """
        text_words = words(text)
        return _any_in(map(_hash, runs(text_words, self.max_shared_words + 1)), self.run_hashes) or (
            len(text_words) <= self.max_shared_words and _any_in([_hash(text_words)], self.short_hashes)
        )


@cache  # once per process
def load_benchmarks(settings: ContaminationTexts) -> BenchmarkTexts:
    """Read the files, holding one at a time in memory. Raises InputError if a file is missing or a row is invalid."""
    return benchmark_texts(
        (text for path in settings.paths for text in _texts(path)), settings.max_shared_words
    )


def benchmark_texts(texts: Iterable[str], max_shared_words: int) -> BenchmarkTexts:
    run_hashes, short_hashes = array("Q"), array("Q")
    for text in texts:
        text_words = words(text)
        if len(text_words) > max_shared_words:
            run_hashes.extend(map(_hash, runs(text_words, max_shared_words + 1)))
        elif text_words:
            short_hashes.append(_hash(text_words))
    long, short = (np.unique(np.frombuffer(hashes, np.uint64)) for hashes in (run_hashes, short_hashes))
    checksum = hashlib.sha256(b"%d" % max_shared_words + long.tobytes() + b"/" + short.tobytes()).hexdigest()
    return BenchmarkTexts(max_shared_words, long, short, checksum)


def _hash(run: Iterable[str]) -> int:
    # Not Python's hash(), which differs between processes.
    return int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest())


def _any_in(hashes: Iterable[int], sorted_hashes: np.ndarray) -> bool:
    queried = np.fromiter(hashes, np.uint64)
    positions = np.searchsorted(sorted_hashes, queried)
    inside = positions < len(sorted_hashes)
    return bool(np.any(sorted_hashes[positions[inside]] == queried[inside]))


def _texts(path: str) -> Iterator[str]:
    if not path.endswith((".jsonl", ".txt")):
        raise InputError(
            f"rules.benchmarks.paths: {path} does not end in .jsonl or .txt; expected a file such as"
            " s3://bucket/followir/queries.jsonl"
        )
    for number, line in enumerate(_content(path).split(b"\n"), start=1):
        where = f"{path} line {number}"
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise InputError(f"{where}: is not UTF-8 text") from None
        if text.strip():
            yield from _row_texts(text, where) if path.endswith(".jsonl") else [text]


def _content(path: str) -> bytes:
    folder, slash, name = path.rpartition("/")
    store = open_store(folder + slash or ".")
    if isinstance(store, S3Store):
        check_reachable(store)
    try:
        return store.get(name)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"rules.benchmarks.paths: no file {path}; expected queries or instructions of a benchmark"
        ) from None


def _row_texts(line: str, where: str) -> list[str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is not valid JSON ({error.msg}); expected {_EXAMPLE}") from None
    found: list[Any] = []
    if isinstance(row, Mapping):
        found += [row[key] for key in TEXT_KEYS if row.get(key) is not None]
        instructions = row.get("instructions")
        found += instructions.values() if isinstance(instructions, Mapping) else []
    if not found or not all(isinstance(text, str) for text in found):
        raise InputError(
            f"{where}: expected strings under one or more of {', '.join(TEXT_KEYS)} or instructions,"
            f" for example {_EXAMPLE}"
        )
    return found
