"""Other wordings of an accepted row's instructions: variety is what makes exclusions hold on unseen verbs."""

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

_NUM_DRAWS_IN_VAIN = 20


async def reword(recipe: Recipe, example: SourceExample, expected: ExpectedLabels) -> list[Rewording]:
    """`num` other wordings of the instruction, each with what became of it.

    One that an LLM wrote is accepted if it keeps the rules and the deciding judge's verdicts on the
    example's labelled passages are the expected labels; one from the vocabulary has the same meaning by
    construction. There may be fewer of the latter, where the vocabulary has no more.
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
    known = all((each.facet, each.value) in vocabulary.phrases for each in expected.requirements)
    wordings: dict[str, None] = {}
    in_vain = 0 if known and expected.requirements else _NUM_DRAWS_IN_VAIN
    while len(wordings) < settings.num and in_vain < _NUM_DRAWS_IN_VAIN:
        wording = " ".join(vocabulary.say(each, rng) for each in expected.requirements)
        if wording == expected.instruction or wording in wordings:
            in_vain += 1
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
