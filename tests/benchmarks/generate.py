"""The job beside its engine, and beside the same work built on `ray.data.llm`.

    python tests/benchmarks/generate.py [--quick]

`jobs/generate.py` runs first, on a local Ray cluster with one actor. Its requests are recorded from one more
pass through the synthesis code in this process, and answered twice more: by a bare vLLM engine, all writing
prompts at once and then all judging prompts at once, which is the best that batching can do; and by two
processors of ray.data.llm (peer_ray_data_llm.py). Same model, engine settings and machine, one after the
other. Tokens are read and written ones. Rates count neither the engine's start nor the judge's exam; the
last column has both in it. The last line is a JSON object.
"""

from argparse import ArgumentParser
import asyncio
import json
import os
from pathlib import Path
import platform
import tempfile
import time
from typing import Any

import peer_ray_data_llm
import ray
from rich.console import Console
from rich.table import Table

from dualview.config import GenerateConfig, VllmEngine, load
from dualview.engines import Completion, Request
from dualview.engines.smollm2 import checkpoint
from dualview.engines.vllm import Vllm
from dualview.on_ray.generate import generate
from dualview.sources import open_source, vocabulary_of
from dualview.synthesis.recipe import Recipe, lineage
from dualview.synthesis.shard import finish_shard, tasks_of

MODEL = Path("out/demo/models/smollm2-135m-instruct")


class Recording:
    """An engine that keeps the requests which pass through it."""

    def __init__(self, engine: Vllm) -> None:
        self.name, self._engine = engine.name, engine
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        return await self._engine.complete(request)

    def close(self) -> None:
        self._engine.close()


def measure_job(config: GenerateConfig) -> tuple[float, float]:
    """Tokens a second while shards were worked on, and seconds from the command to its end."""
    assert config.trail is not None
    started = time.perf_counter()
    generate(config)
    seconds = time.perf_counter() - started
    last = Path(config.trail).read_text().splitlines()[-1]
    return json.loads(last)["tokens_per_second"], seconds


async def record_and_measure_engine(config: GenerateConfig) -> tuple[list[list[Request]], float]:
    """The requests that write and those that judge, and the bare engine's tokens a second over them."""
    assert isinstance(config.engine, VllmEngine)
    engine = Vllm(config.engine)
    requests = await requests_of_the_job(config, engine)
    phases = [
        [request for request in requests if not request.num_logprobs],
        [request for request in requests if request.num_logprobs],
    ]
    await engine._llm.reset_prefix_cache()  # as if it had seen none of the prompts
    started = time.perf_counter()
    tokens = 0
    for phase in phases:
        answers = await asyncio.gather(*map(engine.complete, phase))
        tokens += sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
    seconds = time.perf_counter() - started
    engine.close()
    return phases, tokens / seconds


async def requests_of_the_job(config: GenerateConfig, engine: Vllm) -> list[Request]:
    recorder = Recording(engine)
    recipe = Recipe(config, vocabulary_of(config.source), recorder, exam_passed=False)
    source = open_source(config.source)
    [whole] = source.inputs()
    seeds = source.read(whole, 0, whole.num_rows)
    tasks = [task for seed in seeds for task in tasks_of(seed, config.targets)]
    await finish_shard(recipe, tasks, lineage(recipe, run="", shard=0, attempt="", code_version=""))
    return recorder.requests


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 seeds instead of 512")
    num_seeds = 64 if parser.parse_args().quick else 512
    with tempfile.TemporaryDirectory() as folder:
        config = load(
            GenerateConfig,
            "configs/demo/llm.yaml",
            [
                f"output={folder}/run",
                f"trail={folder}/trail.jsonl",
                f"source.num_seeds={num_seeds}",
                f"engine.model={checkpoint(MODEL.absolute())}",
            ],
        )
        # Ray starts its workers at niceness 15: beside anything else on the machine they would lose to the
        # bare engine, which is no measure of either.
        os.environ.update(RAY_worker_niceness="0")
        # CPUs are Ray's tickets here and not cores: the peer's small stages need some beside the engine's.
        ray.init(address="local", num_cpus=int(config.actors.cpus) + 2, include_dashboard=False)
        job, job_seconds = measure_job(config)
        phases, bare = asyncio.run(record_and_measure_engine(config))
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
