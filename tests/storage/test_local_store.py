"""A folder's own troubles."""

import errno
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from dualview.errors import InputError, Interruption
from dualview.storage import Entry, check_reachable, open_store


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
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EACCES, "give the job write permission there"),
        (errno.EPERM, "give the job permission to write and to create hard links there"),
        (errno.EROFS, "mount it read-write"),
        (errno.EIO, "check the disk and the folder"),
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
        f"{tmp_path}/{name}: cannot be written (No space left on device); free some space"
        for name in ("data/two", "another-copy")
    ]
