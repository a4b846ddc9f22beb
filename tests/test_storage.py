"""One contract, kept by a folder and by S3 (moto's server, which can be made to fail)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
import errno
import os
from pathlib import Path
import pickle
import shutil
import socket
import subprocess
import sys
from threading import Barrier
import time
from uuid import uuid4

import boto3
from faulty_s3 import (
    ALWAYS,
    Fault,
    FaultyS3,
    cut_answer,
    cut_request,
    error,
    lost_answer,
    serving,
    silence,
)
import pytest

from dualview import storage
from dualview.errors import InputError, Interruption
from dualview.storage import (
    Entry,
    LocalStore,
    S3Store,
    Store,
    arrow_filesystem,
    check_reachable,
    download_tree,
    open_store,
    upload_tree,
)

SECRET = "not-a-real-secret"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyS3]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    s3 = FaultyS3()
    with serving(s3) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "not-a-real-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield s3


@pytest.fixture
def bucket(s3: FaultyS3) -> str:
    name = f"bucket-{uuid4().hex[:8]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "prefix in a bucket", "whole bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    bucket = request.getfixturevalue("bucket")
    return open_store(
        f"s3://{bucket}/deep/run" if request.param == "prefix in a bucket" else f"s3://{bucket}"
    )


@pytest.fixture
def s3_store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/run")


# --- the contract ---------------------------------------------------------------------------------


def test_what_was_put_is_listed_and_read(store: Store) -> None:
    objects = {"plan.json": b"{}", "data/b": b"\0" * 100_000, "data/a": b"", "database": b"x", "é/ü": b"2"}
    for key, data in objects.items():
        assert store.put_new(key, data, "me")
    assert {key: store.get(key) for key in objects} == objects
    assert store.list() == [Entry(key, len(objects[key])) for key in sorted(objects)]
    assert [entry.key for entry in store.list("data/")] == ["data/a", "data/b"]
    assert [entry.key for entry in store.list("data")] == ["data/a", "data/b", "database"]
    assert list(store.list("nothing/here/")) == []


def test_the_end_is_read_alone(store: Store) -> None:
    store.put_new("a", b"12345", "me")
    store.put_new("empty", b"", "me")
    assert [store.get_end("a", num_bytes) for num_bytes in (2, 5, 9)] == [b"45", b"12345", b"12345"]
    assert store.get_end("empty", 2) == b""
    with pytest.raises(FileNotFoundError, match="absent"):
        store.get_end("absent", 2)


def test_a_stamp_tells_a_change(store: Store) -> None:
    store.put_new("a", b"1", "me")
    store.put_new("b", b"12", "me")
    first, second = store.list(), store.list()
    assert [entry.stamp for entry in first] == [entry.stamp for entry in second]
    assert first[0].stamp != first[1].stamp


def test_an_absent_object_is_not_found(store: Store) -> None:
    assert list(store.list()) == []
    with pytest.raises(FileNotFoundError, match="data/absent"):
        store.get("data/absent")


def test_a_put_never_replaces(store: Store) -> None:
    assert store.put_new("key", b"first", "one")
    assert not store.put_new("key", b"second", "two")
    assert store.get("key") == b"first"


def test_of_concurrent_writers_exactly_one_wins_and_its_object_is_whole(store: Store) -> None:
    num_writers = 6
    at_once = Barrier(num_writers)

    def write(writer: int) -> bool:
        at_once.wait()
        return store.put_new("data/shard", bytes([writer]) * 1_000_000, f"attempt-{writer}")

    with ThreadPoolExecutor(num_writers) as pool:
        won = list(pool.map(write, range(num_writers)))
    assert won.count(True) == 1
    assert store.get("data/shard") == bytes([won.index(True)]) * 1_000_000
    assert [entry.key for entry in store.list()] == ["data/shard"]


def test_a_store_that_was_used_can_be_pickled(store: Store) -> None:
    store.put_new("key", b"data", "me")
    copy = pickle.loads(pickle.dumps(store))
    assert copy == store
    assert copy.get("key") == b"data"


def test_the_url_opens_the_same_store(store: Store) -> None:
    assert open_store(store.url) == store


def test_a_tree_comes_back_as_it_went(store: Store, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "weights/model.safetensors": b"\1" * 1000, ".gitattributes": b"text"}
    for name, data in files.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    upload_tree(tmp_path / "model", store, "export/final")
    upload_tree(tmp_path / "model", store, "export/final")  # as after a crash
    copy = download_tree(f"{store.url}/export/final", tmp_path / "cache" / "copy")
    found = {
        path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()
    }
    assert found == files
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["copy"]


def test_what_is_removed_is_gone_with_its_folders_and_nothing_else(store: Store) -> None:
    for key in ("checkpoints/2/a/b", "checkpoints/2/c", "checkpoints/20/a", "checkpoints-2"):
        store.put_new(key, b"", "me")
    store.remove("checkpoints/2/")
    assert [entry.key for entry in store.list()] == ["checkpoints-2", "checkpoints/20/a"]
    store.remove("checkpoints/2/")
    if isinstance(store, LocalStore):
        assert sorted(path.name for path in store.folder.iterdir()) == ["checkpoints", "checkpoints-2"]
        assert [path.name for path in (store.folder / "checkpoints").iterdir()] == ["20"]


def test_a_folder_with_content_is_not_downloaded_again(store: Store, tmp_path: Path) -> None:
    store.put_new("config.json", b"new", "me")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_bytes(b"old")
    download_tree(store.url, tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").read_bytes() == b"old"


def test_downloading_nothing_is_the_users_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing lies there"):
        download_tree(f"{store.url}/typo", tmp_path / "copy")


def test_a_usable_store_passes_the_check_and_is_left_alone(store: Store) -> None:
    check_reachable(store)
    assert list(store.list()) == []


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a/b/", S3Store("bucket", "a/b")),
        ("s3://bucket", S3Store("bucket", "")),
        ("file:///data/a%20b", LocalStore(Path("/data/a b"))),
        ("/data/run", LocalStore(Path("/data/run"))),
        ("out/run", LocalStore(Path.cwd() / "out/run")),
    ],
)
def test_open_store(url: str, expected: Store) -> None:
    assert open_store(url) == expected


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://", "s3:///run", "file://folder", "://x", ""])
def test_other_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="expected s3://bucket/prefix, file:///folder or a path"):
        open_store(url)


# --- the folder's own troubles --------------------------------------------------------------------


def test_what_a_crash_left_half_written_is_no_object(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put_new("data/shard", b"whole", "me")
    (tmp_path / "data" / ".partial-me-1").write_bytes(b"ha")
    assert store.list() == [Entry("data/shard", 5)]


def test_a_put_leaves_no_other_file_behind(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.put_new("shard", b"1", "one")
    store.put_new("shard", b"2", "two")
    assert os.listdir(tmp_path) == ["shard"]


def test_a_file_in_the_place_of_a_folder_is_no_lost_race(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(Interruption, match="data/shard: cannot be written"):
        open_store(str(tmp_path)).put_new("data/shard", b"", "me")


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written, because .*/file is not a writable folder"):
        check_reachable(open_store(str(tmp_path / "file" / "run")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="is not a writable folder"):
        check_reachable(open_store(str(tmp_path / "run")))


def test_a_link_that_was_made_by_a_request_of_ours_that_was_sent_twice_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where the answer to the first may be lost."""
    link = os.link

    def answers_to_the_second(source: Path, name: Path) -> None:
        link(source, name)
        link(source, name)

    store = open_store(str(tmp_path))
    monkeypatch.setattr(os, "link", answers_to_the_second)
    assert store.put_new("shard", b"ours", "me")
    assert not store.put_new("shard", b"theirs", "them")
    assert store.get("shard") == b"ours"
    assert os.listdir(tmp_path) == ["shard"]


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "make room for it"),
        (errno.EDQUOT, "make room for it"),
        (errno.EACCES, "give the job the right to write there"),
        (errno.EPERM, "give the job the right to write and to make hard links there"),
        (errno.EROFS, "mount it so that it can be written"),
        (errno.EIO, "see to the disk and the folder"),
    ],
)
def test_what_to_do_depends_on_why_a_file_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, advice: str
) -> None:
    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", fails)
    with pytest.raises(Interruption) as caught:
        open_store(str(tmp_path)).put_new("shard", b"", "me")
    assert str(caught.value) == f"{tmp_path}/shard: cannot be written ({os.strerror(code)}); {advice}"


FILL_A_DISK = """
import os, sys
from dualview.errors import Interruption
from dualview.storage import open_store

store = open_store(sys.argv[1])
assert store.put_new("data/one", b"1" * 30_000, "me")
for write in (
    lambda: store.put_new("data/two", b"2" * 60_000, "me"),
    lambda: store.download("data/one", store.folder / "copy-of-one"),
    lambda: store.download("data/one", store.folder / "another-copy"),
):
    try:
        write()
    except Interruption as error:
        print(error)
assert [entry.key for entry in store.list("data/")] == ["data/one"]
assert os.listdir(store.folder / "data") == ["one"]
"""


def may_mount() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="needs namespaces of the user's own, to make a small disk")
def test_a_full_disk_interrupts_the_run_and_keeps_nothing_half_written(tmp_path: Path) -> None:
    process = subprocess.run(
        [
            *("unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=64k tmpfs "$0" && exec "$@"', tmp_path),
            *(sys.executable, "-c", FILL_A_DISK, tmp_path),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.splitlines() == [
        f"{tmp_path}/{name}: cannot be written (No space left on device); make room for it"
        for name in ("data/two", "another-copy")
    ]


# --- S3's own troubles ----------------------------------------------------------------------------


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
    monkeypatch.setattr(storage, "_SILENCE_SECONDS", 0.3)
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
        (error(503, "SlowDown"), "S3 has failed for 0 s (SlowDown); wait until it is well"),
        (cut_request, "S3 has failed for 0 s (ConnectionClosedError); wait until it is well"),
        (error(403, "AccessDenied"), "S3 refuses a request (AccessDenied); see to the rights"),
        (
            error(501, "NotImplemented"),
            "S3 does not know a request (NotImplemented); choose a store that honours `If-None-Match: *`",
        ),
        (error(400, "ExpiredToken"), "the credentials are no longer accepted (ExpiredToken); renew them"),
    ],
)
def test_what_stays_interrupts_the_run_and_leaves_nothing(
    s3: FaultyS3, s3_store: Store, fault: Fault, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_PATIENCE_SECONDS", 0)
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


def test_a_download_that_breaks_off_leaves_nothing(s3: FaultyS3, s3_store: Store, tmp_path: Path) -> None:
    s3_store.put_new("config.json", b"{}", "me")
    s3_store.put_new("weights", b"w", "me")
    s3.faults = [("/run/weights", error(403, "AccessDenied"), ALWAYS)]
    with pytest.raises(Interruption):
        download_tree(s3_store.url, tmp_path / "cache" / "copy")
    assert os.listdir(tmp_path / "cache") == []


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
