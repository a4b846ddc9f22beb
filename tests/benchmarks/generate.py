"""The job beside its engine, and beside the same work built on `ray.data.llm`.

    python tests/benchmarks/generate.py [--quick]

`jobs/generate.py` runs first, on a local Ray cluster with one actor. Its requests are made once more from the
rows it left, and answered twice more: by a bare vLLM engine in a Ray task, all writing prompts at once and
then all judging prompts at once, which is the best that batching can do; and by two processors of
ray.data.llm (peer_ray_data_llm.py). Same model, engine settings and machine, one after the other. Tokens are
read and written ones. Rates count neither the engine's start nor the judge's exam; the
last column has both in it. The last line is a JSON object.
"""

from argparse import ArgumentParser
import asyncio
import json
import os
from pathlib import Path
import platform
import sys
import tempfile
import time
from typing import Any

import peer_ray_data_llm
import ray
from rich.console import Console
from rich.table import Table

from dualview.config.generate import GenerateConfig
from dualview.config.loading import load
from dualview.engines import Completion, Request, open_engine
from dualview.pipelines.generate.run import generate
from dualview.records import DualView
from dualview.runs.run import open_run
from dualview.sources import vocabulary_of
from dualview.synthesis.recipe import Recipe
from dualview.synthesis.shard import Task, finish_row

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "jobs" / "demo")]
MODEL = Path("out/demo-dual/models/smollm2-135m-instruct")

# Few seeds are no steady state unless still fewer are worked on at once. The exam is in no rate.
SMALL = (
    "engine.max_num_seqs=8",
    "rows_per_shard=2",
    "shards_in_flight=5",
    "judges=[{kind: llm, prompt: judge-v1, query_prompt: null, min_margin: 0.0,"
    " validation: {num_pairs: 4, min_auc: 0.8, seed: 1, gold: null}}, {kind: attributes}]",
)


class Replay:
    """An engine that says what a finished row's writer said, and keeps what it was asked."""

    name = "replay"

    def __init__(self, row: DualView) -> None:
        self._drafts = iter(row.drafts)
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        if request.num_logprobs:
            return Completion("yes", "stop", 0, 0, {"yes": -1.0, "no": -2.0})
        draft = next(self._drafts)
        return Completion(draft.answer, "length" if draft.status == "truncated" else "stop", 0, 0, {})

    def close(self) -> None:
        pass


def measure_job(config: GenerateConfig) -> tuple[float, float]:
    """Tokens a second while shards were worked on, and seconds from the command to its end."""
    assert config.trail is not None
    started = time.perf_counter()
    generate(config)
    seconds = time.perf_counter() - started
    last = Path(config.trail).read_text().splitlines()[-1]
    return json.loads(last)["tokens_per_second"], seconds


async def requests_of(config: GenerateConfig) -> list[list[Request]]:
    """What the finished job asked its engine: the requests that write, and those that judge."""
    requests: list[Request] = []
    for row in open_run(config.output).rows():
        replay = Replay(row)
        recipe = Recipe(config, vocabulary_of(config.source), replay, judges_passed=False)
        await finish_row(recipe, Task(row.example, row.target_id), row.lineage)
        requests += replay.requests
    return [
        [request for request in requests if not request.num_logprobs],
        [request for request in requests if request.num_logprobs],
    ]


def measure_engine(config: GenerateConfig, phases: list[list[Request]]) -> float:
    """The bare engine's tokens a second, one phase after the other."""

    async def answer_all() -> float:
        assert config.engine is not None
        engine = open_engine(config.engine)
        tokens, started = 0, time.perf_counter()
        for phase in phases:
            answers = await asyncio.gather(*map(engine.complete, phase))
            tokens += sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
        seconds = time.perf_counter() - started
        engine.close()
        return tokens / seconds

    return asyncio.run(answer_all())


def main() -> None:
    from demo_data import demo_examples
    from smollm2 import checkpoint

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="12 seeds instead of 512, fewer at once")
    quick = parser.parse_args().quick
    num_seeds = 12 if quick else 512
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            GenerateConfig,
            "configs/demo/llm.yaml",
            [
                f"output={folder}/run",
                f"trail={folder}/trail.jsonl",
                f"source={json.dumps(demo_examples(num_seeds, seed=2))}",
                "accept.judge=llm",
                f"engine.model={checkpoint(MODEL.absolute())}",
                *(SMALL if quick else ()),
            ],
        )
        # Ray starts its workers at niceness 15: beside anything else on the machine they would lose to the
        # bare engine, which is no measure of either.
        os.environ.update(RAY_worker_niceness="0")
        # CPUs are Ray's tickets here and not cores: the peer's small stages need some beside the engine's.
        ray.init(address="local", num_cpus=int(config.actors.cpus) + 2, include_dashboard=False)
        job, job_seconds = measure_job(config)
        phases = asyncio.run(requests_of(config))
        # In a worker as the job's: vLLM's own processes would import again what this script has imported.
        task = ray.remote(measure_engine).options(num_cpus=config.actors.cpus)
        bare = ray.get(task.remote(config, phases))
        peer = peer_ray_data_llm.answer_all(config, phases, Path(folder) / "peer")
        ray.shutdown()
    peer_rate = peer.tokens / peer.seconds
    table = Table("", "tokens/s", "seconds, starts in them", title=f"{num_seeds} seeds written and judged")
    table.add_row("bare vLLM engine", f"{bare:,.0f}", "")
    table.add_row("jobs/generate.py", f"{job:,.0f}", f"{job_seconds:,.0f}")
    table.add_row("ray.data.llm", f"{peer_rate:,.0f}", f"{peer.seconds_with_starts:,.0f}")
    table.add_row("job over engine", f"{job / bare:.2f}", "")
    table.add_row(
        "job over ray.data.llm", f"{job / peer_rate:.2f}", f"{peer.seconds_with_starts / job_seconds:.2f}"
    )
    Console().print(table)
    figures: dict[str, Any] = {
        "engine_ratio": round(job / bare, 3),
        "ray_data_llm_speedup": round(job / peer_rate, 3),
        "ray_data_llm_speedup_with_starts": round(peer.seconds_with_starts / job_seconds, 3),
        "job_tokens_per_second": round(job, 1),
        "engine_tokens_per_second": round(bare, 1),
        "ray_data_llm_tokens_per_second": round(peer_rate, 1),
        "job_seconds_with_start": round(job_seconds, 1),
        "ray_data_llm_seconds_with_starts": round(peer.seconds_with_starts, 1),
        "num_seeds": num_seeds,
        "num_requests": sum(map(len, phases)),
        "measured_on": f"{os.cpu_count()} cores, {platform.machine()}, SmolLM2-135M, vLLM on CPU",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
