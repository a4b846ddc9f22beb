"""Progress with rate and remaining time: a bar on a terminal, log lines elsewhere, and a JSONL trail for plots."""

from collections.abc import Callable
from datetime import timedelta
import logging
from pathlib import Path
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from dualview.config.base import plain_json

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_LINES = 10


class Progress:
    """Counts up to `total` units of work, as a context manager.

    with Progress("generate", total=40, unit="shards", trail=None) as progress:
        progress.advance(1, accepted_share=0.87)

    Each advance appends a JSON line to `trail`: time (seconds since 1970), done, total, and the figures. A resumed run
    keeps its history. Rates are computed from `clock`, which must be monotonic; `wall_clock` stamps the trail, and may
    jump.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        trail: Path | None,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._label, self._total, self._unit, self._trail = label, total, unit, trail
        self._clock, self._wall_clock = clock, wall_clock
        self._console = console or Console()
        self._bar = Bar(
            TextColumn(label),
            BarColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=self._console,
            get_time=clock,
            disable=not self._console.is_terminal,
        )
        self._done = 0
        self._done_of_last_line = -1
        self._figures: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._start = self._last_line = self._clock()
        if self._trail is not None:
            self._trail.parent.mkdir(parents=True, exist_ok=True)
        self._bar.start()
        self._task = self._bar.add_task(self._status(), total=self._total)
        return self

    def advance(self, num_units: int, **figures: float) -> None:
        """Counts `num_units` more as done; figures (accepted_share=0.87) are shown until they change."""
        self._done += num_units
        self._figures.update(figures)
        self._bar.update(self._task, completed=self._done, description=self._status())
        if self._trail is not None:
            line = {"time": self._wall_clock(), "done": self._done, "total": self._total, **figures}
            try:
                with self._trail.open("a") as file:
                    file.write(plain_json(line) + "\n")
            except OSError as error:  # a lost trail must not end the run
                logger.warning(
                    f"{self._trail}: cannot be written ({error.strerror}); the run continues without it"
                )
                self._trail = None
        now = self._clock()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._log_line()
            self._last_line = now

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._log_line()

    def _log_line(self) -> None:
        if not self._console.is_terminal and self._done != self._done_of_last_line:
            self._done_of_last_line = self._done
            elapsed = timedelta(seconds=round(self._clock() - self._start))
            logger.info(f"{self._label}: {self._status()}, {elapsed} elapsed")

    def _status(self) -> str:
        """12/40 shards, 0.5 a second, 0:00:56 left, accepted share 0.87"""
        elapsed_seconds = self._clock() - self._start
        parts = [f"{self._done:,}/{self._total:,} {self._unit}"]
        if self._done and elapsed_seconds > 0:
            rate = self._done / elapsed_seconds
            left = timedelta(seconds=round(max(self._total - self._done, 0) / rate))
            pace = f"{_readable(rate)} a second" if rate >= 0.05 else f"{_readable(3600 * rate)} an hour"
            parts += [pace, f"{left} left"]
        parts += [f"{name.replace('_', ' ')} {_readable(value)}" for name, value in self._figures.items()]
        return ", ".join(parts)


def _readable(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
