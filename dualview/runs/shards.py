"""The commit: a finished shard is one Parquet file, whose metadata sums it up."""

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
    """Puts a finished shard as one Parquet file; False if another attempt's stands already.

    planned: the (example id, target id) of each request; "" for a target that is found on the way. The file's
    metadata has under "dualview" a JSON object: run, attempt, statuses (a count each), trainable (a count),
    and what was spent. Raises ValueError, and puts nothing, where the rows are not exactly one finished row
    for each planned request, in order: that is a bug of ours.
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
        row.example.id != seed_id or target_id not in ("", row.target_id)
        for (seed_id, target_id), row in zip(planned, rows, strict=True)
    ):
        problem = "rows of other requests, or in another order"
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
    stays = [trainable and (seed_id, target_id) not in left_out for trainable, seed_id, target_id in rows]
    return table.filter(pa.array(stays, pa.bool_()))


def read_summaries(store: Store, keys: Iterable[str]) -> list[dict[str, Any]]:
    """What commit left in the metadata of each of these shards, in their order; only file footers are read."""

    def summary(key: str) -> dict[str, Any]:
        end = _with_footer(store, key)
        try:
            metadata = pq.read_metadata(pa.BufferReader(end)).metadata
            content: dict[str, Any] = json.loads(metadata[b"dualview"])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise _corrupt(store, key, error) from None
        return content

    with ThreadPoolExecutor(max_workers=10) as threads:  # as many as boto3 keeps connections
        return list(threads.map(summary, keys))


def _with_footer(store: Store, key: str) -> bytes:
    """So much of the end of a Parquet file that its metadata can be read."""
    end = store.get_end(key, _USUAL_FOOTER_BYTES)
    footer_bytes = int.from_bytes(end[-8:-4], "little") + 8  # its length and "PAR1" are the last eight
    return end if footer_bytes <= len(end) else store.get_end(key, footer_bytes)


def read_shard(store: Store, key: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One committed shard, or these columns of it. Raises InputError, naming the file, where it is corrupt."""
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
    return InputError(f"{store.url}/{key}: is not a whole Parquet file of a generate run ({reason})")
