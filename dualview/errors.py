"""Errors of the user and failures outside the run, each reported as one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
import sys


class InputError(ValueError):
    """Invalid input: names the file, key or row, what was expected, and an example.

    Commands print the sentence and exit with code 2. Any other exception except Interruption is a bug of ours and
    keeps its traceback.
    """


class Interruption(Exception):
    """Something outside the run failed while it ran: the store, a disk, an engine, a machine.

    The sentence names the failure and ends with an imperative ("s3://bucket/run: the credentials have expired; renew
    them"). Raise it only when nothing is half written, so that the same command can be run again. Commands print the
    sentence and exit with code 3.
    """


@contextmanager
def one_sentence() -> Iterator[None]:
    """Prints an InputError or Interruption as one sentence on stderr and exits with code 2 or 3."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except Interruption as error:
        print(f"stopped: {error}, then run the same command again; finished work is kept", file=sys.stderr)
        sys.exit(3)
