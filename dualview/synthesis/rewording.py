"""Rewords the instructions of accepted rows. This variety makes exclusions generalise to unseen verbs."""

import asyncio
from dataclasses import replace
import random

from dualview.config.generate import LlmRewording, VocabularyRewording
from dualview.records import ACCEPTED, Rewording, SourceExample
from dualview.synthesis import prompts
from dualview.synthesis.judging import ExpectedLabels, decide, judge_passages
from dualview.synthesis.recipe import Recipe
from dualview.synthesis.rules import broken_rule
from dualview.synthesis.writing import write
from dualview.vocabulary import Vocabulary

_MAX_REPEATED_DRAWS = 20


async def reword(recipe: Recipe, example: SourceExample, expected: ExpectedLabels) -> list[Rewording]:
    """Return `num` rewordings of the instruction with their statuses.

    An LLM's rewording is accepted if it passes the rules and the deciding judge's verdicts on the example's labelled
    passages equal the expected labels. A rewording by vocabulary keeps the meaning by construction; there may be
    fewer than `num` of these if the vocabulary has no more.
    """
    match recipe.settings.rewording:
        case VocabularyRewording() as settings:
            assert recipe.vocabulary is not None  # check_parts
            return _from_vocabulary(settings, recipe.vocabulary, example, expected)
        case LlmRewording() as settings:
            first = random.Random(f"{settings.seed}:{example.id}").randrange(len(prompts.FORMS))
            return await asyncio.gather(
                *(_by_llm(recipe, settings, example, expected, first + k) for k in range(settings.num))
            )
        case None:
            return []


def _from_vocabulary(
    settings: VocabularyRewording, vocabulary: Vocabulary, example: SourceExample, expected: ExpectedLabels
) -> list[Rewording]:
    assert expected.instruction is not None
    rng = random.Random(f"{settings.seed}:{example.id}:{expected.condition}")
    known = all((need.facet, need.value) in vocabulary.phrases for need in expected.requirements)
    wordings: dict[str, None] = {}
    num_repeated = 0 if known and expected.requirements else _MAX_REPEATED_DRAWS
    while len(wordings) < settings.num and num_repeated < _MAX_REPEATED_DRAWS:
        wording = " ".join(vocabulary.say(need, rng) for need in expected.requirements)
        if wording == expected.instruction or wording in wordings:
            num_repeated += 1
        else:
            wordings[wording] = None
    return [Rewording(expected.condition, wording, ACCEPTED) for wording in wordings]


async def _by_llm(
    recipe: Recipe, settings: LlmRewording, example: SourceExample, expected: ExpectedLabels, form: int
) -> Rewording:
    assert recipe.engine is not None  # check_parts
    assert expected.instruction is not None
    prompt = prompts.rewording_prompt(
        prompts.load(settings.prompt),
        example.query,
        expected.instruction,
        prompts.FORMS[form % len(prompts.FORMS)],
    )
    written = await write(
        recipe.engine, settings, prompt, f"{example.id}:{expected.condition}:{form}", recipe.vocabulary
    )
    status = written.reason or broken_rule(
        written.instruction, example, recipe.settings.rules, recipe.benchmarks
    )
    if status is None and written.instruction.casefold() == expected.instruction.casefold():
        status = "near_original"
    if status is None:
        reworded = replace(expected, instruction=written.instruction, requirements=written.requirements)
        passages = (example.positive, *example.instruction_negatives)
        verdicts = await judge_passages(
            recipe.engine, recipe.deciding_judges, example.query, reworded, passages
        )
        status, _ = decide(verdicts, recipe.min_margins, {expected.condition})
        if status in ("not_flipped", "not_confirmed"):
            status = "meaning_changed"
    return Rewording(expected.condition, written.instruction, status)
