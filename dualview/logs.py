"""Log lines of a command: plain on a terminal, elsewhere with time, level and rank.

Modules log through `logging.getLogger(__name__)`. A program that imports dualview configures logging itself; commands
call show_logs.
"""

import logging
import os
import sys

from dualview.errors import InputError

# Log style: plain, or full with time, level and rank. Worker processes inherit it.
VARIABLE = "DUALVIEW_LOG"


class Printed(logging.Handler):
    """Prints to the current sys.stdout, which a live progress bar replaces so that lines appear above it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def show_logs(rank: int | None = None) -> None:
    """Shows dualview's log lines from level INFO, and none of other libraries, on standard output.

    Raises InputError if DUALVIEW_LOG is neither plain nor full.
    """
    style = os.environ.setdefault(VARIABLE, "plain" if sys.stdout.isatty() else "full")
    if style not in ("plain", "full"):
        raise InputError(f"{VARIABLE}={style}: expected plain or full")
    handler = Printed()
    if style == "full":
        origin = "" if rank is None else f"rank {rank}: "
        handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s {origin}%(message)s"))
    logger = logging.getLogger("dualview")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False  # libraries configure the root logger, which would repeat each line


def worker_environment() -> dict[str, str]:
    """Environment variables that a worker needs for show_logs_of_worker."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def show_logs_of_worker(rank: int | None = None) -> None:
    """show_logs in a worker process, if the process that started it shows logs."""
    if VARIABLE in os.environ:
        show_logs(rank)
