"""What a job says while it works: plain lines at a terminal; elsewhere each with its time, level and rank.

Modules say it through `logging.getLogger(__name__)`. Whoever imports dualview decides whether and where it is shown;
jobs show it by show_logs.
"""

import logging
import os
import sys

from dualview.errors import InputError

# How a job shows its lines: plain, or full with time, level and rank. Set for the processes that it starts.
VARIABLE = "DUALVIEW_LOG"


class Printed(logging.Handler):
    """Prints to what is standard output by then: above a live bar, which takes its place for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), flush=True)


def show_logs(rank: int | None = None) -> None:
    """Shows what dualview logs from INFO on, and nothing of what libraries log, on standard output.

    Raises InputError where DUALVIEW_LOG is neither plain nor full.
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
    logger.propagate = False  # libraries set the root logger up, too, and each line would come twice


def worker_environment() -> dict[str, str]:
    """What the environment of a worker needs for show_logs_of_worker."""
    return {VARIABLE: os.environ[VARIABLE]} if VARIABLE in os.environ else {}


def show_logs_of_worker(rank: int | None = None) -> None:
    """The same in a process that a job started; nothing where it was started by whoever shows no logs."""
    if VARIABLE in os.environ:
        show_logs(rank)
