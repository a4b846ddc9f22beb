"""The plan of a run, over a folder and over S3 (moto's server)."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
import json
import os
from pathlib import Path
import tempfile
from threading import Barrier
from typing import Any

from finished_run import INPUTS, SETTINGS, commit_rows, rows_of
from hypothesis import given
from hypothesis import strategies as st
import pytest

from dualview.errors import InputError
from dualview.runs.plan import Input, Shard, known_inputs, plan_run, read_plan
from dualview.runs.run import GenerateRun
from dualview.storage import Store, open_store


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
            r"\(settings.writer.temperature: stored 0.7, given 0.9\)",
        ),
        ({**SETTINGS, "judges": ["a"]}, INPUTS, 2, r'\(settings.judges.1: stored "b", given absent\)'),
        ({**SETTINGS, "facets": []}, INPUTS, 2, r"\(settings.facets: stored absent, given \[\]\)"),
        (SETTINGS, INPUTS, 3, r"\(rows_per_shard: stored 2, given 3\)"),
        (
            {"writer": {"model": "x", "temperature": 1}, "rules": {"max_words": 1}, "judges": ["a", "c"]},
            INPUTS,
            3,
            r"settings.writer.model: stored \"demo\", given \"x\"; 2 more\)",
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


LATER = [Input("east.jsonl", 3, "fade"), Input("west.jsonl", 1, "fee")]


def test_new_inputs_add_shards_and_change_none(store: Store) -> None:
    before = plan_run(store, SETTINGS, INPUTS, 2)
    plan_json = store.get("plan.json")
    for shard in before.shards:
        commit_rows(store, shard, rows_of(shard, "one"), "one")
    assert GenerateRun(store, before).is_complete

    once = plan_run(store, SETTINGS, [LATER[0], *INPUTS], 2)  # their order is not the files' business
    assert once.shards == (*before.shards, Shard(5, "east.jsonl", 0, 2), Shard(6, "east.jsonl", 2, 3))
    twice = plan_run(store, SETTINGS, [*LATER, *INPUTS], 2)
    assert twice.shards == (*once.shards, Shard(7, "west.jsonl", 0, 1))
    assert twice == read_plan(store) == plan_run(store, SETTINGS, [*INPUTS, *LATER], 2)
    assert before.fingerprint == once.fingerprint == twice.fingerprint
    assert store.get("plan.json") == plan_json
    assert GenerateRun(store, twice).missing() == list(twice.shards[5:])
    assert [entry.key for entry in store.list("plan")] == ["plan-0001.json", "plan-0002.json", "plan.json"]


@pytest.mark.parametrize("same", [True, False])
def test_of_drivers_that_extend_at_once_one_wins_and_the_others_go_on(tmp_path: Path, same: bool) -> None:
    store = open_store(str(tmp_path))
    before = plan_run(store, SETTINGS, INPUTS[:1], 2)
    for shard in before.shards:
        commit_rows(store, shard, rows_of(shard, "one"), "one")
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
    assert all("among the inputs" in refusal for refusal in refusals)
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
            r'input north.jsonl .*\(checksum: stored "c0ffee", given "decaf"\)',
        ),
        (replace(INPUTS[0], checksum="f", num_rows=6), r"input north.jsonl .*; rows: stored 5, given 6\)"),
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
    before = replace(INPUTS[0], stamp="5-1", index="x", num_bad=1, bad=((2, "examples.jsonl line 2: é"),))
    plan_run(store, SETTINGS, [before], 2)
    plan = plan_run(store, SETTINGS, [replace(before, stamp="5-2")], 2)
    assert [(each.stamp, each.index, each.bad) for each in plan.inputs] == [("5-1", "x", before.bad)]


def test_an_input_may_go_once_it_is_finished(store: Store) -> None:
    plan = plan_run(store, SETTINGS, INPUTS, 2)
    for shard in plan.shards[:4]:
        commit_rows(store, shard, rows_of(shard, "one"), "one")
    assert plan_run(store, SETTINGS, INPUTS[1:], 2) == plan  # north is done, empty had nothing
    with pytest.raises(InputError, match=r"with input south.jsonl, which is .* and 1 of its shards"):
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
    with pytest.raises(InputError, match=f"no generate run at {store.url}"):
        read_plan(store)


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


def test_a_run_of_an_earlier_version_is_still_the_same_run(tmp_path: Path) -> None:
    """Its settings have the old names of keys, and lack a key that is null today."""
    store = open_store(str(tmp_path))
    old = {
        "source": {"kind": "tuples"},
        "cells": {"conditions": ["new"], "hard_negatives": False},
        "judges": [{"kind": "llm", "exam": {"num_pairs": 20}}],
        "writer": {"kind": "facets", "same_facet_share": 0.4},
    }
    new = {
        "source": {"kind": "tuples", "vocabulary": None},
        "judgements": {"conditions": ["new"], "hard_negatives": False},
        "judges": [{"kind": "llm", "validation": {"num_pairs": 20}}],
        "writer": {"kind": "attributes", "same_attribute_share": 0.4},
    }
    inputs = [asdict(source) for source in INPUTS]
    content = {"settings": old, "rows_per_shard": 2, "inputs": inputs, "fingerprint": "", "num_shards": 1}
    store.put_new("plan.json", json.dumps(content).encode(), attempt="earlier")
    plan = plan_run(store, new, INPUTS, 2)
    assert read_plan(store) == plan
    assert known_inputs(store, new) == tuple(INPUTS)
    with pytest.raises(InputError, match=r"settings\.writer\.same_attribute_share: stored 0\.4, given 0\.5"):
        plan_run(store, {**new, "writer": {"kind": "attributes", "same_attribute_share": 0.5}}, INPUTS, 2)
