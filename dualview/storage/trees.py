"""Copies folders of files to a store and back."""

from collections.abc import Iterable
from pathlib import Path
import tempfile

from dualview.errors import InputError
from dualview.storage.base import Store
from dualview.storage.local import PARTIAL
from dualview.storage.s3 import S3Store, check_bucket


def download_tree(store: Store, folder: Path, keys: Iterable[str] | None = None) -> Path:
    """Copies the objects under `keys`, or all, into `folder` and returns it. The folder appears whole or not at all.

    A folder that has content is kept as it is, so that several processes may ask for the same one.
    Raises InputError if there is nothing to copy.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    if isinstance(store, S3Store):
        check_bucket(store)
    keys = [entry.key for entry in store.list()] if keys is None else list(keys)
    if not keys:
        raise InputError(f"{store.url}: is empty; expected a folder, for example with a model's config.json")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder.parent) as partial:
        tree = Path(partial) / "tree"
        for key in keys:
            path = tree / key
            path.parent.mkdir(parents=True, exist_ok=True)
            store.download(key, path)
        try:
            tree.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first
                raise
    return folder


def upload_tree(folder: Path, store: Store, prefix: str) -> None:
    """Uploads every file of `folder` under `prefix`, which no other writer uses."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        store.upload(f"{prefix}/{path.relative_to(folder).as_posix()}", path)
