"""LLM engines: the protocol that synthesis uses, and its implementations."""

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
    """A conversation that awaits the assistant's turn, and the sampling settings."""

    prompt: tuple[Turn, ...]  # the engine applies the model's chat template
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    num_logprobs: int  # how many of the most likely first tokens to report; 0: none


@dataclass(frozen=True, slots=True)
class Completion:
    text: str  # on "error": the engine's message
    finish_reason: Literal["stop", "length", "error"]
    prompt_tokens: int
    completion_tokens: int
    first_token_logprobs: Mapping[str, float]  # token -> natural log of its probability; {} if not requested


class EngineDied(Exception):
    """The engine will never answer again; replace its process."""


class EngineUnavailable(Exception):
    """The engine cannot answer at the moment, whatever the request. The message gives the reason.

    No rows may be written for it. The run ends, and rerunning the same command resumes it.
    """


class Engine(Protocol):
    @property
    def name(self) -> str:
        """Model and revision, for row lineage."""

    async def complete(self, request: Request) -> Completion:
        """The model's answer. Many calls may be in flight, all from one event loop.

        A refused request returns finish_reason "error". Raises only EngineDied and EngineUnavailable.
        """

    def close(self) -> None:
        """Release memory and processes. The engine cannot be used afterwards."""


def check_engine(settings: HttpEngine | VllmEngine | ScriptedEngine) -> None:
    """Raises InputError if a check of a few seconds shows that the engine cannot answer."""
    match settings.kind:
        case "http":
            from dualview.engines.http import check_server

            check_server(settings)
        case "vllm":
            from dualview.engines.chat import chat_of

            check_model(settings.model)
            if "://" not in settings.model:  # a URL would be copied, including the weights
                with suppress(OSError):  # the nodes may reach a hub that this machine does not
                    chat_of(settings)
        case "scripted":
            pass


def open_engine(settings: HttpEngine | VllmEngine | ScriptedEngine) -> Engine:
    """Start the engine and return once it can answer, which takes a minute for a real model."""
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
