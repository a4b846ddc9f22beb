"""Who answers a prompt: the protocol that synthesis speaks, and the engines behind it."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol

from dualview.config.engines import HttpEngine, ScriptedEngine, VllmEngine
from dualview.extras import needs
from dualview.models import check_model


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation that waits for the assistant, and how the answer is drawn."""

    prompt: tuple[Turn, ...]  # the engine puts it into the model's chat template
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    num_logprobs: int  # how many first tokens to report, the most likely ones; 0: none


@dataclass(frozen=True, slots=True)
class Completion:
    text: str  # on "error": what the engine said
    finish_reason: Literal["stop", "length", "error"]
    prompt_tokens: int
    completion_tokens: int
    first_token_logprobs: Mapping[str, float]  # token -> natural log of its probability; {} if not asked


class EngineDied(Exception):
    """The engine will never answer again; its process should end and a new one start."""


class EngineUnavailable(Exception):
    """Nobody answers now, and no request is to blame: one sentence that says why.

    Rows must not be written for it. The run ends, and the same command goes on later.
    """


class Engine(Protocol):
    @property
    def name(self) -> str:
        """Model and revision, for the lineage of a row."""

    async def complete(self, request: Request) -> Completion:
        """The model's answer. Many calls may wait at once, all of them from one event loop.

        A refused request is a Completion with finish_reason "error"; only EngineDied and
        EngineUnavailable are raised.
        """

    def close(self) -> None:
        """Gives back memory and processes. No call may follow."""


def check_engine(settings: HttpEngine | VllmEngine | ScriptedEngine) -> None:
    """Raises InputError if it is plain, within seconds, that the engine could not answer."""
    match settings.kind:
        case "http":
            from dualview.engines.http import check_server

            check_server(settings)
        case "vllm":
            from dualview.engines.chat import chat_of

            check_model(settings.model)
            if "://" not in settings.model:  # which would be copied, weights and all
                with suppress(OSError):  # a hub that the nodes may reach
                    chat_of(settings)
        case "scripted":
            pass


def open_engine(settings: HttpEngine | VllmEngine | ScriptedEngine) -> Engine:
    """Starts the engine and returns when it can answer, which takes a minute for a real model."""
    match settings.kind:
        case "http":
            from dualview.engines.http import Http

            return Http(settings)
        case "vllm":
            with needs("gpu", "engine.kind: vllm (on a CPU: the extra cpu)"):
                from dualview.engines.vllm import Vllm  # vLLM takes seconds to import

            return Vllm(settings)
        case "scripted":
            from dualview.engines.scripted import Scripted, seeded_answers

            return Scripted(f"scripted@{settings.seed}", seeded_answers(settings.seed))
