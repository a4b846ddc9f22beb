"""S3 that a test can bring to a halt at a chosen put, so that a process dies where the test wants it to."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
import sys
from threading import Event, Lock
from typing import Any

App = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Turnstile:
    """WSGI in front of moto's S3. Told to hold, it lets n more puts of data in, and the rest wait."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._lock = Lock()
        self._permits = sys.maxsize
        self._opened = Event()
        self.holds = Event()  # some put waits

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

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ:  # only our store's puts are create-only
            return self._app(environ, start_response)
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
            return self._app(environ, start_response)
