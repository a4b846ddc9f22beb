"""Attempts at shards: what they spent, and which row kills its engine.

A row that kills its engine leaves nothing behind but the attempts it cost. So attempts are counted, and
from the third on the rows run one by one, each marked before it runs: the last mark of a dead attempt
names the row that it died on. One such mark may be someone else's doing (a preempted machine), two are not.
Where neighbour after neighbour is marked so, the engine dies of something else, and no row is to blame.
"""

from collections import Counter
from dataclasses import asdict, fields
import json

from dualview.costs import Spent
from dualview.errors import Interruption
from dualview.runs.plan import Shard
from dualview.runs.shards import read_summaries
from dualview.storage import Store

_MAX_KILLERS_IN_A_ROW = 3
_NO_ROW = 999_999


def begin_attempt(store: Store, shard: Shard, attempt: str) -> int:
    """Notes that an attempt at the shard begins; which one it is: 1, 2, 3..."""
    notes = f"attempts/{shard.index:06d}/"
    ordinal = len(store.list(notes)) + 1
    while not store.put_new(f"{notes}{ordinal}", attempt.encode(), attempt):
        ordinal += 1
    return ordinal


def mark_row(store: Store, shard: Shard, ordinal: int, row_index: int) -> None:
    """Notes that this attempt is about to run the shard's row (0-based), rows in ascending order."""
    store.put_new(f"marks/{shard.index:06d}/{ordinal}/{row_index:06d}", b"", attempt=str(ordinal))


def killers(store: Store, shard: Shard, num_requests: int) -> set[int]:
    """Rows which two or more attempts died on. To be asked before an attempt marks its own first row.

    Raises Interruption where they are too many in a row, and acquits the rows of all shards, so that a run
    that goes on with a sound engine begins its search anew.
    """
    last_marks: dict[str, int] = {}
    for entry in store.list(f"marks/{shard.index:06d}/"):  # sorted: an attempt's last mark comes last
        *_, ordinal, row_index = entry.key.split("/")
        last_marks[ordinal] = int(row_index)
    counts = Counter(last_marks.values())
    found = {row for row, count in counts.items() if count >= 2 and row < num_requests}
    num_neighbours = _MAX_KILLERS_IN_A_ROW + 1
    if any(found.issuperset(range(row, row + num_neighbours)) for row in found):
        for attempt in {entry.key.rpartition("/")[0] for entry in store.list("marks/")}:
            store.put_new(f"{attempt}/{_NO_ROW}", b"", attempt="acquittal")
        raise Interruption(
            f"{store.url}: the engine died twice on each of {num_neighbours} rows in a row"
            f" ({shard.input}, rows {shard.start} to {shard.stop - 1}), so it hardly dies of the rows;"
            " see its log and mend it"
        )
    return found


def note_lost(store: Store, shard: Shard, attempt: str, spent: Spent) -> None:
    """Keeps what an attempt spent whose shard another attempt committed first."""
    store.put_new(
        f"lost/{shard.index:06d}/{attempt}", json.dumps(asdict(spent), allow_nan=False).encode(), attempt
    )


def spent_so_far(store: Store) -> Spent:
    """What all attempts spent that came to an end; one that died leaves no account."""
    names = [field.name for field in fields(Spent)]
    notes = [json.loads(store.get(entry.key)) for entry in store.list("lost/")]
    total = Spent()
    for note in [*read_summaries(store), *notes]:
        total += Spent(**{name: note[name] for name in names})
    return total
