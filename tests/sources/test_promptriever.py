"""The layout of samaya-ai/msmarco-w-instructions, as its card and its users describe it."""

from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
import json
import os
from pathlib import Path
import subprocess
import sys
from threading import Thread
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview.arrow import EXAMPLE_SCHEMA, example_from_columns
from dualview.config.sources import PromptrieverSource
from dualview.errors import InputError
from dualview.records import Passage
from dualview.sources import open_source
from dualview.sources.promptriever import Promptriever, keep_plain
from dualview.storage import open_store

PASSAGE = pa.struct([("docid", pa.string()), ("text", pa.string()), ("title", pa.string())])
WRITTEN = pa.struct(
    [
        ("docid", pa.string()),
        ("explanation", pa.string()),
        ("followir_score", pa.float64()),
        ("joint_id", pa.string()),
        ("text", pa.string()),
        ("title", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("query", pa.string()),
        ("positive_passages", pa.list_(WRITTEN)),
        ("negative_passages", pa.list_(PASSAGE)),
        ("only_instruction", pa.string()),
        ("only_query", pa.string()),
        ("has_instruction", pa.bool_()),
        ("new_negatives", pa.list_(WRITTEN)),
    ]
)


def passage(docid: str, **changes: Any) -> dict[str, Any]:
    return {"docid": docid, "text": f"text of {docid}", "title": f"title of {docid}", **changes}


def written(docid: str, **changes: Any) -> dict[str, Any]:
    notes = {"explanation": "why", "followir_score": 0.9, "joint_id": f"{docid}_1"}
    return {**passage(docid), **notes, **changes}


def instructed(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "query_id": f"{number}-instruct",
        "query": f"query {number} Only islands.",
        "positive_passages": [written(f"{number}-p")],
        "negative_passages": [passage(f"{number}-h{rank}") for rank in range(30)],
        "only_instruction": "Only islands.",
        "only_query": f"query {number}",
        "has_instruction": True,
        "new_negatives": [written(f"{number}-n{rank}") for rank in range(3)],
        **changes,
    }


def plain(number: int, **changes: Any) -> dict[str, Any]:
    return {
        **instructed(number),
        "query_id": str(number),
        "query": f"query {number}",
        "only_instruction": "",
        "has_instruction": False,
        "new_negatives": [],
        **changes,
    }


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, row_group_size=10)
    return str(file)


def examples_of(file: str) -> list[Any]:
    source = Promptriever((file,), 0.0)
    return [example for file in source.inputs() for example in source.read(file, 0, file.num_rows)]


@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "train.jsonl"])
def test_rows_with_an_instruction_negative_are_examples(name: str, tmp_path: Path) -> None:
    rows = [plain(1), instructed(1), instructed(2, new_negatives=[]), plain(2), instructed(3)]
    write(tmp_path / name, rows)
    settings = PromptrieverSource(kind="promptriever", paths=(str(tmp_path),), max_bad_share=0.0)
    source = open_source(settings)
    (announced,) = source.inputs()
    assert (announced.num_rows, announced.num_bad) == (2, 0)
    first, second = source.read(announced, 0, 2)
    assert (first.id, first.query_id, second.id) == ("1-instruct", "1", "3-instruct")
    assert (first.query, first.instruction) == ("query 1", "Only islands.")
    assert first.positive == Passage("1-p", "text of 1-p", "title of 1-p")
    assert [passage.id for passage in first.instruction_negatives] == ["1-n0", "1-n1", "1-n2"]
    assert [passage.id for passage in first.hard_negatives] == [f"1-h{rank}" for rank in range(30)]
    assert source.read(announced, 1, 2) == [second]


def test_a_dash_is_no_title(tmp_path: Path) -> None:
    row = instructed(1, positive_passages=[passage("p", title="-")], new_negatives=[passage("n", title=None)])
    (example,) = examples_of(write(tmp_path / "train.parquet", [row]))
    assert (example.positive.title, example.instruction_negatives[0].title) == ("", "")


def test_a_passage_has_one_role_and_an_id_one_passage(tmp_path: Path) -> None:
    row = instructed(
        1,
        positive_passages=[passage("7")],
        new_negatives=[passage("7", text="written"), passage("7", text="written too"), passage("8")],
        negative_passages=[passage("7"), passage("8"), passage("9"), passage("9", text="other")],
    )
    (example,) = examples_of(write(tmp_path / "train.jsonl", [row]))
    assert [(passage.id, passage.text) for passage in example.instruction_negatives] == [
        ("7#2", "written"),
        ("7#3", "written too"),
        ("8", "text of 8"),
    ]
    assert [(passage.id, passage.text) for passage in example.hard_negatives] == [
        ("9", "text of 9"),
        ("9#2", "other"),
    ]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([1], r"line 2: expected an object, for example"),
        ({"id": "s1", "query": "q"}, r"line 2: has no `has_instruction`; expected true or false"),
        (instructed(2, only_instruction=""), r"line 2: `only_instruction` is ''; expected"),
        (instructed(2, positive_passages=[]), r"line 2: `positive_passages` is \[\]; expected a list with"),
        (instructed(2, positive_passages=["text"]), r"line 2, positive_passages\[0\]: expected an object"),
        (instructed(2, new_negatives=[{"docid": "1"}]), r"line 2, new_negatives\[0\]: has no `text`"),
        (instructed(2, negative_passages=[passage("")]), r"line 2, negative_passages\[0\]: `docid` is ''"),
        (
            instructed(2, new_negatives=[passage("2-p")]),
            r"line 2: `new_negatives` repeats only the positive",
        ),
        (instructed(1), r"line 2: .*'1-instruct' is already used at .* line 1"),
        (plain(2, positive_passages=None), r"line 2: `positive_passages` is None; expected a list with"),
        (plain(2, query="", only_query=""), r"line 2: `query` is ''; expected .*string"),
    ],
)
def test_a_bad_row_is_one_sentence(row: Any, sentence: str, tmp_path: Path) -> None:
    file = write(tmp_path / "train.jsonl", [instructed(1), row])
    with pytest.raises(InputError, match=sentence) as caught:
        Promptriever((file,), 0.0).inputs()
    assert str(caught.value).startswith(f"{file} line 2")
    (announced,) = Promptriever((file,), 0.5).inputs()
    assert (announced.num_rows, announced.num_bad) == (1, 1)


def test_files_without_an_example_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [plain(1), instructed(2, new_negatives=[])])
    with pytest.raises(InputError, match=r"train\.parquet: none of the rows is an example"):
        Promptriever((file,), 0.0).inputs()


# --- the plain counterparts -----------------------------------------------------------------------


def plain_rows(folder: Path) -> list[Any]:
    tables = [pq.read_table(file) for file in sorted(folder.glob("plain/part-*.parquet"))]
    assert all(table.schema.equals(EXAMPLE_SCHEMA) for table in tables)
    return [example_from_columns(row) for table in tables for row in table.to_pylist()]


def test_plain_rows_are_kept_in_the_layout_of_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dualview.sources.promptriever._ROWS_A_PART", 8)
    rows = [make(number) for number in range(20) for make in (instructed, plain)]
    rows[5] = plain(2, positive_passages=[])
    write(tmp_path / "data" / "a.parquet", rows)
    source = Promptriever((str(tmp_path / "data"),), 0.1)
    (first,) = source.inputs()
    store = open_store(str(tmp_path / "run"))
    keep_plain(store, [first])
    kept = plain_rows(tmp_path / "run")
    assert [example.id for example in kept] == [str(number) for number in range(20) if number != 2]
    assert {example.query_id for example in source.read(first, 0, 20)} >= {
        example.query_id for example in kept
    }
    assert (kept[0].query, kept[0].instruction, kept[0].instruction_negatives) == ("query 0", "", ())
    assert (kept[0].positive.id, len(kept[0].hard_negatives)) == ("0-p", 30)
    assert len(store.list("plain/")) == 3

    # A run that was extended and interrupted: existing parts are kept, missing ones are written.
    write(tmp_path / "data" / "b.jsonl", [plain(number) for number in range(20, 25)])
    before = {entry.key: store.get(entry.key) for entry in store.list("plain/")}
    (tmp_path / "run" / "plain" / "part-000001.parquet").unlink()
    keep_plain(store, source.inputs([first]))
    assert {key: store.get(key) for key in before} == before
    assert [example.id for example in plain_rows(tmp_path / "run")][19:] == ["20", "21", "22", "23", "24"]


# --- the hub --------------------------------------------------------------------------------------

READ = """
import sys
from dualview.errors import one_sentence
from dualview.sources.promptriever import Promptriever
with one_sentence():
    source = Promptriever(("hub:someone/their-data",), 0.0)
    for file in source.inputs():
        print(file.name, file.num_rows, *[example.id for example in source.read(file, 0, file.num_rows)])
"""


def read_from_hub(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", READ],
        env={**os.environ, "HF_HOME": str(cache), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def hub_with(files: dict[str, bytes]) -> Iterator[str]:
    """Run a server that answers like the hub for one data set."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def answer(self, with_body: bool) -> None:
            path = self.path.partition("?")[0]
            body, headers, status = b"", {}, 200
            if path == "/api/datasets/someone/their-data/tree/main":
                body = json.dumps(
                    [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in files.items()
                    ]
                    + [{"type": "directory", "path": "data", "oid": "0" * 40}]
                ).encode()
                headers["Content-Type"] = "application/json"
            elif (name := path.removeprefix("/datasets/someone/their-data/resolve/main/")) in files:
                body = files[name]
                headers.update({"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": "c" * 40})
            else:
                status = 404
            self.send_response(status)
            for header, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(header, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_data_set_of_the_hub_is_read_under_its_name(tmp_path: Path) -> None:
    write(tmp_path / "train.parquet", [instructed(1), plain(1), instructed(2)])
    content = (tmp_path / "train.parquet").read_bytes()
    with hub_with({"data/train-0.parquet": content, "README.md": b"# Data"}) as endpoint:
        process = read_from_hub(tmp_path / "cache", HF_ENDPOINT=endpoint)
    assert process.stdout == "hub:someone/their-data/data/train-0.parquet 2 1-instruct 2-instruct\n", (
        process.stderr
    )


def test_an_unreachable_hub_is_an_error_with_advice(tmp_path: Path) -> None:
    process = read_from_hub(tmp_path, HF_HUB_OFFLINE="1")  # like no network, without the timeout
    assert process.returncode == 2, process.stderr
    (sentence,) = (line for line in process.stderr.splitlines() if line.startswith("error: "))
    assert sentence.startswith("error: hub:someone/their-data: cannot be downloaded from the hub (")
    assert "`hf download someone/their-data --repo-type dataset --local-dir FOLDER`" in sentence
