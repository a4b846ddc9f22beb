"""Files of rows to inputs of a run: surveyed once, then read by any slice of their examples.

A survey reads a file once, checks every row, and keeps in the input's index what finds the rows again: what
each row is, and where each block begins.
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

# Applies a function to items and yields the results in their order, as map does; perhaps on many machines.
MapFunction = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_NUM_BAD_LISTED = 100  # of a file
_NUM_BAD_SHOWN = 3  # in a sentence

# What a row is, in an index.
_LEFT_OUT, _SEED, _PLAIN = range(3)


@dataclass(frozen=True)
class Layout:
    """How the rows of one kind of file become examples.

    `parse` takes a row as JSON has it and its place, for sentences ("examples.jsonl line 7"). It returns None
    for a row that is none by right, and raises InputError for a bad one. `id_column` holds the example's id.
    """

    id_column: str
    parse: Callable[[Any, str], SourceExample | None]
    plain_apart: bool  # whether examples without an instruction are no requests: read_plain gives them


# --- the survey -----------------------------------------------------------------------------------


def survey(
    paths: Iterable[str], layout: Layout, max_bad_share: float, known: Sequence[Input], each: MapFunction
) -> list[Input]:
    """One input a file under `paths`, after every row was checked; one that is `known` and untouched is not read.

    A row is bad where its layout says so, and where its id stands in an earlier row (in the order of `known`,
    then of the paths). Bad rows are left out, counted and listed. Raises InputError at the first one where
    max_bad_share is 0, where their share of all examples and bad rows is above it, and where there are no examples.
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
    """The input that a file is, and a digest of each example's id, (examples, 2)."""
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
            kinds.append(_SEED)
            ids += _digest(example.id)
    if not kinds:
        raise InputError(f"{name}: has no rows; expected one example a row")
    index = _Index(np.frombuffer(kinds, np.uint8), np.array(offsets))
    source = Input(
        name, kinds.count(_SEED), checksum.hexdigest(), num_bad, bad=tuple(bad), stamp=stamp, index=index.text
    )
    return source, np.frombuffer(ids, np.uint64).reshape(-1, 2)


def _digest(seed_id: str) -> bytes:
    return hashlib.blake2b(seed_id.encode(), digest_size=16).digest()


def _example_ids(layout: Layout, source: Input) -> npt.NDArray[np.uint64]:
    """The digests of the ids of an input's examples, without checking its rows again."""
    index = _Index.of(source)
    rows = read_rows(source, index.offsets, np.flatnonzero(index.kinds == _SEED), columns=[layout.id_column])
    ids = b"".join(_digest(json_of(row, "")[layout.id_column]) for _, row in rows)
    return np.frombuffer(ids, np.uint64).reshape(-1, 2)


def _without_repeated(
    surveyed: Sequence[tuple[Input, npt.NDArray[np.uint64]]], layout: Layout, stop_at_bad: bool
) -> list[Input]:
    """The inputs without the examples whose id stands in an earlier row."""
    inputs = [source for source, _ in surveyed]
    repeated, first = _repeated(np.concatenate([ids for _, ids in surveyed]))
    if not len(repeated):
        return inputs
    indexes = [_Index.of(source) for source in inputs]
    rows = np.concatenate([np.flatnonzero(index.kinds == _SEED) for index in indexes])
    ends = np.cumsum([source.num_rows for source in inputs])

    def error_of(example: int, same: int) -> tuple[int, str]:
        (number, row), (first_number, first_row) = (
            (int(np.searchsorted(ends, each, side="right")), int(rows[each])) for each in (example, same)
        )
        again = next(_examples(inputs[number], indexes[number], np.array([row]), layout))
        return row + 1, (
            f"{place(inputs[number].name, row)}: the example id {again.id!r} stands at"
            f" {place(inputs[first_number].name, first_row)} already; expected another id for each example"
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
    """Of ids (N, 2) the positions of those that stand earlier too, ascending, and where each stands first."""
    halves = np.sort(ids[:, 0])
    if (halves[1:] != halves[:-1]).all():  # mostly; the rest takes four times the memory
        return np.empty(0, np.int64), np.empty(0, np.int64)
    del halves
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: of equal ones the first comes first
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
            f"{num_bad} of {total} rows are bad, which is a share of {num_bad / total:.2g} where max_bad_share"
            f" allows {max_bad_share:g}; the first: {'; '.join(shown)}"
        )


# --- reading --------------------------------------------------------------------------------------


def read_examples(source: Input, start: int, stop: int, layout: Layout) -> list[SourceExample]:
    """SourceExamples start to stop (without stop) of an input that was surveyed. Reads the blocks they stand in only."""
    return list(_examples_of_kind(source, _SEED, start, stop, layout))


def num_plain(source: Input) -> int:
    return int((_Index.of(source).kinds == _PLAIN).sum())


def read_plain(source: Input, start: int, stop: int, layout: Layout) -> list[SourceExample]:
    """Like read_examples, for the rows without an instruction that a layout keeps apart."""
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
    kinds: npt.NDArray[np.uint8]  # what each row is
    offsets: npt.NDArray[np.int64]  # where each block begins and the last ends: JSONL bytes, Parquet rows

    @property
    def text(self) -> str:
        packed = (zlib.compress(array.tobytes(), 9) for array in (self.kinds, self.offsets))
        return " ".join(base64.b64encode(each).decode() for each in packed)

    @classmethod
    def of(cls, source: Input) -> "_Index":
        kinds, offsets = (zlib.decompress(base64.b64decode(part)) for part in source.index.split())
        return cls(np.frombuffer(bytearray(kinds), np.uint8), np.frombuffer(offsets, np.int64))


def _parsed(row: Any, layout: Layout, where: str) -> SourceExample | None:
    return layout.parse(json_of(row, where), where)
