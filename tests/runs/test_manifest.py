"""Pinned outputs, over a folder and over S3; and a server that does not keep create-only puts."""

from collections.abc import Iterator
import json
from uuid import uuid4

from faulty_s3 import FaultyS3, bucket
import pytest

from dualview.errors import InputError
from dualview.runs.manifest import CODE_PREFIX, pin_manifest
from dualview.storage import Store, open_store

SETTINGS = {"temperature": 0.7}


def keys(store: Store) -> list[str]:
    """Without the records of which code was here."""
    return [entry.key for entry in store.list() if not entry.key.startswith(CODE_PREFIX)]


def test_pinning_leaves_one_object_and_holds_for_the_same_settings(store: Store) -> None:
    for note in ("first", "second"):
        pin_manifest(store, "config.json", SETTINGS, metadata={"note": note})
    assert keys(store) == ["config.json"]
    assert json.loads(store.get("config.json")) == {"note": "first", **SETTINGS}
    with pytest.raises(InputError, match=r"\(temperature: stored 0.7, given 0.9\)"):
        pin_manifest(store, "config.json", {"temperature": 0.9}, metadata={"note": "third"})


@pytest.fixture
def s3() -> FaultyS3:
    return FaultyS3()


@pytest.fixture
def s3_store(s3: FaultyS3) -> Iterator[Store]:
    with bucket(s3, f"bucket-{uuid4().hex[:8]}") as url:
        yield open_store(f"{url}/run")


def test_a_store_that_ignores_the_condition_of_a_put_is_refused_to_every_writer(
    s3: FaultyS3, s3_store: Store
) -> None:
    s3.ignores_conditions = True
    for settings in (SETTINGS, {"temperature": 0.9}):
        with pytest.raises(InputError, match="it ignores `If-None-Match: ") as caught:
            pin_manifest(s3_store, "config.json", settings, metadata={})
        assert str(caught.value).startswith(f"{s3_store.url}: ")
    assert keys(s3_store) == ["config.json"]
    assert json.loads(s3_store.get("config.json")) == SETTINGS  # nor does the refused one overwrite it


def test_a_store_that_no_longer_keeps_the_condition_is_refused_to_those_who_go_on(
    s3: FaultyS3, s3_store: Store
) -> None:
    pin_manifest(s3_store, "config.json", SETTINGS, metadata={})
    s3.ignores_conditions = True
    with pytest.raises(InputError, match="it ignores `If-None-Match: "):
        pin_manifest(s3_store, "config.json", SETTINGS, metadata={})
