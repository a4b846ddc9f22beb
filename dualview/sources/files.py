"""Files of rows, JSONL or Parquet, read in pieces: no file is in memory whole, however large.

A survey reads a file once, checks every row, and keeps in the input's index what finds the rows again:
what each row is, and where each block begins (of JSONL every 256 lines, of Parquet every row group).
"""

import base64
from codecs import BOM_UTF8
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
import hashlib
import json
import re
import tempfile
from threading import Lock
from typing import Any
import zlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from dualview.commit.plan import Input
from dualview.errors import InputError
from dualview.records import Seed
from dualview.storage import S3Store, arrow_filesystem, check_reachable, open_store

# Applies a function to items and yields the results in their order, as map does; perhaps on many machines.
Each = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]

_SUFFIXES = (".jsonl", ".parquet")
_HUB = "hub:"
_NUM_BAD_LISTED = 100  # of a file
_NUM_BAD_SHOWN = 3  # in a sentence
_LINES_A_BLOCK = 256
_ROWS_A_BATCH = 1024
_BYTES_A_READ = 4 << 20
_BYTES_OF_A_LARGE_ROW_GROUP = 64 << 20
_BYTES_OF_A_COLUMN = 1 << 20  # held of each, while a large row group is read

# What a row is, in an index.
_LEFT_OUT, _SEED, _PLAIN = range(3)


@dataclass(frozen=True)
class Layout:
    """How the rows of one kind of file become seeds.

    `parse` takes a row as JSON has it and its place, for sentences ("seeds.jsonl line 7"). It returns None
    for a row that is none by right, and raises InputError for a bad one. `id_column` holds the seed's id.
    """

    id_column: str
    parse: Callable[[Any, str], Seed | None]
    plain_apart: bool  # whether seeds without an instruction are no requests: read_plain gives them


# --- the survey -----------------------------------------------------------------------------------


def survey(
    paths: Iterable[str], layout: Layout, max_bad_share: float, known: Sequence[Input], each: Each
) -> list[Input]:
    """One input a file under `paths`, after every row was checked; one that is `known` and untouched is not read.

    A row is bad where its layout says so, and where its id stands in an earlier row (in the order of `known`,
    then of the paths). Bad rows are left out, counted and listed. Raises InputError at the first one where
    max_bad_share is 0, where their share of all seeds and bad rows is above it, and where there are no seeds.
    """
    stamps = {name: stamp for path in paths for name, stamp in _listed(path)}
    before = {source.name: source for source in known if source.name in stamps}
    names = [*before, *(name for name in stamps if name not in before)]
    to_read = [name for name in names if name not in before or before[name].stamp != stamps[name]]
    if to_read:
        read = each(
            partial(_survey_file, layout, max_bad_share == 0), [(name, stamps[name]) for name in to_read]
        )
        surveyed = dict(zip(to_read, read, strict=True))
        untouched = [source for source in before.values() if source.name not in surveyed]
        for source, its_ids in zip(untouched, each(partial(_seed_ids, layout), untouched), strict=True):
            surveyed[source.name] = source, its_ids
        inputs = _without_repeated([surveyed[name] for name in names], layout, max_bad_share == 0)
    else:
        inputs = list(before.values())
    _check_share(inputs, max_bad_share)
    if not any(source.num_rows for source in inputs):
        raise InputError(f"{', '.join(names[:_NUM_BAD_SHOWN])}: none of the rows is a seed")
    return inputs


def _listed(path: str) -> list[tuple[str, str]]:
    """The files at a path: full names, so that they can be read from any working folder, and stamps."""
    if path.startswith(_HUB):
        return _listed_on_hub(path)
    is_file = path.endswith(_SUFFIXES)
    folder, name = _split(path) if is_file else (path, "")
    store = open_store(folder)
    if isinstance(store, S3Store):
        check_reachable(store)
    entries = [entry for entry in store.list(name) if entry.key.endswith(_SUFFIXES)]
    if is_file:
        entries = [entry for entry in entries if entry.key == name]
        if not entries:
            raise _no_such_file(f"{store.url}/{name}")
    if not entries:
        raise InputError(
            f"{path}: no file that ends in .jsonl or .parquet lies there; expected a folder with such files"
            " or one such file, for example seeds.jsonl"
        )
    return [(f"{store.url}/{entry.key}", entry.stamp) for entry in entries]


def _split(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return folder + slash or ".", name


def _no_such_file(name: str) -> InputError:
    return InputError(f"{name}: there is no such file; expected JSONL or Parquet with a seed a row")


def _survey_file(
    layout: Layout, stop_at_bad: bool, file: tuple[str, str]
) -> tuple[Input, npt.NDArray[np.uint64]]:
    """The input that a file is, and a digest of each seed's id, (seeds, 2)."""
    name, stamp = file
    checksum = hashlib.sha256()
    offsets: list[int] = []
    kinds, ids = bytearray(), bytearray()
    num_bad, bad = 0, list[tuple[int, str]]()
    rows = _survey_jsonl if name.endswith(".jsonl") else _survey_parquet
    for row in rows(name, checksum.update, offsets):
        try:
            seed = _parsed(row, layout, _place(name, len(kinds)))
        except InputError as error:
            if stop_at_bad:
                raise
            num_bad += 1
            if len(bad) < _NUM_BAD_LISTED:
                bad.append((len(kinds) + 1, str(error)))
            seed = None
        if seed is None:
            kinds.append(_LEFT_OUT)
        elif layout.plain_apart and not seed.instruction:
            kinds.append(_PLAIN)
        else:
            kinds.append(_SEED)
            ids += _digest(seed.id)
    if not kinds:
        raise InputError(f"{name}: has no rows; expected one seed a row")
    index = _Index(np.frombuffer(kinds, np.uint8), np.array(offsets))
    source = Input(
        name, kinds.count(_SEED), checksum.hexdigest(), num_bad, bad=tuple(bad), stamp=stamp, index=index.text
    )
    return source, np.frombuffer(ids, np.uint64).reshape(-1, 2)


def _digest(seed_id: str) -> bytes:
    return hashlib.blake2b(seed_id.encode(), digest_size=16).digest()


def _seed_ids(layout: Layout, source: Input) -> npt.NDArray[np.uint64]:
    """The digests of the ids of an input's seeds, without checking its rows again."""
    index = _Index.of(source)
    rows = _rows(source, index, np.flatnonzero(index.kinds == _SEED), columns=[layout.id_column])
    ids = b"".join(_digest(_json_of(row, "")[layout.id_column]) for _, row in rows)
    return np.frombuffer(ids, np.uint64).reshape(-1, 2)


def _without_repeated(
    surveyed: Sequence[tuple[Input, npt.NDArray[np.uint64]]], layout: Layout, stop_at_bad: bool
) -> list[Input]:
    """The inputs without the seeds whose id stands in an earlier row."""
    inputs = [source for source, _ in surveyed]
    repeated, first = _repeated(np.concatenate([ids for _, ids in surveyed]))
    if not len(repeated):
        return inputs
    indexes = [_Index.of(source) for source in inputs]
    rows = np.concatenate([np.flatnonzero(index.kinds == _SEED) for index in indexes])
    ends = np.cumsum([source.num_rows for source in inputs])

    def error_of(seed: int, same: int) -> tuple[int, str]:
        (number, row), (first_number, first_row) = (
            (int(np.searchsorted(ends, each, side="right")), int(rows[each])) for each in (seed, same)
        )
        again = next(_seeds(inputs[number], indexes[number], np.array([row]), layout))
        return row + 1, (
            f"{_place(inputs[number].name, row)}: the seed id {again.id!r} stands at"
            f" {_place(inputs[first_number].name, first_row)} already; expected another id for each seed"
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


def read_seeds(source: Input, start: int, stop: int, layout: Layout) -> list[Seed]:
    """Seeds start to stop (without stop) of an input that was surveyed. Reads the blocks they stand in only."""
    return list(_seeds_of_kind(source, _SEED, start, stop, layout))


def num_plain(source: Input) -> int:
    return int((_Index.of(source).kinds == _PLAIN).sum())


def read_plain(source: Input, start: int, stop: int, layout: Layout) -> list[Seed]:
    """Like read_seeds, for the rows without an instruction that a layout keeps apart."""
    return list(_seeds_of_kind(source, _PLAIN, start, stop, layout))


def _seeds_of_kind(source: Input, kind: int, start: int, stop: int, layout: Layout) -> Iterator[Seed]:
    index = _Index.of(source)
    return _seeds(source, index, np.flatnonzero(index.kinds == kind)[start:stop], layout)


def _seeds(source: Input, index: "_Index", rows: npt.NDArray[np.int64], layout: Layout) -> Iterator[Seed]:
    for number, row in _rows(source, index, rows, columns=None):
        seed = _parsed(row, layout, _place(source.name, number))
        if seed is None:
            raise InputError(f"{_place(source.name, number)}: has changed since the run was planned")
        yield seed


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


def _rows(
    source: Input, index: _Index, rows: npt.NDArray[np.int64], columns: Sequence[str] | None
) -> Iterator[tuple[int, Any]]:
    """The wanted rows, ascending, each with its number; of Parquet only these columns."""
    if source.name.endswith(".jsonl"):
        blocks = rows // _LINES_A_BLOCK
    else:
        blocks = np.searchsorted(index.offsets, rows, side="right") - 1
    for block in np.unique(blocks).tolist():
        wanted = rows[blocks == block]
        if source.name.endswith(".jsonl"):
            begin, end = index.offsets[block : block + 2].tolist()
            yield from zip(
                wanted.tolist(), _lines(source.name, begin, end, wanted % _LINES_A_BLOCK), strict=True
            )
        else:
            read = _row_group(source, block, wanted - index.offsets[block], columns)
            yield from zip(wanted.tolist(), read, strict=True)


def _parsed(row: Any, layout: Layout, where: str) -> Seed | None:
    return layout.parse(_json_of(row, where), where)


def _json_of(row: Any, where: str) -> Any:
    if not isinstance(row, bytes):
        return _without_nulls(row)
    try:
        value = json.loads(row.removeprefix(BOM_UTF8).decode())
        if b"\\ud" in row or b"\\uD" in row:  # JSON can say half a character, but nothing can store it
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:  # not JSON, or not Unicode
        raise InputError(
            f'{where}: is not a JSON object ({error}); expected {{"id": "seed-1", ...}}'
        ) from None


def _without_nulls(value: Any) -> Any:
    """Arrow's maps (lists of pairs) become objects; fields that are null are left out, as in JSON."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return dict(value)
        return [_without_nulls(item) for item in value]
    return value


def _place(name: str, row: int) -> str:
    return f"{name} {'line' if name.endswith('.jsonl') else 'row'} {row + 1}"


def _open(name: str) -> pa.NativeFile:
    if name.startswith(_HUB):
        name = _downloaded(name)
    folder, file = _split(name)
    filesystem, root = _filesystem(folder)
    try:
        return filesystem.open_input_file(f"{root}/{file}")
    except (FileNotFoundError, IsADirectoryError):
        raise _no_such_file(name) from None


@cache
def _filesystem(folder: str) -> tuple[pyarrow.fs.FileSystem, str]:
    filesystem, root = arrow_filesystem(folder)
    return filesystem, root.rstrip("/")


# --- the hub --------------------------------------------------------------------------------------


def _listed_on_hub(path: str) -> list[tuple[str, str]]:
    from huggingface_hub import HfApi, RepoFile  # here: only those who read from it wait for its import

    repository = path.removeprefix(_HUB)
    with _told_how_to_download(repository):
        entries = list(HfApi().list_repo_tree(repository, repo_type="dataset", recursive=True))
    files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(_SUFFIXES)]
    if not files:
        raise InputError(f"{path}: has no file that ends in .jsonl or .parquet")
    return [(f"{path}/{file.path}", file.blob_id) for file in files]


def _downloaded(name: str) -> str:
    """Where a file of the hub lies in this machine's cache, after it was downloaded there once."""
    from huggingface_hub import hf_hub_download

    owner, repository, file = name.removeprefix(_HUB).split("/", 2)
    with _told_how_to_download(f"{owner}/{repository}"):
        return str(hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset"))


@contextmanager
def _told_how_to_download(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # its own, its HTTP library's, the system's
        raise InputError(
            f"{_HUB}{repository}: cannot be had from the hub ({type(error).__name__}); where the hub can be"
            f" reached run `hf download {repository} --repo-type dataset --local-dir FOLDER`, and name FOLDER"
        ) from None


# --- JSONL ----------------------------------------------------------------------------------------


def _survey_jsonl(name: str, update: Callable[[bytes], None], offsets: list[int]) -> Iterator[bytes]:
    """The lines of a file; blank ones at its end are none. Notes where blocks begin and the last ends."""
    with _open(name) as stream:
        position = num_lines = 0
        blank: list[bytes] = []
        for line in _split_lines(stream, update):
            if not line.strip():
                blank.append(line)
                continue
            for each in (*blank, line):
                if num_lines % _LINES_A_BLOCK == 0:
                    offsets.append(position)
                num_lines += 1
                position += len(each) + 1
                yield each
            blank.clear()
        offsets.append(position)


def _split_lines(stream: pa.NativeFile, update: Callable[[bytes], None]) -> Iterator[bytes]:
    # Not str.splitlines: it also cuts at characters that may stand inside a JSON string.
    rest = b""
    while chunk := stream.read(_BYTES_A_READ):
        update(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _lines(name: str, begin: int, end: int, wanted: npt.NDArray[np.int64]) -> Iterator[bytes]:
    with _open(name) as stream:
        stream.seek(begin)
        lines = stream.read(end - begin).split(b"\n")
    for number in wanted.tolist():
        yield lines[number] if number < len(lines) else b""


# --- Parquet --------------------------------------------------------------------------------------


def _survey_parquet(name: str, update: Callable[[bytes], None], offsets: list[int]) -> Iterator[Any]:
    """The rows of a file. Notes where row groups begin and the last ends."""
    with _open(name) as stream:
        while chunk := stream.read(_BYTES_A_READ):
            update(chunk)
        stream.seek(0)
        with _told_as_input_error(name):
            file = _parquet_file(stream)
            offsets.append(0)
            for number in range(file.num_row_groups):
                offsets.append(offsets[-1] + file.metadata.row_group(number).num_rows)
                for batch in _batches(file, number, None):
                    yield from batch.to_pylist()


def _parquet_file(stream: pa.NativeFile) -> pq.ParquetFile:
    metadata = pq.read_metadata(stream)
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    # Pre-buffering reads a row group whole, in few requests, which is right for all but large ones.
    large = max(sizes, default=0) > _BYTES_OF_A_LARGE_ROW_GROUP
    return pq.ParquetFile(
        stream, metadata=metadata, pre_buffer=not large, buffer_size=large * _BYTES_OF_A_COLUMN
    )


def _batches(file: pq.ParquetFile, row_group: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    # pandas keeps the row labels of a table that was filtered or sorted as a column of its own.
    own = [name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)]
    yield from file.iter_batches(_ROWS_A_BATCH, row_groups=[row_group], columns=columns or own)


def _row_group(
    source: Input, row_group: int, wanted: npt.NDArray[np.int64], columns: Sequence[str] | None
) -> Iterator[Any]:
    """The wanted rows of a row group."""
    with _told_as_input_error(source.name), _UNPACKING:  # shards at the same time want the same row group
        table = _unpacked(source, row_group, tuple(columns or ()))
    first = int(wanted[0])
    for batch in table.slice(first, int(wanted[-1]) + 1 - first).to_batches(max_chunksize=_ROWS_A_BATCH):
        here = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
        yield from batch.take(pa.array(here)).to_pylist()
        first += batch.num_rows


_UNPACKING = Lock()


@lru_cache(maxsize=4)  # the shards of a row group are read one after the other
def _unpacked(source: Input, row_group: int, columns: tuple[str, ...]) -> pa.Table:
    """A row group on the local disk and not in memory: from Parquet no row can be had without those before it."""
    with _open(source.name) as stream, tempfile.NamedTemporaryFile(prefix="dualview-rows-") as unpacked:
        writer = None
        for batch in _batches(_parquet_file(stream), row_group, columns):
            writer = writer or pa.ipc.new_file(unpacked.name, batch.schema)
            writer.write_batch(batch)
        if writer is None:
            raise InputError(f"{source.name}: has changed since the run was planned")
        writer.close()
        # The mapping outlives the file's name; the disk is free again when the table is forgotten.
        return pa.ipc.open_file(pa.memory_map(unpacked.name)).read_all()


@contextmanager
def _told_as_input_error(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name}: is not a Parquet file ({reason}); expected columns of seeds") from None
