"""Our own ceiling: rows a second through the whole path of `jobs/generate.py` when the engine costs nothing.

    python tests/benchmarks/ceiling.py [--quick]

One process takes shards from seed files to committed Parquet on a local disk, by the same actor that Ray
would run; planning is done before (see scale.py). Seconds are those of the CPU, which other work on the
machine disturbs least. One more pass runs under cProfile, with all work in one thread so that it sees
everything; it makes small functions look dearer than they are. The last line is a JSON object.
"""

from argparse import ArgumentParser
import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
import cProfile
import json
from pathlib import Path
import platform
import pstats
from statistics import median
import tempfile
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from synthetic import NUM_HARD_NEGATIVES, NUM_INSTRUCTION_NEGATIVES, scripted_config, write_examples

from dualview.config.generate import GenerateConfig
from dualview.engines import Completion, Engine, Request
from dualview.pipelines.generate.actor import ShardActor
from dualview.pipelines.generate.judge_gate import gold_pairs_of
from dualview.pipelines.generate.run import run_settings
from dualview.runs.plan import plan_run
from dualview.runs.run import GenerateRun
from dualview.sources import open_source
from dualview.storage import open_store

ROWS_PER_SHARD = 500
NUM_PASSES = 3
NUM_COSTS_SHOWN = 12


class Timed:
    """An engine that adds up the CPU seconds of its answers, which it must give without waiting."""

    def __init__(self, engine: Engine) -> None:
        self.name, self._engine = engine.name, engine
        self.cpu_seconds = 0.0

    async def complete(self, request: Request) -> Completion:
        started = time.thread_time()
        answer = await self._engine.complete(request)
        self.cpu_seconds += time.thread_time() - started
        return answer

    def close(self) -> None:
        self._engine.close()


class Inline(ThreadPoolExecutor):
    """Does at once, in the caller's thread, what it is given: a profiler sees one thread only."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


def actor_of(config: GenerateConfig) -> tuple[ShardActor, Timed]:
    """With its engine, the run planned."""
    store = open_store(config.output)
    inputs = open_source(config.source).inputs()
    run = GenerateRun(store, plan_run(store, run_settings(config), inputs, config.rows_per_shard))
    actor = ShardActor(config, run, gold_pairs_of(config), None)
    assert actor.engine is not None
    actor.engine = engine = Timed(actor.engine)
    return actor, engine


async def finish_all(actor: ShardActor) -> None:
    for shard in actor.run.missing():
        await actor({"shard": np.array([shard.index])})


async def finish_all_in_one_thread(actor: ShardActor) -> None:
    asyncio.get_running_loop().set_default_executor(Inline())
    await finish_all(actor)


def one_pass(config: GenerateConfig) -> tuple[float, float, float]:
    """CPU seconds in all, CPU seconds of the engine, and seconds on the clock."""
    actor, engine = actor_of(config)
    cpu_started, started = time.process_time(), time.perf_counter()
    asyncio.run(finish_all(actor))
    return time.process_time() - cpu_started, engine.cpu_seconds, time.perf_counter() - started


def profile_of(config: GenerateConfig) -> pstats.Stats:
    actor, _ = actor_of(config)
    profiler = cProfile.Profile()
    profiler.enable()
    asyncio.run(finish_all_in_one_thread(actor))
    profiler.disable()
    return pstats.Stats(profiler)


def costs(stats: pstats.Stats) -> list[tuple[str, float, float, int]]:
    """(function, share of the time in it alone, share with all that it calls, calls) of every function."""
    functions = stats.stats.items()  # type: ignore[attr-defined]
    total = sum(alone for _, (_, _, alone, _, _) in functions)
    return [
        (f"{'/'.join(Path(file).parts[-2:])}:{line} {name}", alone / total, together / total, calls)
        for (file, line, name), (_, calls, alone, together, _) in functions
    ]


def print_profile(stats: pstats.Stats, num_seeds: int, console: Console) -> None:
    def alone(cost: tuple[str, float, float, int]) -> float:
        return cost[1]

    def together(cost: tuple[str, float, float, int]) -> float:
        return cost[2]

    ours = tuple(f"{room}/" for room in ("synthesis", "engines", "dualview", "sources"))
    every = costs(stats)
    for title, rows, key in (
        ("Where the time goes", every, alone),
        (
            "The same, by our functions with all that they call",
            [c for c in every if c[0].startswith(ours)],
            together,
        ),
    ):
        table = Table("function", "alone", "with what it calls", "calls a row", title=title)
        for cost in sorted(rows, key=key, reverse=True)[:NUM_COSTS_SHOWN]:
            table.add_row(cost[0], f"{cost[1]:.1%}", f"{cost[2]:.1%}", f"{cost[3] / num_seeds:.1f}")
        console.print(table)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="2,000 seeds instead of 10,000")
    num_seeds = 2_000 if parser.parse_args().quick else 10_000
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_examples(folder / "seeds", num_seeds)
        passes = [
            one_pass(scripted_config(folder / "seeds", folder / f"run-{number}", ROWS_PER_SHARD))
            for number in range(NUM_PASSES)
        ]
        profiled = scripted_config(folder / "seeds", folder / "profiled", ROWS_PER_SHARD)
        print_profile(profile_of(profiled), num_seeds, console)
    figures = {
        "rows_per_second_per_core": round(median(num_seeds / cpu for cpu, _, _ in passes)),
        "rows_per_second_per_core_without_engine": round(
            median(num_seeds / (cpu - engine) for cpu, engine, _ in passes)
        ),
        "rows_per_second": round(median(num_seeds / wall for _, _, wall in passes)),
        "num_seeds": num_seeds,
        "num_passes": NUM_PASSES,
        "passages_per_example": 1 + NUM_INSTRUCTION_NEGATIVES + NUM_HARD_NEGATIVES,
        "measured_on": f"one process, {platform.machine()}, scripted engine, median of the passes",
    }
    table = Table("", "rows a second", title=f"{num_seeds:,} seeds, median of {NUM_PASSES} passes")
    table.add_row("a second of one core", f"{figures['rows_per_second_per_core']:,}")
    table.add_row("... less the scripted engine", f"{figures['rows_per_second_per_core_without_engine']:,}")
    table.add_row("wall clock", f"{figures['rows_per_second']:,}")
    console.print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
