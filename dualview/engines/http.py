"""Any server with the OpenAI chat completions API. The only module that imports httpx."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import cached_property
from itertools import count
import logging
import math
import os
import random
import re
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from dualview.config.engines import HttpEngine
from dualview.engines import Completion, EngineUnavailable, Request, Turn
from dualview.engines.chat import without_marks
from dualview.errors import InputError

# The margin, in nats, of every verdict of a server without log probabilities: any other word is taken to be
# this much less likely. It is part of the engine's name, and so of the lineage.
TEXT_MARGIN = 1.0

_TRIED_AGAIN = {408, 429}  # and 5xx
_TOO_MANY_REQUESTS = 429
_FIRST_PAUSE_SECONDS = 1.0  # doubled after every try
_CHECK_SECONDS = 20.0
_NAMES_SHOWN = 8
_MESSAGE_CHARACTERS = 300

# Every working server can answer this one. If it fails, the original request is not at fault.
_CONTROL = (Turn("user", "Answer with one word: yes."),)


@dataclass(frozen=True)
class _Failure:
    """Why an attempt failed."""

    reason: str  # continues "the server at ..."; never contains the key
    pause_seconds: float | None  # requested by the server before a retry; None: do not retry
    is_overload: bool = False  # the server rejects requests regardless of their content


class Http:
    """An Engine behind a URL. Its only state is connections.

    Timeouts, lost connections, malformed answers, 408, 429 and 5xx are retried, after the server's
    Retry-After plus an exponential backoff with jitter. If the last attempt fails, the server gets a
    control request. If that succeeds, the completion has finish_reason "error". Otherwise
    EngineUnavailable gives the reason, so a server that is down costs no rows.
    """

    def __init__(
        self,
        settings: HttpEngine,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._host = _host(settings)
        self.name = f"{settings.model}@{self._host}"
        if not settings.num_logprobs:
            self.name += f" (yes and no by its word, margin {TEXT_MARGIN:g})"
        self._settings, self._sleep, self._now = settings, sleep, now
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._misses_usage = False
        # Neither the server's tokenizer nor its model's markers are known here.
        self._broken = without_marks()

    @cached_property
    def _client(self) -> httpx.AsyncClient:
        # Created at the first request: if an actor's constructor fails, its driver never learns the reason.
        try:
            headers = _headers(self._settings)
        except InputError as error:
            raise EngineUnavailable(str(error)) from None
        return httpx.AsyncClient(
            base_url=self._settings.base_url,
            headers=headers,
            timeout=None,  # _try_once limits a whole attempt; httpx's limits apply to each read
            limits=httpx.Limits(max_connections=self._settings.max_concurrency),
        )

    async def complete(self, request: Request) -> Completion:
        # Held during pauses too, so that a rejected request is not replaced by others.
        async with self._slots:
            answer = await self._try(request)
            if isinstance(answer, Completion):
                return answer
            if not answer.is_overload:
                control = await self._try(replace(request, prompt=_CONTROL, max_tokens=1))
                if isinstance(control, Completion):
                    return Completion(answer.reason, "error", 0, 0, {})
                answer = control
            raise EngineUnavailable(f"the server at {self._host} {answer.reason}")

    def close(self) -> None:
        """Does nothing: closing connections requires the event loop that opened them; they end with the process."""

    async def _try(self, request: Request) -> Completion | _Failure:
        """The answer, or the failure of the last attempt."""
        num_tries = self._settings.max_tries
        for attempt in count(1):
            answer = await self._try_once(request)
            if isinstance(answer, Completion) or answer.pause_seconds is None:
                return answer
            if attempt == num_tries:
                return replace(answer, reason=f"{answer.reason} (tries: {num_tries})")
            await self._sleep(answer.pause_seconds + self._backoff_seconds(request, attempt))
        raise AssertionError("count() has no end")

    async def _try_once(self, request: Request) -> Completion | _Failure:
        seconds = self._settings.timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                response = await self._client.post("chat/completions", json=self._body(request))
        except TimeoutError:
            return _Failure(f"gives no answer within {seconds:g} s", pause_seconds=0)
        except httpx.RequestError as error:
            return _Failure(f"cannot be reached ({type(error).__name__})", pause_seconds=0)
        if response.status_code != httpx.codes.OK:
            return self._failure(response)
        try:
            answer = _Answer.model_validate_json(response.content)
        except ValidationError:
            reason = f"gives an answer that is not a chat completion: {self._message(response)}"
            return _Failure(reason, pause_seconds=0)
        return self._completion(request, answer)

    def _failure(self, response: httpx.Response) -> _Failure:
        status = response.status_code
        reason, is_overload = f"answers {status}: {self._message(response)}", status == _TOO_MANY_REQUESTS
        if status not in _TRIED_AGAIN and status < 500:
            return _Failure(reason, pause_seconds=None)
        asked_seconds = _retry_after_seconds(response, self._now())
        if asked_seconds > self._settings.max_pause_seconds:
            reason += f"; it asks for {asked_seconds:.0f} s, more than engine.max_pause_seconds"
            return _Failure(reason, pause_seconds=None, is_overload=True)
        return _Failure(reason, asked_seconds, is_overload)

    def _body(self, request: Request) -> dict[str, Any]:
        num_logprobs = min(request.num_logprobs, self._settings.num_logprobs)
        return {
            "model": self._settings.model,
            "messages": [{"role": turn.role, "content": self._broken(turn.text)} for turn in request.prompt],
            "max_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            **({"logprobs": True, "top_logprobs": num_logprobs} if num_logprobs else {}),
            **(
                {"chat_template_kwargs": arguments}
                if (arguments := self._settings.chat_template_kwargs)
                else {}
            ),
        }

    def _backoff_seconds(self, request: Request, attempt: int) -> float:
        """Doubles with every attempt, times a jitter between 0.5 and 1 so that retries do not coincide."""
        longest = min(self._settings.max_pause_seconds, _FIRST_PAUSE_SECONDS * 2.0 ** (attempt - 1))
        return longest * random.Random(repr((attempt, request))).uniform(0.5, 1)

    def _completion(self, request: Request, answer: "_Answer") -> Completion:
        """Raises EngineUnavailable if log probabilities are requested and the server returns none."""
        choice, usage = answer.choices[0], answer.usage
        if usage is None:
            self._say_that_usage_is_missing()
            usage = _Usage(prompt_tokens=0, completion_tokens=0)
        text = choice.message.content or ""
        match choice.finish_reason:
            case "stop" | "length" as reason:
                logprobs = self._first_token_logprobs(request, choice)
                return Completion(text, reason, usage.prompt_tokens, usage.completion_tokens, logprobs)
            case other:
                said = choice.message.refusal or text
                problem = _shortened(f"finish_reason {other}: {said}", _key(self._settings))
                return Completion(problem, "error", usage.prompt_tokens, usage.completion_tokens, {})

    def _first_token_logprobs(self, request: Request, choice: "_Choice") -> dict[str, float]:
        if not request.num_logprobs:
            return {}
        text = choice.message.content or ""
        if not self._settings.num_logprobs:
            return _logprobs_of_word(text)
        tokens = choice.logprobs.content if choice.logprobs else None
        if tokens == [] and not text:
            return {}  # ended before its first token
        if not tokens or not tokens[0].top_logprobs:
            raise EngineUnavailable(
                f"the server at {self._host} gives no log probabilities with `{self._settings.model}`;"
                " choose another one, or set engine.num_logprobs to 0: the judge's verdict is then the word it"
                f" answers, always with a margin of {TEXT_MARGIN:g}"
            )
        by_text: dict[str, float] = {}
        for token in tokens[0].top_logprobs:  # sums tokens with the same text, as in vllm.py
            before = by_text.get(token.token)
            by_text[token.token] = token.logprob if before is None else _log_sum(before, token.logprob)
        return by_text

    def _say_that_usage_is_missing(self) -> None:
        if not self._misses_usage:
            self._misses_usage = True
            logging.getLogger(__name__).warning(
                "the server at %s does not report token usage; its tokens count as 0",
                self._host,
            )

    def _message(self, response: httpx.Response) -> str:
        return _shortened(_message(response), _key(self._settings))


class _Token(BaseModel):
    token: str
    logprob: FiniteFloat


class _Position(BaseModel):
    top_logprobs: list[_Token] = []


class _Logprobs(BaseModel):
    content: list[_Position] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class _Answer(BaseModel):
    """The fields we read of a chat completion."""

    choices: Annotated[list[_Choice], Field(min_length=1)]
    usage: _Usage | None = None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model]


def check_server(settings: HttpEngine) -> None:
    """Raises InputError if the server cannot be reached, refuses the key, or does not serve the model.

    Sends one request for the list of models, which is free.
    """
    host, key = _host(settings), _key(settings)
    try:
        response = httpx.get(
            f"{settings.base_url.rstrip('/')}/models", headers=_headers(settings), timeout=_CHECK_SECONDS
        )
    except httpx.RequestError as error:
        raise InputError(
            f"engine.base_url: the server at {host} cannot be reached ({type(error).__name__});"
            " expected an address such as http://127.0.0.1:8000/v1"
        ) from None
    message = _shortened(_message(response), key)
    if response.status_code in (401, 403):
        which = (
            f"the key in {settings.api_key_env}" if key else "a request without a key (engine.api_key_env)"
        )
        raise InputError(f"engine: the server at {host} refuses {which} ({response.status_code}: {message})")
    try:
        served = [model.id for model in _Models.model_validate_json(response.content).data]
    except ValidationError:
        served = []
    if response.status_code != httpx.codes.OK or not served:
        raise InputError(
            f"engine.base_url: the server at {host} does not list its models"
            f" ({response.status_code}: {message}); expected an address, usually one that ends in /v1"
        )
    if settings.model not in served:
        more = f" and {len(served) - _NAMES_SHOWN} more" if len(served) > _NAMES_SHOWN else ""
        raise InputError(
            f"engine.model: the server at {host} does not serve `{settings.model}`;"
            f" it serves {', '.join(served[:_NAMES_SHOWN])}{more}"
        )


def _host(settings: HttpEngine) -> str:
    """Host and port. Raises InputError if the address could hold a secret; the message does not repeat it."""
    try:
        parts = urlsplit(settings.base_url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or "@" in parts.netloc
        or parts.query
        or parts.fragment
    ):
        raise InputError(
            "engine.base_url: expected http(s)://HOST:PORT/PATH without user, password or query,"
            " for example http://127.0.0.1:8000/v1; put a key into the environment (engine.api_key_env)"
        )
    return host if port is None else f"{host}:{port}"


def _headers(settings: HttpEngine) -> dict[str, str]:
    key = _key(settings)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _key(settings: HttpEngine) -> str | None:
    """The API key. Raises InputError if it is unset or malformed; the message never contains it."""
    name = settings.api_key_env
    if name is None:
        return None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise InputError(  # does not repeat the value: people paste the key itself
            "engine.api_key_env: expected the name of an environment variable in capital letters,"
            " for example OPENAI_API_KEY, and never the key itself"
        )
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        problem = "holds characters that are invalid in a key" if key else "is not set"
        raise InputError(f"engine.api_key_env: the environment variable {name} {problem}")
    return key


def _message(response: httpx.Response) -> str:
    """The error message of a response, in any of the usual formats."""
    try:
        body = response.json()
    except ValueError:
        return response.text
    match body:
        case {"error": {"message": str(message)}} | {"error": str(message)}:
            return message
        case {"message": str(message)} | {"detail": str(message)}:
            return message
        case _:
            return response.text


def _shortened(text: str, key: str | None) -> str:
    """The text as one line of limited length, with the key redacted in case the server repeats it."""
    if key:
        text = text.replace(key, "[key]")
    return " ".join(text.split())[:_MESSAGE_CHARACTERS] or "no message"


def _retry_after_seconds(response: httpx.Response, now: float) -> float:
    """The Retry-After header, given as seconds or as a date; 0 if absent or invalid."""
    value = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)


def _logprobs_of_word(text: str) -> dict[str, float]:
    """The word of a one-word answer at 0, and any other word at -TEXT_MARGIN; {} for any other answer."""
    words = re.findall(r"\w+", text)
    return {words[0]: 0.0, "": -TEXT_MARGIN} if len(words) == 1 else {}


def _log_sum(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high + math.log1p(math.exp(low - high))
