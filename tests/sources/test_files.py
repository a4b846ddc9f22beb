"""Files read in pieces, through the source with the simplest rows."""

import hashlib
import json
import os
from pathlib import Path
import random
from typing import Any
from uuid import uuid4

import boto3
import duckdb
from hypothesis import given, settings
from hypothesis import strategies as st
from moto.server import ThreadedMotoServer
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview.arrow import EXAMPLE_SCHEMA
from dualview.errors import InputError
from dualview.runs.plan import Input
from dualview.sources.tuples import Tuples


def row_of(example_id: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": example_id,
        "query_id": "ports",
        "query": "main ports",
        "instruction": "Only islands.",
        "positive": {"id": "fiji", "text": f"Fiji: islands, {example_id}."},
        "instruction_negatives": [{"id": "chad", "text": "Chad: landlocked."}],
        **changes,
    }


def write(file: Path, rows: list[dict[str, Any]], row_group_size: int = 1000) -> str:
    if file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        table = pa.Table.from_pylist(rows, schema=EXAMPLE_SCHEMA)
        pq.write_table(table, file, row_group_size=row_group_size)
    return str(file)


def ids_of(source: Tuples, announced: Input) -> list[str]:
    return [example.id for example in source.read(announced, 0, announced.num_rows)]


# --- any slice equals that slice of a full read ---------------------------------------------------


@given(data=st.data(), suffix=st.sampled_from(["jsonl", "parquet"]))
@settings(deadline=None, max_examples=10)
def test_any_slice_without_the_bad_rows(data: st.DataObject, suffix: str, tmp_path_factory: Any) -> None:
    num_rows = data.draw(st.sampled_from([1, 255, 256, 257, 513]))
    rng = random.Random(data.draw(st.integers(0, 1000)))
    bad = [number > 0 and rng.random() < 0.3 for number in range(num_rows)]
    rows = [row_of(f"s{number}", **({"query": ""} if bad[number] else {})) for number in range(num_rows)]
    file = tmp_path_factory.mktemp("any") / f"examples.{suffix}"
    source = Tuples((write(file, rows, row_group_size=rng.choice([1, 100, 10_000])),), 0.9)
    (announced,) = source.inputs()
    good = [row["id"] for row, is_bad in zip(rows, bad, strict=True) if not is_bad]
    assert (announced.num_rows, announced.num_bad) == (len(good), sum(bad))
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, len(good) + 1))
    assert [example.id for example in source.read(announced, start, stop)] == good[start:stop]


def test_blank_lines_count_only_before_the_end(tmp_path: Path) -> None:
    first, last = json.dumps(row_of("a")), json.dumps(row_of("b"))
    (tmp_path / "examples.jsonl").write_text(f"{first}\r\n\n \n{last}\n \n\n")
    source = Tuples((str(tmp_path),), 0.5)
    (announced,) = source.inputs()
    assert [number for number, _ in announced.bad] == [2, 3]
    assert ids_of(source, announced) == ["a", "b"]


def spoil(file: str, begin: int, end: int) -> None:
    """Corrupt bytes of a file without changing its stamp, so that reading them fails."""
    status = os.stat(file)
    with open(file, "r+b") as content:
        content.seek(begin)
        content.write(b"?" * (end - begin))
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_of_parquet_only_the_row_groups_that_hold_the_rows_are_read(tmp_path: Path) -> None:
    file = write(
        tmp_path / "examples.parquet", [row_of(f"s{number}") for number in range(3000)], row_group_size=100
    )
    source = Tuples((file,), 0.0)
    (announced,) = source.inputs()
    metadata = pq.read_metadata(file)
    begins = [metadata.row_group(number).column(0).dictionary_page_offset for number in range(30)]
    spoil(file, 4, begins[12])
    spoil(file, begins[15], begins[16])
    assert [example.id for example in source.read(announced, 1250, 1410)] == [
        f"s{n}" for n in range(1250, 1410)
    ]
    for start in (1199, 1500):
        with pytest.raises(InputError, match=r"examples\.parquet: is not a Parquet file"):
            source.read(announced, start, start + 1)
    spoil(file, begins[12], begins[13])
    assert source.read(announced, 1255, 1256)[0].id == "s1255"  # the row group is already unpacked


def test_of_jsonl_only_the_lines_around_the_rows_are_read(tmp_path: Path) -> None:
    file = write(tmp_path / "examples.jsonl", [row_of(f"s{number:06d}") for number in range(5000)])
    source = Tuples((file,), 0.0)
    (announced,) = source.inputs()
    length = os.path.getsize(file) // 5000
    spoil(file, 0, 256 * 4 * length)
    spoil(file, 256 * 6 * length, 5000 * length)
    assert [example.id for example in source.read(announced, 1279, 1281)] == ["s001279", "s001280"]
    with pytest.raises(InputError, match=r"examples\.jsonl line 1537: is not a JSON object"):
        source.read(announced, 1535, 1537)


def test_a_large_row_group_needs_little_memory(tmp_path: Path) -> None:
    """A shard of a row group of 40,000 rows needs memory only for its own rows."""
    file = tmp_path / "examples.parquet"
    columns = pa.Table.from_pylist([row_of("s")], schema=EXAMPLE_SCHEMA)
    many = columns.take(pa.array(np.zeros(40_000, np.int64)))
    many = many.set_column(0, "id", pa.array([f"s{number}" for number in range(40_000)]))
    pq.write_table(many, file)
    assert pq.read_metadata(file).num_row_groups == 1
    del many
    source = Tuples((str(file),), 0.0)
    (announced,) = source.inputs()
    before = pa.total_allocated_bytes()
    for start in (20_000, 0, 39_900):
        examples = source.read(announced, start, start + 100)
        assert [example.id for example in examples] == [f"s{number}" for number in range(start, start + 100)]
    # The mapped file does not count, which is the point; as a table in memory, all rows would take 8 MB.
    assert pa.total_allocated_bytes() - before < 1 << 20


# --- files written by other libraries -------------------------------------------------------------


def test_parquet_of_pandas_with_its_row_labels_and_columns_of_nulls(tmp_path: Path) -> None:
    frame = pd.DataFrame([row_of(f"s{number}", hard_negatives=None, note=None) for number in range(6)])
    frame.loc[[1, 3, 4]].to_parquet(tmp_path / "examples.parquet")
    assert "__index_level_0__" in pq.read_schema(tmp_path / "examples.parquet").names
    source = Tuples((str(tmp_path),), 0.0)
    (announced,) = source.inputs()
    assert ids_of(source, announced) == ["s1", "s3", "s4"]


def test_parquet_of_duckdb(tmp_path: Path) -> None:
    write(tmp_path / "made.jsonl", [row_of(f"s{number}", title=None) for number in range(5)])
    duckdb.sql(
        f"copy (select *, null as reviewer from read_json('{tmp_path}/made.jsonl') order by id desc)"
        f" to '{tmp_path}/examples.parquet' (format parquet)"
    )
    source = Tuples((f"{tmp_path}/examples.parquet",), 0.0)
    (announced,) = source.inputs()
    assert ids_of(source, announced) == ["s4", "s3", "s2", "s1", "s0"]


# --- bad rows -------------------------------------------------------------------------------------


def spoilt(tmp_path: Path) -> tuple[str, str]:
    """Write files of 6 and 4 rows; the first file's row 2 and the second's rows 1 and 3 are bad."""
    rows = [row_of(f"a{number}") for number in range(6)]
    rows[1]["query"] = " "
    more = [row_of("a0"), row_of("b1"), row_of("b1"), row_of("b3")]
    return write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.parquet", more)


def test_bad_rows_below_the_share_are_left_out_and_listed(tmp_path: Path) -> None:
    first, second = spoilt(tmp_path)
    source = Tuples((first, second), 0.3)
    a, b = source.inputs()
    assert ids_of(source, a) == ["a0", "a2", "a3", "a4", "a5"]
    assert ids_of(source, b) == ["b1", "b3"]
    assert (a.num_rows, a.num_bad, b.num_rows, b.num_bad) == (5, 1, 2, 2)
    ((number, reason),) = a.bad
    assert number == 2
    assert reason.startswith(f"{first} line 2: `query` is ' '; expected")
    assert b.bad == (
        (
            1,
            f"{second} row 1: the example id 'a0' is already used at {first} line 1; expected unique ids",
        ),
        (
            3,
            f"{second} row 3: the example id 'b1' is already used at {second} row 2; expected unique ids",
        ),
    )
    assert a.checksum == hashlib.sha256(Path(first).read_bytes()).hexdigest()


@given(ids=st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), min_size=1, max_size=3))
@settings(deadline=None, max_examples=30)
def test_the_first_of_equal_ids_is_kept(ids: list[list[str]], tmp_path_factory: Any) -> None:
    folder = tmp_path_factory.mktemp("ids")
    for number, its_ids in enumerate(ids):
        write(folder / f"{number}.jsonl", [row_of(example_id) for example_id in its_ids])
    source = Tuples((str(folder),), 1.0)
    seen: set[str] = set()
    for announced, its_ids in zip(source.inputs(), ids, strict=True):
        kept = [example_id for example_id in its_ids if not (example_id in seen or seen.add(example_id))]
        assert ids_of(source, announced) == kept
        assert announced.num_bad == len(its_ids) - len(kept)


def test_bad_rows_above_the_share_are_refused_with_the_first_of_them(tmp_path: Path) -> None:
    first, second = spoilt(tmp_path)
    with pytest.raises(InputError) as caught:
        Tuples((first, second), 0.29).inputs()
    assert str(caught.value).startswith(
        "3 of 10 rows are bad, a share of 0.3, but max_bad_share is 0.29; the first:"
        f" {first} line 2: `query` is ' '"
    )
    assert f"; {second} row 3: the example id 'b1'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_of_many_bad_rows_all_are_counted_and_some_listed(tmp_path: Path) -> None:
    rows = [row_of("same") for _ in range(300)] + [row_of("other", query="") for _ in range(50)]
    (announced,) = Tuples((write(tmp_path / "examples.jsonl", rows),), 1.0).inputs()
    assert (announced.num_rows, announced.num_bad, len(announced.bad)) == (1, 349, 100)
    assert [number for number, _ in announced.bad] == list(range(2, 102))


# --- known inputs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_that_were_not_touched_are_not_read_again(suffix: str, tmp_path: Path) -> None:
    names = [
        write(tmp_path / f"{name}.{suffix}", [row_of(f"{name}{number}") for number in range(4)])
        for name in "ab"
    ]
    source = Tuples((str(tmp_path),), 0.0)
    known = source.inputs()
    for name in names:
        spoil(name, 0, os.path.getsize(name))
    again = source.inputs(known)
    assert [(file.name, file.index, file.stamp) for file in again] == [
        (file.name, file.index, file.stamp) for file in known
    ]
    write(Path(names[0]), [row_of(f"a{number}") for number in range(4)])
    os.utime(names[0], ns=(1, 1))  # touched: read again, with the same content
    write(Path(names[1]), [row_of(f"b{number}") for number in range(4)])
    touched = source.inputs(known)
    assert touched == known
    assert touched[0].stamp != known[0].stamp
    write(Path(names[1]), [row_of("other")])
    changed = source.inputs(known)
    assert changed[0] == known[0]
    assert (changed[1].num_rows, changed[1] == known[1]) == (1, False)


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_an_id_of_a_known_file_is_known(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"m.{suffix}", [row_of("m0"), row_of("m1")])
    source = Tuples((str(tmp_path),), 0.5)
    known = source.inputs()
    # First in the folder, but later in the run.
    write(tmp_path / f"a.{suffix}", [row_of("a0"), row_of("m1")])
    old, new = source.inputs(known)
    assert (old, new.num_rows, new.bad[0][0]) == (known[0], 1, 2)
    assert f"is already used at {tmp_path}/m.{suffix} " in new.bad[0][1]


def test_files_may_be_surveyed_in_any_order_by_others(tmp_path: Path) -> None:
    for name in "abc":
        write(tmp_path / f"{name}.jsonl", [row_of(f"{name}{number}") for number in range(3)])
    source = Tuples((str(tmp_path),), 0.0)

    def backwards(function: Any, items: Any) -> Any:
        return reversed([function(item) for item in reversed(list(items))])

    assert source.inputs((), backwards) == source.inputs()


# --- S3 -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Any:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", "http://{}:{}".format(*server.get_host_and_port()))
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "not-a-real-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield server
    server.stop()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files_on_s3_are_read_in_pieces_too(server: Any, suffix: str, tmp_path: Path) -> None:
    rows = [row_of(f"s{number}", query="" if number == 5 else "main ports") for number in range(1000)]
    file = write(tmp_path / f"examples.{suffix}", rows, row_group_size=300)
    bucket = f"bucket-{uuid4().hex[:8]}"
    client = boto3.session.Session().client("s3")
    client.create_bucket(Bucket=bucket)
    client.upload_file(file, bucket, f"deep/examples.{suffix}")
    source = Tuples((f"s3://{bucket}",), 0.1)
    (announced,) = source.inputs()
    (local,) = Tuples((file,), 0.1).inputs()
    assert announced.name == f"s3://{bucket}/deep/examples.{suffix}"
    assert (announced.checksum, announced.index) == (local.checksum, local.index)
    assert [example.id for example in source.read(announced, 700, 703)] == ["s701", "s702", "s703"]
    assert source.inputs([announced]) == [announced]
    client.put_object(Bucket=bucket, Key=f"deep/examples.{suffix}", Body=b"")
    with pytest.raises(InputError, match=f"deep/examples.{suffix}: (has no rows|is not a Parquet file)"):
        source.inputs([announced])
