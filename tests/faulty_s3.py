"""moto's S3 on a real socket, which fails where a test wants it to, and halts at a chosen put."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
import os
import socket
import struct
import sys
from threading import Event, Lock, Thread
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
import pytest
from werkzeug.serving import make_server
from werkzeug.wrappers import Response

Environ = dict[str, Any]
Answer = Callable[[Environ], Response]
Fault = Callable[[Answer, Environ], Response]  # moto's answer is the first argument, to be asked for or not

ALWAYS = sys.maxsize
SECRET = "not-a-real-secret"


def error(status: int, code: str) -> Fault:
    """S3 answers so without doing anything."""
    return lambda _, __: Response(f"<Error><Code>{code}</Code></Error>", status, mimetype="application/xml")


def lost_answer(answer: Answer, environ: Environ) -> Response:
    """The work is done, but nobody hears of it."""
    answer(environ)
    return _reset(environ)


def cut_answer(answer: Answer, environ: Environ) -> Response:
    """The connection is reset after half of the answer's body."""
    response = answer(environ)
    content = response.get_data()
    head = [f"HTTP/1.1 {response.status}", *(f"{name}: {value}" for name, value in response.headers)]
    environ["werkzeug.socket"].sendall("\r\n".join([*head, "", ""]).encode() + content[: len(content) // 2])
    return _reset(environ)


def cut_request(_: Answer, environ: Environ) -> Response:
    """The connection is reset after half of the request's body, and nothing is done."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
    return _reset(environ)


def silence(_: Answer, environ: Environ) -> Response:
    """Not a byte is answered until the other side hangs up."""
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["werkzeug.socket"].recv(1)
    return _reset(environ)


def _reset(environ: Environ) -> Response:
    connection = environ["werkzeug.socket"]
    # Closed without lingering, a socket says RST in the place of FIN.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
    raise ConnectionResetError  # the server takes its own socket for closed by the other side


class FaultyS3:
    """WSGI in front of moto's S3.

    `faults` are [part of "METHOD /path?query authorization", what happens, how many times], and one of
    them strikes a request that it fits. Told to hold, it lets n more puts of data in, and the rest wait.
    """

    def __init__(self) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._lock = Lock()
        self._permits = sys.maxsize
        self._opened = Event()
        self.holds = Event()  # some put waits
        self.faults: list[tuple[str, Fault, int]] = []
        self.ignores_conditions = False  # as servers that do not know a header

    @contextmanager
    def hold_after(self, num_puts: int) -> Iterator[None]:
        """At its end those that wait go in."""
        self._opened.clear()
        self.holds.clear()
        self._permits = num_puts
        try:
            yield
        finally:
            self._permits = sys.maxsize
            self._opened.set()

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        fault = self.draw(
            f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
            f" {environ.get('HTTP_AUTHORIZATION', '')}"
        )
        if self.ignores_conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        response = fault(self._answer, environ) if fault else self._answer(environ)
        return response(environ, start_response)

    def draw(self, request: str) -> Fault | None:
        """The fault that strikes this request."""
        with self._lock:
            for index, (where, fault, times) in enumerate(self.faults):
                if where in request:
                    self.faults[index : index + 1] = [(where, fault, times - 1)] if times > 1 else []
                    return fault
        return None

    def _answer(self, environ: Environ) -> Response:
        if "HTTP_IF_NONE_MATCH" not in environ:  # only our store's puts are create-only
            return Response.from_app(self._app, environ)
        # Read before the wait: a put that was received takes place even if its sender is dead by then.
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        if "/data/" in environ["PATH_INFO"]:
            with self._lock:
                self._permits -= 1
                waits = self._permits < 0
            if waits:
                self.holds.set()
                self._opened.wait()
        # S3 promises that a create-only put is atomic, but moto looks and writes without a lock.
        with self._lock:
            return Response.from_app(self._app, environ, buffered=True)


@contextmanager
def bucket(s3: FaultyS3, name: str) -> Iterator[str]:
    """The URL of a bucket, on a server that this process and those it starts take for theirs."""
    with serving(s3) as endpoint, pytest.MonkeyPatch.context() as patch:
        for variable, value in {
            "AWS_ENDPOINT_URL_S3": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
        }.items():
            patch.setenv(variable, value)
        boto3.session.Session().client("s3").create_bucket(Bucket=name)
        yield f"s3://{name}"


class _Handler(MotoRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):  # it looks for another request on a connection that was reset
            super().handle()


@contextmanager
def serving(s3: FaultyS3) -> Iterator[str]:
    """The URL at which it answers."""
    server = make_server("127.0.0.1", 0, s3, threaded=True, request_handler=_Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
