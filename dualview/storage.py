"""One small store over local disk and S3: get, list and create-only put.

A put is atomic and never replaces: an object is absent or whole, and it stays what it was. That is all
that shards.py needs for its commits. Keys are relative to the store's prefix and use "/".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
import os
from pathlib import Path
import shutil
import tempfile
import time
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
import pyarrow.fs

from dualview.errors import InputError

_PARTIAL = ".partial-"  # names of local files that are still being written; no object is called so


@dataclass(frozen=True, order=True)
class Entry:
    key: str
    size: int  # bytes


class Store(Protocol):
    """A place for immutable objects. Can be pickled, so that it travels to other processes."""

    @property
    def url(self) -> str: ...

    def get(self, key: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError where there is none."""

    def download(self, key: str, path: Path) -> None:
        """Writes the object to a local file without holding it in memory."""

    def list(self, prefix: str = "") -> Sequence[Entry]:
        """All objects whose key starts with `prefix`, sorted by key."""

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        """Creates the object; True if the one that now stands was created by this call.

        False if another stands there already, which is left as it is. `attempt` (ASCII letters, digits
        and dashes) tells our own object from another's; each writer has its own.
        """


def open_store(url: str) -> Store:
    """The store at `s3://bucket/prefix`, `file:///folder` or a plain path. Touches nothing yet."""
    scheme, separator, rest = url.partition("://")
    if not separator and url:
        return LocalStore(Path(url).absolute())  # absolute: Ray's actors run in other folders
    if scheme == "file" and rest.startswith("/"):
        return LocalStore(Path(unquote(urlsplit(url).path)))
    if scheme == "s3":
        bucket, _, prefix = rest.partition("/")
        if bucket:
            return S3Store(bucket, prefix.strip("/"))
    raise InputError(f"storage address {url!r}: expected s3://bucket/prefix, file:///folder or a path")


@dataclass(frozen=True)
class LocalStore:
    """A folder. Creation is atomic through link(2), which fails where the name is taken."""

    folder: Path

    @property
    def url(self) -> str:
        return str(self.folder)

    def get(self, key: str) -> bytes:
        return (self.folder / key).read_bytes()

    def download(self, key: str, path: Path) -> None:
        shutil.copyfile(self.folder / key, path)

    def list(self, prefix: str = "") -> Sequence[Entry]:
        deepest = self.folder / prefix.rpartition("/")[0]
        files = (path for path in deepest.rglob("*") if path.is_file() and not path.name.startswith(_PARTIAL))
        entries = (Entry(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in files)
        return sorted(entry for entry in entries if entry.key.startswith(prefix))

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        path = self.folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{_PARTIAL}{attempt}-{uuid4().hex}")
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(partial, path)
        except FileExistsError:  # a disk loses no answers, so it is another's
            return False
        finally:
            partial.unlink(missing_ok=True)
        _fsync_folder(path.parent)
        return True


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class S3Store:
    """A prefix in a bucket. Endpoint and credentials come from boto3's own sources and nowhere else."""

    bucket: str
    prefix: str  # without slashes at its ends; "" for the whole bucket

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.bucket, self.prefix)  # a client cannot be pickled; each process makes its own

    @property
    def endpoint_url(self) -> str:
        """Where requests go, as boto3 finds it in its own configuration."""
        return str(self._client.meta.endpoint_url)

    @cached_property
    def _client(self) -> Any:
        return _s3_client(Config(retries={"mode": "standard", "total_max_attempts": 6}))

    def _full_key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def get(self, key: str) -> bytes:
        try:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._full_key(key))
        except self._client.exceptions.NoSuchKey:
            raise FileNotFoundError(f"{self.url}/{key}") from None
        content: bytes = answer["Body"].read()
        return content

    def download(self, key: str, path: Path) -> None:
        self._client.download_file(self.bucket, self._full_key(key), str(path))

    def list(self, prefix: str = "") -> Sequence[Entry]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.bucket, Prefix=self._full_key(prefix)
        )
        objects = (item for page in pages for item in page.get("Contents", ()))
        start = len(self._full_key(""))
        # Consoles mark an empty "folder" by an object whose key ends with "/".
        return sorted(
            Entry(item["Key"][start:], item["Size"]) for item in objects if not item["Key"].endswith("/")
        )

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        place = {"Bucket": self.bucket, "Key": self._full_key(key)}
        pauses_seconds = [1.6, 0.4, 0.1]
        while True:
            try:
                self._client.put_object(**place, Body=data, IfNoneMatch="*", Metadata={"attempt": attempt})
                return True
            except ClientError as error:
                if _status(error) == 412:
                    # boto3 repeats a put whose answer was lost, and then meets its own object.
                    metadata = self._client.head_object(**place)["Metadata"]
                    return bool(metadata.get("attempt") == attempt)
                # 409: another conditional put of this key is under way, and either may win.
                if _status(error) != 409 or not pauses_seconds:
                    raise
                time.sleep(pauses_seconds.pop())


def _s3_client(config: Config) -> Any:
    # A session of our own: boto3's default session may not be set up by two threads at once.
    return boto3.session.Session().client("s3", config=config)


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def check_reachable(store: Store) -> None:
    """Raises InputError, within seconds, where the store of a run to come cannot be used.

    S3: the bucket can be listed. Local: the folder, or the nearest parent that exists, can be written.
    """
    match store:
        case S3Store():
            _check_bucket(store)
        case LocalStore(folder):
            nearest = next(parent for parent in (folder, *folder.parents) if parent.exists())
            if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
                raise InputError(
                    f"{store.url}: cannot be written, because {nearest} is not a writable folder"
                )


def _check_bucket(store: S3Store) -> None:
    impatient = Config(
        connect_timeout=5, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2}
    )
    try:
        _s3_client(impatient).list_objects_v2(Bucket=store.bucket, Prefix=store.prefix, MaxKeys=1)
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code == "NoSuchBucket":
            raise InputError(f"{store.url}: there is no bucket `{store.bucket}`; create it first") from None
        if _status(error) in (401, 403):
            raise InputError(
                f"{store.url}: the credentials are refused ({code});"
                " check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their rights on the bucket"
            ) from None
        raise InputError(f"{store.url}: S3 answers {code} to a listing of the bucket") from None
    except NoCredentialsError:
        raise InputError(
            f"{store.url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except (BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is no URL
        raise InputError(
            f"{store.url}: cannot be reached ({type(error).__name__});"
            " check the bucket's name and AWS_ENDPOINT_URL_S3, for example http://minio:9000"
        ) from None


def download_tree(url: str, folder: Path) -> Path:
    """Copies all objects under `url` into `folder`, which appears whole or not at all, and returns it.

    A folder that has content is kept as it is, so that several processes may ask for the same one.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    store = open_store(url)
    if isinstance(store, S3Store):
        _check_bucket(store)
    entries = store.list()
    if not entries:
        raise InputError(
            f"{url}: nothing lies there; expected a folder, for example with a model's config.json"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=folder.parent) as partial:
        tree = Path(partial) / "tree"
        for entry in entries:
            path = tree / entry.key
            path.parent.mkdir(parents=True, exist_ok=True)
            store.download(entry.key, path)
        try:
            tree.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was first
                raise
    return folder


def upload_tree(folder: Path, store: Store, prefix: str, attempt: str) -> None:
    """Puts every file of `folder` under `prefix`, each at most 5 GB (S3's limit for one put).

    May be repeated after a crash: a file that stands with the same content is left. Raises InputError
    where one stands with other content. Not atomic as a whole: announce it by a later put.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        key = f"{prefix}/{path.relative_to(folder).as_posix()}"
        data = path.read_bytes()
        if not store.put_new(key, data, attempt) and store.get(key) != data:
            raise InputError(f"{store.url}/{key}: another file stands there already; choose another output")


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same place for libraries that want a pyarrow filesystem and a path in it (Ray Train does)."""
    store = open_store(url)
    if isinstance(store, S3Store):
        endpoint = store.endpoint_url
        return pyarrow.fs.S3FileSystem(endpoint_override=endpoint), f"{store.bucket}/{store.prefix}"
    return pyarrow.fs.LocalFileSystem(), store.url
