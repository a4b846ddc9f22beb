"""Commits shards: a finished shard is one Parquet file with a summary in its metadata."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dualview.arrow import DUAL_VIEW_SCHEMA, dual_views_to_table
from dualview.config.base import canonical_json
from dualview.costs import Spent
from dualview.errors import InputError
from dualview.records import ACCEPTED, REASONS, WRITTEN, DualView
from dualview.runs.plan import Shard
from dualview.storage import Store

_USUAL_FOOTER_BYTES = 64 * 2**10  # a shard's has 16 KiB for each row group


def commit(
    store: Store,
    shard: Shard,
    planned: Sequence[tuple[str, str]],
    rows: Sequence[DualView],
    attempt: str,
    spent: Spent,
) -> bool:
    """Puts a finished shard as one Parquet file; returns False if another attempt has committed it already.

    planned: the (example id, target id) of each request; "" for a target that generation chooses. The file's
    metadata has a JSON object under "dualview": run, attempt, statuses (status -> count), trainable (a count),
    and the fields of Spent. Raises ValueError, and puts nothing, unless there is exactly one finished row for
    each planned request, in order; anything else is our own bug.
    """
    _check_rows(shard, planned, rows, attempt)
    summary = {
        "run": rows[0].lineage.run if rows else "",
        "attempt": attempt,
        "statuses": Counter(row.status for row in rows),
        "trainable": sum(row.trainable for row in rows),
        **asdict(spent),
    }
    table = dual_views_to_table(rows).replace_schema_metadata({"dualview": canonical_json(summary)})
    # In memory first: pyarrow's own S3 streams leave a broken object behind when writing fails.
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return store.put_new(shard.key, buffer.getvalue().to_pybytes(), attempt)


def _check_rows(
    shard: Shard, planned: Sequence[tuple[str, str]], rows: Sequence[DualView], attempt: str
) -> None:
    problem = ""
    if len(rows) != len(planned):
        problem = f"{len(rows)} rows instead of {len(planned)}"
    elif len(set(planned)) != len(planned):
        problem = "a request is planned twice"
    elif any(
        row.example.id != example_id or target_id not in ("", row.target_id)
        for (example_id, target_id), row in zip(planned, rows, strict=True)
    ):
        problem = "rows of other requests, or in the wrong order"
    elif unknown := {row.status for row in rows} - {ACCEPTED, WRITTEN, *REASONS}:
        problem = f"unknown status {unknown}"
    elif any(row.trainable and row.status != ACCEPTED for row in rows):
        problem = "a row that was not accepted is trainable"
    elif len({row.lineage.run for row in rows}) > 1:
        problem = "rows of several runs"
    elif {(row.lineage.shard, row.lineage.attempt) for row in rows} - {(shard.index, attempt)}:
        problem = "rows of another shard or attempt"
    if problem:
        raise ValueError(f"shard {shard.index}, attempt {attempt}: {problem}")


def trainable_rows(table: pa.Table, left_out: Collection[tuple[str, str]]) -> pa.Table:
    """The rows of one shard that are trainable and not left out; needs the columns id, target_id, trainable."""
    rows = zip(*(table[name].to_pylist() for name in ("trainable", "id", "target_id")), strict=True)
    is_kept = [
        trainable and (example_id, target_id) not in left_out for trainable, example_id, target_id in rows
    ]
    return table.filter(pa.array(is_kept, pa.bool_()))


def read_summaries(store: Store, keys: Iterable[str]) -> list[dict[str, Any]]:
    """The summary in the metadata of each of these shards, in order; reads only file footers."""

    def summary(key: str) -> dict[str, Any]:
        end = _with_footer(store, key)
        try:
            metadata = pq.read_metadata(pa.BufferReader(end)).metadata
            content: dict[str, Any] = json.loads(metadata[b"dualview"])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise _corrupt(store, key, error) from None
        return content

    with ThreadPoolExecutor(max_workers=10) as threads:  # the size of boto3's connection pool
        return list(threads.map(summary, keys))


def _with_footer(store: Store, key: str) -> bytes:
    """The end of a Parquet file, including all of its metadata."""
    end = store.get_end(key, _USUAL_FOOTER_BYTES)
    footer_bytes = int.from_bytes(end[-8:-4], "little") + 8  # the last eight: its length and "PAR1"
    return end if footer_bytes <= len(end) else store.get_end(key, footer_bytes)


def read_shard(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One committed shard, or these columns of it. Raises InputError, naming the file, if it is corrupt."""
    data = store.get(key)
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        table = file.read(columns)
    except (pa.ArrowException, OSError) as error:
        raise _corrupt(store, key, error) from None
    schema = file.schema_arrow
    if not schema.equals(DUAL_VIEW_SCHEMA) or b"dualview" not in (schema.metadata or {}):
        raise InputError(
            f"{store.url}/{key}: expected the columns of records.DualView and a summary in the file's"
            f" metadata, found {', '.join(schema.names)}"
        )
    return table


def _corrupt(store: Store, key: str, error: Exception) -> InputError:
    reason = str(error).splitlines()[0]
    return InputError(f"{store.url}/{key}: is not a complete Parquet file of a generate run ({reason})")
