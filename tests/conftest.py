"""What tests of several folders share: a chat server, an S3 server, a Ray cluster. Properties have no deadline."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import socket
from threading import Lock, Thread
from typing import Any

from demo_data import demo_examples
from faulty_s3 import FaultyS3, bucket
import hypothesis
import pytest
import ray
from xdist.scheduler import LoadScopeScheduling

from dualview.config.generate import GenerateConfig
from dualview.config.loading import load

hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


# What starts no cluster, though it is a test of those that do.
WITHOUT_RAY = ("tests/pipelines/test_checkpoints.py", "tests/pipelines/test_deepspeed_gradients.py")


def is_on_ray(nodeid: str) -> bool:
    file = nodeid.partition("::")[0]
    return file.startswith(("tests/pipelines/", "tests/distributed/")) and file not in WITHOUT_RAY


class OneCluster(LoadScopeScheduling):
    """One process runs all tests that start clusters, as two would disturb each other; others are dealt by file."""

    def _split_scope(self, nodeid: str) -> str:
        return "ray" if is_on_ray(nodeid) else nodeid.partition("::")[0]


# Groups of xdist would say it by fixture, but xdist 3.8 adds them to ids that pytest 9.2 does not read.
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    config.option.loadscopereorder = (
        False  # else files with many tests, which take seconds, come before minutes
    )
    return OneCluster(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that start clusters come first: they take the longest, and the other process does the rest meanwhile."""
    items.sort(key=lambda item: not is_on_ray(item.nodeid))


# What a scripted answer may be: (status, headers, body), or a function that does it all itself.
Answer = tuple[int, dict[str, str], Any] | Callable[[BaseHTTPRequestHandler], None]


class ChatServer:
    """A real HTTP server with the two paths that we use; `answer` and `models` may be set at any time.

    `answer` is called with the body of every POST, in the thread of its connection.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: (200, {}, self.completion("yes"))
        self.models: Answer = (200, {}, {"object": "list", "data": [{"id": "small"}, {"id": "large"}]})
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet an answer: two would wait for the acknowledgement of the first

            def do_GET(self) -> None:
                self._send(server.models if self.path == "/v1/models" else (404, {}, {"detail": "Not Found"}))

            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                data = self.rfile.read(length)
                if len(data) < length:  # the client has gone
                    self.close_connection = True
                    return
                body = json.loads(data)
                with server._lock:
                    server.bodies.append(body)
                    server.headers.append(dict(self.headers))
                known = self.path == "/v1/chat/completions"
                self._send(server.answer(body) if known else (404, {}, {"detail": "Not Found"}))

            def _send(self, answer: Answer) -> None:
                if callable(answer):
                    answer(self)
                    return
                status, headers, body = answer
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = (
                128  # of connections that wait to be accepted; on a busy machine 5 are too few
            )

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.host = f"127.0.0.1:{self._server.server_port}"

    @staticmethod
    def completion(text: str | None, **changes: Any) -> dict[str, Any]:
        """A chat completion as servers give it, with log probabilities of a first token."""
        logprobs = [{"token": "yes", "logprob": -0.1}, {"token": "no", "logprob": -2.6}]
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "finish_reason": "stop",
            "logprobs": {"content": [{**logprobs[0], "top_logprobs": logprobs}]},
        }
        usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
        answer = {"id": "chatcmpl-1", "object": "chat.completion", "usage": usage}
        return {**answer, "choices": [{**choice, **changes}]}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ChatServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ChatServer()
    yield server
    server.close()


@pytest.fixture
def closed_address() -> str:
    """HOST:PORT where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        return f"127.0.0.1:{closed_soon.getsockname()[1]}"


# --- a Ray cluster of this machine and an S3 server, once for all tests ---------------------------------


@pytest.fixture(scope="session")
def faulty_s3() -> FaultyS3:
    return FaultyS3()


@pytest.fixture(scope="session")
def s3(faulty_s3: FaultyS3) -> Iterator[str]:
    """URL of a bucket on a real S3 server; set up before the cluster, whose workers inherit the endpoint."""
    with bucket(faulty_s3, "tests") as url:
        yield url


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[str]:
    """Address of a cluster with two CPUs, for drivers in other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Workers import hooks from tests/.
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        # A training is over, and a dead rank is noticed, at the next look; and one actor less is started.
        patch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
        patch.setenv("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=300 * 2**20,
            include_dashboard=True,  # the job server
            dashboard_port=0,
            logging_level="WARNING",
        )
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def facets_data(cluster: str, s3: str) -> str:
    """Output of a finished generate run over 400 seeds of the demo."""
    from dualview.pipelines.generate.run import generate  # seconds to import

    url = f"{s3}/facets"
    config = Path("configs/demo/facets.yaml").absolute()
    generate(load(GenerateConfig, str(config), [f"output={url}", f"source={json.dumps(demo_examples(400))}"]))
    return url
