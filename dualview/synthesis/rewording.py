"""Other wordings of an accepted row's instructions: variety is what makes exclusions hold on unseen verbs."""

import asyncio
import random

from dualview.config.generate import LlmRewording, VocabularyRewording
from dualview.records import ACCEPTED, Rewording, Seed
from dualview.synthesis import prompts
from dualview.synthesis.judging import Claim, decide, judge_passages
from dualview.synthesis.recipe import Recipe
from dualview.synthesis.rules import broken_rule
from dualview.synthesis.writing import write
from dualview.vocabulary import Vocabulary

_NUM_DRAWS_IN_VAIN = 20


async def reword(recipe: Recipe, seed: Seed, claim: Claim) -> list[Rewording]:
    """`num` other wordings of the claim's instruction, each with what became of it.

    One that an LLM wrote is accepted if it keeps the rules and the deciding judge's verdicts on the
    seed's labelled passages are what the claim expects; one from the vocabulary has the same meaning by
    construction. There may be fewer of the latter, where the vocabulary has no more.
    """
    match recipe.settings.rewording:
        case VocabularyRewording() as settings:
            assert recipe.vocabulary is not None  # check_parts
            return _from_vocabulary(settings, recipe.vocabulary, seed, claim)
        case LlmRewording() as settings:
            first = random.Random(f"{settings.seed}:{seed.id}").randrange(len(prompts.FORMS))
            return await asyncio.gather(
                *(_by_llm(recipe, settings, seed, claim, first + k) for k in range(settings.num))
            )
        case None:
            return []


def _from_vocabulary(
    settings: VocabularyRewording, vocabulary: Vocabulary, seed: Seed, claim: Claim
) -> list[Rewording]:
    assert claim.instruction is not None
    rng = random.Random(f"{settings.seed}:{seed.id}:{claim.condition}")
    known = all((each.facet, each.value) in vocabulary.phrases for each in claim.requirements)
    wordings: dict[str, None] = {}
    in_vain = 0 if known and claim.requirements else _NUM_DRAWS_IN_VAIN
    while len(wordings) < settings.num and in_vain < _NUM_DRAWS_IN_VAIN:
        wording = " ".join(vocabulary.say(each, rng) for each in claim.requirements)
        if wording == claim.instruction or wording in wordings:
            in_vain += 1
        else:
            wordings[wording] = None
    return [Rewording(claim.condition, wording, ACCEPTED) for wording in wordings]


async def _by_llm(recipe: Recipe, settings: LlmRewording, seed: Seed, claim: Claim, form: int) -> Rewording:
    assert recipe.engine is not None  # check_parts
    assert claim.instruction is not None
    prompt = prompts.rewording_prompt(
        prompts.load(settings.prompt),
        seed.query,
        claim.instruction,
        prompts.FORMS[form % len(prompts.FORMS)],
    )
    written = await write(
        recipe.engine, settings, prompt, f"{seed.id}:{claim.condition}:{form}", recipe.vocabulary
    )
    status = written.reason or broken_rule(
        written.instruction, seed, recipe.settings.rules, recipe.benchmarks
    )
    if status is None and written.instruction.casefold() == claim.instruction.casefold():
        status = "near_original"
    if status is None:
        said = Claim(claim.condition, written.instruction, written.requirements, claim.expected)
        passages = (seed.positive, *seed.instruction_negatives)
        verdicts = await judge_passages(recipe.engine, recipe.deciding_judges, seed.query, said, passages)
        status, _ = decide(verdicts, recipe.min_margins, {claim.condition})
        if status in ("not_flipped", "not_confirmed"):
            status = "meaning_changed"
    return Rewording(claim.condition, written.instruction, status)
