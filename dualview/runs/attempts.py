"""Attempts at shards: what they spent, and which rows crash the engine.

A row that crashes the engine leaves nothing behind but the attempts that it cost. So attempts are counted. From the
third on, a shard's rows run in isolation, one by one, and each leaves a breadcrumb before it runs: the last
breadcrumb of a dead attempt names the row that it died on. One death may have another cause (a preempted machine),
so it takes two to blame a row. If several rows in sequence are blamed, the engine is at fault and no row is.
"""

from collections import Counter
from dataclasses import asdict
import json
from typing import Any

from dualview.costs import Spent
from dualview.errors import Interruption
from dualview.runs.plan import Shard
from dualview.storage import Store

_MAX_CRASHING_ROWS_IN_SEQUENCE = 3
_NO_ROW = 999_999  # a last breadcrumb that points to no row


def begin_attempt(store: Store, shard: Shard, attempt: str) -> int:
    """Records that an attempt at the shard begins. Returns its ordinal: 1, 2, 3..."""
    prefix = f"attempts/{shard.index:06d}/"
    ordinal = len(store.list(prefix)) + 1
    while not store.put_new(f"{prefix}{ordinal}", attempt.encode(), attempt):
        ordinal += 1
    return ordinal


def leave_breadcrumb(store: Store, shard: Shard, ordinal: int, row_index: int) -> None:
    """Records that this attempt is about to run the shard's row (0-based); rows come in ascending order."""
    store.put_new(f"marks/{shard.index:06d}/{ordinal}/{row_index:06d}", b"", attempt=str(ordinal))


def crashing_rows(store: Store, shard: Shard, num_requests: int) -> set[int]:
    """The rows that at least two attempts died on. Ask before the attempt leaves its own first breadcrumb.

    Raises Interruption if there are too many in sequence. It then clears the suspicion from the rows of all
    shards, so that a later run with a healthy engine starts its search from scratch.
    """
    last_rows: dict[str, int] = {}
    # Sorted, so an attempt's last breadcrumb comes last.
    for entry in store.list(f"marks/{shard.index:06d}/"):
        *_, ordinal, row_index = entry.key.split("/")
        last_rows[ordinal] = int(row_index)
    counts = Counter(last_rows.values())
    crashing = {row for row, count in counts.items() if count >= 2 and row < num_requests}
    num_neighbours = _MAX_CRASHING_ROWS_IN_SEQUENCE + 1
    if any(crashing.issuperset(range(row, row + num_neighbours)) for row in crashing):
        for attempt in {entry.key.rpartition("/")[0] for entry in store.list("marks/")}:
            store.put_new(f"{attempt}/{_NO_ROW}", b"", attempt="reset")
        raise Interruption(
            f"{store.url}: the engine died twice on each of {num_neighbours} rows in a row"
            f" ({shard.input}, rows {shard.start} to {shard.stop - 1}), so the rows are hardly the cause;"
            " read the engine's log and fix it"
        )
    return crashing


def record_lost(store: Store, shard: Shard, attempt: str, spent: Spent) -> None:
    """Keeps what an attempt spent on a shard that another attempt committed first."""
    store.put_new(
        f"lost/{shard.index:06d}/{attempt}", json.dumps(asdict(spent), allow_nan=False).encode(), attempt
    )


def read_lost(store: Store) -> list[dict[str, Any]]:
    """What each lost attempt spent, under the names of Spent's fields."""
    return [json.loads(store.get(entry.key)) for entry in store.list("lost/")]
