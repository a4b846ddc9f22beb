"""Files of rows as inputs of a run: surveyed once, then read by any slice of their examples.

A survey reads a file once and checks every row. The input's index then locates the rows: it stores the kind of each
row and the start of each block.
"""

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
import hashlib
from typing import Any
import zlib

import numpy as np
import numpy.typing as npt

from dualview.errors import InputError
from dualview.records import SourceExample
from dualview.runs.plan import Input
from dualview.sources.rows import json_of, listed, place, read_rows, survey_rows

# Like map: applies a function to items and yields the results in order, possibly on many machines.
MapFunction = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_NUM_BAD_LISTED = 100  # per file
_NUM_BAD_SHOWN = 3  # per error message

# The kind of a row in an index.
_LEFT_OUT, _EXAMPLE, _PLAIN = range(3)


@dataclass(frozen=True)
class Layout:
    """How the rows of a file become examples.

    `parse` takes a row as a JSON value, and its place for error messages ("examples.jsonl line 7"). It returns None
    for a valid row that is not an example, and raises InputError for a bad row. `id_column` holds the example's id.
    """

    id_column: str
    parse: Callable[[Any, str], SourceExample | None]
    plain_apart: bool  # keep examples without an instruction out of the requests, for read_plain


# --- the survey -----------------------------------------------------------------------------------


def survey(
    paths: Iterable[str], layout: Layout, max_bad_share: float, known: Sequence[Input], each: MapFunction
) -> list[Input]:
    """Check every row under `paths` and return one input per file; a `known`, unchanged file is not read.

    A row is bad if its layout rejects it or an earlier row (in the order of `known`, then of the paths) has its id. Bad
    rows are left out, counted and listed. Raises InputError if there are no examples, if the share of bad rows
    among examples and bad rows exceeds max_bad_share, and at the first bad row if max_bad_share is 0.
    """
    stamps = {name: stamp for path in paths for name, stamp in listed(path)}
    before = {source.name: source for source in known if source.name in stamps}
    names = [*before, *(name for name in stamps if name not in before)]
    to_read = [name for name in names if name not in before or before[name].stamp != stamps[name]]
    if to_read:
        read = each(
            partial(_survey_file, layout, max_bad_share == 0), [(name, stamps[name]) for name in to_read]
        )
        surveyed = dict(zip(to_read, read, strict=True))
        untouched = [source for source in before.values() if source.name not in surveyed]
        for source, its_ids in zip(untouched, each(partial(_example_ids, layout), untouched), strict=True):
            surveyed[source.name] = source, its_ids
        inputs = _without_repeated([surveyed[name] for name in names], layout, max_bad_share == 0)
    else:
        inputs = list(before.values())
    _check_share(inputs, max_bad_share)
    if not any(source.num_rows for source in inputs):
        raise InputError(f"{', '.join(names[:_NUM_BAD_SHOWN])}: none of the rows is an example")
    return inputs


def _survey_file(
    layout: Layout, stop_at_bad: bool, file: tuple[str, str]
) -> tuple[Input, npt.NDArray[np.uint64]]:
    """Return a file's input, and a digest of each example's id, (examples, 2)."""
    name, stamp = file
    checksum = hashlib.sha256()
    offsets: list[int] = []
    kinds, ids = bytearray(), bytearray()
    num_bad, bad = 0, list[tuple[int, str]]()
    for row in survey_rows(name, checksum.update, offsets):
        try:
            example = _parsed(row, layout, place(name, len(kinds)))
        except InputError as error:
            if stop_at_bad:
                raise
            num_bad += 1
            if len(bad) < _NUM_BAD_LISTED:
                bad.append((len(kinds) + 1, str(error)))
            example = None
        if example is None:
            kinds.append(_LEFT_OUT)
        elif layout.plain_apart and not example.instruction:
            kinds.append(_PLAIN)
        else:
            kinds.append(_EXAMPLE)
            ids += _digest(example.id)
    if not kinds:
        raise InputError(f"{name}: has no rows; expected one example per row")
    index = _Index(np.frombuffer(kinds, np.uint8), np.array(offsets))
    source = Input(
        name,
        kinds.count(_EXAMPLE),
        checksum.hexdigest(),
        num_bad,
        bad=tuple(bad),
        stamp=stamp,
        index=index.text,
    )
    return source, np.frombuffer(ids, np.uint64).reshape(-1, 2)


def _digest(example_id: str) -> bytes:
    return hashlib.blake2b(example_id.encode(), digest_size=16).digest()


def _example_ids(layout: Layout, source: Input) -> npt.NDArray[np.uint64]:
    """Digest the ids of an input's examples without checking its rows again."""
    index = _Index.of(source)
    rows = read_rows(
        source, index.offsets, np.flatnonzero(index.kinds == _EXAMPLE), columns=[layout.id_column]
    )
    ids = b"".join(_digest(json_of(row, "")[layout.id_column]) for _, row in rows)
    return np.frombuffer(ids, np.uint64).reshape(-1, 2)


def _without_repeated(
    surveyed: Sequence[tuple[Input, npt.NDArray[np.uint64]]], layout: Layout, stop_at_bad: bool
) -> list[Input]:
    """Drop the examples whose id occurs in an earlier row."""
    inputs = [source for source, _ in surveyed]
    repeated, first = _repeated(np.concatenate([ids for _, ids in surveyed]))
    if not len(repeated):
        return inputs
    indexes = [_Index.of(source) for source in inputs]
    rows = np.concatenate([np.flatnonzero(index.kinds == _EXAMPLE) for index in indexes])
    ends = np.cumsum([source.num_rows for source in inputs])

    def error_of(example: int, same: int) -> tuple[int, str]:
        (number, row), (first_number, first_row) = (
            (int(np.searchsorted(ends, position, side="right")), int(rows[position]))
            for position in (example, same)
        )
        repeated_example = next(_examples(inputs[number], indexes[number], np.array([row]), layout))
        return row + 1, (
            f"{place(inputs[number].name, row)}: the example id {repeated_example.id!r} is already used at"
            f" {place(inputs[first_number].name, first_row)}; expected unique ids"
        )

    if stop_at_bad:
        raise InputError(error_of(int(repeated[0]), int(first[0]))[1])
    cleaned = []
    for source, index, end in zip(inputs, indexes, ends, strict=True):
        begin, stop = np.searchsorted(repeated, [end - source.num_rows, end])
        index.kinds[rows[repeated[begin:stop]]] = _LEFT_OUT
        listed = slice(begin, min(stop, begin + _NUM_BAD_LISTED))
        bad = sorted((*source.bad, *map(error_of, repeated[listed].tolist(), first[listed].tolist())))
        cleaned.append(
            replace(
                source,
                num_rows=source.num_rows - int(stop - begin),
                num_bad=source.num_bad + int(stop - begin),
                bad=tuple(bad[:_NUM_BAD_LISTED]),
                index=index.text,
            )
        )
    return cleaned


def _repeated(ids: npt.NDArray[np.uint64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the positions of ids (N, 2) that occur earlier, ascending, and each one's first position."""
    halves = np.sort(ids[:, 0])
    if (halves[1:] != halves[:-1]).all():  # the usual case; what follows takes four times the memory
        return np.empty(0, np.int64), np.empty(0, np.int64)
    del halves
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: the first of equal ids comes first
    new = np.ones(len(ids), bool)
    new[1:] = (ids[order[1:]] != ids[order[:-1]]).any(axis=1)
    first = order[np.maximum.accumulate(np.where(new, np.arange(len(ids)), 0))]
    repeated, first = order[~new], first[~new]
    ascending = np.argsort(repeated)
    return repeated[ascending], first[ascending]


def _check_share(inputs: Sequence[Input], max_bad_share: float) -> None:
    num_bad = sum(source.num_bad for source in inputs)
    total = num_bad + sum(source.num_rows for source in inputs)
    if num_bad > max_bad_share * total:
        shown = [reason for source in inputs for _, reason in source.bad][:_NUM_BAD_SHOWN]
        raise InputError(
            f"{num_bad} of {total} rows are bad, a share of {num_bad / total:.2g}, but max_bad_share is"
            f" {max_bad_share:g}; the first: {'; '.join(shown)}"
        )


# --- reading --------------------------------------------------------------------------------------


def read_examples(source: Input, start: int, stop: int, layout: Layout) -> list[SourceExample]:
    """Read examples start to stop (exclusive) of a surveyed input. Reads only the blocks that contain them."""
    return list(_examples_of_kind(source, _EXAMPLE, start, stop, layout))


def num_plain(source: Input) -> int:
    return int((_Index.of(source).kinds == _PLAIN).sum())


def read_plain(source: Input, start: int, stop: int, layout: Layout) -> list[SourceExample]:
    """Like read_examples, for the rows without an instruction that a layout keeps out of the requests."""
    return list(_examples_of_kind(source, _PLAIN, start, stop, layout))


def _examples_of_kind(
    source: Input, kind: int, start: int, stop: int, layout: Layout
) -> Iterator[SourceExample]:
    index = _Index.of(source)
    return _examples(source, index, np.flatnonzero(index.kinds == kind)[start:stop], layout)


def _examples(
    source: Input, index: "_Index", rows: npt.NDArray[np.int64], layout: Layout
) -> Iterator[SourceExample]:
    for number, row in read_rows(source, index.offsets, rows, columns=None):
        example = _parsed(row, layout, place(source.name, number))
        if example is None:
            raise InputError(f"{place(source.name, number)}: has changed since the run was planned")
        yield example


@dataclass(frozen=True)
class _Index:
    kinds: npt.NDArray[np.uint8]  # of each row
    offsets: npt.NDArray[np.int64]  # start of each block and end of the last, in JSONL bytes or Parquet rows

    @property
    def text(self) -> str:
        packed = (zlib.compress(array.tobytes(), 9) for array in (self.kinds, self.offsets))
        return " ".join(base64.b64encode(part).decode() for part in packed)

    @classmethod
    def of(cls, source: Input) -> "_Index":
        kinds, offsets = (zlib.decompress(base64.b64decode(part)) for part in source.index.split())
        return cls(np.frombuffer(bytearray(kinds), np.uint8), np.frombuffer(offsets, np.int64))


def _parsed(row: Any, layout: Layout, where: str) -> SourceExample | None:
    return layout.parse(json_of(row, where), where)
