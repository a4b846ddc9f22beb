"""An actor with an engine that turns the tasks of shards into committed rows."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
import os
import time
from typing import Any
from uuid import uuid4

import numpy as np
import ray
from ray.actor import ActorHandle
import ray.util.metrics

from dualview.config.engines import HttpEngine
from dualview.config.generate import GenerateConfig
from dualview.costs import Spent
from dualview.engines import EngineDied, EngineUnavailable, open_engine
from dualview.errors import InputError, Interruption
from dualview.pipelines.generate.judge_gate import GoldPairs, judges_passed, validate_judges
from dualview.provenance import code
from dualview.records import ACCEPTED, WRITTEN, DualView, Lineage
from dualview.runs.attempts import begin_attempt, crashing_rows, leave_breadcrumb, record_lost
from dualview.runs.plan import Shard
from dualview.runs.run import GenerateRun
from dualview.runs.shards import commit
from dualview.sources import open_source
from dualview.sources.drafts import Drafts
from dualview.synthesis.recipe import Recipe, lineage
from dualview.synthesis.shard import Task, finish_row, finish_shard, poison_row, tasks_of
from dualview.vocabulary import Vocabulary

# From this attempt on, a shard's rows run in isolation, to find one that crashes the engine.
FIRST_ISOLATED_ATTEMPT = 3


class ShardActor:
    """Finishes and commits shards, several at a time, so that its engine never idles.

    `account` is the run's Account if it has a budget. Once that is used up, no more shards begin.
    """

    def __init__(
        self,
        config: GenerateConfig,
        run: GenerateRun,
        pairs: GoldPairs,
        vocabulary: Vocabulary | None,
        account: ActorHandle | None,
    ) -> None:
        self.accounted_until = time.monotonic()
        self.config, self.run, self.pairs, self.account = config, run, pairs, account
        self.vocabulary = vocabulary  # as the driver read it: the same path may be another file on this node
        self.source = open_source(config.source)
        self.engine = open_engine(config.engine) if config.engine else None
        self.recipe: Recipe | None = None
        self.turns = Turns()
        self.validating = asyncio.Lock()
        self.metrics = Metrics() if ray.is_initialized() else None

    async def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Finishes one shard and reports on it; 0 examples if the budget was used up before it began."""
        shard = self.run.plan.shards[int(batch["shard"][0])]
        if self.account is not None and await self.account.used_up.remote():
            return _report(0.0, 0, [], Spent())
        try:
            recipe = await self._validated_recipe()
            start = time.monotonic()
            rows, spent = await self._finish(recipe, shard)
        except EngineUnavailable as error:
            raise Interruption(f"{self.config.output}: {error}; wait until it answers") from None
        except EngineDied:
            # Ray starts a new actor and gives it this one's shards.
            os._exit(1)
        if self.account is not None:
            await self.account.add.remote(spent)
        if self.metrics is not None:
            self.metrics.count(rows)
        return _report(time.monotonic() - start, shard.num_rows, rows, spent)

    async def _finish(self, recipe: Recipe, shard: Shard) -> tuple[list[DualView], Spent]:
        attempt = uuid4().hex
        ordinal = await asyncio.to_thread(begin_attempt, self.run.store, shard, attempt)
        tasks = await asyncio.to_thread(self._tasks, shard)
        # A remote server's outages are not our crashes, so they must not send shards into slow isolation.
        isolated = ordinal >= FIRST_ISOLATED_ATTEMPT and not isinstance(self.config.engine, HttpEngine)
        async with self.turns.alone() if isolated else self.turns.together():
            origin = lineage(
                recipe,
                run=self.run.plan.fingerprint,
                shard=shard.index,
                attempt=attempt,
                code_version=str(code()),
            )
            if isolated:
                rows = await self._one_by_one(recipe, shard, ordinal, tasks, origin)
            else:
                rows = await finish_shard(recipe, tasks, origin)
        spent = self._spent(rows)
        planned = [(task.example.id, task.target_id) for task in tasks]
        if not await asyncio.to_thread(commit, self.run.store, shard, planned, rows, attempt, spent):
            await asyncio.to_thread(record_lost, self.run.store, shard, attempt, spent)
        return rows, spent

    def _tasks(self, shard: Shard) -> list[Task]:
        if isinstance(self.source, Drafts):
            written = self.source.rows(self.run.plan.input_of(shard), shard.start, shard.stop)
            return [Task(row.example, row.target_id, row) for row in written]
        examples = self.source.read(self.run.plan.input_of(shard), shard.start, shard.stop)
        tasks = [task for example in examples for task in tasks_of(example, self.config.targets)]
        if self.config.bootstrap is None and any(not task.target_id for task in tasks):
            plain = next(task.example.id for task in tasks if not task.target_id)
            raise InputError(
                f"example {plain} of {shard.input}: has no instruction, and the config has no `bootstrap` that"
                " writes one"
            )
        return tasks

    def _spent(self, rows: list[DualView]) -> Spent:
        """The tokens of these rows, and the GPU time since the actor last reported any."""
        now = time.monotonic()
        seconds, self.accounted_until = now - self.accounted_until, now
        return Spent(
            sum(row.prompt_tokens for row in rows),
            sum(row.completion_tokens for row in rows),
            seconds * self.config.actors.gpus,
        )

    async def _one_by_one(
        self, recipe: Recipe, shard: Shard, ordinal: int, tasks: list[Task], origin: Lineage
    ) -> list[DualView]:
        poisonous = await asyncio.to_thread(crashing_rows, self.run.store, shard, len(tasks))
        rows = []
        for index, task in enumerate(tasks):
            if index in poisonous:
                rows.append(poison_row(task, origin))
                continue
            await asyncio.to_thread(leave_breadcrumb, self.run.store, shard, ordinal, index)
            try:
                rows.append(await finish_row(recipe, task, origin))
            except EngineUnavailable:  # not this row's fault
                await asyncio.to_thread(leave_breadcrumb, self.run.store, shard, ordinal, len(tasks))
                raise
        # One past the last, so that a death during the commit is not blamed on the last row.
        await asyncio.to_thread(leave_breadcrumb, self.run.store, shard, ordinal, len(tasks))
        return rows

    async def _validated_recipe(self) -> Recipe:
        """The recipe. The first actor validates the judges, and all actors use its one result."""
        async with self.validating:
            if self.recipe is None:
                results = await asyncio.to_thread(lambda: self.run.validation)
                if self.pairs and not results:
                    assert self.engine is not None  # check_parts: no LLM judge without an engine
                    validated = await validate_judges(self.engine, self.config, self.pairs)
                    results = await asyncio.to_thread(self.run.put_validation, validated)
                self.recipe = Recipe(
                    self.config,
                    vocabulary=self.vocabulary,
                    engine=self.engine,
                    judges_passed=judges_passed(self.config, results),
                )
        return self.recipe


def _report(seconds: float, num_examples: int, rows: list[DualView], spent: Spent) -> dict[str, Any]:
    figures = {
        "examples": num_examples,
        "rows": len(rows),
        "accepted": sum(row.status in (ACCEPTED, WRITTEN) for row in rows),
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": spent.completion_tokens,
        "gpu_seconds": spent.gpu_seconds,
        "seconds": seconds,
    }
    return {name: np.array([figure]) for name, figure in figures.items()}


class Metrics:
    """Counts of rows and tokens for Prometheus, through Ray's own exporter."""

    def __init__(self) -> None:
        self._rows = ray.util.metrics.Counter(
            "dualview_rows", "Finished requests by status", tag_keys=("status",)
        )
        self._tokens = ray.util.metrics.Counter(
            "dualview_tokens", "Tokens read and written by the engine", tag_keys=("kind",)
        )

    def count(self, rows: list[DualView]) -> None:
        for status, number in Counter(row.status for row in rows).items():
            self._rows.inc(number, tags={"status": status})
        for kind in ("prompt", "completion"):
            tokens = sum(getattr(row, f"{kind}_tokens") for row in rows)
            if tokens:
                self._tokens.inc(tokens, tags={"kind": kind})


class Turns:
    """Runs the shards of one actor together, but an isolated one alone: if the engine dies, only one row is a suspect."""

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
