"""Small generate runs for the tests of whatever makes or reads one: their settings, and the ways to run them."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

from demo_data import demo_examples
import numpy as np
import yaml

from dualview.config.generate import GenerateConfig
from dualview.engines import Completion, Request
from dualview.engines.scripted import Scripted
from dualview.pipelines.generate.actor import ShardActor
from dualview.pipelines.generate.judge_gate import gold_pairs_of
from dualview.pipelines.generate.run import run_settings
from dualview.records import DualView
from dualview.runs.plan import plan_run
from dualview.runs.run import GenerateRun, open_run
from dualview.sources import open_source, vocabulary_of
from dualview.storage import Store, open_store

ROOT = Path(__file__).parents[1]

LLM = {
    "writer": {
        "kind": "llm",
        "prompt": "write-v1",
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": 64,
        "seed": 1,
        "drafts": 1,
    },
    "bootstrap": None,
    "targets": 1,
    "judgements": {"conditions": ["new"], "hard_negatives": False},
    "rewording": None,
    "price": None,
    "budget": None,
    "judges": [
        {
            "kind": "llm",
            "prompt": "judge-v1",
            "query_prompt": "judge-query-v1",
            "min_margin": 0.0,
            "validation": {"num_pairs": 20, "min_auc": 0.9, "seed": 1, "gold": None},
        },
        {"kind": "attributes"},
    ],
    "accept": {"judge": "llm", "conditions": ["new"]},
    "rules": {
        "min_words": 3,
        "max_words": 60,
        "max_sentences": 4,
        "max_copied_words": 6,
        "max_similarity_to_original": 0.95,
        "other_language": 0.99,
        "benchmarks": None,
    },
    "near_duplicates": None,
    "engine": {"kind": "scripted", "seed": 1},
    "rows_per_shard": 4,
    "shards_in_flight": 2,
    "actors": {"num": 1, "cpus": 1.0, "gpus": 0.0, "max_num": None},
    "min_accepted_share": 0.0,
    "trail": None,
}
FACETS = {
    **LLM,
    "writer": {
        "kind": "attributes",
        "seed": 1,
        "negation_share": 0.2,
        "same_attribute_share": 0.4,
        "exclusion_share": 0.2,
        "compound_share": 0.0,
    },
    "judges": [{"kind": "attributes"}],
    "accept": {"judge": "attributes", "conditions": ["new"]},
    "engine": None,
}


def config_of(settings: dict[str, Any], output: str | Path, **changes: Any) -> GenerateConfig:
    """Of the settings, over 60 examples of the demo where nothing else is said."""
    source = {} if "source" in {**settings, **changes} else {"source": demo_examples(60)}
    return GenerateConfig.model_validate({**source, **settings, "output": str(output), **changes})


def small(settings: dict[str, Any], output: Path) -> GenerateConfig:
    """Three shards of four examples."""
    return config_of(settings, output, source=demo_examples(12))


def rows_of(store: Store) -> list[DualView]:
    """All rows that stand, in the order of the plan, but for the name of the attempt that wrote each."""
    return [replace(row, lineage=replace(row.lineage, attempt="")) for row in open_run(store).rows()]


def planned(config: GenerateConfig, store: Store) -> GenerateRun:
    inputs = open_source(config.source).inputs()
    return GenerateRun(store, plan_run(store, run_settings(config), inputs, config.rows_per_shard))


def finish_without_ray(
    config: GenerateConfig, store: Store, answer: Callable[[Request], Completion] | None = None
) -> None:
    """What `generate` does, with a loop in the place of Ray. `answer` takes the engine's place."""
    run = planned(config, store)
    actor = ShardActor(config, run, gold_pairs_of(config), vocabulary_of(config.source), None)
    if answer:
        actor.engine = Scripted("scripted@1", answer)

    async def one_after_the_other() -> None:
        for shard in run.missing():
            await actor({"shard": np.array([shard.index])})

    asyncio.run(one_after_the_other())


def undisturbed(config: GenerateConfig, folder: Path) -> list[DualView]:
    """The rows of a run that nothing happens to."""
    store = open_store(str(folder))
    finish_without_ray(config, store)
    return rows_of(store)


class Job:
    """`python jobs/generate.py` as a user starts it."""

    def __init__(self, config: GenerateConfig, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        self._log = folder / "log.txt"
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "jobs/generate.py", "--config", folder / "run.yaml"],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def must_succeed(self) -> None:
        assert self.process.wait() == 0, self._log.read_text()

    def interruption(self) -> str:
        """The one sentence about what broke around the run."""
        assert self.process.wait() == 3, self._log.read_text()
        (sentence,) = (line for line in self._log.read_text().splitlines() if line.startswith("stopped: "))
        return sentence


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.05)
