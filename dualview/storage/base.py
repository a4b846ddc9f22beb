"""The contract of a store."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, order=True)
class Entry:
    key: str
    size: int  # bytes
    stamp: str = field(default="", compare=False)  # changes whenever the content does


class Store(Protocol):
    """A place for immutable objects. Can be pickled and sent to other processes."""

    @property
    def url(self) -> str: ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError if it does not exist."""

    def get_end(self, key: str, num_bytes: int) -> bytes:
        """The object's last bytes, or all if it has fewer. Raises FileNotFoundError if it does not exist."""

    def download(self, key: str, path: Path) -> None:
        """Writes the object to a local file without holding it in memory."""

    def list(self, prefix: str = "") -> Sequence[Entry]:
        """All objects whose key starts with `prefix`, sorted by key."""

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        """Creates the object and returns True. Returns False, and leaves it as it is, if another writer's exists.

        `attempt` (ASCII letters, digits and dashes) is unique to each writer and distinguishes its object from
        another writer's.
        """

    def upload(self, key: str, path: Path) -> None:
        """Puts a local file of any size under a key that no other writer uses. Like any object, absent or whole."""

    def remove(self, prefix: str) -> None:
        """Removes all objects whose key starts with `prefix`. Others may remove some of them at the same time."""
