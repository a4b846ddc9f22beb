"""What a user did wrong, in one sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
import sys


class InputError(ValueError):
    """Bad input from outside: names the file, key or row, what was expected, and an example.

    Jobs print its one sentence and exit with code 2. Everything else is our own bug and keeps
    its traceback.
    """


@contextmanager
def one_sentence() -> Iterator[None]:
    """Turns an InputError into its sentence on stderr and exit code 2."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
