"""One small store over local disk and S3: get (whole, or the end), list and create-only put.

A put is atomic and never replaces: an object is absent or whole, and it stays what it was. That is all
that commits need. Keys are relative to the store's prefix and use "/". Large files that one writer alone
names may be uploaded in parts, and removed when nobody needs them any more: checkpoints are.

A store that fails for a while is waited for. One that stays away, refuses or is full raises Interruption.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
import errno
from functools import cached_property
from itertools import count
from operator import methodcaller
import os
from pathlib import Path
import random
import shutil
import socket
import tempfile
import time
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import boto3
from boto3.exceptions import RetriesExceededError
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    CredentialRetrievalError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    SSOError,
    TokenRetrievalError,
)
import pyarrow.fs

from dualview.errors import InputError, Interruption

T = TypeVar("T")

_PARTIAL = ".partial-"  # names of local files that are still being written; no object is called so

# A restart of a server, a failover or a throttled prefix is over within minutes; what takes longer wants a person.
_PATIENCE_SECONDS = 300
_LONGEST_PAUSE_SECONDS = 20
# Without a byte for this long, a connection is taken for dead. boto3 would wait twice as long.
_SILENCE_SECONDS = 30
# What boto3's retries call throttling and time-outs, and what a machine gets whose clock jumped.
_PASSING_CODES = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ConditionalRequestConflict"}
# Temporary credentials that ran out, or old ones that were deleted. A HEAD has no body to say more than 403.
_EXPIRED_CODES = {
    "403",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestExpired",
    "TokenRefreshRequired",
}


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


def holds(store: Store, key: str) -> bool:
    return any(entry.key == key for entry in store.list(key))


def parent_of(store: Store) -> Store:
    """The folder that this one lies in; at the top it is the same."""
    match store:
        case LocalStore(folder):
            return LocalStore(folder.parent)
        case S3Store(bucket, prefix):
            return S3Store(bucket, prefix.rpartition("/")[0])
    raise AssertionError(store)


@dataclass(frozen=True)
class LocalStore:
    """A folder. Creation is atomic through link(2), which fails where the name is taken."""

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
        with _writing(path):
            shutil.copyfile(self.folder / key, path)

    def list(self, prefix: str = "") -> Sequence[Entry]:
        deepest, _, beginning = prefix.rpartition("/")
        # Only what begins so is walked: a file may be asked for that lies beside large folders.
        tops = [path for path in (self.folder / deepest).glob("*") if path.name.startswith(beginning)]
        paths = [path for top in tops for path in (top, *([] if top.is_symlink() else top.rglob("*")))]
        return sorted(
            _local_entry(path.relative_to(self.folder).as_posix(), path.stat())
            for path in paths
            if path.is_file() and not path.name.startswith(_PARTIAL)
        )

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        path = self.folder / key
        partial = path.with_name(f"{_PARTIAL}{attempt}-{uuid4().hex}")
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with partial.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                try:
                    os.link(partial, path)
                except FileExistsError:
                    # NFS repeats a request whose answer was lost, and then meets our own link [link(2), BUGS].
                    if not path.samefile(partial):
                        return False
            finally:
                partial.unlink(missing_ok=True)
            _fsync_folder(path.parent)
        return True

    def upload(self, key: str, path: Path) -> None:
        target = self.folder / key
        partial = target.with_name(f"{_PARTIAL}{uuid4().hex}")
        with _writing(target):
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
            with suppress(OSError):  # not empty, or removed by another
                for parent in Path(entry.key).parents[:-2]:  # the topmost others may be about to use
                    (self.folder / parent).rmdir()


# What to do where a file cannot be written.
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room for it"),
    errno.EACCES: "give the job the right to write there",
    # What link(2) says where the file system has no hard links.
    **dict.fromkeys(
        (errno.EPERM, errno.ENOTSUP), "give the job the right to write and to make hard links there"
    ),
    errno.EROFS: "mount it so that it can be written",
}


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises Interruption where the disk has no room, or does not let us write for another reason."""
    try:
        yield
    except FileNotFoundError:  # of what was to be read
        raise
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "see to the disk and the folder")
        raise Interruption(f"{path}: cannot be written ({error.strerror}); {advice}") from error


def _local_entry(key: str, status: os.stat_result) -> Entry:
    return Entry(key, status.st_size, stamp=f"{status.st_size}-{status.st_mtime_ns}")


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
        # One try a request: `_ask` repeats what is worth it, and boto3 would give up after seconds.
        return _s3_client(
            Config(
                connect_timeout=_SILENCE_SECONDS,
                read_timeout=_SILENCE_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 1},
            )
        )

    def _ask(self, question: Callable[[Any], T]) -> T:
        """What `question` gets from the client, asked until S3 answers. May be asked more than once.

        Raises Interruption where S3 refuses it, or fails for longer than _PATIENCE_SECONDS.
        """
        began = time.monotonic()
        asked_with_fresh_credentials = False
        for number in count():
            try:
                return question(self._client)
            except (ClientError, BotoCoreError, RetriesExceededError) as error:
                reason = _reason(error)
                if isinstance(error, NoCredentialsError):
                    raise InputError(
                        f"{self.url}: no credentials on node {socket.gethostname()}; every node needs"
                        " AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or another source that boto3 knows"
                    ) from error
                if _is_about_credentials(error):
                    # boto3 renews some kinds by itself; a file that was renewed it reads for a new client only.
                    if asked_with_fresh_credentials:
                        raise Interruption(
                            f"{self.url}: the credentials are no longer accepted ({reason}); renew them"
                        ) from error
                    asked_with_fresh_credentials = True
                    self.__dict__.pop("_client", None)
                elif isinstance(error, ClientError) and _status(error) == 501:
                    raise Interruption(
                        f"{self.url}: S3 does not know a request ({reason});"
                        " choose a store that honours `If-None-Match: *` (cluster/README.md, Stores)"
                    ) from error
                elif not _may_pass(error):
                    raise Interruption(
                        f"{self.url}: S3 refuses a request ({reason});"
                        " see to the rights of the credentials and the state of the bucket"
                    ) from error
                elif time.monotonic() - began > _PATIENCE_SECONDS:
                    raise Interruption(
                        f"{self.url}: S3 has failed for {_PATIENCE_SECONDS} s ({reason}); wait until it is well"
                    ) from error
            # Drawn by lot, so that a thousand actors do not come back at the same moment.
            time.sleep(random.uniform(0, min(0.2 * 2**number, _LONGEST_PAUSE_SECONDS)))
        raise AssertionError("count() does not end")

    def _full_key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def get(self, key: str) -> bytes:
        return self._read(key)

    def get_end(self, key: str, num_bytes: int) -> bytes:
        return self._read(key, Range=f"bytes=-{num_bytes}")

    def _read(self, key: str, **options: str) -> bytes:
        def read(client: Any) -> bytes:
            try:
                answer = client.get_object(Bucket=self.bucket, Key=self._full_key(key), **options)
            except client.exceptions.NoSuchKey:
                raise FileNotFoundError(f"{self.url}/{key}") from None
            except ClientError as error:
                if _status(error) == 416:  # an empty object has no last bytes
                    return b""
                raise
            content: bytes = answer["Body"].read()  # a connection may break off here, too
            return content

        return self._ask(read)

    def download(self, key: str, path: Path) -> None:
        with _writing(path):
            self._ask(lambda client: client.download_file(self.bucket, self._full_key(key), str(path)))

    def list(self, prefix: str = "") -> Sequence[Entry]:
        objects: list[Any] = []
        place = {"Bucket": self.bucket, "Prefix": self._full_key(prefix)}
        while True:
            page = self._ask(lambda client: client.list_objects_v2(**place))
            objects += page.get("Contents", ())
            if not page["IsTruncated"]:
                break
            place["ContinuationToken"] = page["NextContinuationToken"]
        start = len(self._full_key(""))
        # Consoles mark an empty "folder" by an object whose key ends with "/".
        return sorted(
            Entry(item["Key"][start:], item["Size"], stamp=item["ETag"].strip('"'))
            for item in objects
            if not item["Key"].endswith("/")
        )

    def put_new(self, key: str, data: bytes, attempt: str) -> bool:
        place = {"Bucket": self.bucket, "Key": self._full_key(key)}

        def put(client: Any) -> bool:
            try:
                client.put_object(**place, Body=data, IfNoneMatch="*", Metadata={"attempt": attempt})
            except ClientError as error:
                if _status(error) != 412:
                    raise
                # A put whose answer was lost is repeated, and then meets its own object.
                metadata = client.head_object(**place)["Metadata"]
                return bool(metadata.get("attempt") == attempt)
            return True

        return self._ask(put)

    def upload(self, key: str, path: Path) -> None:
        def put(client: Any) -> None:
            with path.open("rb") as file:  # anew each time: a failed try has read some of it
                client.upload_fileobj(file, self.bucket, self._full_key(key))

        self._ask(put)

    def remove(self, prefix: str) -> None:
        for entry in self.list(prefix):
            delete = methodcaller("delete_object", Bucket=self.bucket, Key=self._full_key(entry.key))
            self._ask(delete)


def _reason(error: Exception) -> str:
    """S3's code, or what happened on the way to it."""
    return str(error.response["Error"]["Code"]) if isinstance(error, ClientError) else type(error).__name__


def _is_about_credentials(error: Exception) -> bool:
    if isinstance(error, ClientError):
        return _reason(error) in _EXPIRED_CODES
    return isinstance(error, CredentialRetrievalError | SSOError | TokenRetrievalError)


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed after a while."""
    if isinstance(error, ClientError):
        # 409: another conditional put of this key is under way.
        status = _status(error)
        return _reason(error) in _PASSING_CODES or status in (409, 429) or status >= 500
    return isinstance(error, ConnectionError | HTTPClientError | IncompleteReadError | RetriesExceededError)


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
        if _status(error) in (401, 403) or code in _EXPIRED_CODES:
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


def download_tree(url: str, folder: Path, keys: Iterable[str] | None = None) -> Path:
    """Copies these or all objects under `url` into `folder`, which appears whole or not at all, and returns it.

    A folder that has content is kept as it is, so that several processes may ask for the same one.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return folder
    store = open_store(url)
    if isinstance(store, S3Store):
        _check_bucket(store)
    keys = [entry.key for entry in store.list()] if keys is None else list(keys)
    if not keys:
        raise InputError(
            f"{url}: nothing lies there; expected a folder, for example with a model's config.json"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=_PARTIAL, dir=folder.parent) as partial:
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


def arrow_filesystem(url: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """The same place for libraries that want a pyarrow filesystem and a path in it (Ray Train does)."""
    store = open_store(url)
    if isinstance(store, S3Store):
        # As patient as our own requests are, nearly: its own three tries are over within a second.
        patience = pyarrow.fs.AwsDefaultS3RetryStrategy(max_attempts=12)
        filesystem = pyarrow.fs.S3FileSystem(endpoint_override=store.endpoint_url, retry_strategy=patience)
        return filesystem, f"{store.bucket}/{store.prefix}"
    return pyarrow.fs.LocalFileSystem(), store.url
