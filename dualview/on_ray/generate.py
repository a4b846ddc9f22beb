"""Generation on Ray: Ray Data spreads shard numbers over actors, each of which holds an engine."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
import json
import os
from pathlib import Path
import random
import time
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray.data import ActorPoolStrategy

import dualview
from dualview.config import FactbookSource, GenerateConfig, LlmJudge, LlmWriter, VllmEngine
from dualview.engines import EngineDied, open_engine
from dualview.models import check_model
from dualview.on_ray.cluster import join_cluster
from dualview.progress import Progress
from dualview.records import ACCEPTED, DualView, Lineage, Seed
from dualview.shards import (
    Plan,
    Shard,
    begin_attempt,
    commit,
    killers,
    mark_row,
    missing,
    plan_run,
    read_tables,
)
from dualview.sources import factbook, open_source
from dualview.storage import Store, check_reachable, open_store
from dualview.synthesis import prompts
from dualview.synthesis.exam import ExamPair, exam_pairs, sit_exam
from dualview.synthesis.judging import judge_name
from dualview.synthesis.shard import (
    Recipe,
    check_parts,
    finish_row,
    finish_shard,
    lineage,
    poison_row,
    writing_version,
)
from dualview.vocabulary import Vocabulary

EXAM_KEY = "exam.json"

# From this attempt at a shard on, its rows run one by one, so that one which kills the engine shows.
FIRST_CAREFUL_ATTEMPT = 3

# What says where and how fast the work is done, and not what its rows are (rows_per_shard is the plan's).
PLACEMENT = {"output", "rows_per_shard", "shards_in_flight", "actors", "trail"}

Exam = dict[str, list[ExamPair]]  # judge -> the pairs it must answer


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Brings the run to its end, whatever of it stands already.

    Every planned request ends as one row in one of the `data/shard-*.parquet` under the output.
    Returns planned, trainable, a count for each status, tokens, and each judge's exam.
    """
    store = open_store(config.output)
    check_reachable(store)
    if isinstance(config.engine, VllmEngine):
        check_model(config.engine.model)
    check_parts(
        config.writer,
        config.judges,
        config.accept,
        has_vocabulary=vocabulary_of(config) is not None,
        has_engine=config.engine is not None,
    )
    source = open_source(config.source)
    inputs = source.inputs()
    check_prompts(config, *source.read(inputs[0].name, 0, 1))
    exam = set_exam(config)
    plan = plan_run(store, run_settings(config), inputs, config.rows_per_shard)
    to_do = missing(store, plan)
    print(f"{config.output}: {len(plan.shards)} shards planned, {len(to_do)} to do")
    if to_do:
        join_cluster(config.actors)
        _finish_all(config, store, plan, exam, to_do)
    return summarize(store)


def vocabulary_of(config: GenerateConfig) -> Vocabulary | None:
    """The wordings of the source's attributes, where it has any."""
    match config.source:
        case FactbookSource() as source:
            return factbook.vocabulary(source.split)
        case _:
            return None


def check_prompts(config: GenerateConfig, seed: Seed) -> None:
    """Fills the config's prompts with `seed`. Raises InputError where one is meant for another use."""
    if isinstance(config.writer, LlmWriter):
        prompt = prompts.load(config.writer.prompt)
        prompts.writing_prompt(prompt, seed, seed.instruction_negatives[0])
    for judge in config.judges:
        if isinstance(judge, LlmJudge):
            prompt = prompts.load(judge.prompt)
            prompts.judging_prompt(prompt, seed.query, seed.instruction, seed.positive)


def set_exam(config: GenerateConfig) -> Exam:
    """Gold pairs for each LLM judge, from the labels of the source's first seeds."""
    llm_judges = [judge for judge in config.judges if isinstance(judge, LlmJudge)]
    if not llm_judges:
        return {}
    source = open_source(config.source)
    first = source.inputs()[0]
    return {
        judge_name(judge): exam_pairs(
            source.read(first.name, 0, min(first.num_rows, 10 * judge.exam.num_pairs)),
            judge.exam.num_pairs,
            random.Random(judge.exam.seed),
        )
        for judge in llm_judges
    }


def run_settings(config: GenerateConfig) -> dict[str, Any]:
    """What decides the rows of a run: the config without the place of the work, prompts, code version."""
    return {
        **config.model_dump(mode="json", exclude=PLACEMENT),
        "writing_version": writing_version(config.writer, vocabulary_of(config)),
        "judge_versions": [judge_name(judge) for judge in config.judges],
        "code_version": dualview.__version__,
    }


def _finish_all(config: GenerateConfig, store: Store, plan: Plan, exam: Exam, to_do: list[Shard]) -> None:
    """INPUT shard numbers -> FAN-OUT actors with an engine -> OUTPUT one put and one small report each."""
    reports = ray.data.from_items(
        [{"shard": shard.index} for shard in to_do], override_num_blocks=len(to_do)
    ).map_batches(
        ShardActor,
        fn_constructor_args=(config, store, plan, exam),
        batch_size=1,
        compute=ActorPoolStrategy(
            size=min(config.actors.num, len(to_do)),
            max_tasks_in_flight_per_actor=config.shards_in_flight,
            max_concurrent_calls_per_actor=config.shards_in_flight,
        ),
        num_cpus=config.actors.cpus,
        num_gpus=config.actors.gpus,
    )
    rows = accepted = tokens = 0
    first_start = last_end = 0.0
    trail = Path(config.trail) if config.trail else None
    total = sum(shard.num_rows for shard in to_do)
    with Progress("generating", total, unit="rows", trail=trail) as progress:
        for report in reports.iter_rows():
            rows += report["rows"]
            accepted += report["accepted"]
            tokens += report["tokens"]
            first_start = min(first_start or report["start"], report["start"])
            last_end = max(last_end, report["end"])
            progress.advance(
                report["rows"],
                accepted_share=accepted / rows,
                # Read and written ones, while engines were up: neither their start nor the exam counts.
                # Clocks of nodes may disagree: a figure to look at must not end the run.
                tokens_per_second=tokens / max(last_end - first_start, 1e-3),
            )


class ShardActor:
    """Takes shards from seeds to committed rows; several at a time, so that its engine never drains."""

    def __init__(self, config: GenerateConfig, store: Store, plan: Plan, exam: Exam) -> None:
        self.config, self.plan, self.exam = config, plan, exam
        self.store, self.source = store, open_source(config.source)
        self.engine = open_engine(config.engine) if config.engine else None
        self.recipe: Recipe | None = None
        self.turns = Turns()
        self.examining = asyncio.Lock()

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        shard = self.plan.shards[int(batch["shard"][0])]
        try:
            recipe = await self._examined_recipe()
            start = time.time()
            rows = await self._finish(recipe, shard)
        except EngineDied:
            # Ray starts a new actor and hands it this one's shards.
            os._exit(1)
        return {
            "rows": np.array([len(rows)]),
            "accepted": np.array([sum(row.status == ACCEPTED for row in rows)]),
            "tokens": np.array([sum(row.prompt_tokens + row.completion_tokens for row in rows)]),
            "start": np.array([start]),
            "end": np.array([time.time()]),
        }

    async def _finish(self, recipe: Recipe, shard: Shard) -> list[DualView]:
        attempt = uuid4().hex
        ordinal = await asyncio.to_thread(begin_attempt, self.store, shard, attempt)
        seeds = await asyncio.to_thread(self.source.read, shard.input, shard.start, shard.stop)
        careful = ordinal >= FIRST_CAREFUL_ATTEMPT
        async with self.turns.alone() if careful else self.turns.together():
            origin = lineage(
                recipe,
                run=self.plan.fingerprint,
                shard=shard.index,
                attempt=attempt,
                code_version=dualview.__version__,
            )
            if careful:
                rows = await self._one_by_one(recipe, shard, ordinal, seeds, origin)
            else:
                rows = await finish_shard(recipe, seeds, origin)
        await asyncio.to_thread(commit, self.store, shard, rows, attempt)
        return rows

    async def _one_by_one(
        self, recipe: Recipe, shard: Shard, ordinal: int, seeds: list[Seed], origin: Lineage
    ) -> list[DualView]:
        poisonous = await asyncio.to_thread(killers, self.store, shard)
        rows = []
        for index, seed in enumerate(seeds):
            if index in poisonous:
                rows.append(poison_row(seed, origin))
                continue
            await asyncio.to_thread(mark_row, self.store, shard, ordinal, index)
            rows.append(await finish_row(recipe, seed, origin))
        # One past the last, so that a death while committing is not laid to the last row.
        await asyncio.to_thread(mark_row, self.store, shard, ordinal, len(seeds))
        return rows

    async def _examined_recipe(self) -> Recipe:
        """The recipe, after the judges' exam: the first actor sits it, all go by its one result."""
        async with self.examining:
            if self.recipe is None:
                results = await asyncio.to_thread(read_exam, self.store)
                if self.exam and not results:
                    await self._sit_exam()
                    results = await asyncio.to_thread(read_exam, self.store)
                self.recipe = Recipe(
                    writer=self.config.writer,
                    judges=self.config.judges,
                    accept=self.config.accept,
                    rules=self.config.rules,
                    vocabulary=vocabulary_of(self.config),
                    engine=self.engine,
                    exam_passed=exam_passed(self.config, results),
                )
        return self.recipe

    async def _sit_exam(self) -> None:
        assert self.engine is not None  # check_parts: no LLM judge without an engine
        try:
            results = {
                judge_name(judge): asdict(await sit_exam(self.engine, judge, self.exam[judge_name(judge)]))
                for judge in self.config.judges
                if isinstance(judge, LlmJudge)
            }
        except EngineDied as error:
            # No row is to blame, so none could be left out: with a new actor it would go on like this for ever.
            raise RuntimeError(
                "the engine died in the exam of the judge; the same command tries again"
            ) from error
        data = json.dumps(results, indent=2).encode()
        await asyncio.to_thread(self.store.put_new, EXAM_KEY, data, uuid4().hex)


class Turns:
    """Shards of one actor run together, but a careful one alone: a dying engine must have one suspect."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._running = 0
        self._waiting_alone = 0

    @asynccontextmanager
    async def together(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._waiting_alone)
            self._running += 1
        try:
            yield
        finally:
            async with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._changed:
            self._waiting_alone += 1
            await self._changed.wait_for(lambda: not self._running)
            self._running += 1
        try:
            yield
        finally:
            async with self._changed:
                self._running -= 1
                self._waiting_alone -= 1
                self._changed.notify_all()


def read_exam(store: Store) -> dict[str, dict[str, float]]:
    """Judge -> its result; empty where no exam was sat."""
    if not store.list(EXAM_KEY):
        return {}
    results: dict[str, dict[str, float]] = json.loads(store.get(EXAM_KEY))
    return results


def exam_passed(config: GenerateConfig, results: dict[str, dict[str, float]]) -> bool:
    """Whether every LLM judge reached its minimum; the absence of a result is no pass."""
    return all(
        judge_name(judge) in results and results[judge_name(judge)]["auc"] >= judge.exam.min_auc
        for judge in config.judges
        if isinstance(judge, LlmJudge)
    )


def exam_sentences(config: GenerateConfig, results: Mapping[str, Mapping[str, float]]) -> list[str]:
    """One sentence a judge: how it did, and what follows for the rows."""
    sentences = []
    for judge in config.judges:
        if isinstance(judge, LlmJudge) and judge_name(judge) in results:
            result = results[judge_name(judge)]
            passed = result["auc"] >= judge.exam.min_auc
            effect = (
                "its verdicts count"
                if passed
                else "its rows are kept, but none is marked for training"
                if config.accept == "llm"
                else "its verdicts are kept, but do not count"
            )
            sentences.append(
                f"judge {judge_name(judge)}: AUC {result['auc']:.2f} on {result['num_pairs']:.0f} gold pairs,"
                f" the config asks for {judge.exam.min_auc}; {effect}"
            )
    return sentences


def summarize(store: Store) -> dict[str, Any]:
    """What stands of a run, counted from its committed shards."""
    statuses: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    trainable = 0
    for table in read_tables(store):
        metadata = json.loads(table.schema.metadata[b"dualview"])
        statuses.update(metadata["statuses"])
        tokens.update({name: metadata[name] for name in ("prompt_tokens", "completion_tokens")})
        trainable += sum(table["trainable"].to_pylist())
    return {
        "planned": statuses.total(),
        "accepted": statuses[ACCEPTED],
        "trainable": trainable,
        "rejected": {reason: count for reason, count in statuses.most_common() if reason != ACCEPTED},
        "tokens": dict(tokens),
        "exam": read_exam(store),
    }
