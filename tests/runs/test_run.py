"""A run as its handle sees it, over a folder and over S3 (moto's server)."""

from pathlib import Path
import pickle
import sys

import datasets
from finished_run import (
    INPUTS,
    SETTINGS,
    ExtendedAfterReading,
    commit_rows,
    extend_run,
    finish_run,
    put_shard,
    row,
    rows_of,
)
import pyarrow as pa
import pytest

from dualview.arrow import DUAL_VIEW_SCHEMA, dual_views_from_table
from dualview.config.engines import Price
from dualview.costs import Spent
from dualview.errors import InputError
from dualview.runs.attempts import begin_attempt, record_lost
from dualview.runs.plan import plan_run
from dualview.runs.run import NEAR_DUPLICATES_SCHEMA, GenerateRun, open_run
from dualview.storage import Store, open_store

ASKED = {"near_duplicates": {"threshold": 0.9}}


def repeats(seed_id: str, of_seed_id: str) -> pa.Table:
    """A list of one near-duplicate."""
    pair = {"seed_id": seed_id, "target_id": "peru", "of_seed_id": of_seed_id, "of_target_id": "peru"}
    return pa.Table.from_pylist([pair], schema=NEAR_DUPLICATES_SCHEMA)


def test_a_run_goes_on_where_it_broke_off(store: Store) -> None:
    run = GenerateRun(store, plan_run(store, SETTINGS, INPUTS, 2))
    shards = run.plan.shards
    assert run.missing() == list(shards)
    for index in (3, 0):
        assert commit_rows(store, shards[index], rows_of(shards[index], "one"), "one")
    begin_attempt(store, shards[1], "one")
    rows_of(shards[1], "one")  # the process dies here, with its rows and before the put

    again = GenerateRun(store, plan_run(store, SETTINGS, INPUTS, 2))
    assert [shard.index for shard in again.missing()] == [1, 2, 4]
    assert not again.is_complete
    for shard in again.missing():
        assert commit_rows(store, shard, rows_of(shard, "two"), "two")
    assert again.is_complete
    rows = list(open_run(store).rows())
    planned = [f"{source.name}-{row}" for source in INPUTS for row in range(source.num_rows)]
    assert [row.example.id for row in rows] == planned
    assert [row.lineage.attempt for row in rows] == ["one"] * 2 + ["two"] * 3 + ["one"] * 2 + ["two"] * 2


def test_an_unfinished_run_is_read_as_far_as_it_exists(store: Store) -> None:
    run = GenerateRun(store, plan_run(store, SETTINGS, INPUTS, 2))
    for index in (4, 1):
        commit_rows(store, run.plan.shards[index], rows_of(run.plan.shards[index], "one"), "one")
    ids = [["north.jsonl-2", "north.jsonl-3"], ["south.jsonl-2", "south.jsonl-3"]]
    assert [table["id"].to_pylist() for table in run.tables()] == ids
    assert [table.schema.names for table in run.tables(["id"])] == [["id"]] * 2
    assert [row.example.id for row in run.rows()] == [id for of_shard in ids for id in of_shard]
    for ask in (run.check_complete, run.trainable, run.left_out_of_training, run.to_huggingface):
        with pytest.raises(InputError, match=f"run at {store.url} is not finished"):
            ask()


def test_no_run_is_told(store: Store) -> None:
    with pytest.raises(InputError, match=f"no generate run at {store.url}"):
        open_run(store.url)


def test_a_run_that_does_not_ask_for_near_duplicates_needs_no_comparison(tmp_path: Path) -> None:
    rows = [row("a"), row("b"), row("c", trainable=False)]
    run = finish_run(open_store(str(tmp_path)), [rows], {"near_duplicates": None})
    assert [each.example.id for each in run.trainable()] == ["a", "b"]


def test_a_corrupt_list_of_near_duplicates_is_told(tmp_path: Path) -> None:
    run = finish_run(open_store(str(tmp_path)), [[row("a")]], ASKED)
    run.store.put_new("near_duplicates.parquet", b"PAR1", "one")
    with pytest.raises(InputError, match=r"near_duplicates.parquet: .* list"):
        run.trainable()


def test_what_was_spent_counts_lost_attempts_too(store: Store) -> None:
    run = GenerateRun(store, plan_run(store, SETTINGS, INPUTS, 5))
    shard = run.plan.shards[0]
    assert run.spent() == Spent()
    assert commit_rows(store, shard, rows_of(shard, "one"), "one")
    assert not commit_rows(store, shard, rows_of(shard, "two"), "two")
    record_lost(store, shard, "two", Spent(500, 50, 1.5))
    assert run.spent() == Spent(1000, 100, 3.0)


def test_the_summary_counts_each_row_once(store: Store) -> None:
    rows = [row("a"), row("b"), row("c", status="declined", trainable=False)]
    run = finish_run(store, [rows, [row("d", trainable=False)]], ASKED)
    run.put_near_duplicates(repeats("b", of_seed_id="a"))
    assert run.put_validation({"llm:j@1": {"auc": 0.95}}) == {"llm:j@1": {"auc": 0.95}}
    assert run.put_validation({"llm:j@1": {"auc": 0.5}}) == {"llm:j@1": {"auc": 0.95}}  # the first one counts
    record_lost(store, run.plan.shards[0], "late", Spent(2_000_000, 10, 3600.0))
    price = Price(per_million_prompt_tokens=3.0, per_million_completion_tokens=0.0, per_gpu_hour=0.0)
    assert run.summary(price) == {
        "planned": 4,
        "accepted": 2,
        "trainable": 1,
        "rejected": {"near_duplicate": 1, "declined": 1},
        "tokens": {"prompt_tokens": 2_000_000, "completion_tokens": 10},
        "gpu_hours": 1.0,
        "dollars": 6.0,
        "judge_validation": {"llm:j@1": {"auc": 0.95}},
    }


# --- a plan that another driver extends meanwhile --------------------------------------------------


def test_a_handle_keeps_the_plan_that_it_was_opened_with(store: Store) -> None:
    older = finish_run(store, [[row("a"), row("b")]], {})
    newer = extend_run(store, [row("c")])
    assert older.is_complete
    assert not newer.is_complete
    put_shard(store, newer.plan.shards[1], [row("c")])
    for run in (older, pickle.loads(pickle.dumps(older))):
        assert [table["id"].to_pylist() for table in run.tables()] == [["a", "b"]]
        assert [summary["trainable"] for summary in run.summaries()] == [2]
        assert run.summary()["planned"] == 2
    assert [summary["trainable"] for summary in newer.summaries()] == [2, 1]
    assert open_run(store).plan == newer.plan


def test_training_takes_the_run_as_it_was_when_it_was_opened(tmp_path: Path) -> None:
    """The second row repeats the first, whatever comes later."""
    finish_run(open_store(str(tmp_path)), [[row("a"), row("b")]], ASKED).put_near_duplicates(
        repeats("b", of_seed_id="a")
    )
    run = open_run(ExtendedAfterReading(tmp_path, (row("c"),)))
    assert [each.example.id for each in run.trainable()] == ["a"]
    with pytest.raises(InputError, match="is not finished"):
        open_run(str(tmp_path)).trainable()


# --- Hugging Face datasets -------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("cache")
def test_a_hugging_face_data_set_holds_what_training_takes(store: Store) -> None:
    rows = [row("a"), row("b"), row("c", trainable=False)]
    run = finish_run(store, [rows, [row("d", query="d")]], ASKED)
    run.put_near_duplicates(repeats("b", of_seed_id="a"))
    found = run.to_huggingface().with_format("arrow")[:]
    assert dual_views_from_table(found.cast(DUAL_VIEW_SCHEMA)) == list(run.trainable())
    assert found["id"].to_pylist() == ["a", "d"]
    newer = extend_run(store, [row("e", query="e")])
    put_shard(store, newer.plan.shards[-1], [row("e", query="e")])
    newer.put_near_duplicates(repeats("b", of_seed_id="a"))
    assert newer.to_huggingface()["id"] == ["a", "d", "e"]  # and not the cached ones


@pytest.mark.usefixtures("cache")
def test_a_run_made_anew_at_the_same_place_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    for id in ("a", "b"):
        store = open_store(str(tmp_path / "run"))
        assert finish_run(store, [[row(id)]], {}).to_huggingface()["id"] == [id]
        store.remove("")


def test_without_datasets_the_user_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    run = finish_run(open_store(str(tmp_path)), [[row("a")]], {})
    with pytest.raises(InputError, match="pip install datasets"):
        run.to_huggingface()


def test_a_judge_below_the_auc_that_the_run_asks_for_has_failed(tmp_path: Path) -> None:
    judge = {"kind": "llm", "prompt": "j", "validation": {"min_auc": 0.8}}
    store = open_store(str(tmp_path))
    run = GenerateRun(store, plan_run(store, {"judges": [judge, {"kind": "attributes"}]}, INPUTS, 2))
    assert run.failed_judges == []  # none has been validated
    run.put_validation({"llm:j@1": {"auc": 0.79}, "llm:other@1": {"auc": 0.1}})
    assert run.failed_judges == ["llm:j@1"]
