"""The commit: a finished shard is one object, and what spans shards lies beside them."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
import json
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from dualview.arrow import DUAL_VIEW_SCHEMA, dual_views_to_table
from dualview.config.base import canonical_json
from dualview.costs import Spent
from dualview.errors import InputError
from dualview.records import ACCEPTED, REASONS, WRITTEN, DualView
from dualview.runs.plan import Plan, Shard, missing, numbered, read_plan
from dualview.storage import Entry, Store

EXAM_KEY = "exam.json"
NEAR_DUPLICATES_SCHEMA = pa.schema(
    [
        ("seed_id", pa.string()),
        ("target_id", pa.string()),
        ("of_seed_id", pa.string()),  # the row that it repeats, and which stays
        ("of_target_id", pa.string()),
        ("similarity", pa.float32()),
    ]
)
_USUAL_FOOTER_BYTES = 64 * 2**10  # a shard's has 16 KiB for each row group


# A run may be extended between two questions. Whoever asks several reads the plan once and gives it to all.


def is_complete(store: Store, plan: Plan | None = None) -> bool:
    """Whether every shard of the run stands, and its near-duplicates where the plan asks for them.

    `plan`: the run as it was then; None: as it is now. Raises InputError where there is no run.
    """
    plan = plan or read_plan(store)
    return not missing(store, plan) and not lacks_near_duplicates(store, plan)


def finished_plan(store: Store) -> Plan:
    """The plan of a finished run. Raises InputError where there is none: its rows would still change."""
    plan = read_plan(store)
    if not is_complete(store, plan):
        raise InputError(f"the generate run at {store.url} is not finished; run it to its end first")
    return plan


def commit(
    store: Store,
    shard: Shard,
    planned: Sequence[tuple[str, str]],
    rows: Sequence[DualView],
    attempt: str,
    spent: Spent,
) -> bool:
    """Puts a finished shard as one Parquet file; False if another attempt's stands already.

    planned: the (seed id, target id) of each request; "" for a target that is found on the way. The file's
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
        row.seed.id != seed_id or target_id not in ("", row.target_id)
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


def read_tables(
    store: Store, columns: Sequence[str] | None = None, plan: Plan | None = None
) -> Iterator[pa.Table]:
    """The committed shards in order, each a table in DUAL_VIEW_SCHEMA with its metadata (see commit).

    `columns`: only these; `plan`: the run as it was then, None: as it is now. Raises InputError where there is
    no run, or naming the file that is corrupt.
    """
    plan = plan or read_plan(store)
    to_do = set(missing(store, plan))
    for shard in plan.shards:
        if shard not in to_do:
            yield read_shard(store, shard.key, columns)


def left_out_of_training(store: Store, plan: Plan) -> frozenset[tuple[str, str]]:
    """(seed id, target id) of the near-duplicates among the rows of a finished plan, see `finished_plan`."""
    repeated = read_near_duplicates(store, plan)
    return frozenset(zip(*(repeated[name].to_pylist() for name in ("seed_id", "target_id")), strict=True))


def trainable_rows(table: pa.Table, left_out: Collection[tuple[str, str]]) -> pa.Table:
    """The rows of one shard that are trainable and not left out; needs the columns id, target_id, trainable."""
    rows = zip(*(table[name].to_pylist() for name in ("trainable", "id", "target_id")), strict=True)
    stays = [trainable and (seed_id, target_id) not in left_out for trainable, seed_id, target_id in rows]
    return table.filter(pa.array(stays, pa.bool_()))


def read_summaries(store: Store, plan: Plan | None = None) -> list[dict[str, Any]]:
    """What commit left in the metadata of each shard that stands, in order; only file footers are read.

    `plan`: only of its shards; None: of all that the run has.
    """
    entries = store.list("data/")
    if plan is not None:
        planned = {shard.key for shard in plan.shards}
        entries = [entry for entry in entries if entry.key in planned]

    def summary(entry: Entry) -> dict[str, Any]:
        end = _with_footer(store, entry.key)
        try:
            metadata = pq.read_metadata(pa.BufferReader(end)).metadata
            content: dict[str, Any] = json.loads(metadata[b"dualview"])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise _corrupt(store, entry.key, error) from None
        return content

    with ThreadPoolExecutor(max_workers=10) as threads:  # as many as boto3 keeps connections
        return list(threads.map(summary, entries))


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


def read_exam(store: Store) -> dict[str, dict[str, Any]]:
    """Judge -> its result; empty where no exam was sat."""
    if not store.list(EXAM_KEY):
        return {}
    results: dict[str, dict[str, Any]] = json.loads(store.get(EXAM_KEY))
    return results


def lacks_near_duplicates(store: Store, plan: Plan) -> bool:
    """Whether the plan asks for them, and nobody has looked for them yet."""
    return plan.settings.get("near_duplicates") is not None and not store.list(near_duplicates_key(plan))


def near_duplicates_key(plan: Plan) -> str:
    return numbered("near_duplicates", len(plan.extensions), "parquet")


def put_near_duplicates(store: Store, plan: Plan, table: pa.Table) -> None:
    """Creates the run's list, in NEAR_DUPLICATES_SCHEMA; one that stands already says the same, and stays."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    store.put_new(near_duplicates_key(plan), buffer.getvalue().to_pybytes(), uuid4().hex)


def read_near_duplicates(store: Store, plan: Plan) -> pa.Table:
    """The run's list; empty where none was made. Raises InputError where it is corrupt."""
    key = near_duplicates_key(plan)
    try:
        return pq.read_table(pa.BufferReader(store.get(key)), schema=NEAR_DUPLICATES_SCHEMA)
    except FileNotFoundError:
        return NEAR_DUPLICATES_SCHEMA.empty_table()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{store.url}/{key}: is not a whole list ({reason})") from None
