"""Hub data sets in a local folder. Their README.md lists configs and files."""

from collections.abc import Iterator
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dualview.beir import Row, read_rows
from dualview.errors import InputError
from dualview.models import local_data

_SUFFIXES = (".jsonl", ".json", ".parquet")
_SPLIT = "test"


class Mirror:
    """A data set and its configs ("corpus", "queries", ...), each a table.

    A config that README.md does not list is the file or folder of its name. Raises InputError if the folder does not
    exist; the message says how to get `hub_name`.
    """

    def __init__(self, path: str, hub_name: str) -> None:
        self.folder, self.hub_name = local_data(path, hub_name), hub_name
        self._configs = {config["config_name"]: config.get("data_files", []) for config in self._declared()}

    def _declared(self) -> list[dict[str, Any]]:
        readme = self.folder / "README.md"
        parts = readme.read_text().split("---\n", 2) if readme.is_file() else []
        if len(parts) < 3 or parts[0].strip():
            return []
        try:
            declared = (yaml.safe_load(parts[1]) or {}).get("configs") or []
        except (yaml.YAMLError, AttributeError):
            raise InputError(f"{readme}: the front matter between the --- lines is not YAML") from None
        return [config for config in declared if "config_name" in config]

    def rows(self, *names: str) -> list[Row]:
        """The rows of the first of these configs that exists, from its split `test` or its only split.

        Raises InputError if none exists or a file cannot be read.
        """
        for name in names:
            if files := self._files(name):
                return [row for file in files for row in rows_of_mirrored(file)]
        raise InputError(
            f"{self.folder}: has no config {' or '.join(names)} with files in .jsonl or .parquet;"
            f" expected a mirror of the data set {self.hub_name}"
        )

    def has(self, name: str) -> bool:
        return bool(self._files(name))

    def _files(self, name: str) -> list[Path]:
        declared = self._configs.get(name)
        if declared is None:
            patterns = [f"{name}{suffix}" for suffix in _SUFFIXES] + [f"{name}/*"]
        elif isinstance(declared, list) and all(isinstance(entry, dict) for entry in declared):
            splits = {entry["split"]: entry["path"] for entry in declared}
            chosen = splits.get(_SPLIT, next(iter(splits.values())) if len(splits) == 1 else [])
            patterns = [chosen] if isinstance(chosen, str) else chosen
        else:
            patterns = [declared] if isinstance(declared, str) else declared
        files = {file for pattern in patterns for file in self.folder.glob(pattern)}
        return sorted(file for file in files if file.suffix in _SUFFIXES)


def rows_of_mirrored(file: Path) -> Iterator[Row]:
    """The rows of a JSONL or Parquet file. Raises InputError if it cannot be read."""
    if file.suffix != ".parquet":
        yield from read_rows(str(file))
        return
    try:
        with pq.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for columns in batch.to_pylist():
                    number += 1
                    yield Row(f"{file} row {number}", 0, columns)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None


def rows_of_json(file: Path) -> list[Any]:
    """The items of a JSON list. Raises InputError if the file is anything else."""
    try:
        items = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(items, list):
        raise InputError(f"{file}: expected a JSON list, found {type(items).__name__}")
    return items
