"""Texts of benchmarks, kept as hashes, and whether a text of ours repeats one of them."""

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

# Where the rows of a .jsonl file hold texts: BEIR's queries.jsonl (text), our flips (query, instructions),
# FollowIR as mteb publishes it (text, instruction) and in its authors' layout (query, short_query, instruction_og,
# instruction_changed). `instructions` maps names to texts.
TEXT_KEYS = ("text", "query", "short_query", "instruction", "instruction_og", "instruction_changed")
_EXAMPLE = '{"query": "main ports", "instructions": {"original": "Only islands."}}'


@dataclass(frozen=True, eq=False)
class BenchmarkTexts:
    """Hashes of 8 bytes, sorted: of each run of max_shared_words + 1 words, and of each text without such a run.

    Two different runs have the same hash with a chance of about (number of hashes) / 10**19.
    """

    max_shared_words: int
    run_hashes: np.ndarray  # uint64
    short_hashes: np.ndarray  # uint64
    checksum: str  # the same for the same texts, in whatever files and order they stand

    def overlap(self, text: str) -> bool:
        """Whether a run of more than max_shared_words words of `text` stands in a benchmark's text.

        A benchmark's text that is too short to have such a run is only found where it is the whole of `text`,
        but for case and punctuation.
        """
        own = words(text)
        return _any_in(map(_hash, runs(own, self.max_shared_words + 1)), self.run_hashes) or (
            len(own) <= self.max_shared_words and _any_in([_hash(own)], self.short_hashes)
        )


@cache  # once for each process, whatever number of rows asks
def load_benchmarks(settings: ContaminationTexts) -> BenchmarkTexts:
    """Reads the files, one at a time in memory. Raises InputError where one is missing or a row is wrong."""
    return benchmark_texts(
        (text for path in settings.paths for text in _texts(path)), settings.max_shared_words
    )


def benchmark_texts(texts: Iterable[str], max_shared_words: int) -> BenchmarkTexts:
    run_hashes, short_hashes = array("Q"), array("Q")
    for text in texts:
        own = words(text)
        if len(own) > max_shared_words:
            run_hashes.extend(map(_hash, runs(own, max_shared_words + 1)))
        elif own:
            short_hashes.append(_hash(own))
    long, short = (np.unique(np.frombuffer(hashes, np.uint64)) for hashes in (run_hashes, short_hashes))
    checksum = hashlib.sha256(b"%d" % max_shared_words + long.tobytes() + b"/" + short.tobytes()).hexdigest()
    return BenchmarkTexts(max_shared_words, long, short, checksum)


def _hash(run: Iterable[str]) -> int:
    # Not Python's own, which differs from process to process.
    return int.from_bytes(hashlib.blake2b(" ".join(run).encode(), digest_size=8).digest())


def _any_in(hashes: Iterable[int], sorted_hashes: np.ndarray) -> bool:
    asked = np.fromiter(hashes, np.uint64)
    places = np.searchsorted(sorted_hashes, asked)
    inside = places < len(sorted_hashes)
    return bool(np.any(sorted_hashes[places[inside]] == asked[inside]))


def _texts(path: str) -> Iterator[str]:
    if not path.endswith((".jsonl", ".txt")):
        raise InputError(
            f"rules.benchmarks.paths: {path} ends neither in .jsonl nor in .txt; expected for example"
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
            f"rules.benchmarks.paths: there is no file {path}; expected queries or instructions of a benchmark"
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
            f"{where}: expected texts under some of {', '.join(TEXT_KEYS)} or instructions,"
            f" for example {_EXAMPLE}"
        )
    return found
