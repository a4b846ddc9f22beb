"""The card, and its snippets that read the rows."""

from pathlib import Path
import re

import datasets
from finished_run import extend_run, finish_run, put_shard, row
import pyarrow as pa
import pytest
import yaml

from dualview.arrow import DUAL_VIEW_SCHEMA, dual_views_from_table
from dualview.config.generate import NearDuplicates
from dualview.errors import InputError
from dualview.provenance import code
from dualview.runs.run import open_run
from dualview.storage import open_store
from dualview.synthesis.card import COLUMNS, _size, put_card
from dualview.synthesis.duplicates import mark_near_duplicates

NEAR = NearDuplicates(threshold=0.9, num_perm=64, ngram=2)
SHARDS = [
    [row("a"), row("b", trainable=False, status="declined")],
    [row("c"), row("d", new_instruction="Only islands with a king, please."), row("e", query="main exports")],
]


@pytest.fixture(params=[None, NEAR], ids=["not compared", "compared"])
def finished(request, tmp_path) -> Path:
    store = open_store(str(tmp_path))
    asked = request.param and request.param.model_dump(mode="json")
    settings = {"source": {"kind": "tuples", "paths": ["a|b.jsonl"]}, "near_duplicates": asked}
    run = finish_run(store, SHARDS, settings)
    if request.param:
        mark_near_duplicates(run, request.param)
    assert put_card(run) == ("README.md", True)
    return tmp_path


def snippet(card: str, reader: str) -> str:
    [code] = re.findall(rf"^{reader}:\n\n```python\n(.*?)```", card, re.MULTILINE | re.DOTALL)
    return code


def read(finished: Path, reader: str):
    card = (finished / "README.md").read_text()
    names: dict = {}
    exec(snippet(card, reader).replace("DATA", str(finished)), names)
    return names["rows"]


def as_ours(table: pa.Table) -> list:
    return dual_views_from_table(table.select(DUAL_VIEW_SCHEMA.names).cast(DUAL_VIEW_SCHEMA))


def expected(finished: Path) -> list:
    rows = list(open_run(str(finished)).trainable())
    assert len(rows) in (3, 4)
    return rows


def test_pandas_reads_the_rows(finished):
    rows = read(finished, "pandas")
    assert as_ours(pa.Table.from_pandas(rows, schema=DUAL_VIEW_SCHEMA, preserve_index=False)) == expected(
        finished
    )


def test_duckdb_reads_the_rows(finished):
    rows = as_ours(read(finished, "DuckDB").to_arrow_table())
    assert sorted(rows, key=lambda dual_view: dual_view.example.id) == expected(finished)


def test_datasets_reads_the_rows(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = read(finished, "Hugging Face datasets")
    assert as_ours(rows.with_format("arrow")[:]) == expected(finished)


def test_the_card_says_what_the_run_is(finished):
    card = (finished / "README.md").read_text()
    _, front, body = card.split("---\n", 2)
    front_matter = yaml.safe_load(front)
    assert front_matter["size_categories"] == ["n<1K"]
    compared = (finished / "near_duplicates.parquet").exists()
    assert [config["config_name"] for config in front_matter["configs"]] == ["rows", "near_duplicates"][
        : 1 + compared
    ]
    assert f"5 rows, {3 if compared else 4} of them to train on" in " ".join(body.split())
    assert ("| near_duplicate | 1 | 20.0% |" in body) == compared
    assert "| write@1 |" in body  # the prompt
    settings = yaml.safe_load(re.search(r"```yaml\n(.*?)```", body, re.DOTALL)[1])
    assert settings["source"] == {"kind": "tuples", "paths": ["a|b.jsonl"]}
    assert "| input-0 | 2 | checksum |" in body
    assert f"| {code().version} | {code().files} |" in body


def test_every_column_is_described():
    assert list(COLUMNS) == DUAL_VIEW_SCHEMA.names


def test_an_existing_card_is_kept(finished):
    before = (finished / "README.md").read_bytes()
    assert put_card(open_run(str(finished))) == ("README.md", False)
    assert (finished / "README.md").read_bytes() == before


def test_a_run_that_has_grown_gets_a_card_of_all_its_rows(finished):
    store = open_store(str(finished))
    before = (finished / "README.md").read_bytes()
    compared = (finished / "near_duplicates.parquet").exists()
    for number, later in enumerate([[row("f", query="f")], [row("g", query="g"), row("h", query="g")]]):
        run = extend_run(store, later)
        with pytest.raises(InputError, match="a card needs a finished run"):
            put_card(run)
        put_shard(store, run.plan.shards[-1], later)
        if compared:
            mark_near_duplicates(run, NEAR)
        assert put_card(run) == (f"README-000{1 + number}.md", True)
    assert put_card(run) == ("README-0002.md", False)
    assert (finished / "README.md").read_bytes() == before
    body = (finished / "README-0002.md").read_text()
    num_trainable = len(list(run.trainable()))
    assert f"8 rows, {num_trainable} of them to train on" in " ".join(body.split())
    rows = re.findall(r"^\| (input-\d|later-\d) \| (\d) \| checksum \|$", body, re.MULTILINE)
    assert rows == [("input-0", "2"), ("input-1", "3"), ("later-0", "1"), ("later-1", "2")]
    assert "Inputs were added 2 times since the run began." in body
    assert ("near_duplicates-0002.parquet" in body) == compared
    assert "near_duplicates.parquet" not in body
    assert "Inputs were added once since" in (finished / "README-0001.md").read_text()


def test_an_unfinished_run_gets_no_card(tmp_path):
    store = open_store(str(tmp_path))
    run = finish_run(store, SHARDS, {}, num_missing=1)
    with pytest.raises(InputError, match=r"not finished: 1 of 2 shards .*a card needs"):
        put_card(run)
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize(
    ("num_rows", "size"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (100_000, "100K<n<1M"),
        (10**7, "10M<n<100M"),
    ],
)
def test_the_size_is_in_the_hubs_words(num_rows, size):
    assert _size(num_rows) == size
