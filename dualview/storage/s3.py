"""A prefix in a bucket as a store, and which of S3's errors are retried."""

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

# A server restart, a failover or throttling is over within minutes; anything longer needs a person.
_PATIENCE_SECONDS = 300
_LONGEST_PAUSE_SECONDS = 20
# A connection is considered dead after this long without a byte. boto3 would wait twice as long.
_SILENCE_SECONDS = 30
# Codes that boto3 retries as throttling and timeouts, and what a machine gets after a clock jump.
_PASSING_CODES = {"SlowDown", "RequestTimeout", "RequestTimeTooSkewed", "ConditionalRequestConflict"}
# Expired temporary credentials, or deleted ones. A HEAD has no body, so it says only 403.
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
    """A prefix in a bucket. Endpoint and credentials come only from boto3's own sources."""

    bucket: str
    prefix: str  # without leading or trailing slash; "" for the whole bucket

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def __reduce__(self) -> tuple[Any, ...]:
        return S3Store, (self.bucket, self.prefix)  # a client cannot be pickled; each process creates its own

    @property
    def endpoint_url(self) -> str:
        """The endpoint from boto3's own configuration."""
        return str(self._client.meta.endpoint_url)

    @cached_property
    def _client(self) -> Any:
        # One try per request: `_ask` does the retries, and boto3 would give up after seconds.
        return _s3_client(
            Config(
                connect_timeout=_SILENCE_SECONDS,
                read_timeout=_SILENCE_SECONDS,
                retries={"mode": "standard", "total_max_attempts": 1},
            )
        )

    def _ask(self, question: Callable[[Any], T]) -> T:
        """Calls `question` with a client until S3 answers, and returns its result. It may be called several times.

        Raises Interruption if S3 refuses the request, or fails for longer than _PATIENCE_SECONDS.
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
                    # boto3 renews some kinds itself, but reads a renewed credentials file only for a new client.
                    if asked_with_fresh_credentials:
                        raise Interruption(
                            f"{self.url}: the credentials are no longer accepted ({reason}); renew them"
                        ) from error
                    asked_with_fresh_credentials = True
                    self.__dict__.pop("_client", None)
                elif isinstance(error, ClientError) and _status(error) == 501:
                    raise Interruption(
                        f"{self.url}: S3 does not support a request ({reason});"
                        " choose a store that honours `If-None-Match: *` (cluster/README.md, Stores)"
                    ) from error
                elif not _may_pass(error):
                    raise Interruption(
                        f"{self.url}: S3 refuses a request ({reason});"
                        " check the permissions of the credentials and the state of the bucket"
                    ) from error
                elif time.monotonic() - began > _PATIENCE_SECONDS:
                    raise Interruption(
                        f"{self.url}: S3 has failed for {_PATIENCE_SECONDS} s ({reason}); wait until it has recovered"
                    ) from error
            # Random, so that a thousand actors do not return at the same moment.
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
            content: bytes = answer["Body"].read()  # the connection may break here, too
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
        # Consoles mark an empty "folder" with an object whose key ends in "/".
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
                # A put whose answer was lost is repeated, and then finds its own object.
                metadata = client.head_object(**place)["Metadata"]
                return bool(metadata.get("attempt") == attempt)
            return True

        return self._ask(put)

    def upload(self, key: str, path: Path) -> None:
        def put(client: Any) -> None:
            with path.open("rb") as file:  # reopened for each try: a failed one has read part of it
                client.upload_fileobj(file, self.bucket, self._full_key(key))

        self._ask(put)

    def remove(self, prefix: str) -> None:
        for entry in self.list(prefix):
            delete = methodcaller("delete_object", Bucket=self.bucket, Key=self._full_key(entry.key))
            self._ask(delete)


def _reason(error: Exception) -> str:
    """S3's error code, or the kind of failure if S3 did not answer."""
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
    # A session of our own: setting up boto3's default session is not thread-safe.
    return boto3.session.Session().client("s3", config=config)


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def check_bucket(store: S3Store) -> None:
    """Raises InputError, within seconds, if the bucket cannot be listed."""
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
                " check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and their permissions on the bucket"
            ) from None
        raise InputError(f"{store.url}: S3 answers {code} to a listing of the bucket") from None
    except NoCredentialsError:
        raise InputError(
            f"{store.url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from None
    except (BotoCoreError, ValueError) as error:  # ValueError: the endpoint is not a URL
        raise InputError(
            f"{store.url}: cannot be reached ({type(error).__name__});"
            " check the bucket's name and AWS_ENDPOINT_URL_S3, for example http://minio:9000"
        ) from None
