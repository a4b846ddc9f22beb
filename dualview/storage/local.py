"""A folder as a store."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
import errno
import os
from pathlib import Path
import shutil
from uuid import uuid4

from dualview.errors import InputError, Interruption
from dualview.storage.base import Entry

PARTIAL = ".partial-"  # prefix of files that are still being written; no object has such a name


@dataclass(frozen=True)
class LocalStore:
    """A folder. Creation is atomic through link(2), which fails if the name is taken."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def get(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def get_end(self, key: str, num_bytes: int) -> bytes:
        with (self.folder / key).open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - num_bytes, 0))
            return file.read()

    def download(self, key: str, path: Path) -> None:
        with writing(path):
            shutil.copyfile(self.folder / key, path)

    def list(self, prefix: str = "") -> Sequence[Entry]:
        deepest, _, beginning = prefix.rpartition("/")
        # Walk only what matches the prefix: there may be large folders beside it.
        tops = [path for path in (self.folder / deepest).glob("*") if path.name.startswith(beginning)]
        paths = [path for top in tops for path in (top, *([] if top.is_symlink() else top.rglob("*")))]
        return sorted(
            _local_entry(path.relative_to(self.folder).as_posix(), path.stat())
            for path in paths
            if path.is_file() and not path.name.startswith(PARTIAL)
        )

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        path = self.folder / key
        partial = path.with_name(f"{PARTIAL}{attempt}-{uuid4().hex}")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(partial, path)
                except FileExistsError:
                    # NFS repeats a request whose answer was lost, and then finds our own link [link(2), BUGS].
                    if not path.samefile(partial):
                        return False
            finally:
                partial.unlink(missing_ok=True)
            _fsync_folder(path.parent)
        return True

    def upload(self, key: str, path: Path) -> None:
        target = self.folder / key
        partial = target.with_name(f"{PARTIAL}{uuid4().hex}")
        with writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(path, partial)
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                partial.rename(target)
            finally:
                partial.unlink(missing_ok=True)
            _fsync_folder(target.parent)

    def remove(self, prefix: str) -> None:
        for entry in self.list(prefix):
            path = self.folder / entry.key
            path.unlink(missing_ok=True)
            with suppress(OSError):  # not empty, or already removed by another writer
                for parent in Path(entry.key).parents[
                    :-2
                ]:  # not the topmost: another writer may be about to use it
                    (self.folder / parent).rmdir()


# What to do if a file cannot be written.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space"),
    errno.EACCES: "give the job write permission there",
    # Also what link(2) reports on a file system without hard links.
    **dict.fromkeys(
        (errno.EPERM, errno.ENOTSUP), "give the job permission to write and to create hard links there"
    ),
    errno.EROFS: "mount it read-write",
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raises Interruption if the disk is full or cannot be written for another reason."""
    try:
        yield
    except FileNotFoundError:  # about the file to be read
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "check the disk and the folder")
        raise Interruption(f"{path}: cannot be written ({error.strerror}); {advice}") from error


def _local_entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, stamp=f"{status.st_size}-{status.st_mtime_ns}")


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_writable(store: LocalStore) -> None:
    """Raises InputError if the folder, or its nearest existing parent, cannot be written."""
    nearest = next(parent for parent in (store.folder, *store.folder.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{store.url}: cannot be written, because {nearest} is not a writable folder")
