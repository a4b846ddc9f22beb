"""Reads a BEIR folder row by row: corpus.jsonl, queries.jsonl and qrels; local or on S3.

{"_id": "184", "title": "scale models", "text": "..."}     a line of corpus.jsonl; title is optional
{"_id": "1", "text": "similarity laws"}                    a line of queries.jsonl
query-id <tab> corpus-id <tab> score                       the header of qrels, then one relevance judgement per line
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
import hashlib
import io
import json
import math
from typing import Any

from dualview.errors import InputError
from dualview.records import Passage
from dualview.storage import arrow_filesystem

QRELS_HEADER = "query-id\tcorpus-id\tscore"
_BUFFER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file."""

    where: str  # file and line
    start: int  # byte offset of the line
    columns: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Raises InputError if the key does not hold a string."""
        if not isinstance(self.columns.get(key), str):
            found = self.columns.get(key, "nothing")
            raise InputError(f"{self.where}: `{key}` must be a string, found {found!r}")
        return str(self.columns[key])

    def id(self, key: str = "_id") -> str:
        """Raises InputError if the key does not hold a non-empty string."""
        if not (id := self.text(key)):
            raise InputError(f'{self.where}: `{key}` is empty; expected an id, for example "184"')
        return id

    def passage(self) -> Passage:
        """The row as a passage of corpus.jsonl."""
        title = self.text("title") if "title" in self.columns else ""
        return Passage(self.id(), text=self.text("text"), title=title)


def read_rows(url: str) -> Iterator[Row]:
    """Yield the objects of a JSON Lines file in order; skip blank lines.

    Raises InputError if the file cannot be read, has no rows, or has a line that is not a JSON object.
    """
    is_empty = True
    for where, start, line in _lines(url):
        if line.strip():
            is_empty = False
            yield Row(where, start, _object(line, where))
    if is_empty:
        raise InputError(f"{url}: is empty; expected one JSON object per line")


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        columns = json.loads(line)
        if "\\ud" in line or "\\uD" in line:  # a lone surrogate is valid JSON, but cannot be stored as UTF-8
            json.dumps(columns, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:  # not JSON, or not Unicode
        raise InputError(f"{where}: is not valid JSON ({getattr(error, 'msg', error)})") from None
    if not isinstance(columns, dict):
        raise InputError(f'{where}: expected a JSON object, for example {{"_id": "7", "text": "..."}}')
    return columns


def by_id(rows: Iterable[Row], key: str = "_id", read: Callable[[Row, str], str] = Row.id) -> dict[str, Row]:
    """Map ids, read from the key by `read`, to rows. Raises InputError if an id occurs twice."""
    found: dict[str, Row] = {}
    for row in rows:
        id = read(row, key)
        if id in found:
            raise InputError(f"{row.where}: duplicate id {id!r}")
        found[id] = row
    return found


def read_qrels(url: str) -> dict[str, dict[str, int]]:
    """query -> passage -> grade, both in file order.

    Raises InputError if the file cannot be read, has no judgements, or has an invalid or repeated one.
    """
    qrels: dict[str, dict[str, int]] = {}
    for where, query_id, passage_id, grade in _judgements(url):
        grades = qrels.setdefault(query_id, {})
        if passage_id in grades:
            raise InputError(f"{where}: duplicate judgement of query {query_id!r} and passage {passage_id!r}")
        grades[passage_id] = grade
    if not qrels:
        raise InputError(f"{url}: has no relevance judgements")
    return qrels


def check_qrels(url: str, queries: Container[str], passages: Container[str]) -> None:
    """Raises InputError at the first judgement whose query or passage is not among these."""
    for where, query_id, passage_id, _ in _judgements(url):
        if query_id not in queries:
            raise InputError(f"{where}: the query {query_id!r} is not in queries.jsonl")
        if passage_id not in passages:
            raise InputError(f"{where}: the passage {passage_id!r} is not in corpus.jsonl")


def _judgements(url: str) -> Iterator[tuple[str, str, str, int]]:
    """Yield the place, query, passage and grade of each line after the header."""
    lines = _lines(url)
    header = next((line for _, _, line in lines), "")
    if header != QRELS_HEADER:
        raise InputError(f"{url}: begins with {header!r}; expected {QRELS_HEADER!r}")
    for where, _, line in lines:
        if not line:
            continue
        match line.split("\t"):
            case [query_id, passage_id, grade] if grade.removeprefix("-").isdecimal():
                yield where, query_id, passage_id, int(grade)
            case _:
                raise InputError(
                    f"{where}: expected query, passage and integer grade, separated by tabs; found {line!r}"
                )


def whole_grade(value: Any) -> int | None:
    """An integer grade from 2 or 2.0; None for anything else, including NaN and 0.5."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return int(value) if is_number and value == int(value) else None


def fields_of(line: str) -> list[str]:
    """Split at ASCII white space only, like trec_eval: an id may contain other kinds, such as U+00A0."""
    return [field.decode() for field in line.encode().split()]


def file_sha256(url: str) -> str:
    """The SHA-256 of a file's bytes. Raises InputError if it cannot be read."""
    with _opened(url) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_lines(url: str) -> Iterator[tuple[str, str]]:
    """Yield each line with its place. Raises InputError if the file cannot be read."""
    return ((where, line) for where, _, line in _lines(url))


def _lines(url: str) -> Iterator[tuple[str, int, str]]:
    """Yield the place, the byte offset and the text of each line, without its line ending."""
    # Binary lines end only at \n. str.splitlines also splits at characters that JSON strings and ids may contain,
    # such as U+2028.
    with _opened(url) as file:
        start = 0
        for number, line in enumerate(file, start=1):
            where = f"{url} line {number}"
            try:
                yield where, start, line.rstrip(b"\r\n").decode()
            except UnicodeDecodeError:
                raise InputError(f"{where}: is not UTF-8 text") from None
            start += len(line)


@contextmanager
def _opened(url: str) -> Iterator[io.BufferedReader]:
    filesystem, path = arrow_filesystem(url)
    try:
        with io.BufferedReader(filesystem.open_input_file(path), _BUFFER_BYTES) as file:
            yield file
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise InputError(f"{url}: cannot be read ({reason.splitlines()[0]})") from None
