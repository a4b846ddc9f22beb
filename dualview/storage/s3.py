"""A prefix in a bucket as a store, and which of S3's errors are waited for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from operator import methodcaller
from pathlib import Path
import random
import socket
import time
from typing import Any, TypeVar

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

from dualview.errors import InputError, Interruption
from dualview.storage.base import Entry
from dualview.storage.local import writing

T = TypeVar("T")

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
        with writing(path):
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


def check_bucket(store: S3Store) -> None:
    """Raises InputError, within seconds, where the bucket cannot be listed."""
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
