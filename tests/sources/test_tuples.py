from dataclasses import asdict
import hashlib
import json
import pickle

import boto3
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview.arrow import EXAMPLE_SCHEMA
from dualview.config.sources import TuplesSource
from dualview.errors import InputError
from dualview.records import Passage, Requirement, SourceExample
from dualview.sources import open_source
from dualview.sources.tuples import Tuples
from dualview.storage import open_store

SMALLEST = {
    "id": "s1",
    "query_id": "ports",
    "query": "main ports",
    "instruction": "Only islands.",
    "positive": {"id": "fiji", "text": "Fiji: islands."},
    "instruction_negatives": [{"id": "chad", "text": "Chad: landlocked."}],
}


def smallest_with(**changes):
    return {**SMALLEST, **changes}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read_all(path):
    source = Tuples((str(path),), 0.0)
    return [example for file in source.inputs() for example in source.read(file, 0, file.num_rows)]


# --- good files -----------------------------------------------------------------------------------

# str.splitlines splits at NEL, line separator and vertical tab; JSONL does not.
text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip) | st.sampled_from(
    ["one\u2028two", "one\x85two", "one\x0btwo"]
)
attributes = st.dictionaries(text, text, max_size=3)


@st.composite
def example_rows(draw):
    ids = draw(st.lists(text, min_size=2, max_size=5, unique=True))
    made = [
        Passage(id, f"{draw(text)} {index}", draw(text), draw(attributes)) for index, id in enumerate(ids)
    ]
    num_negatives = draw(st.integers(1, len(made) - 1))
    return SourceExample(
        id=draw(text),
        query_id=draw(text),
        query=draw(text),
        instruction=draw(text),
        positive=made[0],
        instruction_negatives=tuple(made[1 : 1 + num_negatives]),
        hard_negatives=tuple(made[1 + num_negatives :]),
        requirements=tuple(draw(st.lists(st.builds(Requirement, st.booleans(), text, text), max_size=2))),
    )


example_lists = st.lists(example_rows(), min_size=1, max_size=3, unique_by=lambda example: example.id)


@given(examples=example_lists)
@settings(deadline=None)
def test_jsonl_and_parquet_give_back_what_was_written(examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    rows = [asdict(example) for example in examples]
    write_jsonl(folder / "a.jsonl", rows)
    table = pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)
    pq.write_table(table, folder / "b.parquet")
    assert read_all(folder / "a.jsonl") == examples
    assert read_all(folder / "b.parquet") == examples


def test_optional_columns_may_be_left_out_or_null(tmp_path):
    nulls = smallest_with(
        id="s2",
        hard_negatives=None,
        requirements=None,
        positive={"id": "fiji", "text": "Fiji: islands.", "title": None, "attributes": None},
    )
    first, second = read_all(write_jsonl(tmp_path / "examples.jsonl", [SMALLEST, nulls]))
    assert first.positive == second.positive == Passage("fiji", "Fiji: islands.", "", {})
    assert first.hard_negatives == second.hard_negatives == ()
    assert first.requirements == second.requirements == ()


@pytest.mark.parametrize(
    "absent", [{"instruction": ""}, {"instruction": None, "instruction_negatives": []}, {}]
)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_example_may_lack_an_instruction(absent, suffix, tmp_path):
    plain = {key: SMALLEST[key] for key in ("id", "query_id", "query", "positive")}
    row = {**plain, **absent, "hard_negatives": SMALLEST["instruction_negatives"]}
    if suffix == "jsonl":
        write_jsonl(tmp_path / "examples.jsonl", [row])
    else:
        pq.write_table(pa.Table.from_pylist([row], schema=EXAMPLE_SCHEMA), tmp_path / "examples.parquet")
    (example,) = read_all(tmp_path)
    assert (example.instruction, example.instruction_negatives) == ("", ())
    assert example.hard_negatives == (Passage("chad", "Chad: landlocked."),)


def test_parquet_attributes_may_be_a_struct_with_nulls(tmp_path):
    rows = [
        smallest_with(positive={"id": "fiji", "text": "Fiji", "attributes": {"coast": "island"}}),
        smallest_with(id="s2", positive={"id": "mali", "text": "Mali", "attributes": {"region": "africa"}}),
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "examples.parquet")
    assert [example.positive.attributes for example in read_all(tmp_path)] == [
        {"coast": "island"},
        {"region": "africa"},
    ]


def test_a_folder_is_its_files_by_name_and_read_slices(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [smallest_with(id=f"b{index}") for index in range(5)])
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "a.jsonl", [SMALLEST])
    (tmp_path / "README.md").write_text("not data")
    source = open_source(
        TuplesSource(kind="tuples", paths=[str(tmp_path)], max_bad_share=0.0, vocabulary=None)
    )
    inputs = source.inputs()
    assert [(file.name, file.num_rows) for file in inputs] == [
        (f"{tmp_path}/b.jsonl", 5),
        (f"{tmp_path}/deep/a.jsonl", 1),
    ]
    assert inputs[0].checksum == hashlib.sha256((tmp_path / "b.jsonl").read_bytes()).hexdigest()
    assert [example.id for example in source.read(inputs[0], 1, 3)] == ["b1", "b2"]


def test_names_can_be_read_from_another_working_folder(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "examples.jsonl", [SMALLEST])
    monkeypatch.chdir(tmp_path)
    source = Tuples(("examples.jsonl",), 0.0)
    (announced,) = source.inputs()
    monkeypatch.chdir("/")
    travelled = pickle.loads(pickle.dumps(source))
    assert travelled.read(announced, 0, 1)[0].id == "s1"


@pytest.fixture
def bucket(monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="corpora")
    yield "s3://corpora"
    server.stop()


def test_files_and_folders_on_s3(bucket, tmp_path):
    write_jsonl(tmp_path / "examples.jsonl", [SMALLEST])
    open_store(f"{bucket}/demo").put_new("examples.jsonl", (tmp_path / "examples.jsonl").read_bytes(), "1")
    local = Tuples((str(tmp_path),), 0.0).inputs()[0]
    for path in (f"{bucket}/demo/examples.jsonl", f"{bucket}/demo", f"{bucket}/demo/", bucket):
        (announced,) = Tuples((path,), 0.0).inputs()
        assert announced.name == f"{bucket}/demo/examples.jsonl"
        assert announced.checksum == local.checksum
        assert Tuples((path,), 0.0).read(announced, 0, 1) == read_all(tmp_path)
    for path, sentence in (
        (f"{bucket}/demo/other.jsonl", "there is no such file"),
        (f"{bucket}/elsewhere", "contains no .jsonl or .parquet file"),
        ("s3://no-such-bucket/examples.jsonl", "there is no bucket `no-such-bucket`"),
    ):
        with pytest.raises(InputError, match=sentence):
            Tuples((path,), 0.0).inputs()


# --- bad files ------------------------------------------------------------------------------------

PASSAGE = SMALLEST["positive"]
NEGATIVE = SMALLEST["instruction_negatives"][0]

BAD_ROWS = {
    "broken JSON": ('{"id": "s2", ', r"line 2: is not a JSON object .*expected \{\"id\""),
    "a list": ([1, 2], r"line 2: expected an object, for example"),
    "missing column": (
        {key: value for key, value in SMALLEST.items() if key != "instruction"},
        r"line 2: has no `instruction`; expected",
    ),
    "misspelt column": (smallest_with(id="s2", hard_negative=[]), r"line 2: unknown key `hard_negative`"),
    "empty query": (smallest_with(query="  "), r"line 2: `query` is '  '; expected .*\"main ports\""),
    "number as query": (smallest_with(query=7), r"line 2: `query` is 7; expected .*string"),
    "empty instruction": (smallest_with(instruction=""), r"line 2: `instruction` is ''; expected"),
    "null id": (smallest_with(id=None), r"line 2: `id` is None; expected .*\"chad-1\""),
    "empty passage text": (
        smallest_with(positive={"id": "fiji", "text": ""}),
        r"line 2, positive: `text` is ''; expected",
    ),
    "passage without id": (
        smallest_with(instruction_negatives=[NEGATIVE, {"text": "Mali"}]),
        r"line 2, instruction_negatives\[1\]: has no `id`; expected",
    ),
    "passage as text": (smallest_with(positive="Fiji"), r"line 2, positive: expected an object.*'Fiji'"),
    "attribute that is no text": (
        smallest_with(positive={**PASSAGE, "attributes": {"population": 900}}),
        r"line 2, positive: `attributes` is .*900.*; expected an object of strings",
    ),
    "no instruction negative": (
        smallest_with(instruction_negatives=[]),
        r"line 2: `instruction_negatives` is empty; expected at least one",
    ),
    "negatives no list": (
        smallest_with(instruction_negatives=NEGATIVE),
        r"line 2: `instruction_negatives` is .*; expected a list",
    ),
    "negative is the positive": (
        smallest_with(instruction_negatives=[PASSAGE]),
        r"line 2: instruction_negatives\[0\] has the same id 'fiji' as positive",
    ),
    "negative has the positive's text": (
        smallest_with(instruction_negatives=[{**PASSAGE, "id": "other"}]),
        r"line 2: instruction_negatives\[0\] has the same text as the positive",
    ),
    "two negatives with one text": (
        smallest_with(instruction_negatives=[NEGATIVE, {**NEGATIVE, "id": "copy"}]),
        r"line 2: instruction_negatives\[1\] has the same text as instruction_negatives\[0\]",
    ),
    "passage in two roles": (
        smallest_with(hard_negatives=[{"id": "togo", "text": "Togo"}, NEGATIVE]),
        r"line 2: hard_negatives\[1\] has the same id 'chad' as instruction_negatives\[0\]",
    ),
    "neither instruction nor hard negatives": (
        smallest_with(id="s2", instruction=None, instruction_negatives=None),
        r"line 2: has neither an instruction nor hard negatives; expected",
    ),
    "instruction negatives without an instruction": (
        smallest_with(instruction=None),
        r"line 2: `instruction` is None; expected .*string",
    ),
    "half a character": (
        json.dumps(smallest_with(id="s2", query="main \ud83d ports")),
        r"line 2: is not a JSON object \(.*surrogates not allowed",
    ),
    "nested without end": ("[" * 100_000, r"line 2: is not a JSON object \(maximum recursion"),
    "requirement without polarity": (
        smallest_with(requirements=[{"facet": "coast", "value": "island"}]),
        r"line 2, requirements\[0\]: has no `include`; expected .*true",
    ),
    "polarity as text": (
        smallest_with(requirements=[{"include": "yes", "facet": "coast", "value": "island"}]),
        r"line 2, requirements\[0\]: `include` is 'yes'; expected true or false",
    ),
    "duplicate example id": (
        SMALLEST,
        r"line 2: .*'s1' is already used at .*examples.jsonl line 1",
    ),
    "blank line": ("", r"line 2: is not a JSON object"),
}


@pytest.mark.parametrize(("row", "sentence"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_one_sentence_with_file_line_and_example(row, sentence, tmp_path):
    bad = row if isinstance(row, str) else json.dumps(row)
    path = tmp_path / "examples.jsonl"
    path.write_text(f"{json.dumps(SMALLEST)}\n{bad}\n{json.dumps(smallest_with(id='s3'))}\n")
    with pytest.raises(InputError, match=sentence) as caught:
        Tuples((str(path),), 0.0).inputs()
    assert str(caught.value).startswith(f"{path} line 2")
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "examples.jsonl").write_bytes(json.dumps(SMALLEST).encode() + b'\n{"id": "\xff"}\n')
    with pytest.raises(InputError, match="line 2: is not a JSON object"):
        Tuples((str(tmp_path),), 0.0).inputs()


def test_a_bad_parquet_row_names_the_row(tmp_path):
    rows = [SMALLEST, smallest_with(id="s2", instruction="")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "examples.parquet")
    with pytest.raises(InputError, match=r"examples.parquet row 2: has no `instruction`|`instruction` is ''"):
        Tuples((str(tmp_path),), 0.0).inputs()


def test_an_example_id_in_two_files_names_both(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [SMALLEST])
    write_jsonl(tmp_path / "b.jsonl", [smallest_with(id="s0"), SMALLEST])
    with pytest.raises(InputError, match=r"b.jsonl line 2: .*'s1' is already used at .*a.jsonl line 1"):
        Tuples((str(tmp_path),), 0.0).inputs()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("examples.parquet", b"this is no Parquet", "examples.parquet: is not a Parquet file"),
        ("examples.jsonl", b"", "examples.jsonl: has no rows"),
        ("examples.jsonl", b"\n\n", "examples.jsonl: has no rows"),
        ("examples.csv", b"id,query", "contains no .jsonl or .parquet file"),
    ],
)
def test_a_folder_with_the_wrong_content_is_an_input_error(name, content, sentence, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        Tuples((str(tmp_path),), 0.0).inputs()


@pytest.mark.parametrize("name", ["nowhere", "nowhere/examples.jsonl"])
def test_a_missing_path_is_an_input_error(name, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/{name}: .*expected"):
        Tuples((f"{tmp_path}/{name}",), 0.0).inputs()


def test_a_folder_named_like_a_file_is_an_input_error(tmp_path):
    (tmp_path / "examples.parquet").mkdir()
    with pytest.raises(InputError, match="there is no such file"):
        Tuples((str(tmp_path / "examples.parquet"),), 0.0).inputs()
