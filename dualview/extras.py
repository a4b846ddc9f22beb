"""Optional dependencies. Metrics, records, configs and storage work without any; each verb has an extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from dualview.errors import InputError


@contextmanager
def needs(extra: str, what: str) -> Iterator[None]:
    """Turns the failed import of a package into an InputError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "dualview":
            raise
        raise InputError(
            f"{what} needs the package {error.name}, which is not installed: pip install 'dualview[{extra}]'"
        ) from error
