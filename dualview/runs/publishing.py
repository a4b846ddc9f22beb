"""An output of several files, all of one attempt's making, whoever is killed when and whatever overlaps.

    exports/ATTEMPT/...     what an attempt has made, under its own name
    exported.json           whose export is the output's; created once
    encoder/..., result.json    copies of that one, result.json last

Attempts may differ in the last bits, so their files must not mix. Once exported.json exists, anyone can finish the
copying, and nobody has to compute anything again.
"""

import json
from pathlib import Path

from dualview.errors import InputError
from dualview.storage import Store, upload_tree

CHOSEN_KEY = "exported.json"
LAST_KEY = "result.json"
_EXPORTS = "exports/"


def offer(store: Store, attempt: str, folder: Path) -> None:
    """Puts the files of the folder, with its result.json, as this attempt's export; the first that is whole is chosen."""
    upload_tree(folder, store, f"{_EXPORTS}{attempt}")
    store.put_new(CHOSEN_KEY, json.dumps({"attempt": attempt}).encode(), attempt)


def publish(store: Store) -> bool:
    """Copies the chosen export into its place, as far as that is not done; False where none is chosen yet.

    Raises InputError where other files are in its place.
    """
    if not store.list(LAST_KEY):
        if not store.list(CHOSEN_KEY):
            return False
        try:
            _copy(store, json.loads(store.get(CHOSEN_KEY))["attempt"])
        except FileNotFoundError:  # another was faster, and has removed the export
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
