"""The contract of a store."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, order=True)
class Entry:
    key: str
    size: int  # bytes
    stamp: str = field(default="", compare=False)  # as long as it stays the same, so does the content


class Store(Protocol):
    """A place for immutable objects. Can be pickled, so that it travels to other processes."""

    @property
    def url(self) -> str: ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError where there is none."""

    def get_end(self, key: str, num_bytes: int) -> bytes:
        """The object's last bytes, or all where it has fewer. Raises FileNotFoundError where there is none."""

    def download(self, key: str, path: Path) -> None:
        """Writes the object to a local file without holding it in memory."""

    def list(self, prefix: str = "") -> Sequence[Entry]:
        """All objects whose key starts with `prefix`, sorted by key."""

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        """Creates the object; True if the one that now stands was created by this call.

        False if another stands there already, which is left as it is. `attempt` (ASCII letters, digits
        and dashes) tells our own object from another's; each writer has its own.
        """

    def upload(self, key: str, path: Path) -> None:
        """Puts a local file of any size under a key that no other writer uses; absent or whole, as any object."""

    def remove(self, prefix: str) -> None:
        """Removes all objects whose key starts with `prefix`; those that others remove meanwhile are no error."""
