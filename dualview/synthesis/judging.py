"""Judges: is a passage relevant to a query under an instruction?

A judge answers with a margin, log p(yes) - log p(no), or with None where it cannot tell. There is
no default verdict.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import math

from dualview.config import AttributesJudge, LlmJudge
from dualview.engines import Engine, Request
from dualview.records import Passage, Requirement, all_hold
from dualview.synthesis import prompts

_NUM_LOGPROBS = 20  # the most that OpenAI-compatible servers and vLLM's defaults give


@dataclass(frozen=True, slots=True)
class Judgement:
    margin: float | None
    prompt_tokens: int
    completion_tokens: int


def judge_name(settings: LlmJudge | AttributesJudge) -> str:
    """Its name in verdicts: the kind, and for an LLM the version of its prompt."""
    match settings.kind:
        case "llm":
            return f"llm:{prompts.load(settings.prompt).version}"
        case "attributes":
            return "attributes"


async def ask(
    engine: Engine, settings: LlmJudge, query: str, instruction: str, passage: Passage
) -> Judgement:
    """One word from the model, of which only the probabilities of yes and no are read."""
    completion = await engine.complete(
        Request(
            prompt=prompts.judging_prompt(prompts.load(settings.prompt), query, instruction, passage),
            max_tokens=1,
            temperature=0.0,
            top_p=1.0,
            seed=0,
            num_logprobs=_NUM_LOGPROBS,
        )
    )
    return Judgement(
        yes_no_margin(completion.first_token_logprobs), completion.prompt_tokens, completion.completion_tokens
    )


def yes_no_margin(logprobs: Mapping[str, float]) -> float | None:
    """log p(yes) - log p(no) over all spellings ("Yes", " yes", "YES"), from the most likely first tokens.

    A side that is not listed is at most as likely as the least likely listed token, and is taken to
    be just that: the margin comes out too small, never too large. None where neither side is listed
    or nothing parts them.
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


def look_up(requirements: Iterable[Requirement], passage: Passage) -> Judgement:
    """+1 where the passage's attributes meet every requirement, -1 where they break one, else None."""
    met = all_hold(requirements, passage.attributes)
    return Judgement(None if met is None else (1.0 if met else -1.0), 0, 0)
