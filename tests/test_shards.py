"""The plan and the commit, over a folder and over S3 (moto's server)."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
import json
import os
from pathlib import Path
import tempfile
from threading import Barrier
from typing import Any
from uuid import uuid4

import boto3
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview import shards
from dualview.costs import Spent
from dualview.errors import InputError, Interruption
from dualview.records import (
    ACCEPTED,
    REASONS,
    Draft,
    DualView,
    Lineage,
    Passage,
    Requirement,
    Rewording,
    Seed,
    Verdict,
    dual_views_from_table,
)
from dualview.shards import (
    Input,
    Shard,
    begin_attempt,
    commit,
    is_complete,
    killers,
    known_inputs,
    mark_row,
    missing,
    note_lost,
    plan_run,
    read_plan,
    read_summaries,
    read_tables,
    spent_so_far,
)
from dualview.storage import Store, open_store

SETTINGS = {"writer": {"model": "demo", "temperature": 0.7}, "rules": {"max_words": 40}, "judges": ["a", "b"]}
INPUTS = [Input("north.jsonl", 5, "c0ffee"), Input("empty.jsonl", 0, "0"), Input("south.jsonl", 4, "beef")]


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path))
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", request.getfixturevalue("moto_url"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "not-a-real-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    bucket = f"bucket-{uuid4().hex[:8]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=bucket)
    return open_store(f"s3://{bucket}/run")


def finished_row(seed_id: str, shard: int, attempt: str) -> DualView:
    passage = Passage("p", "Kenya lies in Africa.", attributes={"region": "Africa"})
    negative = Passage(
        "n", "Peru lies in South America.", title="Peru", attributes={"region": "South America"}
    )
    seed = Seed(
        id=seed_id,
        query_id="q",
        query="countries with coffee",
        instruction="Only countries in Africa.",
        positive=passage,
        instruction_negatives=(negative,),
        requirements=(Requirement(True, "region", "Africa"),),
    )
    return DualView(
        seed=seed,
        target_id="n",
        new_instruction="Leave out Africa.",
        new_requirements=(Requirement(False, "region", "Africa"),),
        status=ACCEPTED,
        trainable=True,
        verdicts=(
            Verdict("attributes", "new", "n", True, 1.5),
            Verdict("llm", "new", "p", False, None),
            Verdict("llm", "query", "h", None, 0.5),
        ),
        drafts=(Draft("new", "<answer>Leave out Africa.</answer>", "Leave out Africa.", ACCEPTED, 1.5),),
        rewordings=(Rewording("new", "Nothing from Africa.", ACCEPTED),),
        prompt_tokens=100,
        completion_tokens=10,
        lineage=Lineage(
            "demo", "reverse", "{}", ("attributes", "llm"), "m", "0.1", "", "run", shard, attempt
        ),
    )


def finished_rows(shard: Shard, attempt: str) -> list[DualView]:
    return [
        finished_row(f"{shard.input}-{row}", shard.index, attempt) for row in range(shard.start, shard.stop)
    ]


def put(store: Store, shard: Shard, rows: list[DualView], attempt: str) -> bool:
    """Commits the rows of the shard as planned: one for each of its inputs' rows."""
    planned = [(f"{shard.input}-{row}", "n") for row in range(shard.start, shard.stop)]
    tokens = (sum(row.prompt_tokens for row in rows), sum(row.completion_tokens for row in rows))
    return commit(store, shard, planned, rows, attempt, Spent(*tokens, gpu_seconds=1.5))


# --- the plan -------------------------------------------------------------------------------------


def test_shards_are_cut_within_inputs_in_order(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, rows_per_shard=2)
    assert plan.shards == (
        Shard(0, "north.jsonl", 0, 2),
        Shard(1, "north.jsonl", 2, 4),
        Shard(2, "north.jsonl", 4, 5),
        Shard(3, "south.jsonl", 0, 2),
        Shard(4, "south.jsonl", 2, 4),
    )
    assert [shard.key for shard in plan.shards][3] == "data/shard-000003.parquet"


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=5).filter(any),
    rows_per_shard=st.integers(1, 60),
)
def test_every_row_is_in_exactly_one_shard(sizes: list[int], rows_per_shard: int) -> None:
    inputs = [Input(str(number), size, "") for number, size in enumerate(sizes)]
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_run(open_store(folder), {}, inputs, rows_per_shard)
    planned = [(shard.input, row) for shard in plan.shards for row in range(shard.start, shard.stop)]
    assert planned == [(source.name, row) for source in inputs for row in range(source.num_rows)]
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    assert all(0 < shard.num_rows <= rows_per_shard for shard in plan.shards)


def test_the_same_plan_goes_on(store: Store) -> None:
    first = plan_run(store, SETTINGS, INPUTS, 2)
    reordered = {key: SETTINGS[key] for key in reversed(SETTINGS)} | {"judges": ("a", "b")}
    assert plan_run(store, reordered, INPUTS, 2) == first == read_plan(store)
    assert json.loads(store.get("plan.json"))["fingerprint"] == first.fingerprint


@pytest.mark.parametrize(
    ("plan_settings", "inputs", "rows_per_shard", "difference"),
    [
        (
            {**SETTINGS, "writer": {"model": "demo", "temperature": 0.9}},
            INPUTS,
            2,
            r"\(settings.writer.temperature: there 0.7, here 0.9\)",
        ),
        ({**SETTINGS, "judges": ["a"]}, INPUTS, 2, r'\(settings.judges.1: there "b", here absent\)'),
        ({**SETTINGS, "facets": []}, INPUTS, 2, r"\(settings.facets: there absent, here \[\]\)"),
        (SETTINGS, INPUTS, 3, r"\(rows_per_shard: there 2, here 3\)"),
        (
            {"writer": {"model": "x", "temperature": 1}, "rules": {"max_words": 1}, "judges": ["a", "c"]},
            INPUTS,
            3,
            r"settings.writer.model: there \"demo\", here \"x\"; 2 more\)",
        ),
    ],
)
def test_another_plan_is_refused_and_told_what_differs(
    tmp_path: Path,
    plan_settings: dict[str, Any],
    inputs: Sequence[Input],
    rows_per_shard: int,
    difference: str,
) -> None:
    store = open_store(str(tmp_path))
    first = plan_run(store, SETTINGS, INPUTS, 2)
    with pytest.raises(InputError, match=difference) as caught:
        plan_run(store, plan_settings, inputs, rows_per_shard)
    assert str(caught.value).startswith(f"{tmp_path}: holds a run with other settings")
    assert "choose another output" in str(caught.value)
    assert read_plan(store) == first


# --- input that grows -----------------------------------------------------------------------------

LATER = [Input("east.jsonl", 3, "fade"), Input("west.jsonl", 1, "fee")]


def test_new_inputs_add_shards_and_change_none(store: Store) -> None:
    before = plan_run(store, SETTINGS, INPUTS, 2)
    plan_json = store.get("plan.json")
    for shard in before.shards:
        put(store, shard, finished_rows(shard, "one"), "one")
    assert is_complete(store)

    once = plan_run(store, SETTINGS, [LATER[0], *INPUTS], 2)  # their order is not the files' business
    assert once.shards == (*before.shards, Shard(5, "east.jsonl", 0, 2), Shard(6, "east.jsonl", 2, 3))
    twice = plan_run(store, SETTINGS, [*LATER, *INPUTS], 2)
    assert twice.shards == (*once.shards, Shard(7, "west.jsonl", 0, 1))
    assert twice == read_plan(store) == plan_run(store, SETTINGS, [*INPUTS, *LATER], 2)
    assert before.fingerprint == once.fingerprint == twice.fingerprint
    assert store.get("plan.json") == plan_json
    assert missing(store, twice) == list(twice.shards[5:])
    assert [entry.key for entry in store.list("plan")] == ["plan-0001.json", "plan-0002.json", "plan.json"]


@pytest.mark.parametrize("same", [True, False])
def test_of_drivers_that_extend_at_once_one_wins_and_the_others_go_on(tmp_path: Path, same: bool) -> None:
    store = open_store(str(tmp_path))
    before = plan_run(store, SETTINGS, INPUTS[:1], 2)
    for shard in before.shards:
        put(store, shard, finished_rows(shard, "one"), "one")
    num_drivers = 4
    at_once = Barrier(num_drivers)

    def extend(driver: int) -> str:
        new = [
            Input(f"{0 if same else driver}-{name}", 3, f"{0 if same else driver}-{name}") for name in "ab"
        ]
        at_once.wait()
        try:
            plan_run(store, SETTINGS, [*INPUTS[:1], *new], 2)
        except InputError as error:  # another's inputs, which this driver does not have
            return str(error)
        return ""

    with ThreadPoolExecutor(num_drivers) as pool:
        refusals = [refusal for refusal in pool.map(extend, range(num_drivers)) if refusal]
    assert all("is not among the inputs any more" in refusal for refusal in refusals)
    assert not (same and refusals)
    plan = read_plan(store)
    names = [source.name for source in plan.all_inputs]
    assert len(set(names)) == len(names)
    assert len(plan.extensions) == 1 if same else len(plan.extensions) >= 1
    assert plan.shards[: len(before.shards)] == before.shards
    assert [shard.index for shard in plan.shards] == list(range(len(plan.shards)))
    assert all(shard.num_rows == size for shard, size in zip(plan.shards[3:], [2, 1] * 99, strict=False))


@pytest.mark.parametrize(
    ("changed", "difference"),
    [
        (
            replace(INPUTS[0], checksum="decaf"),
            r'input north.jsonl .*\(checksum: there "c0ffee", here "decaf"\)',
        ),
        (replace(INPUTS[0], checksum="f", num_rows=6), r"input north.jsonl .*; rows: there 5, here 6\)"),
    ],
)
def test_an_input_that_changed_is_refused(tmp_path: Path, changed: Input, difference: str) -> None:
    store = open_store(str(tmp_path))
    first = plan_run(store, SETTINGS, INPUTS, 2)
    with pytest.raises(InputError, match=difference):
        plan_run(store, SETTINGS, [changed, *INPUTS[1:], *LATER], 2)
    extended = plan_run(store, SETTINGS, [*INPUTS, LATER[0]], 2)
    with pytest.raises(InputError, match=r"input east\.jsonl has changed"):
        plan_run(store, SETTINGS, [*INPUTS, replace(LATER[0], checksum="x")], 2)
    assert read_plan(store) == extended
    assert extended.inputs == first.inputs


def test_what_is_not_compared_may_change(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    before = replace(INPUTS[0], stamp="5-1", index="x", num_bad=1, bad=((2, "seeds.jsonl line 2: é"),))
    plan_run(store, SETTINGS, [before], 2)
    plan = plan_run(store, SETTINGS, [replace(before, stamp="5-2")], 2)
    assert [(each.stamp, each.index, each.bad) for each in plan.inputs] == [("5-1", "x", before.bad)]


def test_an_input_may_go_once_it_is_finished(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 2)
    for shard in plan.shards[:4]:
        put(store, shard, finished_rows(shard, "one"), "one")
    assert plan_run(store, SETTINGS, INPUTS[1:], 2) == plan  # north is done, empty had nothing
    with pytest.raises(InputError, match=r"with input south.jsonl, which is not .* and 1 of its shards"):
        plan_run(store, SETTINGS, INPUTS[:2], 2)
    with pytest.raises(InputError, match=r"input moved.jsonl has the content of north.jsonl"):
        plan_run(store, SETTINGS, [replace(INPUTS[0], name="moved.jsonl"), *INPUTS[1:]], 2)
    assert read_plan(store) == plan


def test_bad_rows_are_listed_beside_the_plan(store: Store) -> None:
    bad = [
        replace(source, num_bad=7, bad=((2, f"{source.name} line 2: é"),)) for source in (INPUTS[0], LATER[0])
    ]
    plan_run(store, SETTINGS, [bad[0], INPUTS[2]], 2)
    plan_run(store, SETTINGS, [bad[0], INPUTS[2], *bad[1:]], 2)
    for key, source in zip(("bad_rows.jsonl", "bad_rows-0001.jsonl"), bad, strict=True):
        assert [json.loads(line) for line in store.get(key).decode().splitlines()] == [
            {"input": source.name, "num_bad": 7, "num_listed": 1},
            {"input": source.name, "row": 2, "reason": f"{source.name} line 2: é"},
        ]


def test_what_is_known_of_the_inputs_is_told_to_the_same_run_alone(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    assert known_inputs(store, SETTINGS) == ()
    plan_run(store, SETTINGS, INPUTS, 2)
    assert known_inputs(store, SETTINGS) == tuple(INPUTS)
    plan_run(store, SETTINGS, [*INPUTS, *LATER], 2)
    assert known_inputs(store, SETTINGS) == (*INPUTS, *LATER)
    assert known_inputs(store, {**SETTINGS, "source": "another"}) == ()


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ([INPUTS[0], INPUTS[0]], "input north.jsonl: is listed more than once"),
        ([INPUTS[1]], "the inputs have no rows"),
        ([], "the inputs have no rows"),
    ],
)
def test_impossible_inputs_are_refused(tmp_path: Path, inputs: list[Input], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        plan_run(open_store(str(tmp_path)), SETTINGS, inputs, 2)
    assert os.listdir(tmp_path) == []


def test_no_run_is_told(store: Store) -> None:
    for ask in (read_plan, is_complete, lambda place: next(read_tables(place))):
        with pytest.raises(InputError, match=f"no generate run at {store.url}"):
            ask(store)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"inputs": []}', b'{"inputs": [{"size": 1}]}'])
def test_a_strange_plan_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "plan.json").write_bytes(content)
    with pytest.raises(InputError, match=r"plan.json: is not the plan of a generate run"):
        read_plan(open_store(str(tmp_path)))


def test_a_strange_extension_is_told(tmp_path: Path) -> None:
    plan_run(open_store(str(tmp_path)), SETTINGS, INPUTS, 2)
    (tmp_path / "plan-0001.json").write_bytes(b"[]")
    with pytest.raises(InputError, match=r"plan-0001.json: is not the plan of a generate run"):
        read_plan(open_store(str(tmp_path)))


# --- the commit -----------------------------------------------------------------------------------


def test_a_run_goes_on_where_it_broke_off(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 2)
    assert missing(store, plan) == list(plan.shards)
    for index in (3, 0):
        assert put(store, plan.shards[index], finished_rows(plan.shards[index], "one"), "one")
    begin_attempt(store, plan.shards[1], "one")
    finished_rows(plan.shards[1], "one")  # the process dies here, with its rows and before the put

    again = plan_run(store, SETTINGS, INPUTS, 2)
    assert [shard.index for shard in missing(store, again)] == [1, 2, 4]
    assert not is_complete(store)
    for shard in missing(store, again):
        assert put(store, shard, finished_rows(shard, "two"), "two")
    assert is_complete(store)
    rows = [row for table in read_tables(store) for row in dual_views_from_table(table)]
    planned = [f"{source.name}-{row}" for source in INPUTS for row in range(source.num_rows)]
    assert [row.seed.id for row in rows] == planned
    assert [row.lineage.attempt for row in rows] == ["one"] * 2 + ["two"] * 3 + ["one"] * 2 + ["two"] * 2


def test_an_unfinished_run_is_read_as_far_as_it_stands(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 2)
    for index in (4, 1):
        put(store, plan.shards[index], finished_rows(plan.shards[index], "one"), "one")
    assert [table["id"].to_pylist() for table in read_tables(store)] == [
        ["north.jsonl-2", "north.jsonl-3"],
        ["south.jsonl-2", "south.jsonl-3"],
    ]


def test_a_second_attempt_is_dropped(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 5)
    shard = plan.shards[0]
    assert put(store, shard, finished_rows(shard, "one"), "one")
    assert not put(store, shard, finished_rows(shard, "two"), "two")
    [table] = read_tables(store)
    assert dual_views_from_table(table) == finished_rows(shard, "one")


def test_what_was_spent_counts_lost_attempts_too(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 5)
    shard = plan.shards[0]
    assert spent_so_far(store) == Spent()
    assert put(store, shard, finished_rows(shard, "one"), "one")
    assert not put(store, shard, finished_rows(shard, "two"), "two")
    note_lost(store, shard, "two", Spent(500, 50, 1.5))
    assert spent_so_far(store) == Spent(1000, 100, 3.0)


def test_of_attempts_at_the_same_time_one_stands_whole(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    attempts = ["one", "two", "three", "four"]
    at_once = Barrier(len(attempts))

    def attempt_it(attempt: str) -> bool:
        at_once.wait()
        return put(store, shard, finished_rows(shard, attempt), attempt)

    with ThreadPoolExecutor(len(attempts)) as pool:
        won = list(pool.map(attempt_it, attempts))
    assert won.count(True) == 1
    [table] = read_tables(store)
    assert dual_views_from_table(table) == finished_rows(shard, attempts[won.index(True)])


def test_the_files_metadata_sums_it_up(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    rows = finished_rows(shard, "one")
    rows[1:3] = [replace(row, status="declined", trainable=False) for row in rows[1:3]]
    rows[4] = replace(rows[4], prompt_tokens=7, completion_tokens=1)
    put(store, shard, rows, "one")
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
    assert read_summaries(store) == [json.loads(file.metadata.metadata[b"dualview"])]
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"
    assert next(read_tables(store)).schema.metadata[b"dualview"] == file.metadata.metadata[b"dualview"]


def test_a_summary_behind_a_long_footer_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    put(store, shard, finished_rows(shard, "one"), "one")
    usual = read_summaries(store)
    monkeypatch.setattr(shards, "_USUAL_FOOTER_BYTES", 100)
    assert read_summaries(store) == usual


ROWS = finished_rows(Shard(0, "north.jsonl", 0, 3), "one")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (ROWS[:2], "2 rows instead of 3"),
        ([*ROWS, ROWS[0]], "4 rows instead of 3"),
        ([], "0 rows instead of 3"),
        ([*ROWS[:2], ROWS[0]], "rows of other requests, or in another order"),
        ([ROWS[1], ROWS[0], ROWS[2]], "rows of other requests, or in another order"),
        ([*ROWS[:2], replace(ROWS[2], target_id="p")], "rows of other requests, or in another order"),
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
        put(store, Shard(0, "north.jsonl", 0, 3), rows, "one")
    assert not isinstance(caught.value, InputError)  # ours to mend, so it keeps its traceback
    assert os.listdir(tmp_path) == []


texts = st.text(max_size=12)
passages = st.builds(
    Passage, id=texts, text=texts, title=texts, attributes=st.dictionaries(texts, texts, max_size=2)
)
requirements = st.lists(st.builds(Requirement, st.booleans(), texts, texts), max_size=2).map(tuple)
seeds = st.builds(
    Seed,
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
    seed=seeds,
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
) | seeds.map(lambda seed: replace(ROWS[0], seed=seed))


@settings(max_examples=30)
@given(rows=st.lists(dual_views, min_size=1, max_size=4, unique_by=lambda row: row.seed.id))
def test_rows_come_back_as_they_went(rows: list[DualView]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(folder)
        plan_run(store, {}, [Input("seeds", len(rows), "")], rows_per_shard=4)
        planned = [(row.seed.id, row.target_id) for row in rows]
        commit(store, Shard(0, "seeds", 0, len(rows)), planned, rows, "one", Spent())
        assert dual_views_from_table(pa.concat_tables(read_tables(store))) == rows


def whole_file(num_rows: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        shard = Shard(0, "north.jsonl", 0, num_rows)
        put(open_store(folder), shard, finished_rows(shard, "one"), "one")
        return (Path(folder) / shard.key).read_bytes()


def other_columns() -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": ["a", "b", "c", "d", "e"]}), buffer)
    return bytes(buffer.getvalue().to_pybytes())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda: b"", "is not a whole Parquet file"),
        (lambda: whole_file(5)[:-20], "is not a whole Parquet file"),
        (lambda: whole_file(5)[:4] + b"\0" * 400 + whole_file(5)[404:], "is not a whole Parquet file"),
        (other_columns, "expected the columns of records.DualView .* found id"),
    ],
)
def test_a_corrupt_file_is_named(tmp_path: Path, content: Callable[[], bytes], problem: str) -> None:
    store = open_store(str(tmp_path))
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    store.put_new(shard.key, content(), "someone-else")
    with pytest.raises(InputError, match=problem) as caught:
        list(read_tables(store))
    assert str(caught.value).startswith(f"{tmp_path}/data/shard-000000.parquet: ")


# --- rows that kill the engine --------------------------------------------------------------------


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


def mark_all(store: Store, shard: Shard, marked: dict[int, range]) -> None:
    for ordinal, rows in marked.items():
        for row_index in rows:
            mark_row(store, shard, ordinal, row_index)


@pytest.mark.parametrize(
    ("marked", "expected"),
    [
        ({}, set()),
        ({3: range(8)}, set()),  # once may be someone else's doing
        ({3: range(8), 4: range(8)}, {7}),
        ({3: range(8), 4: range(3)}, set()),  # two different last rows: neither is condemned
        ({3: range(8), 4: range(3), 5: range(8)}, {7}),
        ({3: range(8), 4: range(8), 5: range(12), 6: range(12)}, {7, 11}),
        ({9: range(11), 10: range(11)}, {10}),  # numbers, not texts, are compared
        ({3: range(1), 4: range(1)}, {0}),
    ],
)
def test_a_row_that_two_attempts_died_on_is_a_killer(
    tmp_path: Path, marked: dict[int, range], expected: set[int]
) -> None:
    store = open_store(str(tmp_path))
    shard, neighbour = Shard(5, "north.jsonl", 0, 16), Shard(6, "north.jsonl", 16, 32)
    mark_all(store, shard, marked)
    assert killers(store, shard, shard.num_rows) == expected
    assert killers(store, neighbour, neighbour.num_rows) == set()


def test_a_killer_row_is_found_and_the_shard_gets_done(store: Store) -> None:
    """The whole story, as synthesis lives it: row 3 kills every process that runs it."""
    shard = plan_run(store, SETTINGS, INPUTS, 5).shards[0]
    deadly = 3

    def run_until_death(attempt: str) -> bool:
        ordinal = begin_attempt(store, shard, attempt)
        if ordinal < 3:
            return False  # all rows at once: dead
        condemned = killers(store, shard, shard.num_rows)
        rows = finished_rows(shard, attempt)
        for row_index in range(shard.num_rows):
            if row_index in condemned:
                rows[row_index] = replace(rows[row_index], status="poison", trainable=False)
                continue
            mark_row(store, shard, ordinal, row_index)
            if row_index == deadly:
                return False
        return put(store, shard, rows, attempt)

    assert [run_until_death(attempt) for attempt in "abcde"] == [False, False, False, False, True]
    [table] = read_tables(store)
    assert table["status"].to_pylist() == [ACCEPTED] * 3 + ["poison"] + [ACCEPTED]


def test_an_engine_that_dies_on_every_row_is_laid_to_none(store: Store) -> None:
    shard, other = (Shard(index, "north.jsonl", 16 * index, 16 * index + 16) for index in (5, 6))
    deaths = enumerate([0, 0, 7, 7, 8, 8, 9, 9, 10, 10], start=3)
    mark_all(store, shard, {ordinal: range(row + 1) for ordinal, row in deaths})
    mark_all(store, other, {3: range(1), 4: range(1)})
    with pytest.raises(Interruption, match=r"on each of 4 rows in a row \(north.jsonl, rows 80 to 95\)"):
        killers(store, shard, shard.num_rows)

    assert killers(store, shard, shard.num_rows) == killers(store, other, other.num_rows) == set()
    mark_all(store, shard, {13: range(3), 14: range(3)})
    assert killers(store, shard, shard.num_rows) == {2}
