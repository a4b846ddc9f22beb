"""What a user did wrong, or what broke around a run, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
import sys


class InputError(ValueError):
    """Bad input from outside: names the file, key or row, what was expected, and an example.

    Jobs print its one sentence and exit with code 2. Everything else but an Interruption is our own
    bug and keeps its traceback.
    """


class Interruption(Exception):
    """Something around a run broke in mid-run: its store, a disk, an engine, a machine.

    Its sentence names the thing and ends with what to do about it, as a command ("s3://bucket/run: the
    credentials have expired; renew them"). Whoever raises it has left nothing half written, so the same
    job may be started again. Jobs print the sentence and exit with code 3.
    """


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns an InputError or Interruption into its sentence on stderr and exit code 2 or 3."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interruption as error:
        print(f"stopped: {error}, then give the same command again; what is done stands", file=sys.stderr)
        sys.exit(3)
