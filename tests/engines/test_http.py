"""The http engine against real servers: a scripted one, and vLLM's own (slow)."""

import asyncio
from dataclasses import replace
from itertools import chain, repeat
import os
import socket
import subprocess
import sys
from threading import Barrier, Event, Lock
import time
from typing import Any

import pytest
from smollm2 import checkpoint

from dualview.config.engines import HttpEngine, VllmEngine
from dualview.engines import Completion, EngineUnavailable, Request, Turn, check_engine, open_engine
from dualview.engines.http import TEXT_MARGIN, Http
from dualview.errors import InputError
from dualview.records import Passage
from dualview.synthesis.judging import yes_no_margin
from dualview.synthesis.prompts import judging_prompt, load

KEY = "sk-not-a-real-key/with+signs"
NOW = 1_792_000_000.0  # Wed, 14 Oct 2026 17:46:40 GMT
REQUEST = Request(
    (Turn("user", "Relevant?"),), max_tokens=1, temperature=0.0, top_p=1.0, seed=3, num_logprobs=20
)


def settings_of(host: str, **changes: Any) -> HttpEngine:
    return HttpEngine.model_validate(
        {
            "kind": "http",
            "base_url": f"http://{host}/v1",
            "model": "small",
            "api_key_env": None,
            "num_logprobs": 20,
            "max_concurrency": 4,
            "timeout_seconds": 60.0,
            "max_tries": 4,
            "max_pause_seconds": 30.0,
            "chat_template_kwargs": {},
            **changes,
        }
    )


class Asked:
    """The completions of some requests, and the pauses before retries."""

    def __init__(self, host: str, *requests: Request, **changes: Any) -> None:
        self.pauses: list[float] = []
        self.engine = Http(settings_of(host, **changes), sleep=self._sleep, now=lambda: NOW)

        async def all_at_once() -> list[Completion]:
            return await asyncio.gather(*map(self.engine.complete, requests))

        self.completions = asyncio.run(all_at_once())

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)


def scripted(chat_server, *answers):
    """The server gives these answers one after the other, and then a good one for ever."""
    script = chain(answers, repeat((200, {}, chat_server.completion("yes"))))
    chat_server.answer = lambda _: next(script)


# --- an answer ------------------------------------------------------------------------------------


def test_a_request_and_its_answer(chat_server, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)
    asked = Asked(chat_server.host, REQUEST, api_key_env="OUR_KEY")
    assert asked.completions == [Completion("yes", "stop", 7, 1, {"yes": -0.1, "no": -2.6})]
    assert chat_server.bodies == [
        {
            "model": "small",
            "messages": [{"role": "user", "content": "Relevant?"}],
            "max_tokens": 1,
            "temperature": 0.0,
            "top_p": 1.0,
            "seed": 3,
            "logprobs": True,
            "top_logprobs": 20,
        }
    ]
    assert chat_server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert asked.engine.name == f"small@{chat_server.host}"
    assert KEY not in repr(vars(asked.engine))


def test_a_request_for_text_asks_for_no_log_probabilities(chat_server):
    (answer,) = Asked(chat_server.host, replace(REQUEST, num_logprobs=0)).completions
    assert answer.first_token_logprobs == {}
    assert chat_server.bodies[0].keys().isdisjoint({"logprobs", "top_logprobs"})
    assert "Authorization" not in chat_server.headers[0]


def test_a_server_that_reports_fewer_log_probabilities_is_asked_for_fewer(chat_server):
    Asked(chat_server.host, REQUEST, num_logprobs=5)
    assert chat_server.bodies[0]["top_logprobs"] == 5


def test_tokens_of_one_text_are_added_up(chat_server):
    listed = [{"token": token, "logprob": -1.0} for token in ("yes", "yes", "no")]
    logprobs = {"content": [{**listed[0], "top_logprobs": listed}]}
    scripted(chat_server, (200, {}, chat_server.completion("yes", logprobs=logprobs)))
    (answer,) = Asked(chat_server.host, REQUEST).completions
    assert answer.first_token_logprobs == {"yes": pytest.approx(-1 + 0.6931, abs=1e-4), "no": -1.0}


@pytest.mark.parametrize(
    ("said", "finish_reason", "text"),
    [
        ("stop", "stop", "yes"),
        ("length", "length", "yes"),
        ("content_filter", "error", "finish_reason content_filter: yes"),
        ("tool_calls", "error", "finish_reason tool_calls: yes"),
        (None, "error", "finish_reason None: yes"),
    ],
)
def test_finish_reasons(chat_server, said, finish_reason, text):
    scripted(chat_server, (200, {}, chat_server.completion("yes", finish_reason=said)))
    (answer,) = Asked(chat_server.host, REQUEST).completions
    assert (answer.finish_reason, answer.text, answer.prompt_tokens) == (finish_reason, text, 7)


def test_a_server_that_counts_no_tokens_is_named_once(chat_server, caplog):
    uncounted = {key: value for key, value in chat_server.completion("yes").items() if key != "usage"}
    scripted(chat_server, *[(200, {}, uncounted)] * 2)
    for answer in Asked(chat_server.host, REQUEST, REQUEST).completions:
        assert (answer.text, answer.prompt_tokens, answer.completion_tokens) == ("yes", 0, 0)
    (message,) = caplog.messages
    assert "token usage" in message


# --- log probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "logprobs", [None, {"content": None}, {"content": [{"token": "yes", "logprob": 0.0}]}]
)
def test_a_server_without_log_probabilities_is_refused(chat_server, logprobs):
    scripted(chat_server, (200, {}, chat_server.completion("yes", logprobs=logprobs)))
    with pytest.raises(
        EngineUnavailable, match=r"gives no log probabilities .* set engine.num_logprobs to 0"
    ):
        Asked(chat_server.host, REQUEST)


@pytest.mark.parametrize(
    ("text", "margin"),
    [
        ("yes", TEXT_MARGIN),
        ("Yes.", TEXT_MARGIN),
        (" **No**", -TEXT_MARGIN),
        ("maybe", None),
        ("yes or no", None),
        ("", None),
        (None, None),
    ],
)
def test_without_log_probabilities_a_verdict_is_the_word(chat_server, text, margin):
    scripted(chat_server, (200, {}, chat_server.completion(text, logprobs=None)))
    asked = Asked(chat_server.host, REQUEST, num_logprobs=0)
    assert "logprobs" not in chat_server.bodies[0]
    assert yes_no_margin(asked.completions[0].first_token_logprobs) == margin
    assert asked.engine.name == f"small@{chat_server.host} (yes and no by its word, margin 1)"


def test_an_answer_that_ends_before_its_first_token_has_no_log_probabilities(chat_server):
    scripted(chat_server, (200, {}, chat_server.completion("", logprobs={"content": []})))
    assert Asked(chat_server.host, REQUEST).completions[0].first_token_logprobs == {}


# --- what is tried again --------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_a_busy_or_failing_server_is_tried_again(chat_server, status):
    scripted(chat_server, *[(status, {}, {"error": "busy"})] * 3)
    asked = Asked(chat_server.host, REQUEST)
    assert asked.completions[0].finish_reason == "stop"
    assert len(chat_server.bodies) == 4
    assert all(
        longest / 2 <= pause <= longest for pause, longest in zip(asked.pauses, (1, 2, 4), strict=True)
    )


def test_pauses_are_the_same_for_the_same_request_differ_between_requests_and_are_bounded(chat_server):
    def pauses(request):
        scripted(chat_server, *[(500, {}, {})] * 9)
        return Asked(chat_server.host, request, max_tries=10, max_pause_seconds=8.0).pauses

    other = replace(REQUEST, prompt=(Turn("user", "And this?"),))
    assert pauses(REQUEST) == pauses(REQUEST)
    assert not set(pauses(REQUEST)) & set(pauses(other))
    assert max(pauses(REQUEST)) <= 8.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0.5", 0.5),
        ("Wed, 14 Oct 2026 17:46:52 GMT", 12),
        ("Wed, 14 Oct 2026 17:46:52 -0000", 12),
        ("Wed, 14 Oct 2026 17:00:00 GMT", 0),
        ("soon", 0),
        ("-3", 0),
        ("inf", 0),
    ],
)
def test_retry_after_comes_on_top_of_the_backoff(chat_server, header, seconds):
    scripted(chat_server, (429, {"Retry-After": header}, {}))
    (pause,) = Asked(chat_server.host, REQUEST).pauses
    assert seconds + 0.5 <= pause <= seconds + 1


def test_a_server_that_asks_for_too_long_a_pause_ends_the_run_at_once(chat_server):
    scripted(chat_server, (503, {"Retry-After": "3600"}, {"error": {"message": "maintenance"}}))
    with pytest.raises(EngineUnavailable, match=r"answers 503: maintenance; it asks for 3600 s, more than"):
        Asked(chat_server.host, REQUEST)
    assert len(chat_server.bodies) == 1


def reset(handler):
    """Half of an answer, and then the connection breaks."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.close_connection = True


def hang_up(handler):
    handler.close_connection = True


@pytest.mark.parametrize(
    "broken",
    [
        reset,
        hang_up,
        (200, {}, b'{"choices": [{"mess'),
        (200, {}, b"<html>Welcome</html>"),
        (200, {}, {"choices": []}),
        (200, {}, {"error": {"message": "the provider is down", "code": 502}}),
    ],
)
def test_an_answer_that_is_none_is_tried_again(chat_server, broken):
    scripted(chat_server, broken, broken)
    asked = Asked(chat_server.host, REQUEST)
    assert asked.completions[0].finish_reason == "stop"
    assert (len(chat_server.bodies), len(asked.pauses)) == (3, 2)


def test_an_answer_that_takes_too_long_is_tried_again(chat_server):
    over = Event()
    scripted(chat_server, lambda _: over.wait())
    asked = Asked(chat_server.host, REQUEST, timeout_seconds=0.5, max_tries=100)
    over.set()
    assert asked.completions[0].finish_reason == "stop"
    assert asked.pauses  # at least one: a slow machine may miss it again


# --- whose fault it is ----------------------------------------------------------------------------


def unless_control(body, answer, server):
    return (200, {}, server.completion("yes")) if "one word" in body["messages"][0]["content"] else answer


@pytest.mark.parametrize(("status", "num_requests"), [(400, 1), (403, 1), (413, 1), (500, 4)])
def test_a_request_that_alone_fails_is_an_error(chat_server, status, num_requests):
    answer = (status, {}, {"error": {"message": "I do not\nlike it"}})
    chat_server.answer = lambda body: unless_control(body, answer, chat_server)
    (answered,) = Asked(chat_server.host, REQUEST).completions
    tries = " (tries: 4)" if num_requests > 1 else ""
    assert answered == Completion(f"answers {status}: I do not like it{tries}", "error", 0, 0, {})
    *own, control = chat_server.bodies
    assert len(own) == num_requests
    assert (
        control["top_logprobs"] == 20
    )  # a parameter that the server does not know is not the request's fault


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key: {KEY}"}},
            r"answers 401: Incorrect API key: \[key\]",
        ),
        (402, {"detail": "no credit"}, "answers 402: no credit"),
        (404, {"message": "no such model"}, "answers 404: no such model"),
        (500, b"", r"answers 500: no message \(tries: 4\)"),
        (503, b"<html>\n" + b"x" * 1000, r"answers 503: <html> x{293} \(tries: 4\)"),
        (200, {"choices": []}, r"gives an answer that is not a chat completion: {\"choices\": \[\]}"),
    ],
)
def test_where_nothing_is_answered_the_run_ends(chat_server, monkeypatch, status, body, reason):
    monkeypatch.setenv("OUR_KEY", KEY)
    chat_server.answer = lambda _: (status, {}, body)
    with pytest.raises(EngineUnavailable, match=rf"^the server at {chat_server.host} {reason}") as raised:
        Asked(chat_server.host, REQUEST, api_key_env="OUR_KEY")
    assert KEY not in repr(raised.value)


def test_a_rate_limit_that_does_not_end_is_nobodys_fault(chat_server):
    answer = (429, {}, {"error": {"message": "quota exceeded"}})
    chat_server.answer = lambda body: unless_control(body, answer, chat_server)
    with pytest.raises(EngineUnavailable, match=r"answers 429: quota exceeded \(tries: 4\)"):
        Asked(chat_server.host, REQUEST)
    assert len(chat_server.bodies) == 4


def test_a_server_that_is_gone_ends_the_run(closed_address, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(EngineUnavailable, match=rf"{closed_address} cannot be reached \(ConnectError\)"):
        Asked(closed_address, REQUEST)


def test_a_key_that_a_node_lacks_is_named_at_the_first_request(chat_server, monkeypatch):
    monkeypatch.delenv("OUR_KEY", raising=False)
    with pytest.raises(EngineUnavailable, match="the environment variable OUR_KEY is not set"):
        Asked(chat_server.host, REQUEST, api_key_env="OUR_KEY")


def test_as_many_requests_at_a_time_as_the_config_says(chat_server):
    together, lock, running, most = Barrier(3), Lock(), 0, 0

    def answer(_):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(timeout=300)  # nobody is answered before three are there
        with lock:
            running -= 1
        return 200, {}, chat_server.completion("yes")

    chat_server.answer = answer
    assert len(Asked(chat_server.host, *[REQUEST] * 12, max_concurrency=3).completions) == 12
    assert most == 3


# --- before a run ---------------------------------------------------------------------------------


def refusal_of(host, **changes):
    with pytest.raises(InputError) as refused:
        check_engine(settings_of(host, **changes))
    assert KEY not in str(refused.value)
    assert "hunter2" not in str(refused.value)
    return str(refused.value)


def test_a_server_that_serves_the_model_is_fine(chat_server):
    check_engine(settings_of(chat_server.host))
    check_engine(settings_of(chat_server.host, base_url=f"http://{chat_server.host}/v1/"))
    assert chat_server.bodies == []


def test_a_model_that_is_not_served(chat_server):
    assert refusal_of(chat_server.host, model="huge") == (
        f"engine.model: the server at {chat_server.host} does not serve `huge`; it serves small, large"
    )
    chat_server.models = (200, {}, {"data": [{"id": f"m{i}"} for i in range(50)]})
    assert refusal_of(chat_server.host).endswith("it serves m0, m1, m2, m3, m4, m5, m6, m7 and 42 more")


def test_a_refused_key(chat_server, monkeypatch):
    monkeypatch.setenv("OUR_KEY", KEY)
    chat_server.models = (401, {}, {"error": {"message": f"who is {KEY}?"}})
    assert refusal_of(chat_server.host, api_key_env="OUR_KEY") == (
        f"engine: the server at {chat_server.host} refuses the key in OUR_KEY (401: who is [key]?)"
    )
    chat_server.models = (403, {}, {"detail": "Forbidden"})
    assert "refuses a request without a key (engine.api_key_env)" in refusal_of(chat_server.host)


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        (None, "is not set"),
        ("", "is not set"),
        ("ключ", "holds characters"),
        ("a\nb", "holds"),
    ],
)
def test_a_key_that_cannot_be_sent(chat_server, monkeypatch, key, problem):
    monkeypatch.delenv("OUR_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("OUR_KEY", key)
    refusal = refusal_of(chat_server.host, api_key_env="OUR_KEY")
    assert refusal.startswith(f"engine.api_key_env: the environment variable OUR_KEY {problem}")


def test_a_key_in_the_place_of_its_name_is_not_repeated(chat_server):
    assert "never the key itself" in refusal_of(chat_server.host, api_key_env=KEY)


@pytest.mark.parametrize(
    "base_url",
    [
        "http://user:hunter2@127.0.0.1:8000/v1",
        "http://127.0.0.1:8000/v1?key=hunter2",
        "127.0.0.1:8000/v1",
        "http://127.0.0.1:port/v1",
        "s3://bucket/v1",
        "",
    ],
)
def test_an_address_that_is_none_or_holds_a_secret(base_url):
    assert "expected http(s)://HOST:PORT/PATH without user" in refusal_of("", base_url=base_url)


def test_a_server_that_cannot_be_reached_or_has_no_such_path(chat_server, closed_address):
    refusal = refusal_of(closed_address)
    assert refusal.startswith(
        f"engine.base_url: the server at {closed_address} cannot be reached (ConnectError); expected an address"
    )
    refusal = refusal_of(chat_server.host, base_url=f"http://{chat_server.host}")
    assert (
        "does not list its models (404: Not Found); expected an address, usually one that ends in /v1"
        in refusal
    )


# --- a real one -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    return str(checkpoint(tmp_path_factory.mktemp("models") / "smollm2"))


@pytest.fixture(scope="module")
def vllm_host(smollm2, tmp_path_factory):
    """vLLM's own server on this machine, with the settings of engines/vllm.py."""
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "log"
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--host", "127.0.0.1", "--port", str(port), "--model", smollm2, "--served-model-name", "small"),
        *("--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"),
        *("--kv-cache-memory-bytes", str(2**28), "--enforce-eager", "--no-enable-chunked-prefill"),
        "--enable-prefix-caching",
    ]
    environment = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "NO_PROXY": "127.0.0.1"}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        host = f"127.0.0.1:{port}"
        deadline = time.monotonic() + 600
        while True:
            try:
                check_engine(settings_of(host))
                break
            except InputError:
                assert server.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
        yield host
    finally:
        server.terminate()
        server.wait()


COUNTRIES = (
    "Fiji: an island; exports: fuel, fish, water",
    "Chad: landlocked; exports: oil, gold, cattle",
    "Malta: an island; exports: machinery, fish",
    "Nepal: landlocked; exports: carpets, juice, tea",
    "Ghana: coastal; exports: gold, cocoa, timber",
    "Cuba: an island; exports: tobacco, nickel, sugar",
)


@pytest.mark.slow
def test_vllm_behind_its_own_server_and_in_this_process_answer_alike(smollm2, vllm_host, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    judge = load("judge-v1")
    judging = [
        replace(REQUEST, prompt=judging_prompt(judge, "exports", "Only islands.", Passage("p", text)))
        for text in COUNTRIES
    ]
    writing = [
        replace(REQUEST, prompt=(Turn("user", f"Describe: {text}"),), max_tokens=24, num_logprobs=0)
        for text in COUNTRIES
    ]

    async def answers(engine):
        # One at a time: rows that share a batch change each other's last bits.
        return [await engine.complete(request) for request in (*judging, *writing)]

    behind = asyncio.run(answers(open_engine(settings_of(vllm_host))))

    async def in_process():
        engine = open_engine(
            VllmEngine(
                kind="vllm",
                model=smollm2,
                revision=None,
                dtype="float32",
                max_model_len=512,
                max_num_seqs=16,
                kv_cache_gib=0.25,
                compile=False,
                tensor_parallel=1,
                trust_remote_code=False,
                chat_template_kwargs={},
            )
        )
        try:
            return await answers(engine)
        finally:
            engine.close()

    within = asyncio.run(in_process())
    for one, other in zip(behind, within, strict=True):
        assert (one.text, one.finish_reason) == (other.text, other.finish_reason)
        assert (one.prompt_tokens, one.completion_tokens) == (other.prompt_tokens, other.completion_tokens)
    for one, other in zip(behind[: len(judging)], within, strict=False):
        margins = [yes_no_margin(answer.first_token_logprobs) for answer in (one, other)]
        assert margins[0] is not None
        # The same weights and sums in the same order: what may differ is the way through JSON.
        assert margins[0] == pytest.approx(margins[1], abs=1e-4)
    assert len({answer.text for answer in behind}) > len(writing)

    refused = asyncio.run(
        open_engine(settings_of(vllm_host)).complete(
            replace(REQUEST, prompt=(Turn("user", "too long " * 600),))
        )
    )
    assert refused.finish_reason == "error"
    assert refused.text.startswith("answers 400: ")
    assert "512" in refused.text
