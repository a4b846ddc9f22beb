"""An engine without a model: the same request always gets the same answer, immediately."""

from collections.abc import Callable
import hashlib
import random

from dualview.engines import Completion, Request

_SUBJECTS = ("statistics", "first-hand reports", "overviews", "legal texts", "case studies", "warnings")
_LIMITS = ("from the last five years", "on rural areas", "for experts", "that name their sources")


class Scripted:
    """An Engine that answers with a function of the request."""

    def __init__(self, name: str, answer: Callable[[Request], Completion]) -> None:
        self.name = name
        self._answer = answer

    async def complete(self, request: Request) -> Completion:
        return self._answer(request)

    def close(self) -> None:
        pass


def seeded_answers(seed: int) -> Callable[[Request], Completion]:
    """Well-formed answers drawn by a hash of (seed, prompt, sampling seed).

    A request with log probabilities is a yes/no question and gets both words with a random margin. Any
    other request gets an instruction in its block.
    """

    def answer(request: Request) -> Completion:
        key = f"{seed}:{request.seed}:{request.prompt}"
        rng = random.Random(hashlib.sha256(key.encode()).digest())
        if request.num_logprobs:
            margin = rng.gauss(0, 2)
            text, logprobs = "yes" if margin > 0 else "no", {"yes": margin - 5, "no": -5.0}
        else:
            text, logprobs = f"<instruction>{_instruction(rng)}</instruction>", {}
        num_words = sum(len(turn.text.split()) for turn in request.prompt)
        return Completion(text, "stop", num_words, len(text.split()), logprobs)

    return answer


def _instruction(rng: random.Random) -> str:
    return f"Find only {rng.choice(_SUBJECTS)} {rng.choice(_LIMITS)}."
