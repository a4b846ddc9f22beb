"""Attempts at shards and rows that crash the engine, over a folder and over S3 (moto's server)."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

from finished_run import INPUTS, SETTINGS, commit_rows, rows_of
import pytest

from dualview.errors import Interruption
from dualview.records import ACCEPTED
from dualview.runs.attempts import begin_attempt, crashing_rows, leave_breadcrumb
from dualview.runs.plan import Shard, plan_run
from dualview.runs.run import open_run
from dualview.storage import Store, open_store


def test_attempts_are_counted_for_each_shard(store: Store) -> None:
    one, two = Shard(1, "north.jsonl", 0, 5), Shard(2, "north.jsonl", 5, 9)
    assert [begin_attempt(store, one, attempt) for attempt in "abc"] == [1, 2, 3]
    assert [begin_attempt(store, two, attempt) for attempt in "de"] == [1, 2]
    assert begin_attempt(store, one, "f") == 4


def test_attempts_at_the_same_time_count_apart(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shard = Shard(0, "north.jsonl", 0, 5)
    at_once = Barrier(4)

    def begin(attempt: str) -> int:
        at_once.wait()
        return begin_attempt(store, shard, attempt)

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(begin, "abcd")) == [1, 2, 3, 4]


def leave_all(store: Store, shard: Shard, breadcrumbs: dict[int, range]) -> None:
    for ordinal, rows in breadcrumbs.items():
        for row_index in rows:
            leave_breadcrumb(store, shard, ordinal, row_index)


@pytest.mark.parametrize(
    ("breadcrumbs", "expected"),
    [
        ({}, set()),
        ({3: range(8)}, set()),  # once may be someone else's doing
        ({3: range(8), 4: range(8)}, {7}),
        ({3: range(8), 4: range(3)}, set()),  # two different last rows: neither is blamed
        ({3: range(8), 4: range(3), 5: range(8)}, {7}),
        ({3: range(8), 4: range(8), 5: range(12), 6: range(12)}, {7, 11}),
        ({9: range(11), 10: range(11)}, {10}),  # numbers, not texts, are compared
        ({3: range(1), 4: range(1)}, {0}),
    ],
)
def test_a_row_that_two_attempts_died_on_is_a_crashing_row(
    tmp_path: Path, breadcrumbs: dict[int, range], expected: set[int]
) -> None:
    store = open_store(str(tmp_path))
    shard, neighbour = Shard(5, "north.jsonl", 0, 16), Shard(6, "north.jsonl", 16, 32)
    leave_all(store, shard, breadcrumbs)
    assert crashing_rows(store, shard, shard.num_rows) == expected
    assert crashing_rows(store, neighbour, neighbour.num_rows) == set()


def test_a_crashing_row_is_found_and_the_shard_gets_done(store: Store) -> None:
    """The whole story, as synthesis lives it: row 3 crashes every process that runs it."""
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    deadly = 3

    def run_until_death(attempt: str) -> bool:
        ordinal = begin_attempt(store, shard, attempt)
        if ordinal < 3:
            return False  # all rows at once: dead
        crashing = crashing_rows(store, shard, shard.num_rows)
        rows = rows_of(shard, attempt)
        for row_index in range(shard.num_rows):
            if row_index in crashing:
                rows[row_index] = replace(rows[row_index], status="poison", trainable=False)
                continue
            leave_breadcrumb(store, shard, ordinal, row_index)
            if row_index == deadly:
                return False
        return commit_rows(store, shard, rows, attempt)

    assert [run_until_death(attempt) for attempt in "abcde"] == [False, False, False, False, True]
    [table] = open_run(store).tables()
    assert table["status"].to_pylist() == [ACCEPTED] * 3 + ["poison"] + [ACCEPTED]


def test_an_engine_that_dies_on_every_row_is_blamed_on_none(store: Store) -> None:
    shard, other = (Shard(index, "north.jsonl", 16 * index, 16 * index + 16) for index in (5, 6))
    deaths = enumerate([0, 0, 7, 7, 8, 8, 9, 9, 10, 10], start=3)
    leave_all(store, shard, {ordinal: range(row + 1) for ordinal, row in deaths})
    leave_all(store, other, {3: range(1), 4: range(1)})
    with pytest.raises(Interruption, match=r"on each of 4 rows in a row \(north.jsonl, rows 80 to 95\)"):
        crashing_rows(store, shard, shard.num_rows)

    assert crashing_rows(store, shard, shard.num_rows) == crashing_rows(store, other, other.num_rows) == set()
    leave_all(store, shard, {13: range(3), 14: range(3)})
    assert crashing_rows(store, shard, shard.num_rows) == {2}
