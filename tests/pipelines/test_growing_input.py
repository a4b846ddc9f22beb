"""Many files over a real cluster: surveyed by tasks, and a run that takes up what came later."""

from functools import partial
import json
from pathlib import Path
from typing import Any

from finished_run import extend_run, finish_run, put_shard, row
from generate_runs import LLM
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview.config.base import Actors
from dualview.config.generate import GenerateConfig, NearDuplicates
from dualview.distributed.cluster import map_on_cluster
from dualview.errors import InputError
from dualview.pipelines.generate.run import generate
from dualview.runs.run import open_run
from dualview.sources.tuples import Tuples
from dualview.storage import open_store
from dualview.synthesis.duplicates import mark_near_duplicates

ONE = Actors(num=1, cpus=1.0, gpus=0.0)


def write(file: Path, ids: list[str], **changes: Any) -> None:
    rows = [
        {
            "id": seed_id,
            "query_id": "ports",
            "query": "main ports",
            "instruction": "Only islands.",
            "positive": {"id": "fiji", "text": "Fiji: islands."},
            "instruction_negatives": [{"id": "chad", "text": "Chad: landlocked."}],
            **changes,
        }
        for seed_id in ids
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_survey_over_the_cluster_is_the_same(cluster: str, tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / f"{number}.jsonl", [f"{number}-{row}" for row in range(number + 1)])
    write(tmp_path / "5.jsonl", ["0-0", "5-1"])
    source = Tuples((str(tmp_path),), 0.1)
    there, here = source.inputs((), partial(map_on_cluster, ONE)), source.inputs()
    assert there == here
    assert [each.bad for each in there] == [each.bad for each in here]
    write(tmp_path / "3.jsonl", ["x"], query="")
    with pytest.raises(InputError, match=r"3\.jsonl line 1: `query` is ''") as caught:
        Tuples((str(tmp_path),), 0.0).inputs((), partial(map_on_cluster, ONE))
    assert "\n" not in str(caught.value)


def test_a_run_takes_up_files_that_came_later(cluster: str, s3: str, tmp_path: Path) -> None:
    folder = tmp_path / "examples"
    folder.mkdir()
    write(folder / "b.jsonl", ["b0", "b1", "b2"])
    output = f"{s3}/growing"
    judge = {**LLM["judges"][0], "validation": {"num_pairs": 2, "min_auc": 0.9, "seed": 1, "gold": None}}
    settings = {**LLM, "output": output, "judges": [judge], "rows_per_shard": 2}
    source = {"kind": "tuples", "paths": [str(folder)], "max_bad_share": 0.0, "vocabulary": None}
    config = GenerateConfig.model_validate({**settings, "source": source})
    assert generate(config)["planned"] == 3
    store = open_store(output)
    before = {entry.key: store.get(entry.key) for entry in store.list("data/")}

    write(folder / "a.jsonl", ["a0", "", "a2"])
    more = GenerateConfig.model_validate({**settings, "source": {**source, "max_bad_share": 0.5}})
    assert generate(more)["planned"] == 5
    run = open_run(store)
    assert run.is_complete
    assert {key: store.get(key) for key in before} == before
    rows = list(run.rows())
    assert [row.example.id for row in rows] == ["b0", "b1", "b2", "a0", "a2"]
    assert len({row.lineage.run for row in rows}) == 1
    listed = [json.loads(line) for line in store.get("bad_rows-0001.jsonl").decode().splitlines()]
    assert [(line["input"], line.get("row")) for line in listed] == [
        (f"{folder}/a.jsonl", None),
        (f"{folder}/a.jsonl", 2),
    ]


def test_a_driver_that_another_one_extends_counts_its_own_rows(tmp_path: Path) -> None:
    near = NearDuplicates(threshold=0.9, num_perm=64, ngram=2)
    store = open_store(str(tmp_path))
    older = finish_run(store, [[row("a"), row("b")]], {"near_duplicates": near.model_dump(mode="json")})
    newer = extend_run(store, [row("c", query="c"), row("d", query="c")])
    put_shard(store, newer.plan.shards[1], [row("c", query="c"), row("d", query="c")])
    mark_near_duplicates(older, near)
    summary = older.summary()
    assert (summary["planned"], summary["accepted"], summary["trainable"]) == (2, 1, 1)
    assert summary["rejected"] == {"near_duplicate": 1}
    mark_near_duplicates(newer, near)
    assert newer.summary()["rejected"] == {"near_duplicate": 2}


def test_a_run_on_promptrievers_rows_keeps_the_plain_ones(cluster: str, s3: str, tmp_path: Path) -> None:
    def passage(name: str) -> dict[str, str]:
        return {"docid": name, "title": "-", "text": f"The text of {name}."}

    for file in "ab":
        rows = [
            {
                "query_id": f"{file}{number}{'-instruct' * instructed}",
                "query": f"query {number}",
                "only_query": f"query {number}",
                "only_instruction": "Only islands." if instructed else "",
                "has_instruction": instructed,
                "positive_passages": [passage("p")],
                "negative_passages": [passage("h")],
                "new_negatives": [passage("n")] if instructed else [],
            }
            for number in range(2)
            for instructed in (True, False)
        ]
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {**LLM["judges"][0], "validation": {"num_pairs": 2, "min_auc": 0.9, "seed": 1, "gold": None}}
    source = {"kind": "promptriever", "paths": [str(tmp_path)], "max_bad_share": 0.0}
    output = f"{s3}/promptriever"
    config = GenerateConfig.model_validate({**LLM, "output": output, "judges": [judge], "source": source})
    assert generate(config)["planned"] == 4
    store = open_store(output)
    plain = [pq.read_table(pa.BufferReader(store.get(entry.key))) for entry in store.list("plain/")]
    assert [table["query_id"].to_pylist() for table in plain] == [["a0", "a1"], ["b0", "b1"]]
    examples = [row.example for row in open_run(store).rows()]
    assert [example.query_id for example in examples] == ["a0", "a1", "b0", "b1"]
