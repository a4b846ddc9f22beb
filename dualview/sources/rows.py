"""Reads rows of JSONL and Parquet files in pieces, from a folder, s3:// or the hub.

No file is held in memory whole. Rows are located by block: 256 lines of JSONL, or one Parquet row group.
"""

from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
import json
import re
import tempfile
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from dualview.errors import InputError
from dualview.runs.plan import Input
from dualview.storage import S3Store, arrow_filesystem, check_reachable, open_store

_SUFFIXES = (".jsonl", ".parquet")
_HUB = "hub:"
_LINES_A_BLOCK = 256
_ROWS_A_BATCH = 1024
_BYTES_A_READ = 4 << 20
_BYTES_OF_A_LARGE_ROW_GROUP = 64 << 20
_BYTES_OF_A_COLUMN = 1 << 20  # buffered per column while reading a large row group


def listed(path: str) -> list[tuple[str, str]]:
    """List the files at a path: absolute names, readable from any working folder, and stamps."""
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
            f"{path}: contains no .jsonl or .parquet file; expected a folder with such files or one such file,"
            " for example examples.jsonl"
        )
    return [(f"{store.url}/{entry.key}", entry.stamp) for entry in entries]


def _split(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    return folder + slash or ".", name


def _no_such_file(name: str) -> InputError:
    return InputError(f"{name}: there is no such file; expected JSONL or Parquet with one example per row")


def survey_rows(name: str, update: Callable[[bytes], None], offsets: list[int]) -> Iterator[Any]:
    """Yield all rows of a file. Passes its bytes to `update`; appends block starts and the last end to `offsets`."""
    survey = _survey_jsonl if name.endswith(".jsonl") else _survey_parquet
    yield from survey(name, update, offsets)


def read_rows(
    source: Input, offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], columns: Sequence[str] | None
) -> Iterator[tuple[int, Any]]:
    """Yield the given rows, ascending, with their numbers. `columns` limits what is read from Parquet."""
    if source.name.endswith(".jsonl"):
        blocks = rows // _LINES_A_BLOCK
    else:
        blocks = np.searchsorted(offsets, rows, side="right") - 1
    for block in np.unique(blocks).tolist():
        wanted = rows[blocks == block]
        if source.name.endswith(".jsonl"):
            begin, end = offsets[block : block + 2].tolist()
            yield from zip(
                wanted.tolist(), _lines(source.name, begin, end, wanted % _LINES_A_BLOCK), strict=True
            )
        else:
            read = _row_group(source, block, wanted - offsets[block], columns)
            yield from zip(wanted.tolist(), read, strict=True)


def json_of(row: Any, where: str) -> Any:
    """Convert a row of either format to a JSON value. Raises InputError, naming `where`, if it is invalid."""
    if not isinstance(row, bytes):
        return _without_nulls(row)
    try:
        value = json.loads(row.removeprefix(BOM_UTF8).decode())
        if b"\\ud" in row or b"\\uD" in row:  # a lone surrogate is valid JSON, but cannot be stored as UTF-8
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except (ValueError, RecursionError) as error:  # not JSON, or not Unicode
        raise InputError(
            f'{where}: is not a JSON object ({error}); expected {{"id": "example-1", ...}}'
        ) from None


def _without_nulls(value: Any) -> Any:
    """Turn Arrow maps (lists of pairs) into objects, and drop null fields."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        if value and isinstance(value[0], tuple):
            return dict(value)
        return [_without_nulls(item) for item in value]
    return value


def place(name: str, row: int) -> str:
    """The place of a row (0-based) in error messages."""
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
    from huggingface_hub import HfApi, RepoFile  # slow to import

    repository = path.removeprefix(_HUB)
    with _with_download_advice(repository):
        entries = list(HfApi().list_repo_tree(repository, repo_type="dataset", recursive=True))
    files = [entry for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(_SUFFIXES)]
    if not files:
        raise InputError(f"{path}: contains no .jsonl or .parquet file")
    return [(f"{path}/{file.path}", file.blob_id) for file in files]


def _downloaded(name: str) -> str:
    """Download a file of the hub, unless it is cached, and return its local path."""
    from huggingface_hub import hf_hub_download

    owner, repository, file = name.removeprefix(_HUB).split("/", 2)
    with _with_download_advice(f"{owner}/{repository}"):
        return str(hf_hub_download(f"{owner}/{repository}", file, repo_type="dataset"))


@contextmanager
def _with_download_advice(repository: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # from the hub client, its HTTP library or the system
        raise InputError(
            f"{_HUB}{repository}: cannot be downloaded from the hub ({type(error).__name__}); on a machine that can"
            f" reach it, run `hf download {repository} --repo-type dataset --local-dir FOLDER`, then use FOLDER"
        ) from None


# --- JSONL ----------------------------------------------------------------------------------------
def _survey_jsonl(name: str, update: Callable[[bytes], None], offsets: list[int]) -> Iterator[bytes]:
    """Yield the lines of a file, without trailing blank ones. Appends block starts and the last end to `offsets`."""
    with _open(name) as stream:
        position = num_lines = 0
        blank: list[bytes] = []
        for line in _split_lines(stream, update):
            if not line.strip():
                blank.append(line)
                continue
            for row in (*blank, line):
                if num_lines % _LINES_A_BLOCK == 0:
                    offsets.append(position)
                num_lines += 1
                position += len(row) + 1
                yield row
            blank.clear()
        offsets.append(position)


def _split_lines(stream: pa.NativeFile, update: Callable[[bytes], None]) -> Iterator[bytes]:
    # Not str.splitlines: it also splits at characters that JSON strings may contain.
    remainder = b""
    while chunk := stream.read(_BYTES_A_READ):
        update(chunk)
        *lines, remainder = (remainder + chunk).split(b"\n")
        yield from lines
    yield remainder


def _lines(name: str, begin: int, end: int, wanted: npt.NDArray[np.int64]) -> Iterator[bytes]:
    with _open(name) as stream:
        stream.seek(begin)
        lines = stream.read(end - begin).split(b"\n")
    for number in wanted.tolist():
        yield lines[number] if number < len(lines) else b""


# --- Parquet --------------------------------------------------------------------------------------
def _survey_parquet(name: str, update: Callable[[bytes], None], offsets: list[int]) -> Iterator[Any]:
    """Yield the rows of a file. Appends row group starts and the last end to `offsets`."""
    with _open(name) as stream:
        while chunk := stream.read(_BYTES_A_READ):
            update(chunk)
        stream.seek(0)
        with _as_input_error(name):
            file = _parquet_file(stream)
            offsets.append(0)
            for number in range(file.num_row_groups):
                offsets.append(offsets[-1] + file.metadata.row_group(number).num_rows)
                for batch in _batches(file, number, None):
                    yield from batch.to_pylist()


def _parquet_file(stream: pa.NativeFile) -> pq.ParquetFile:
    metadata = pq.read_metadata(stream)
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    # Pre-buffering reads a whole row group in few requests: good for all but large ones.
    large = max(sizes, default=0) > _BYTES_OF_A_LARGE_ROW_GROUP
    return pq.ParquetFile(
        stream, metadata=metadata, pre_buffer=not large, buffer_size=large * _BYTES_OF_A_COLUMN
    )


def _batches(file: pq.ParquetFile, row_group: int, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    # pandas stores the row labels of a filtered or sorted table as an extra column.
    without_labels = [
        name for name in file.schema_arrow.names if not re.fullmatch(r"__index_level_\d+__", name)
    ]
    yield from file.iter_batches(_ROWS_A_BATCH, row_groups=[row_group], columns=columns or without_labels)


def _row_group(
    source: Input, row_group: int, wanted: npt.NDArray[np.int64], columns: Sequence[str] | None
) -> Iterator[Any]:
    """Yield the given rows of a row group."""
    # Concurrent shards read the same row group: the lock lets the first unpack it for all.
    with _as_input_error(source.name), _UNPACKING:
        table = _unpacked(source, row_group, tuple(columns or ()))
    first = int(wanted[0])
    for batch in table.slice(first, int(wanted[-1]) + 1 - first).to_batches(max_chunksize=_ROWS_A_BATCH):
        in_batch = wanted[(wanted >= first) & (wanted < first + batch.num_rows)] - first
        yield from batch.take(pa.array(in_batch)).to_pylist()
        first += batch.num_rows


_UNPACKING = Lock()


@lru_cache(maxsize=4)  # shards of the same row group follow each other
def _unpacked(source: Input, row_group: int, columns: tuple[str, ...]) -> pa.Table:
    """Unpack a row group to local disk, not into memory: Parquet has no random access to rows."""
    with _open(source.name) as stream, tempfile.NamedTemporaryFile(prefix="dualview-rows-") as unpacked:
        writer = None
        for batch in _batches(_parquet_file(stream), row_group, columns):
            writer = writer or pa.ipc.new_file(unpacked.name, batch.schema)
            writer.write_batch(batch)
        if writer is None:
            raise InputError(f"{source.name}: has changed since the run was planned")
        writer.close()
        # The mapping outlives the file name; the disk space is freed with the table.
        return pa.ipc.open_file(pa.memory_map(unpacked.name)).read_all()


@contextmanager
def _as_input_error(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{name}: is not a Parquet file ({reason}); expected columns of examples") from None
