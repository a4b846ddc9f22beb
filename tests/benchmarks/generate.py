"""The job beside its engine: tokens a second of `jobs/generate.py` against a bare vLLM engine on the same prompts.

    python tests/benchmarks/generate.py [--quick]

The job runs first, on a local Ray cluster with one actor. Then a bare engine answers the very same
requests, recorded from one more pass through the synthesis code: all writing prompts at once, then all
judging prompts at once, which is the best that batching can do. Tokens are read and written ones; the
engine's start counts in neither. The last line is a JSON object.
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


def open_vllm(config: GenerateConfig) -> Vllm:
    assert isinstance(config.engine, VllmEngine)
    return Vllm(config.engine)


def tokens_of_the_job(config: GenerateConfig) -> float:
    assert config.trail is not None
    generate(config)
    last = Path(config.trail).read_text().splitlines()[-1]
    figure: float = json.loads(last)["tokens_per_second"]
    return figure


async def requests_of_the_job(config: GenerateConfig) -> list[Request]:
    recorder = Recording(open_vllm(config))
    recipe = Recipe(config, vocabulary_of(config.source), recorder, exam_passed=False)
    source = open_source(config.source)
    [whole] = source.inputs()
    seeds = source.read(whole, 0, whole.num_rows)
    tasks = [task for seed in seeds for task in tasks_of(seed, config.targets)]
    await finish_shard(recipe, tasks, lineage(recipe, run="", shard=0, attempt="", code_version=""))
    recorder.close()
    return recorder.requests


async def tokens_of_the_bare_engine(config: GenerateConfig, requests: list[Request]) -> float:
    engine = open_vllm(config)  # a new one, which has seen none of the prompts
    started = time.perf_counter()
    tokens = 0
    for phase in (0, 20):  # writing asks for no log probabilities, judging for 20
        of_phase = [request for request in requests if request.num_logprobs == phase]
        answers = await asyncio.gather(*map(engine.complete, of_phase))
        tokens += sum(answer.prompt_tokens + answer.completion_tokens for answer in answers)
    seconds = time.perf_counter() - started
    engine.close()
    return tokens / seconds


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
        ray.init(address="local", num_cpus=max(2, os.cpu_count() or 1), include_dashboard=False)
        job = tokens_of_the_job(config)
        ray.shutdown()
        requests = asyncio.run(requests_of_the_job(config))
        bare = asyncio.run(tokens_of_the_bare_engine(config, requests))
    table = Table("", "tokens/s", title=f"{num_seeds} seeds written and judged")
    table.add_row("bare vLLM engine", f"{bare:,.0f}")
    table.add_row("jobs/generate.py", f"{job:,.0f}")
    table.add_row("job over engine", f"{job / bare:.2f}")
    Console().print(table)
    figures: dict[str, Any] = {
        "engine_ratio": round(job / bare, 3),
        "job_tokens_per_second": round(job, 1),
        "engine_tokens_per_second": round(bare, 1),
        "num_seeds": num_seeds,
        "measured_on": f"{os.cpu_count()} cores, {platform.machine()}, SmolLM2-135M, vLLM on CPU",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
