"""Judges: is a passage relevant to a query, alone or with an instruction?

A judge answers with a margin, log p(yes) - log p(no), or None if it cannot decide. There is no default verdict.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
import math

from dualview.config.generate import AttributesJudge, LlmJudge
from dualview.engines import Engine, Request
from dualview.records import ACCEPTED, Condition, Passage, Requirement, Verdict, all_hold
from dualview.synthesis import prompts

_NUM_LOGPROBS = 20  # the maximum of OpenAI-compatible servers and of vLLM by default


@dataclass(frozen=True, slots=True)
class ExpectedLabels:
    """Which passages are relevant under one condition, according to the example and its target."""

    condition: Condition
    instruction: str | None  # None under "query"
    requirements: tuple[Requirement, ...]  # of the instruction, as far as known
    relevant: Mapping[str, bool]  # by passage id; a missing passage is unlabelled


def judge_name(settings: LlmJudge | AttributesJudge) -> str:
    """The judge's name in verdicts: its kind, and for an LLM its prompt version."""
    match settings.kind:
        case "llm":
            return f"llm:{prompts.load(settings.prompt).version}"
        case "attributes":
            return "attributes"


async def ask(
    engine: Engine, settings: LlmJudge, query: str, instruction: str | None, passage: Passage
) -> float | None:
    """Return the margin from the model's first token, of which only the probabilities of yes and no are used.

    Without an instruction, the judge needs a `query_prompt` and is asked about the query alone.
    """
    name = settings.prompt if instruction is not None else settings.query_prompt
    assert name is not None  # check_parts
    completion = await engine.complete(
        Request(
            prompt=prompts.judging_prompt(prompts.load(name), query, instruction, passage),
            max_tokens=1,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            num_logprobs=_NUM_LOGPROBS,
        )
    )
    return yes_no_margin(completion.first_token_logprobs)


def yes_no_margin(logprobs: Mapping[str, float]) -> float | None:
    """log p(yes) - log p(no) over all spellings ("Yes", " yes", "YES"), from the most likely first tokens.

    A word that is not listed gets the probability of the least likely listed token, which is an upper bound: the
    margin may be too small, never too large. None if neither word is listed or their probabilities are equal.
    """
    yes, no = (_total(logprobs, word) for word in ("yes", "no"))
    if yes is None and no is None:
        return None
    floor = min(logprobs.values())
    margin = (floor if yes is None else yes) - (floor if no is None else no)
    return margin if margin != 0 else None


def _total(logprobs: Mapping[str, float], word: str) -> float | None:
    spellings = [value for token, value in logprobs.items() if token.strip().casefold() == word]
    if not spellings:
        return None
    highest = max(spellings)
    return highest + math.log(sum(math.exp(value - highest) for value in spellings))


def look_up(requirements: Iterable[Requirement], passage: Passage) -> float | None:
    """+1 if the passage's attributes meet every requirement, -1 if they break one, else None."""
    met = all_hold(requirements, passage.attributes)
    return None if met is None else (1.0 if met else -1.0)


async def judge_passages(
    engine: Engine | None,
    judges: Sequence[LlmJudge | AttributesJudge],
    query: str,
    expected: ExpectedLabels,
    passages: Sequence[Passage],
) -> list[Verdict]:
    """Return every judge's verdict on every passage under one condition, judge by judge.

    An attributes judge knows nothing about the query alone and gives no verdict on it.
    """

    async def margin(judge: LlmJudge | AttributesJudge, passage: Passage) -> float | None:
        match judge:
            case LlmJudge():
                assert engine is not None  # check_parts
                return await ask(engine, judge, query, expected.instruction, passage)
            case AttributesJudge():
                return look_up(expected.requirements, passage)

    questions = [
        (judge, passage)
        for judge in judges
        if judge.kind == "llm" or expected.condition != "query"
        for passage in passages
    ]
    margins = await asyncio.gather(*(margin(judge, passage) for judge, passage in questions))
    return [
        Verdict(judge_name(judge), expected.condition, passage.id, expected.relevant.get(passage.id), answer)
        for (judge, passage), answer in zip(questions, margins, strict=True)
    ]


def decide(
    verdicts: Iterable[Verdict], min_margins: Mapping[str, float], conditions: Collection[Condition]
) -> tuple[str, float]:
    """Combine the verdicts of the judges in `min_margins` into a status and their smallest surplus.

    Only verdicts under `conditions` on labelled passages count. A single wrong verdict gives not_flipped, or
    not_confirmed if it contradicts the example's own labels. A margin that is missing or closer to 0 than the judge's
    minimum gives undecided. A missing margin has surplus 0.
    """
    counted = [
        verdict
        for verdict in verdicts
        if verdict.judge in min_margins and verdict.condition in conditions and verdict.expected is not None
    ]
    assert counted, "check_parts makes sure that some judge decides"
    smallest = min(verdict.surplus or 0.0 for verdict in counted)
    clear = [
        verdict
        for verdict in counted
        if verdict.margin is not None and abs(verdict.margin) >= min_margins[verdict.judge]
    ]
    wrong = {verdict.condition for verdict in clear if (verdict.surplus or 0.0) < 0}
    if wrong - {"new"}:
        return "not_confirmed", smallest
    if wrong:
        return "not_flipped", smallest
    return (ACCEPTED if len(clear) == len(counted) else "undecided"), smallest
