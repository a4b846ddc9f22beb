"""Publishes an output of several files, all from the same attempt, even if attempts overlap or are killed.

    exports/ATTEMPT/...     the files of one attempt
    exported.json           the attempt whose files are published; created once
    encoder/..., result.json    copies of its files, result.json last

Attempts may differ in the last bits, so their files must not be mixed. Once exported.json exists, anyone can finish
the copying without computing anything again.
"""

import json
from pathlib import Path

from dualview.errors import InputError
from dualview.storage import Store, upload_tree

CHOSEN_KEY = "exported.json"
LAST_KEY = "result.json"
_EXPORTS = "exports/"


def offer(store: Store, attempt: str, folder: Path) -> None:
    """Puts the folder's files, result.json included, as this attempt's export. The first complete export is chosen."""
    upload_tree(folder, store, f"{_EXPORTS}{attempt}")
    store.put_new(CHOSEN_KEY, json.dumps({"attempt": attempt}).encode(), attempt)


def publish(store: Store) -> bool:
    """Copies the chosen export into place, as far as still needed; returns False if none is chosen yet.

    Raises InputError if other files are in its place.
    """
    if not store.list(LAST_KEY):
        if not store.list(CHOSEN_KEY):
            return False
        try:
            _copy(store, json.loads(store.get(CHOSEN_KEY))["attempt"])
        except FileNotFoundError:  # another attempt was faster and has removed the export
            if not store.list(LAST_KEY):
                raise
    store.remove(_EXPORTS)
    return True


def _copy(store: Store, attempt: str) -> None:
    export = f"{_EXPORTS}{attempt}/"
    keys = [entry.key.removeprefix(export) for entry in store.list(export)]
    for key in sorted(keys, key=lambda key: key == LAST_KEY):
        data = store.get(export + key)
        if not store.put_new(key, data, attempt) and store.get(key) != data:
            raise InputError(f"{store.url}/{key}: another file is there already; choose another output")
