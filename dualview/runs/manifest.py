"""An output is what it was first claimed for: settings that differ are refused, and told.

All that is promised of overlapping jobs rests on create-only puts, so a claim also tries whether the store keeps them.
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


def claim(
    store: Store,
    key: str,
    content: Mapping[str, Any],
    notes: Mapping[str, Any],
    deciding: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Makes `content` what the output is, or finds that it already is.

    `notes` stand beside it for human readers, and are not compared; nor is the code that makes the claim,
    which note_code keeps. Of the content only what `deciding` leaves of it is compared. Raises InputError,
    saying what differs, where the output was claimed with other content, and where the store lets a second
    writer replace an object.
    """
    text = json.dumps({**notes, **content}, indent=2, ensure_ascii=False, allow_nan=False).encode()
    try:
        standing = store.get(key)
    except FileNotFoundError:
        store.put_new(key, text, attempt=uuid4().hex)
        standing = store.get(key)  # another's, where that one was first
    _check_create_only(store, key, standing)
    try:
        claimed = deciding({name: value for name, value in json.loads(standing).items() if name not in notes})
    except (ValueError, AttributeError, KeyError):
        raise InputError(
            f"{store.url}/{key}: is not a JSON object of such settings; choose another output"
        ) from None
    if told := differences(claimed, deciding(json.loads(json.dumps(content)))):
        raise InputError(
            f"{store.url}: holds a run with other settings ({told});"
            " choose another output, or put the settings back"
        )
    note_code(store)


def claim_shelf(store: Store) -> None:
    """Claims a folder that runs share, whose objects are named by what decides their content."""
    claim(store, "shelf.json", {"holds": "vectors that several runs share"}, notes={})


def note_code(store: Store) -> None:
    """Leaves which code works on this output, once for each: a run that two versions made shows it."""
    note = {"code": asdict(code()), "libraries": libraries()}
    data = json.dumps(note, indent=2).encode()
    store.put_new(f"{CODE_PREFIX}{fingerprint(note)}.json", data, attempt=uuid4().hex)


def read_codes(store: Store) -> list[tuple[Code, dict[str, str]]]:
    """What note_code left: each code that worked on the output, and the versions of its libraries."""
    notes = [json.loads(store.get(entry.key)) for entry in store.list(CODE_PREFIX)]
    return [(Code(**note["code"]), note["libraries"]) for note in notes]


def _check_create_only(store: Store, key: str, data: bytes) -> None:
    """Puts what stands once more, as another writer would: harmless where it succeeds, but it must not."""
    if store.put_new(key, data, attempt=uuid4().hex):
        raise InputError(
            f"{store.url}: this store replaces objects that are to be created only: it ignores"
            " `If-None-Match: *`, and two jobs would overwrite each other; choose a store that honours it,"
            " for example AWS S3, MinIO, Cloudflare R2 or Ceph (cluster/README.md, Stores)"
        )


def differences(there: Any, here: Any) -> str:
    """The first few, for a sentence; "" where there are none."""
    there_flat, here_flat = dict(_flatten(there)), dict(_flatten(here))
    differing = [key for key in {**there_flat, **here_flat} if there_flat.get(key) != here_flat.get(key)]
    shown = [
        f"{key}: there {there_flat.get(key, 'absent')}, here {here_flat.get(key, 'absent')}"
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
