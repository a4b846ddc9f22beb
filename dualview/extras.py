"""The base package has what metrics, records, configs and storage need; each verb's extra brings the rest."""

from collections.abc import Iterator
from contextlib import contextmanager

from dualview.errors import InputError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turns the import of a package that is not installed into a sentence that names the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "dualview":
            raise
        raise InputError(
            f"{what} needs the package {error.name}, which is not installed: pip install 'dualview[{extra}]'"
        ) from error
