"""Time and memory of sampling a catalog, by its size: python tests/benchmarks/catalog.py [--documents N ...]

The rest of `dualview adapt` works on the sample, so only this pass grows with the corpus.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import random
import resource
import subprocess
import sys
import tempfile
import time

from dualview.config.adapt import AdaptConfig
from dualview.config.loading import load
from dualview.pipelines.adapt.documents import CORPUS_KEY, keep_sample
from dualview.storage import open_store

CONFIG = str(Path(__file__).parents[2] / "configs/adapt.yaml")


def write_corpus(path: Path, num: int) -> None:
    rng = random.Random(0)
    words = [f"word{n}" for n in range(5000)]
    with path.open("w") as file:
        for number in range(num):
            metadata = {"kind": rng.choice("abcdefgh"), "year": rng.randrange(1950, 2025)}
            text = " ".join(rng.choices(words, k=80))
            file.write(json.dumps({"_id": str(number), "text": text, "metadata": metadata}) + "\n")


def measure(corpus: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = load(AdaptConfig, CONFIG, [f"corpus={corpus}", f"output={folder}"])
        store = open_store(folder)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
        keep_sample(config, store)
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept = len(store.get(CORPUS_KEY).splitlines())
        print(json.dumps({"kept": kept, "seconds": seconds, "mib": (peak - before) / 1024}))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--corpus", help="measure this file, in this process")
    arguments = parser.parse_args()
    if arguments.corpus:
        measure(arguments.corpus)
        return
    print("documents   kept   seconds   microseconds each   MiB above the start")
    for num in arguments.documents:
        with tempfile.TemporaryDirectory() as folder:
            corpus = Path(folder) / "corpus.jsonl"
            write_corpus(corpus, num)
            command = [
                sys.executable,
                __file__,
                "--corpus",
                str(corpus),
            ]  # a process of its own: its peak is its own
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(told.splitlines()[-1])
        each = 1e6 * found["seconds"] / num
        print(f"{num:9,}  {found['kept']:6,}  {found['seconds']:7.1f}  {each:17.1f}  {found['mib']:10.0f}")


if __name__ == "__main__":
    main()
