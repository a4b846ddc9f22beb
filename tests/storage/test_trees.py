"""Folders of files to a store and back."""

import os
from pathlib import Path

from faulty_s3 import ALWAYS, FaultyS3, error
import pytest

from dualview.errors import InputError, Interruption
from dualview.storage import Store, download_tree, open_store, upload_tree


def test_a_tree_comes_back_as_it_went(store: Store, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "weights/model.safetensors": b"\1" * 1000, ".gitattributes": b"text"}
    for name, data in files.items():
        (tmp_path / "model" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / name).write_bytes(data)
    upload_tree(tmp_path / "model", store, "export/final")
    upload_tree(tmp_path / "model", store, "export/final")  # as after a crash
    copy = download_tree(open_store(f"{store.url}/export/final"), tmp_path / "cache" / "copy")
    found = {
        path.relative_to(copy).as_posix(): path.read_bytes() for path in copy.rglob("*") if path.is_file()
    }
    assert found == files
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["copy"]


def test_a_folder_with_content_is_not_downloaded_again(store: Store, tmp_path: Path) -> None:
    store.put_new("config.json", b"new", "me")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "config.json").write_bytes(b"old")
    download_tree(store, tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").read_bytes() == b"old"


def test_downloading_nothing_is_the_users_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder"):
        download_tree(open_store(f"{store.url}/typo"), tmp_path / "copy")


def test_a_download_that_breaks_off_leaves_nothing(s3: FaultyS3, s3_store: Store, tmp_path: Path) -> None:
    s3_store.put_new("config.json", b"{}", "me")
    s3_store.put_new("weights", b"w", "me")
    s3.faults = [("/run/weights", error(403, "AccessDenied"), ALWAYS)]
    with pytest.raises(Interruption):
        download_tree(s3_store, tmp_path / "cache" / "copy")
    assert os.listdir(tmp_path / "cache") == []
