"""One contract, kept by a folder and by S3."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import pickle
from threading import Barrier

import pytest

from dualview.errors import InputError
from dualview.storage import Entry, LocalStore, S3Store, Store, check_reachable, open_store


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


def test_what_is_removed_is_gone_with_its_folders_and_nothing_else(store: Store) -> None:
    for key in ("checkpoints/2/a/b", "checkpoints/2/c", "checkpoints/20/a", "checkpoints-2"):
        store.put_new(key, b"", "me")
    store.remove("checkpoints/2/")
    assert [entry.key for entry in store.list()] == ["checkpoints-2", "checkpoints/20/a"]
    store.remove("checkpoints/2/")
    if isinstance(store, LocalStore):
        assert sorted(path.name for path in store.folder.iterdir()) == ["checkpoints", "checkpoints-2"]
        assert [path.name for path in (store.folder / "checkpoints").iterdir()] == ["20"]


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
