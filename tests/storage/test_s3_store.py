"""S3's own troubles, and what is told of them before work begins."""

import os
from pathlib import Path
import socket
import time

import boto3
from faulty_s3 import (
    ALWAYS,
    SECRET,
    Fault,
    FaultyS3,
    cut_answer,
    cut_request,
    error,
    lost_answer,
    silence,
)
import pytest

from dualview.errors import InputError, Interruption
from dualview.storage import Entry, Store, arrow_filesystem, check_reachable, open_store
from dualview.storage import s3 as backend


def test_long_listings_are_read_to_the_end(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "3")
    for number in range(8):
        s3_store.put_new(f"data/{number}", b"", "me")
    assert [entry.key for entry in s3_store.list()] == [f"data/{number}" for number in range(8)]


def test_a_prefix_does_not_see_its_namesakes(bucket: str) -> None:
    open_store(f"s3://{bucket}/run-2").put_new("key", b"", "me")
    assert list(open_store(f"s3://{bucket}/run").list()) == []


def test_the_folder_marks_of_consoles_are_not_listed(bucket: str, s3_store: Store) -> None:
    boto3.session.Session().client("s3").put_object(Bucket=bucket, Key="run/data/")
    assert list(s3_store.list()) == []


def test_a_put_whose_answer_was_lost_is_known_as_ours(s3: FaultyS3, s3_store: Store) -> None:
    s3.faults = [("PUT", lost_answer, 1)]
    assert s3_store.put_new("shard", b"ours", "me")
    assert s3.faults == []
    assert s3_store.get("shard") == b"ours"


def test_a_lost_answer_does_not_claim_anothers_object(s3: FaultyS3, s3_store: Store) -> None:
    s3_store.put_new("shard", b"theirs", "them")
    s3.faults = [("PUT", lost_answer, 1)]
    assert not s3_store.put_new("shard", b"ours", "me")
    assert s3_store.get("shard") == b"theirs"


PASSING_FAULTS = {
    "an internal error": error(500, "InternalError"),
    "a server that starts": error(503, "ServiceUnavailable"),
    "throttling": error(503, "SlowDown"),
    "a race": error(409, "ConditionalRequestConflict"),
    "a clock that jumped": error(403, "RequestTimeTooSkewed"),
    "a lost answer": lost_answer,
    "an answer that breaks off": cut_answer,
    "a request that breaks off": cut_request,
    "silence": silence,
}


@pytest.mark.parametrize("fault", PASSING_FAULTS.values(), ids=PASSING_FAULTS)
def test_what_passes_is_waited_for(
    s3: FaultyS3, s3_store: Store, fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_SILENCE_SECONDS", 0.3)
    ours, theirs = os.urandom(300_000), os.urandom(300_000)
    s3.faults = [("PUT", fault, 2)]
    assert s3_store.put_new("shard", ours, "one")
    s3.faults = [("PUT", fault, 1)]
    assert not s3_store.put_new("shard", theirs, "two")
    s3.faults = [("GET", fault, 1)]
    assert s3_store.get("shard") == ours
    s3.faults = [("GET", fault, 1)]
    assert s3_store.get_end("shard", 100_000) == ours[-100_000:]
    s3.faults = [("GET", fault, 1)]
    assert s3_store.list() == [Entry("shard", len(ours))]
    s3.faults = [("GET", fault, 1)]
    s3_store.download("shard", tmp_path / "shard")
    assert (tmp_path / "shard").read_bytes() == ours
    assert s3.faults == []


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (error(503, "SlowDown"), "S3 has failed for 0 s (SlowDown)"),
        (cut_request, "S3 has failed for 0 s (ConnectionClosedError)"),
        (error(403, "AccessDenied"), "S3 refuses a request (AccessDenied)"),
        (
            error(501, "NotImplemented"),
            "S3 does not support a request (NotImplemented); choose a store that honours `If-None-Match: *`",
        ),
        (error(400, "ExpiredToken"), "the credentials are no longer accepted (ExpiredToken); renew them"),
    ],
)
def test_what_stays_interrupts_the_run_and_leaves_nothing(
    s3: FaultyS3, s3_store: Store, fault: Fault, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_PATIENCE_SECONDS", 0)
    s3.faults = [("PUT", fault, ALWAYS)]
    with pytest.raises(Interruption) as caught:
        s3_store.put_new("shard", b"data", "me")
    assert str(caught.value).startswith(f"{s3_store.url}: {sentence}")
    assert SECRET not in str(caught.value)
    s3.faults = []
    assert list(s3_store.list()) == []


@pytest.mark.parametrize("fault", [error(503, "SlowDown"), cut_answer])
def test_libraries_that_read_by_pyarrow_wait_too(s3: FaultyS3, s3_store: Store, fault: Fault) -> None:
    s3_store.put_new("rows.txt", b"content", "a")
    s3.faults = [("rows.txt", fault, 6)]
    filesystem, path = arrow_filesystem(f"{s3_store.url}/rows.txt")
    with filesystem.open_input_file(path) as file:
        assert file.read() == b"content"
    assert s3.faults == []


def test_credentials_that_are_renewed_in_their_file_are_taken_up(
    s3: FaultyS3, s3_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write_credentials(key: str) -> None:
        (tmp_path / "aws-credentials").write_text(
            f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n"
        )

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    write_credentials("first-key")
    assert s3_store.put_new("one", b"1", "me")
    s3.faults = [("Credential=first-key/", error(400, "ExpiredToken"), ALWAYS)]
    write_credentials("second-key")
    assert s3_store.put_new("two", b"2", "me")
    assert [entry.key for entry in s3_store.list()] == ["one", "two"]


def test_a_node_without_credentials_is_told(s3_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(InputError, match=f"no credentials on node {socket.gethostname()}; every node needs"):
        s3_store.put_new("shard", b"data", "me")


# --- told before work begins ----------------------------------------------------------------------


def sentence(url: str) -> str:
    """What check_reachable says about an unusable store; within seconds, and without the secret."""
    start = time.monotonic()
    with pytest.raises(InputError) as caught:
        check_reachable(open_store(url))
    assert time.monotonic() - start < 10
    assert url in str(caught.value)
    assert SECRET not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("s3")
def test_a_missing_bucket_is_told() -> None:
    assert "no bucket `absent-bucket`" in sentence("s3://absent-bucket/run")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (403, "InvalidAccessKeyId"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (400, "ExpiredToken"),
    ],
)
def test_refused_credentials_are_told(s3: FaultyS3, bucket: str, status: int, code: str) -> None:
    s3.faults = [("GET", error(status, code), 1)]
    assert f"the credentials are refused ({code})" in sentence(f"s3://{bucket}/run")


def test_another_refusal_is_told(s3: FaultyS3, bucket: str) -> None:
    s3.faults = [("GET", error(400, "InvalidRequest"), 1)]
    assert "S3 answers InvalidRequest" in sentence(f"s3://{bucket}/run")


def test_missing_credentials_are_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "set AWS_ACCESS_KEY_ID" in sentence(f"s3://{bucket}/run")


@pytest.mark.usefixtures("s3")
def test_an_unreachable_endpoint_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    assert "cannot be reached" in sentence("s3://bucket/run")


@pytest.mark.usefixtures("s3")
def test_an_endpoint_that_is_no_url_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio 9000")
    assert "check the bucket's name and AWS_ENDPOINT_URL_S3" in sentence("s3://bucket/run")


@pytest.mark.usefixtures("s3")
def test_an_impossible_bucket_name_is_told() -> None:
    assert "check the bucket's name" in sentence("s3://no_such bucket!/run")
