"""The manifest pins an output to the settings that created it, and lists the code that worked on it.

Overlapping jobs are safe only because puts are create-only, so pinning also checks that the store honours that.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
import json
from typing import Any
from uuid import uuid4

from dualview.config.base import canonical_json, fingerprint
from dualview.errors import InputError
from dualview.provenance import Code, code, libraries
from dualview.storage import Store

CODE_PREFIX = "code/"

_NUM_DIFFERENCES_SHOWN = 3


def pin_manifest(
    store: Store,
    key: str,
    content: Mapping[str, Any],
    metadata: Mapping[str, Any],
    deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Pins the output to `content`, or checks that it is already pinned to the same.

    Compares only what `deciding` returns for the content. `metadata` is stored beside it for human readers and
    never compared; neither is the code, which record_code lists. Raises InputError, naming the differences, if
    the output is pinned to other content, and if the store lets a second writer replace an object.
    """
    text = json.dumps({**metadata, **content}, indent=2, ensure_ascii=False, allow_nan=False).encode()
    try:
        stored = store.get(key)
    except FileNotFoundError:
        store.put_new(key, text, attempt=uuid4().hex)
        stored = store.get(key)  # another writer's, if it was first
    _check_create_only(store, key, stored)
    try:
        pinned = deciding({name: value for name, value in json.loads(stored).items() if name not in metadata})
    except (ValueError, AttributeError, KeyError):
        raise InputError(
            f"{store.url}/{key}: is not a JSON object of such settings; choose another output"
        ) from None
    if found := differences(pinned, deciding(json.loads(json.dumps(content)))):
        raise InputError(
            f"{store.url}: holds a run with other settings ({found});"
            " choose another output, or put the settings back"
        )
    record_code(store)


def pin_embedding_cache(store: Store) -> None:
    """Pins an embedding cache that runs share; each object in it is named by what determines its content."""
    pin_manifest(store, "shelf.json", {"holds": "vectors that several runs share"}, metadata={})


def record_code(store: Store) -> None:
    """Records which code works on this output, once per version, so that a run made by two versions shows both."""
    record = {"code": asdict(code()), "libraries": libraries()}
    data = json.dumps(record, indent=2).encode()
    store.put_new(f"{CODE_PREFIX}{fingerprint(record)}.json", data, attempt=uuid4().hex)


def read_codes(store: Store) -> list[tuple[Code, dict[str, str]]]:
    """Each version of the code that worked on the output, and its libraries' versions; see record_code."""
    records = [json.loads(store.get(entry.key)) for entry in store.list(CODE_PREFIX)]
    return [(Code(**record["code"]), record["libraries"]) for record in records]


def _check_create_only(store: Store, key: str, data: bytes) -> None:
    """Puts the stored bytes again, as another writer would: harmless if it succeeds, but it must not."""
    if store.put_new(key, data, attempt=uuid4().hex):
        raise InputError(
            f"{store.url}: this store replaces existing objects: it ignores `If-None-Match: *`,"
            " so two jobs would overwrite each other; choose a store that honours it,"
            " for example AWS S3, MinIO, Cloudflare R2 or Ceph (cluster/README.md, Stores)"
        )


def differences(stored: Any, given: Any) -> str:
    """The first few, for an error message; "" if there are none. An absent key equals null."""
    stored_flat, given_flat = dict(_flatten(stored)), dict(_flatten(given))
    differing = [
        key
        for key in {**stored_flat, **given_flat}
        if stored_flat.get(key, "null") != given_flat.get(key, "null")
    ]
    shown = [
        f"{key}: stored {stored_flat.get(key, 'absent')}, given {given_flat.get(key, 'absent')}"
        for key in differing[:_NUM_DIFFERENCES_SHOWN]
    ]
    num_more = len(differing) - len(shown)
    return "; ".join([*shown, f"{num_more} more"] if num_more else shown)


def _flatten(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Leaves as (dotted key, JSON)."""
    if value and isinstance(value, dict | list | tuple):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flatten(inner, (*path, str(key)))
    else:
        yield ".".join(path), canonical_json(value)
