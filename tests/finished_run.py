"""Runs as generation leaves them, put without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dualview.costs import Spent
from dualview.records import (
    ACCEPTED,
    Draft,
    DualView,
    Lineage,
    Passage,
    Requirement,
    Rewording,
    Seed,
    Verdict,
)
from dualview.runs.plan import Input, Plan, Shard, plan_run, read_plan
from dualview.runs.shards import commit, finished_plan, left_out_of_training, read_tables, trainable_rows
from dualview.storage import LocalStore, Store

SETTINGS = {"writer": {"model": "demo", "temperature": 0.7}, "rules": {"max_words": 40}, "judges": ["a", "b"]}
INPUTS = [Input("north.jsonl", 5, "c0ffee"), Input("empty.jsonl", 0, "0"), Input("south.jsonl", 4, "beef")]


def row(seed_id: str, query: str = "main ports", new_instruction: str = "Leave out Africa.", **changes: Any):
    seed = Seed(
        id=seed_id,
        query_id="ports",
        query=query,
        instruction="Only countries in Africa.",
        positive=Passage("kenya", "Kenya lies in Africa.", attributes={"region": "Africa", "coast": "yes"}),
        instruction_negatives=(Passage("peru", "Peru lies in South America.", title="Peru"),),
        requirements=(Requirement(True, "region", "Africa"),),
    )
    whole = DualView(
        seed=seed,
        target_id="peru",
        new_instruction=new_instruction,
        new_requirements=(Requirement(False, "region", "Africa"),),
        status=ACCEPTED,
        trainable=True,
        verdicts=(
            Verdict("attributes", "new", "peru", True, 1.5),
            Verdict("llm:j@1", "query", "kenya", None, None),
        ),
        drafts=(
            Draft("new", f"<instruction>{new_instruction}</instruction>", new_instruction, ACCEPTED, 1.5),
        ),
        rewordings=(Rewording("new", "Anything but Africa.", ACCEPTED),),
        prompt_tokens=100,
        completion_tokens=10,
        lineage=Lineage("demo", "write@1", "{}", ("attributes",), "", "0.1", "", "run", 0, "one"),
    )
    return replace(whole, **changes)


def rows_of(shard: Shard, attempt: str) -> list[DualView]:
    """One for each of the shard's seeds."""
    return [
        replace(each, lineage=replace(each.lineage, shard=shard.index, attempt=attempt))
        for each in (row(f"{shard.input}-{index}") for index in range(shard.start, shard.stop))
    ]


def commit_rows(store: Store, shard: Shard, rows: Sequence[DualView], attempt: str) -> bool:
    """As the plan of `rows_of` has it, whatever the rows are."""
    planned = [(each.seed.id, each.target_id) for each in rows_of(shard, attempt)]
    tokens = (sum(each.prompt_tokens for each in rows), sum(each.completion_tokens for each in rows))
    return commit(store, shard, planned, rows, attempt, Spent(*tokens, gpu_seconds=1.5))


def finish_run(
    store: Store, shards: Sequence[Sequence[DualView]], settings: Mapping[str, Any], num_missing: int = 0
) -> None:
    """Plans a run of these shards, in this order, and commits them but for the last `num_missing`."""
    inputs = [Input(f"input-{index}", len(rows), "checksum") for index, rows in enumerate(shards)]
    plan = plan_run(store, settings, inputs, rows_per_shard=max(map(len, shards)))
    for shard, rows in list(zip(plan.shards, shards, strict=True))[: len(shards) - num_missing]:
        put_shard(store, shard, rows)


def extend_run(store: Store, rows: Sequence[DualView]) -> Plan:
    """As another driver would, whose shards of these rows are still to do."""
    plan = read_plan(store)
    later = Input(f"later-{len(plan.extensions)}", len(rows), "checksum")
    return plan_run(store, plan.settings, [*plan.all_inputs, later], plan.rows_per_shard)


@dataclass(frozen=True)
class ExtendedAfterReading(LocalStore):
    """A folder whose run another driver extends by these rows as soon as somebody has read its plan."""

    rows: tuple[DualView, ...]

    def get(self, key: str) -> bytes:
        try:
            return super().get(key)
        except FileNotFoundError:
            if key == "plan-0001.json":
                store = LocalStore(self.folder)
                put_shard(store, extend_run(store, self.rows).shards[-1], self.rows)
            raise


def put_shard(store: Store, shard: Shard, rows: Sequence[DualView]) -> None:
    placed = [
        replace(each, lineage=replace(each.lineage, run="run", shard=shard.index, attempt="one"))
        for each in rows
    ]
    planned = [(each.seed.id, each.target_id) for each in placed]
    commit(store, shard, planned, placed, "one", Spent())


def training_rows(store: Store) -> list[pa.Table]:
    """What training takes of each shard."""
    plan = finished_plan(store)
    left_out = left_out_of_training(store, plan)
    return [trainable_rows(table, left_out) for table in read_tables(store, plan=plan)]
