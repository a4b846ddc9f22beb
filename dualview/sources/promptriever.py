"""Examples from Promptriever's training set (hub:samaya-ai/msmarco-w-instructions), or files in its layout.

It holds each MS MARCO query twice, without and with an instruction: 980,250 rows, half of each kind. The columns,
according to its card, 2409.11136 and its public loaders:

    query_id           the plain row's id; with an instruction, followed by "-instruct"
    query              the encoder's input: only_query, then a space and only_instruction if there is one
    only_query         the query alone
    only_instruction   the instruction alone
    has_instruction    distinguishes the two kinds of rows
    positive_passages  exactly one for a row with an instruction; an LLM wrote some of them
    negative_passages  about 30, mined for the query alone: hard negatives
    new_negatives      up to 3, written by an LLM to match the query and break the instruction: instruction
                       negatives. Not included in negative_passages; a passage in both columns counts as an
                       instruction negative here.

A passage is {docid, title, text}. Some have annotations (explanation, followir_score, joint_id), which are ignored.
The title "-" means no title.

A row with an instruction and at least one instruction negative is an example: its positive is the first positive
passage, its id is query_id. Rows without an instruction are kept separately for mixtures, see keep_plain. Rows with an
instruction but no instruction negatives are dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from dualview.arrow import EXAMPLE_SCHEMA
from dualview.errors import InputError
from dualview.records import Passage, SourceExample
from dualview.runs.plan import Input
from dualview.sources.files import Layout, MapFunction, num_plain, read_examples, read_plain, survey
from dualview.storage import Store

_ROWS_A_PART = 4096
_EXAMPLE = '{"query_id": "1-instruct", "query": "...", "has_instruction": true, "new_negatives": [...], ...}'
_PASSAGE_EXAMPLE = '{"docid": "7", "title": "Chad", "text": "Chad: Central Africa; landlocked."}'


@dataclass(frozen=True)
class Promptriever:
    """Files, and folders with files, that end in .jsonl or .parquet; local, at s3://... or hub:OWNER/NAME."""

    paths: tuple[str, ...]
    max_bad_share: float

    def inputs(self, known: Sequence[Input] = (), each: MapFunction = map) -> list[Input]:
        """Check every row of every file and return one input per file: see files.survey."""
        return survey(self.paths, _LAYOUT, self.max_bad_share, known, each)

    def read(self, source: Input, start: int, stop: int) -> list[SourceExample]:
        return read_examples(source, start, stop, _LAYOUT)


def keep_plain(store: Store, inputs: Sequence[Input], each: MapFunction = map) -> None:
    """Write the rows without an instruction to plain/part-*.parquet, in EXAMPLE_SCHEMA with instruction "".

    Their query_id is that of the example with the same query. `inputs` must be in plan order, because parts are
    numbered across them. Each part is created once, so a repeated call writes only missing parts.
    """
    spans = [
        (source, start, min(start + _ROWS_A_PART, num_rows))
        for source in inputs
        for num_rows in [num_plain(source)]
        for start in range(0, num_rows, _ROWS_A_PART)
    ]
    existing = {entry.key for entry in store.list("plain/")}
    parts = {f"plain/part-{number:06d}.parquet": span for number, span in enumerate(spans)}
    for _ in each(partial(_write_part, store), [part for part in parts.items() if part[0] not in existing]):
        pass


def _write_part(store: Store, part: tuple[str, tuple[Input, int, int]]) -> None:
    key, (source, start, stop) = part
    rows = [asdict(example) for example in read_plain(source, start, stop, _LAYOUT)]
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA), buffer, compression="zstd")
    store.put_new(key, buffer.getvalue().to_pybytes(), attempt=uuid4().hex)


# --- one row --------------------------------------------------------------------------------------


def _example(row: Any, where: str) -> SourceExample | None:
    """Parse a row; None if it has an instruction but no instruction negatives."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected an object, for example {_EXAMPLE}, but found {row!r:.60}")
    instructed = row.get("has_instruction")
    if not isinstance(instructed, bool):
        raise _unexpected(row, "has_instruction", where, "true or false", "true")
    if instructed and not row.get("new_negatives"):
        return None
    positives = _passages(row, "positive_passages", where)
    if not positives:
        raise _unexpected(row, "positive_passages", where, "a list with a passage", f"[{_PASSAGE_EXAMPLE}]")
    negatives = _passages(row, "new_negatives", where) if instructed else []
    row_id = _text(row, "query_id", where, '"1-instruct"')
    roles = _distinct([positives[0]], negatives, _passages(row, "negative_passages", where))
    if instructed and not roles[1]:
        raise InputError(
            f"{where}: `new_negatives` repeats only the positive; expected a passage that breaks the instruction"
        )
    return SourceExample(
        id=row_id,
        query_id=row_id.removesuffix("-instruct"),
        query=_text(
            row, "only_query" if instructed or row.get("only_query") else "query", where, '"main ports"'
        ),
        instruction=_text(row, "only_instruction", where, '"Only islands."') if instructed else "",
        positive=positives[0],
        instruction_negatives=tuple(roles[1]),
        hard_negatives=tuple(roles[2]),
    )


def _distinct(*roles: Sequence[Passage]) -> list[list[Passage]]:
    """Keep each passage, identified by its text, only in the first role that has it.

    Several texts may share an id, because LLM-written passages have no MS MARCO id. The second becomes id#2, so that
    ids are unique within an example.
    """
    texts: set[str] = set()
    ids: set[str] = set()
    kept: list[list[Passage]] = []
    for passages in roles:
        kept.append([])
        for passage in passages:
            if passage.full_text in texts:
                continue
            texts.add(passage.full_text)
            unique, count = passage.id, 1
            while unique in ids:
                count += 1
                unique = f"{passage.id}#{count}"
            ids.add(unique)
            kept[-1].append(passage if unique == passage.id else replace(passage, id=unique))
    return kept


def _passages(row: Mapping[str, Any], key: str, where: str) -> list[Passage]:
    items = row.get(key) or []
    if not isinstance(items, list):
        raise _unexpected(row, key, where, "a list", f"[{_PASSAGE_EXAMPLE}]")
    return [_passage(item, f"{where}, {key}[{index}]") for index, item in enumerate(items)]


def _passage(value: Any, where: str) -> Passage:
    if not isinstance(value, dict):
        raise InputError(
            f"{where}: expected an object, for example {_PASSAGE_EXAMPLE}, but found {value!r:.60}"
        )
    title = value.get("title") or ""
    if not isinstance(title, str):
        raise _unexpected(value, "title", where, "a string", '"Chad"')
    return Passage(
        id=_text(value, "docid", where, '"7"'),
        text=_text(value, "text", where, '"Chad: Central Africa; landlocked."'),
        title="" if title == "-" else title,
    )


def _text(columns: Mapping[str, Any], key: str, where: str, example: str) -> str:
    value = columns.get(key)
    if not isinstance(value, str) or not value.strip():
        raise _unexpected(columns, key, where, "a non-empty string", example)
    return value


def _unexpected(columns: Mapping[str, Any], key: str, where: str, expected: str, example: str) -> InputError:
    if key not in columns:
        return InputError(f"{where}: has no `{key}`; expected {expected}, for example {example}")
    return InputError(f"{where}: `{key}` is {columns[key]!r:.60}; expected {expected}, for example {example}")


_LAYOUT = Layout(id_column="query_id", parse=_example, plain_apart=True)
