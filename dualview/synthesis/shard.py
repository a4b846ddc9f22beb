"""One shard: from seeds to finished rows, through writing, rules and judges.

Every seed ends as exactly one row, in the order of the seeds, with all that was said about it.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import hashlib
from typing import Literal

from dualview.config import (
    AttributesJudge,
    FacetsWriter,
    LlmJudge,
    LlmWriter,
    Rules,
    canonical_json,
    fingerprint,
)
from dualview.engines import Engine, Request
from dualview.errors import InputError
from dualview.records import ACCEPTED, DualView, Lineage, Passage, Requirement, Seed, Verdict
from dualview.synthesis import facets, judging, prompts
from dualview.synthesis.parsing import parse
from dualview.synthesis.rules import broken_rule
from dualview.vocabulary import Vocabulary


@dataclass(frozen=True)
class Recipe:
    """What all rows of a run share. Raises InputError where its parts do not fit together."""

    writer: FacetsWriter | LlmWriter
    judges: tuple[LlmJudge | AttributesJudge, ...]
    accept: Literal["llm", "attributes"]  # whose verdicts decide
    rules: Rules
    vocabulary: Vocabulary | None  # None: the source knows nothing about attributes
    engine: Engine | None  # None: neither the writer nor a judge is a language model
    exam_passed: bool  # by every LLM judge; of no weight where attributes decide

    def __post_init__(self) -> None:
        check_parts(
            self.writer,
            self.judges,
            self.accept,
            has_vocabulary=self.vocabulary is not None,
            has_engine=self.engine is not None,
        )


def check_parts(
    writer: FacetsWriter | LlmWriter,
    judges: Sequence[LlmJudge | AttributesJudge],
    accept: Literal["llm", "attributes"],
    *,
    has_vocabulary: bool,
    has_engine: bool,
) -> None:
    """Raises InputError where these cannot make a recipe; needs no engine to have started."""
    kinds = [judge.kind for judge in judges]
    if accept not in kinds:
        raise InputError(
            f"accept: {accept} needs a judge of that kind, for example"
            f" `judges: [{{kind: {accept}, ...}}]`; found {', '.join(kinds) or 'none'}"
        )
    if not has_engine and "llm" in (writer.kind, *kinds):
        raise InputError("engine: a writer or judge of kind llm needs one, for example `kind: vllm`")
    if not has_vocabulary and (writer.kind == "facets" or "attributes" in kinds):
        raise InputError(
            "source: this one has no vocabulary of attributes, which the facets writer and the"
            " attributes judge need; use kind llm for both, or the factbook source"
        )


def writing_version(writer: FacetsWriter | LlmWriter, vocabulary: Vocabulary | None) -> str:
    """Name and hash of the words that the writer goes by: its prompt, or the vocabulary."""
    match writer:
        case FacetsWriter():
            assert vocabulary is not None  # check_parts
            return f"vocabulary@{_vocabulary_hash(vocabulary)}"
        case LlmWriter():
            return prompts.load(writer.prompt).version


@dataclass(frozen=True, slots=True)
class Draft:
    """What the writer gave: an instruction, or a reason why there is none."""

    answer: str
    instruction: str
    requirements: tuple[Requirement, ...]
    reason: str | None
    prompt_tokens: int
    completion_tokens: int


def lineage(recipe: Recipe, *, run: str, shard: int, attempt: str, code_version: str) -> Lineage:
    """Where the rows of one attempt at one shard come from. `run` is the run's fingerprint."""
    return Lineage(
        writer="facets" if isinstance(recipe.writer, FacetsWriter) else _engine(recipe).name,
        prompt=writing_version(recipe.writer, recipe.vocabulary),
        sampling=canonical_json(recipe.writer.model_dump(exclude={"kind", "prompt"})),
        judges=tuple(judging.judge_name(judge) for judge in recipe.judges),
        code_version=code_version,
        run=run,
        shard=shard,
        attempt=attempt,
    )


async def finish_shard(recipe: Recipe, seeds: Iterable[Seed], origin: Lineage) -> list[DualView]:
    """One row per seed, in order, all of them worked on at the same time.

    Raises EngineDied when the engine dies; then no row of the shard counts.
    """
    return await asyncio.gather(*(finish_row(recipe, seed, origin) for seed in seeds))


async def finish_row(recipe: Recipe, seed: Seed, origin: Lineage) -> DualView:
    """Write, check, judge: the seed's row. Its target is the seed's first instruction negative.

    A draft that the rules reject is not judged. Raises EngineDied.
    """
    target = seed.instruction_negatives[0]
    draft = await _write(recipe, seed, target)
    status = draft.reason or broken_rule(draft.instruction, seed, recipe.rules)
    verdicts: list[Verdict] = []
    judging_tokens = (0, 0)
    if status is None:
        verdicts, judging_tokens = await _judge(recipe, seed, target, draft)
        status = decide(verdicts, _deciding_margins(recipe))
    trusted = recipe.accept == "attributes" or recipe.exam_passed
    return DualView(
        seed=seed,
        target_id=target.id,
        new_instruction=draft.instruction,
        new_requirements=draft.requirements,
        status=status,
        trainable=status == ACCEPTED and trusted,
        verdicts=tuple(verdicts),
        draft=draft.answer,
        prompt_tokens=draft.prompt_tokens + judging_tokens[0],
        completion_tokens=draft.completion_tokens + judging_tokens[1],
        lineage=origin,
    )


def poison_row(seed: Seed, origin: Lineage) -> DualView:
    """The row of a seed that kills the engine: nothing is known but that."""
    return DualView(
        seed=seed,
        target_id=seed.instruction_negatives[0].id,
        new_instruction="",
        new_requirements=(),
        status="poison",
        trainable=False,
        verdicts=(),
        draft="",
        prompt_tokens=0,
        completion_tokens=0,
        lineage=origin,
    )


def decide(verdicts: Iterable[Verdict], min_margins: Mapping[str, float]) -> str:
    """The status that the verdicts of the judges in `min_margins` amount to; other judges do not count.

    One wrong verdict is enough for not_flipped. A margin that is missing, or closer to 0 than the
    judge's minimum, is no verdict: undecided.
    """
    deciding = [verdict for verdict in verdicts if verdict.judge in min_margins]
    assert deciding, "Recipe makes sure that some judge decides"
    clear = [
        verdict
        for verdict in deciding
        if verdict.margin is not None and abs(verdict.margin) >= min_margins[verdict.judge]
    ]
    if not all(verdict.right for verdict in clear):
        return "not_flipped"
    return ACCEPTED if len(clear) == len(deciding) else "undecided"


async def _write(recipe: Recipe, seed: Seed, target: Passage) -> Draft:
    match recipe.writer:
        case FacetsWriter() as writer:
            composed = facets.compose(seed, target, writer, _vocabulary(recipe))
            if composed is None:
                return Draft("", "", (), "declined", 0, 0)
            instruction, requirements = composed
            return Draft(instruction, instruction, requirements, None, 0, 0)
        case LlmWriter() as writer:
            completion = await _engine(recipe).complete(
                Request(
                    prompt=prompts.writing_prompt(prompts.load(writer.prompt), seed, target),
                    max_tokens=writer.max_tokens,
                    temperature=writer.temperature,
                    top_p=writer.top_p,
                    seed=_row_seed(writer.seed, seed.id),
                    num_logprobs=0,
                )
            )
            written, reason = parse(completion)
            read = recipe.vocabulary.read(written) if recipe.vocabulary and written else ()
            return Draft(
                completion.text,
                written or "",
                read,
                reason,
                completion.prompt_tokens,
                completion.completion_tokens,
            )


async def _judge(
    recipe: Recipe, seed: Seed, target: Passage, draft: Draft
) -> tuple[list[Verdict], tuple[int, int]]:
    """Every judge on every labelled passage, and the tokens that it took (prompt, completion)."""
    questions = [
        (judge, passage)
        for judge in recipe.judges
        for passage in (seed.positive, *seed.instruction_negatives)
    ]

    async def answer(judge: LlmJudge | AttributesJudge, passage: Passage) -> judging.Judgement:
        match judge:
            case LlmJudge():
                return await judging.ask(_engine(recipe), judge, seed.query, draft.instruction, passage)
            case AttributesJudge():
                return judging.look_up(draft.requirements, passage)

    judgements = await asyncio.gather(*(answer(judge, passage) for judge, passage in questions))
    verdicts = [
        Verdict(judging.judge_name(judge), passage.id, passage.id == target.id, judgement.margin)
        for (judge, passage), judgement in zip(questions, judgements, strict=True)
    ]
    return verdicts, (
        sum(judgement.prompt_tokens for judgement in judgements),
        sum(judgement.completion_tokens for judgement in judgements),
    )


def _deciding_margins(recipe: Recipe) -> dict[str, float]:
    return {
        judging.judge_name(judge): judge.min_margin if isinstance(judge, LlmJudge) else 0.0
        for judge in recipe.judges
        if judge.kind == recipe.accept
    }


def _row_seed(seed: int, seed_id: str) -> int:
    """A sampling seed that belongs to the row, wherever it stands; below 2**31, as engines ask."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{seed_id}".encode()).digest()[:4]) >> 1


def _vocabulary_hash(vocabulary: Vocabulary) -> str:
    return fingerprint(
        [
            sorted([*key, *phrases] for key, phrases in vocabulary.phrases.items()),
            sorted([*key, *names] for key, names in vocabulary.names.items()),
            vocabulary.inclusions,
            vocabulary.exclusions,
        ]
    )


def _engine(recipe: Recipe) -> Engine:
    assert recipe.engine is not None  # Recipe has checked
    return recipe.engine


def _vocabulary(recipe: Recipe) -> Vocabulary:
    assert recipe.vocabulary is not None  # Recipe has checked
    return recipe.vocabulary
