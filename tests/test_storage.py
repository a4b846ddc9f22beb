"""One contract, kept by a folder and by S3 (moto's server, behind a gateway that can misbehave)."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import os
from pathlib import Path
import pickle
import socket
from threading import Barrier, Lock, Thread
import time
from uuid import uuid4

import boto3
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer
import pytest

from dualview.errors import InputError
from dualview.storage import (
    Entry,
    LocalStore,
    S3Store,
    Store,
    check_reachable,
    download_tree,
    open_store,
    upload_tree,
)

SECRET = "not-a-real-secret"
LOSE_ANSWER = 0


class Gateway(ThreadingHTTPServer):
    """Passes requests on to moto, except that each fault strikes once.

    A fault is a part of "METHOD path" and an HTTP status with S3's code for it, which is answered without
    asking moto; LOSE_ANSWER lets moto do the work and hangs up. Puts go one at a time, because S3 promises
    that a create-only put is atomic, but moto looks and writes without a lock.
    """

    daemon_threads = True

    def __init__(self, moto_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Forwarder)
        self.moto_port = moto_port
        self.faults: list[tuple[str, int, str]] = []
        self.put_lock = Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Forwarder(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Gateway

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = f"{self.command} {self.path}"
        fault = next((fault for fault in self.server.faults if fault[0] in request), None)
        if fault:
            self.server.faults.remove(fault)
            _, status, code = fault
            if status != LOSE_ANSWER:
                self._answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
                return
        with self.server.put_lock:
            moto = HTTPConnection("127.0.0.1", self.server.moto_port)
            moto.request(self.command, self.path, body, dict(self.headers))
            answer = moto.getresponse()
            content = answer.read()
            moto.close()
        if fault:
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.getheaders()), content)

    do_HEAD = do_PUT = do_POST = do_GET

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            if name.lower() not in ("connection", "transfer-encoding", "server", "date"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def moto_port() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def gateway(moto_port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Gateway]:
    gateway = Gateway(moto_port)
    thread = Thread(target=gateway.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", gateway.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "not-a-real-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-aws-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield gateway
    gateway.shutdown()
    thread.join()
    gateway.server_close()


@pytest.fixture
def bucket(gateway: Gateway) -> str:
    name = f"bucket-{uuid4().hex[:8]}"
    boto3.session.Session().client("s3", endpoint_url=gateway.url).create_bucket(Bucket=name)
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
    upload_tree(tmp_path / "model", store, "export/final", "me")
    upload_tree(tmp_path / "model", store, "export/final", "me-again")
    copy = download_tree(f"{store.url}/export/final", tmp_path / "cache" / "copy")
    found = {
        path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()
    }
    assert found == files
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["copy"]

    (tmp_path / "model" / "config.json").write_bytes(b"other")
    with pytest.raises(InputError, match=r"export/final/config.json: another file"):
        upload_tree(tmp_path / "model", store, "export/final", "me-thrice")


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


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"cannot be written, because .*/file is not a writable folder"):
        check_reachable(open_store(str(tmp_path / "file" / "run")))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="is not a writable folder"):
        check_reachable(open_store(str(tmp_path / "run")))


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


def test_a_put_whose_answer_was_lost_is_known_as_ours(gateway: Gateway, s3_store: Store) -> None:
    gateway.faults = [("PUT", LOSE_ANSWER, "")]
    assert s3_store.put_new("shard", b"ours", "me")
    assert gateway.faults == []
    assert s3_store.get("shard") == b"ours"


def test_a_lost_answer_does_not_claim_anothers_object(gateway: Gateway, s3_store: Store) -> None:
    s3_store.put_new("shard", b"theirs", "them")
    gateway.faults = [("PUT", LOSE_ANSWER, "")]
    assert not s3_store.put_new("shard", b"ours", "me")
    assert s3_store.get("shard") == b"theirs"


@pytest.mark.parametrize("fault", [("PUT", 409, "ConditionalRequestConflict"), ("PUT", 503, "SlowDown")])
def test_a_busy_server_is_asked_again(gateway: Gateway, s3_store: Store, fault: tuple[str, int, str]) -> None:
    gateway.faults = [fault]
    assert s3_store.put_new("shard", b"first", "one")
    gateway.faults = [fault]
    assert not s3_store.put_new("shard", b"second", "two")
    assert gateway.faults == []
    assert s3_store.get("shard") == b"first"


def test_a_refused_put_is_no_lost_race(gateway: Gateway, s3_store: Store) -> None:
    gateway.faults = [("PUT", 403, "AccessDenied")]
    with pytest.raises(ClientError, match="AccessDenied"):
        s3_store.put_new("shard", b"", "me")


def test_a_download_that_breaks_off_leaves_nothing(gateway: Gateway, s3_store: Store, tmp_path: Path) -> None:
    s3_store.put_new("config.json", b"{}", "me")
    s3_store.put_new("weights", b"w", "me")
    gateway.faults = [("HEAD", 403, "AccessDenied")]
    with pytest.raises(ClientError):
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


@pytest.mark.usefixtures("gateway")
def test_a_missing_bucket_is_told() -> None:
    assert "no bucket `absent-bucket`" in sentence("s3://absent-bucket/run")


@pytest.mark.parametrize("code", ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"])
def test_refused_credentials_are_told(gateway: Gateway, bucket: str, code: str) -> None:
    gateway.faults = [("GET", 403, code)]
    assert f"the credentials are refused ({code})" in sentence(f"s3://{bucket}/run")


def test_another_refusal_is_told(gateway: Gateway, bucket: str) -> None:
    gateway.faults = [("GET", 400, "InvalidRequest")]
    assert "S3 answers InvalidRequest" in sentence(f"s3://{bucket}/run")


def test_missing_credentials_are_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "set AWS_ACCESS_KEY_ID" in sentence(f"s3://{bucket}/run")


@pytest.mark.usefixtures("gateway")
def test_an_unreachable_endpoint_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    assert "cannot be reached" in sentence("s3://bucket/run")


@pytest.mark.usefixtures("gateway")
def test_an_endpoint_that_is_no_url_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "minio 9000")
    assert "check the bucket's name and AWS_ENDPOINT_URL_S3" in sentence("s3://bucket/run")


@pytest.mark.usefixtures("gateway")
def test_an_impossible_bucket_name_is_told() -> None:
    assert "check the bucket's name" in sentence("s3://no_such bucket!/run")
