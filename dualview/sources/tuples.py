"""Seeds from JSONL or Parquet files in the layout of records.SEED_SCHEMA.

One row is one seed. A JSON line has the columns as keys and attributes as an object:

    {"id": "s1", "query_id": "q1", "query": "main ports", "instruction": "Only islands.",
     "positive": {"id": "p1", "text": "..."}, "instruction_negatives": [{"id": "p2", "text": "..."}]}

`hard_negatives` and `requirements` may be left out or null, and so may a passage's `title` and
`attributes`. Any other key is refused, because a misspelt one would drop data silently.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache
import hashlib
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dualview.errors import InputError
from dualview.records import Passage, Requirement, Seed
from dualview.shards import Input
from dualview.storage import S3Store, check_reachable, open_store

_SUFFIXES = (".jsonl", ".parquet")
_EXAMPLES = {
    "id": "chad-1",
    "query_id": "ports",
    "query": "main ports",
    "instruction": "Only countries that are islands.",
    "text": "Chad: Central Africa; landlocked.",
    "title": "Chad",
    "facet": "region",
    "value": "africa",
}
_PASSAGE_EXAMPLE = '{"id": "chad-1", "text": "Chad: Central Africa; landlocked."}'
_REQUIREMENT_EXAMPLE = '{"include": true, "facet": "region", "value": "africa"}'


@dataclass(frozen=True)
class Tuples:
    """Files, and folders with files, that end in .jsonl or .parquet; local or at s3://bucket/prefix.

    Other files of a folder are not read. A file is held in memory whole.
    """

    paths: tuple[str, ...]

    def inputs(self) -> list[Input]:
        """One input a file, after every row of every file was checked.

        Raises InputError at the first row that is wrong, and where nothing lies at a path.
        """
        inputs = []
        places: dict[str, str] = {}  # seed id -> where it stands
        for file in (file for path in self.paths for file in _files(path)):
            checksum, seeds = _load(file)
            for index, seed in enumerate(seeds):
                where = _place(file, index)
                if seed.id in places:
                    raise InputError(
                        f"{where}: the seed id {seed.id!r} stands at {places[seed.id]} already;"
                        " expected another id for each seed"
                    )
                places[seed.id] = where
            inputs.append(Input(file, len(seeds), checksum))
        return inputs

    def read(self, input_name: str, start: int, stop: int) -> list[Seed]:
        _, seeds = _load(input_name)
        return list(seeds[start:stop])


def _files(path: str) -> list[str]:
    """The files at a path by their full names, so that they can be read from any working folder."""
    is_file = path.endswith(_SUFFIXES)
    folder, name = _split(path) if is_file else (path, "")
    store = open_store(folder)
    if isinstance(store, S3Store):
        check_reachable(store)
    keys = [name] if is_file else [entry.key for entry in store.list() if entry.key.endswith(_SUFFIXES)]
    if not keys:
        raise InputError(
            f"{path}: no file that ends in .jsonl or .parquet lies there; expected a folder with such files"
            " or one such file, for example seeds.jsonl"
        )
    return [f"{store.url}/{key}" for key in keys]


def _split(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return folder + slash or ".", name


@lru_cache(maxsize=2)  # the shards of a file are read one after the other
def _load(file: str) -> tuple[str, tuple[Seed, ...]]:
    """The SHA-256 of a file, and its seeds."""
    folder, name = _split(file)
    try:
        content = open_store(folder).get(name)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{file}: there is no such file; expected JSONL or Parquet with seeds") from None
    rows = _jsonl_rows(content, file) if file.endswith(".jsonl") else _parquet_rows(content, file)
    seeds = tuple(_seed(row, _place(file, index)) for index, row in enumerate(rows))
    if not seeds:
        raise InputError(f"{file}: has no rows; expected one seed a row")
    return hashlib.sha256(content).hexdigest(), seeds


def _place(file: str, index: int) -> str:
    return f"{file} {'line' if file.endswith('.jsonl') else 'row'} {index + 1}"


def _jsonl_rows(content: bytes, file: str) -> Iterator[Any]:
    # Not str.splitlines: it also cuts at characters that may stand inside a JSON string.
    lines = content.rstrip().split(b"\n") if content.strip() else []
    for index, line in enumerate(lines):
        try:
            yield json.loads(line)
        except ValueError as error:  # not JSON, or not UTF-8
            raise InputError(
                f'{_place(file, index)}: is not a JSON object ({error}); expected {{"id": "seed-1", ...}}'
            ) from None


def _parquet_rows(content: bytes, file: str) -> Iterator[Any]:
    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{file}: is not a Parquet file ({reason}); expected columns of seeds") from None
    for batch in table.to_batches():
        yield from map(_like_json, batch.to_pylist())


def _like_json(value: Any) -> Any:
    """Arrow's maps (lists of pairs) become objects; fields that are null are left out, as in JSON."""
    if isinstance(value, dict):
        return {key: _like_json(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        return dict(value)
    return [_like_json(item) for item in value] if isinstance(value, list) else value


# --- one row --------------------------------------------------------------------------------------


def _seed(row: Any, where: str) -> Seed:
    """The row as a Seed. Raises InputError that names the place, what was expected, and an example."""
    required = ("id", "query_id", "query", "instruction", "positive", "instruction_negatives")
    row = _checked_object(row, where, required, ("hard_negatives", "requirements"), '{"id": "seed-1", ...}')
    seed = Seed(
        id=_text(row, "id", where),
        query_id=_text(row, "query_id", where),
        query=_text(row, "query", where),
        instruction=_text(row, "instruction", where),
        positive=_passage(row["positive"], f"{where}, positive"),
        instruction_negatives=_passages(row, "instruction_negatives", where),
        hard_negatives=_passages(row, "hard_negatives", where),
        requirements=tuple(
            _requirement(item, f"{where}, requirements[{index}]")
            for index, item in enumerate(_list(row, "requirements", where, _REQUIREMENT_EXAMPLE))
        ),
    )
    if not seed.instruction_negatives:
        raise InputError(
            f"{where}: `instruction_negatives` is empty; expected at least one passage that breaks the"
            f" instruction, for example [{_PASSAGE_EXAMPLE}]"
        )
    _check_distinct(seed, where)
    return seed


def _check_distinct(seed: Seed, where: str) -> None:
    roles = {seed.positive.id: "positive"}
    for role in ("instruction_negatives", "hard_negatives"):
        for index, passage in enumerate(getattr(seed, role)):
            this = f"{role}[{index}]"
            if passage.id in roles:
                raise InputError(
                    f"{where}: {this} has the id {passage.id!r} of {roles[passage.id]};"
                    " expected each passage in one role only"
                )
            roles[passage.id] = this
    for index, passage in enumerate(seed.instruction_negatives):
        if passage.full_text == seed.positive.full_text:
            raise InputError(
                f"{where}: instruction_negatives[{index}] has the text of the positive;"
                " expected a passage that breaks the instruction"
            )


def _passages(row: dict[str, Any], key: str, where: str) -> tuple[Passage, ...]:
    return tuple(
        _passage(item, f"{where}, {key}[{index}]")
        for index, item in enumerate(_list(row, key, where, _PASSAGE_EXAMPLE))
    )


def _passage(value: Any, where: str) -> Passage:
    columns = _checked_object(value, where, ("id", "text"), ("title", "attributes"), _PASSAGE_EXAMPLE)
    title, attributes = columns.get("title") or "", columns.get("attributes") or {}
    if not isinstance(title, str):
        raise _unexpected(title, "title", where, "a string", json.dumps(_EXAMPLES["title"]))
    if not isinstance(attributes, dict) or not all(isinstance(item, str) for item in attributes.values()):
        raise _unexpected(attributes, "attributes", where, "an object of strings", '{"region": "africa"}')
    return Passage(_text(columns, "id", where), _text(columns, "text", where), title, attributes)


def _requirement(value: Any, where: str) -> Requirement:
    columns = _checked_object(value, where, ("include", "facet", "value"), (), _REQUIREMENT_EXAMPLE)
    if not isinstance(columns["include"], bool):
        raise _unexpected(columns["include"], "include", where, "true or false", "true")
    return Requirement(columns["include"], _text(columns, "facet", where), _text(columns, "value", where))


def _checked_object(
    value: Any, where: str, required: Collection[str], optional: Collection[str], example: str
) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, for example {example}, but found {value!r:.60}")
    if absent := [key for key in required if key not in value]:
        raise InputError(f"{where}: has no `{absent[0]}`; expected an object like {example} with it")
    if unknown := [key for key in value if key not in {*required, *optional}]:
        raise InputError(
            f"{where}: unknown key `{unknown[0]}`; expected only {', '.join((*required, *optional))}"
        )
    return value


def _text(columns: dict[str, Any], key: str, where: str) -> str:
    value = columns[key]
    if not isinstance(value, str) or not value.strip():
        raise _unexpected(value, key, where, "a string that is not empty", json.dumps(_EXAMPLES[key]))
    return value


def _list(row: dict[str, Any], key: str, where: str, example: str) -> list[Any]:
    value = row.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _unexpected(value, key, where, "a list", f"[{example}]")
    return value


def _unexpected(value: Any, key: str, where: str, expected: str, example: str) -> InputError:
    return InputError(f"{where}: `{key}` is {value!r:.60}; expected {expected}, for example {example}")
