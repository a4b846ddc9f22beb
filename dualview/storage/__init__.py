"""One small store over local disk and S3: get (whole, or the end), list and create-only put.

A put is atomic and never replaces: an object is absent or whole, and never changes. That is all that commits
need. Keys are relative to the store's prefix and use "/". Large files whose name only one writer uses, such as
checkpoints, may be uploaded in parts and removed later.

Temporary failures of a store are retried. A store that stays unavailable, refuses or is full raises Interruption.
"""

from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow.fs

from dualview.errors import InputError
from dualview.storage.base import Entry, Store
from dualview.storage.local import LocalStore, check_writable
from dualview.storage.s3 import S3Store, check_bucket
from dualview.storage.trees import download_tree, upload_tree

__all__ = [
    "Entry",
    "LocalStore",
    "S3Store",
    "Store",
    "arrow_filesystem",
    "check_reachable",
    "download_tree",
    "holds",
    "open_store",
    "parent_of",
    "upload_tree",
]


def open_store(url: str) -> Store:
    """The store at `s3://bucket/prefix`, `file:///folder` or a plain path. Touches nothing yet."""
    scheme, separator, address = url.partition("://")
    if not separator and url:
        return LocalStore(Path(url).absolute())  # absolute, because Ray's actors run in other folders
    if scheme == "file" and address.startswith("/"):
        return LocalStore(Path(unquote(urlsplit(url).path)))
    if scheme == "s3":
        bucket, _, prefix = address.partition("/")
        if bucket:
            return S3Store(bucket, prefix.strip("/"))
    raise InputError(f"storage address {url!r}: expected s3://bucket/prefix, file:///folder or a path")


def holds(store: Store, key: str) -> bool:
    return any(entry.key == key for entry in store.list(key))


def parent_of(store: Store) -> Store:
    """The parent folder; at the top, the same folder."""
    match store:
        case LocalStore(folder):
            return LocalStore(folder.parent)
        case S3Store(bucket, prefix):
            return S3Store(bucket, prefix.rpartition("/")[0])
    raise AssertionError(store)


def check_reachable(store: Store) -> None:
    """Raises InputError, within seconds, if a run could not use the store.

    S3: the bucket can be listed. Local: the folder, or the nearest parent that exists, can be written.
    """
    match store:
        case S3Store():
            check_bucket(store)
        case LocalStore():
            check_writable(store)


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same location for libraries, such as Ray Train, that take a pyarrow filesystem and a path in it."""
    store = open_store(url)
    if isinstance(store, S3Store):
        # Nearly as patient as our own requests: the default of three tries is over within a second.
        patience = pyarrow.fs.AwsDefaultS3RetryStrategy(max_attempts=12)
        filesystem = pyarrow.fs.S3FileSystem(endpoint_override=store.endpoint_url, retry_strategy=patience)
        return filesystem, f"{store.bucket}/{store.prefix}"
    return pyarrow.fs.LocalFileSystem(), store.url
