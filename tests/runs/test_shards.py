"""The commit of a shard, over a folder and over S3 (moto's server)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import json
import os
from pathlib import Path
import tempfile
from threading import Barrier

from finished_run import (
    INPUTS,
    SETTINGS,
    commit_rows,
    rows_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview.arrow import dual_views_from_table
from dualview.costs import Spent
from dualview.errors import InputError
from dualview.records import (
    REASONS,
    Draft,
    DualView,
    Lineage,
    Passage,
    Requirement,
    Rewording,
    SourceExample,
    Verdict,
)
from dualview.runs import shards
from dualview.runs.plan import Input, Shard, plan_run
from dualview.runs.run import open_run
from dualview.runs.shards import commit, read_summaries
from dualview.storage import Store, open_store


def test_a_second_attempt_is_dropped(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 5)
    shard = plan.shards[0]
    assert commit_rows(store, shard, rows_of(shard, "one"), "one")
    assert not commit_rows(store, shard, rows_of(shard, "two"), "two")
    [table] = open_run(store).tables()
    assert dual_views_from_table(table) == rows_of(shard, "one")


def test_of_attempts_at_the_same_time_one_stands_whole(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    attempts = ["one", "two", "three", "four"]
    at_once = Barrier(len(attempts))

    def attempt_it(attempt: str) -> bool:
        at_once.wait()
        return commit_rows(store, shard, rows_of(shard, attempt), attempt)

    with ThreadPoolExecutor(len(attempts)) as pool:
        won = list(pool.map(attempt_it, attempts))
    assert won.count(True) == 1
    [table] = open_run(store).tables()
    assert dual_views_from_table(table) == rows_of(shard, attempts[won.index(True)])


def test_the_files_metadata_sums_it_up(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    rows = rows_of(shard, "one")
    rows[1:3] = [replace(row, status="declined", trainable=False) for row in rows[1:3]]
    rows[4] = replace(rows[4], prompt_tokens=7, completion_tokens=1)
    commit_rows(store, shard, rows, "one")
    file = pq.ParquetFile(tmp_path / shard.key)
    assert json.loads(file.metadata.metadata[b"dualview"]) == {
        "run": "run",
        "attempt": "one",
        "statuses": {"accepted": 3, "declined": 2},
        "trainable": 3,
        "prompt_tokens": 407,
        "completion_tokens": 41,
        "gpu_seconds": 1.5,
    }
    assert read_summaries(store, [shard.key]) == [json.loads(file.metadata.metadata[b"dualview"])]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert next(open_run(store).tables()).schema.metadata[b"dualview"] == file.metadata.metadata[b"dualview"]


def test_a_summary_behind_a_long_footer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    commit_rows(store, shard, rows_of(shard, "one"), "one")
    usual = read_summaries(store, [shard.key])
    monkeypatch.setattr(shards, "_USUAL_FOOTER_BYTES", 100)
    assert read_summaries(store, [shard.key]) == usual


ROWS = rows_of(Shard(0, "north.jsonl", 0, 3), "one")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (ROWS[:2], "2 rows instead of 3"),
        ([*ROWS, ROWS[0]], "4 rows instead of 3"),
        ([], "0 rows instead of 3"),
        ([*ROWS[:2], ROWS[0]], "rows of other requests"),
        ([ROWS[1], ROWS[0], ROWS[2]], "rows of other requests"),
        ([*ROWS[:2], replace(ROWS[2], target_id="kenya")], "rows of other requests"),
        ([*ROWS[:2], replace(ROWS[2], status="fine", trainable=False)], "unknown status {'fine'}"),
        ([*ROWS[:2], replace(ROWS[2], status="declined")], "not accepted is trainable"),
        ([*ROWS[:2], replace(ROWS[2], lineage=replace(ROWS[2].lineage, run="x"))], "rows of several runs"),
        ([*ROWS[:2], replace(ROWS[2], lineage=replace(ROWS[2].lineage, shard=1))], "rows of another shard"),
        (
            [*ROWS[:2], replace(ROWS[2], lineage=replace(ROWS[2].lineage, attempt="x"))],
            "another shard or attempt",
        ),
    ],
)
def test_rows_that_do_not_add_up_are_not_put(tmp_path: Path, rows: list[DualView], problem: str) -> None:
    store = open_store(str(tmp_path))
    with pytest.raises(ValueError, match=problem) as caught:
        commit_rows(store, Shard(0, "north.jsonl", 0, 3), rows, "one")
    assert not isinstance(caught.value, InputError)  # ours to mend, so it keeps its traceback
    assert os.listdir(tmp_path) == []


texts = st.text(max_size=12)
passages = st.builds(
    Passage, id=texts, text=texts, title=texts, attributes=st.dictionaries(texts, texts, max_size=2)
)
requirements = st.lists(st.builds(Requirement, st.booleans(), texts, texts), max_size=2).map(tuple)
examples = st.builds(
    SourceExample,
    id=texts,
    query_id=texts,
    query=texts,
    instruction=texts,
    positive=passages,
    instruction_negatives=st.lists(passages, max_size=2).map(tuple),
    hard_negatives=st.lists(passages, max_size=2).map(tuple),
    requirements=requirements,
)
conditions = st.sampled_from(["query", "original", "new"])
margins = st.none() | st.floats(width=32, allow_nan=False)  # float32, as they are stored
dual_views = st.builds(
    DualView,
    example=examples,
    target_id=texts,
    new_instruction=texts,
    new_requirements=requirements,
    status=st.sampled_from(REASONS),
    trainable=st.just(False),
    verdicts=st.lists(
        st.builds(Verdict, texts, conditions, texts, st.none() | st.booleans(), margins), max_size=2
    ).map(tuple),
    drafts=st.lists(
        st.builds(Draft, conditions, texts, texts, st.sampled_from(REASONS), margins), max_size=2
    ).map(tuple),
    rewordings=st.lists(st.builds(Rewording, conditions, texts, texts), max_size=2).map(tuple),
    prompt_tokens=st.integers(0, 2**40),
    completion_tokens=st.integers(0, 2**40),
    lineage=st.builds(
        Lineage,
        writer=texts,
        prompt=texts,
        sampling=texts,
        judges=st.lists(texts, max_size=2).map(tuple),
        judge_model=texts,
        written_in=texts,
        code_version=texts,
        run=st.just("run"),
        shard=st.just(0),
        attempt=st.just("one"),
    ),
) | examples.map(lambda example: replace(ROWS[0], example=example))


@settings(max_examples=30)
@given(rows=st.lists(dual_views, min_size=1, max_size=4, unique_by=lambda row: row.example.id))
def test_rows_come_back_as_they_went(rows: list[DualView]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        plan_run(store, {}, [Input("examples", len(rows), "")], rows_per_shard=4)
        planned = [(row.example.id, row.target_id) for row in rows]
        commit(store, Shard(0, "examples", 0, len(rows)), planned, rows, "one", Spent())
        assert dual_views_from_table(pa.concat_tables(open_run(store).tables())) == rows


def whole_file(num_rows: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(0, "north.jsonl", 0, num_rows)
        commit_rows(open_store(folder), shard, rows_of(shard, "one"), "one")
        return (Path(folder) / shard.key).read_bytes()


def other_columns() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a", "b", "c", "d", "e"]}), buffer)
    return bytes(buffer.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: b"", "Parquet file of a generate run"),
        (lambda: whole_file(5)[:-20], "Parquet file of a generate run"),
        (lambda: whole_file(5)[:4] + b"\0" * 400 + whole_file(5)[404:], "Parquet file of a generate run"),
        (other_columns, "expected the columns of records.DualView .* found id"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, content: Callable[[], bytes], problem: str) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    store.put_new(shard.key, content(), "someone-else")
    with pytest.raises(InputError, match=problem) as caught:
        list(open_run(store).tables())
    assert str(caught.value).startswith(f"{tmp_path}/data/shard-000000.parquet: ")
