"""Runs as generation leaves them, put without it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dualview.costs import Spent
from dualview.records import (
    ACCEPTED,
    Draft,
    DualView,
    Lineage,
    Passage,
    Requirement,
    Rewording,
    SourceExample,
    Verdict,
)
from dualview.runs.plan import Input, Shard, plan_run
from dualview.runs.run import GenerateRun, open_run
from dualview.runs.shards import commit
from dualview.storage import LocalStore, Store

SETTINGS = {"writer": {"model": "demo", "temperature": 0.7}, "rules": {"max_words": 40}, "judges": ["a", "b"]}
INPUTS = [Input("north.jsonl", 5, "c0ffee"), Input("empty.jsonl", 0, "0"), Input("south.jsonl", 4, "beef")]


def row(seed_id: str, query: str = "main ports", new_instruction: str = "Leave out Africa.", **changes: Any):
    example = SourceExample(
        id=seed_id,
        query_id="ports",
        query=query,
        instruction="Only countries in Africa.",
        positive=Passage("kenya", "Kenya lies in Africa.", attributes={"region": "Africa", "coast": "yes"}),
        instruction_negatives=(Passage("peru", "Peru lies in South America.", title="Peru"),),
        requirements=(Requirement(True, "region", "Africa"),),
    )
    whole = DualView(
        example=example,
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
    """One for each of the shard's examples."""
    return [
        replace(each, lineage=replace(each.lineage, shard=shard.index, attempt=attempt))
        for each in (row(f"{shard.input}-{index}") for index in range(shard.start, shard.stop))
    ]


def commit_rows(store: Store, shard: Shard, rows: Sequence[DualView], attempt: str) -> bool:
    """As the plan of `rows_of` has it, whatever the rows are."""
    planned = [(each.example.id, each.target_id) for each in rows_of(shard, attempt)]
    tokens = (sum(each.prompt_tokens for each in rows), sum(each.completion_tokens for each in rows))
    return commit(store, shard, planned, rows, attempt, Spent(*tokens, gpu_seconds=1.5))


def finish_run(
    store: Store, shards: Sequence[Sequence[DualView]], settings: Mapping[str, Any], num_missing: int = 0
) -> GenerateRun:
    """Plans a run of these shards, in this order, and commits them but for the last `num_missing`."""
    inputs = [Input(f"input-{index}", len(rows), "checksum") for index, rows in enumerate(shards)]
    plan = plan_run(store, settings, inputs, rows_per_shard=max(map(len, shards)))
    for shard, rows in list(zip(plan.shards, shards, strict=True))[: len(shards) - num_missing]:
        put_shard(store, shard, rows)
    return GenerateRun(store, plan)


def extend_run(store: Store, rows: Sequence[DualView]) -> GenerateRun:
    """As another driver would, whose shards of these rows are still to do."""
    plan = open_run(store).plan
    later = Input(f"later-{len(plan.extensions)}", len(rows), "checksum")
    inputs = [*plan.all_inputs, later]
    return GenerateRun(store, plan_run(store, plan.settings, inputs, plan.rows_per_shard))


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
                put_shard(store, extend_run(store, self.rows).plan.shards[-1], self.rows)
            raise


def put_shard(store: Store, shard: Shard, rows: Sequence[DualView]) -> None:
    placed = [
        replace(each, lineage=replace(each.lineage, run="run", shard=shard.index, attempt="one"))
        for each in rows
    ]
    planned = [(each.example.id, each.target_id) for each in placed]
    commit(store, shard, planned, placed, "one", Spent())
