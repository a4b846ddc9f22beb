"""Processes one shard: from tasks to finished rows, through writing, rules and judging.

Every task becomes exactly one row, in task order, with all its drafts and verdicts.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from dualview.config.generate import AttributesWriter, LlmJudge, LlmWriter, PrecomputedWriter
from dualview.engines import Completion, Engine, Request
from dualview.records import (
    ACCEPTED,
    WRITTEN,
    Condition,
    Draft,
    DualView,
    Lineage,
    Passage,
    Requirement,
    SourceExample,
    Verdict,
)
from dualview.synthesis.bootstrap import find_original
from dualview.synthesis.judging import ExpectedLabels, decide, judge_passages
from dualview.synthesis.recipe import Recipe
from dualview.synthesis.rewording import reword
from dualview.synthesis.rules import broken_rule
from dualview.synthesis.writing import Written, compose_complement, write_complements


@dataclass(frozen=True, slots=True)
class Task:
    """One planned request: an example, and the instruction negative that becomes the positive (N*)."""

    example: SourceExample
    target_id: str  # "": a plain example, which has no instruction negatives yet
    given: DualView | None = None  # the row with the drafts, if this run judges those of another run


def tasks_of(example: SourceExample, targets: int | Literal["all"]) -> list[Task]:
    """Make a task for each of the example's first `targets` instruction negatives, or one for a plain example."""
    negatives = example.instruction_negatives[: None if targets == "all" else targets]
    return [Task(example, passage.id) for passage in negatives] or [Task(example, "")]


async def finish_shard(recipe: Recipe, tasks: Iterable[Task], origin: Lineage) -> list[DualView]:
    """Process all tasks concurrently and return one row per task, in order.

    Raises EngineDied if the engine dies; all rows of the shard are lost then.
    """
    return await asyncio.gather(*(finish_row(recipe, task, origin) for task in tasks))


async def finish_row(recipe: Recipe, task: Task, origin: Lineage) -> DualView:
    """Write, check, judge and reword one task. Drafts that the rules reject are not judged.

    Raises EngineDied if the engine dies.
    """
    meter = Meter(recipe.engine) if recipe.engine else None
    recipe = replace(recipe, engine=meter)
    row = _unfinished(task, origin)
    if task.target_id == "":
        row = await _with_original(recipe, row)
    if row.target_id:
        row = await _with_complement(recipe, row, task.given)
    if row.status == ACCEPTED:
        row = await _with_extras(recipe, row)
    return replace(
        row,
        prompt_tokens=meter.prompt_tokens if meter else 0,
        completion_tokens=meter.completion_tokens if meter else 0,
    )


def poison_row(task: Task, origin: Lineage) -> DualView:
    """Make the row of a task that crashes the engine."""
    return replace(_unfinished(task, origin), status="poison")


class Meter:
    """An engine that counts the tokens of one row."""

    def __init__(self, engine: Engine) -> None:
        self.name, self._engine = engine.name, engine
        self.prompt_tokens = self.completion_tokens = 0

    async def complete(self, request: Request) -> Completion:
        completion = await self._engine.complete(request)
        self.prompt_tokens += completion.prompt_tokens
        self.completion_tokens += completion.completion_tokens
        return completion

    def close(self) -> None:
        self._engine.close()


def _unfinished(task: Task, origin: Lineage) -> DualView:
    if task.given:
        written = task.given.lineage
        origin = replace(
            origin,
            writer=written.writer,
            prompt=written.prompt,
            sampling=written.sampling,
            written_in=written.run,
        )
    return DualView(
        example=task.example,
        target_id=task.target_id,
        new_instruction="",
        new_requirements=(),
        status=WRITTEN,
        trainable=False,
        verdicts=(),
        drafts=(),
        rewordings=(),
        prompt_tokens=0,
        completion_tokens=0,
        lineage=origin,
    )


async def _with_original(recipe: Recipe, row: DualView) -> DualView:
    """Add an original instruction and a target to a plain example's row, or the reason why there are none."""
    settings = recipe.settings
    assert recipe.engine is not None and settings.bootstrap is not None  # noqa: PT018  checked by generate
    judge = next(judge for judge in settings.judges if isinstance(judge, LlmJudge))
    example, draft = await find_original(
        recipe.engine,
        settings.bootstrap,
        judge,
        row.example,
        settings.rules,
        recipe.benchmarks,
        recipe.vocabulary,
    )
    target_id = example.instruction_negatives[0].id if draft.status == ACCEPTED else ""
    return replace(row, example=example, drafts=(draft,), target_id=target_id, status=draft.status)


@dataclass(frozen=True, slots=True)
class _Considered:
    written: Written
    status: str
    surplus: float | None
    verdicts: Sequence[Verdict]

    @property
    def preference(self) -> tuple[bool, float]:
        return self.status in (ACCEPTED, WRITTEN), float("-inf") if self.surplus is None else self.surplus


async def _with_complement(recipe: Recipe, row: DualView, given: DualView | None) -> DualView:
    """Add the best draft to the row: accepted before rejected, then the largest surplus, then the first."""
    settings, example = recipe.settings, row.example
    written = await _write(recipe, row, given)
    if given and not written:  # it crashed the engine in the run that wrote
        return replace(row, status=given.status)
    broken = [
        draft.reason or broken_rule(draft.instruction, example, settings.rules, recipe.benchmarks)
        for draft in written
    ]
    shared: list[Verdict] = []  # on the example's own labels, which all drafts share
    if settings.accept and not all(broken):
        for expected in _expected_labels(row, settings.judgements.conditions):
            if expected.condition != "new":
                shared += await judge_passages(
                    recipe.engine, settings.judges, example.query, expected, _labelled(example)
                )

    async def consider(draft: Written, reason: str | None) -> _Considered:
        if reason or settings.accept is None:
            return _Considered(draft, reason or WRITTEN, None, ())
        expected = _under_new_instruction(example, row.target_id, draft.instruction, draft.requirements)
        on_draft = await judge_passages(
            recipe.engine, settings.judges, example.query, expected, _labelled(example)
        )
        verdicts = [*shared, *on_draft]
        if settings.accept.judge == "none":
            return _Considered(draft, ACCEPTED, None, verdicts)
        return _Considered(draft, *decide(verdicts, recipe.min_margins, settings.accept.conditions), verdicts)

    considered = await asyncio.gather(*map(consider, written, broken))
    best = max(considered, key=lambda candidate: candidate.preference)
    trusted = settings.accept is not None and (settings.accept.judge != "llm" or recipe.judges_passed)
    drafts = [
        Draft(
            "new",
            candidate.written.answer,
            candidate.written.instruction,
            candidate.status,
            candidate.surplus,
        )
        for candidate in considered
    ]
    return replace(
        row,
        new_instruction=best.written.instruction,
        new_requirements=best.written.requirements,
        status=best.status,
        trainable=best.status == ACCEPTED and trusted,
        verdicts=tuple(best.verdicts),
        drafts=(*row.drafts, *drafts),
    )


async def _write(recipe: Recipe, row: DualView, given: DualView | None) -> list[Written]:
    target = next(passage for passage in row.example.instruction_negatives if passage.id == row.target_id)
    match recipe.settings.writer:
        case AttributesWriter() as writer:
            assert recipe.vocabulary is not None  # check_parts
            return [compose_complement(writer, row.example, target, recipe.vocabulary)]
        case LlmWriter() as writer:
            assert recipe.engine is not None  # check_parts
            return await write_complements(recipe.engine, writer, row.example, target, recipe.vocabulary)
        case PrecomputedWriter():
            assert given is not None  # from the drafts source
            read = recipe.vocabulary.read if recipe.vocabulary else lambda _: ()
            return [
                Written(
                    draft.answer,
                    draft.instruction,
                    read(draft.instruction),
                    None if draft.status == WRITTEN else draft.status,
                )
                for draft in given.drafts
            ]


async def _with_extras(recipe: Recipe, row: DualView) -> DualView:
    """Add labels of hard negatives and rewordings to an accepted row, if the settings ask for them."""
    settings, example = recipe.settings, row.example
    labels: list[Verdict] = []
    if settings.judgements.hard_negatives:
        for expected in _expected_labels(row, settings.judgements.conditions):
            labels += await judge_passages(
                recipe.engine, settings.judges, example.query, expected, example.hard_negatives
            )
    rewordings = await asyncio.gather(
        *(reword(recipe, example, expected) for expected in _expected_labels(row, ("original", "new")))
    )
    return replace(
        row,
        verdicts=(*row.verdicts, *labels),
        rewordings=tuple(rewording for of_condition in rewordings for rewording in of_condition),
    )


def _labelled(example: SourceExample) -> tuple[Passage, ...]:
    """The passages that the example labels."""
    return (example.positive, *example.instruction_negatives)


def _expected_labels(row: DualView, conditions: Iterable[Condition]) -> list[ExpectedLabels]:
    """The expected labels of the example's labelled passages under each condition."""
    example = row.example
    labels = {
        "query": ExpectedLabels("query", None, (), dict.fromkeys(_ids(example), True)),
        "original": ExpectedLabels(
            "original",
            example.instruction,
            example.requirements,
            {id: id == example.positive.id for id in _ids(example)},
        ),
        "new": _under_new_instruction(example, row.target_id, row.new_instruction, row.new_requirements),
    }
    return [labels[condition] for condition in conditions]


def _under_new_instruction(
    example: SourceExample, target_id: str, instruction: str, requirements: tuple[Requirement, ...]
) -> ExpectedLabels:
    return ExpectedLabels("new", instruction, requirements, {id: id == target_id for id in _ids(example)})


def _ids(example: SourceExample) -> list[str]:
    return [passage.id for passage in _labelled(example)]
