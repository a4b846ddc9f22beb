"""An index that exists: which of its rows are read, and when it is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dualview.config.train import IndexConfig
from dualview.errors import InputError
from dualview.pipelines.index import _batches, compare
from dualview.retrieval.embeddings import keys_of

TEXTS = ["Chad landlocked", "Fiji islands", "Peru mountains"]
VECTORS = np.eye(3, 4, dtype=np.float32)
WANTED = np.unique(keys_of(["Peru mountains", "Chad landlocked", "Mali desert"]))


def write_parquet(path: Path, columns: dict[str, object]) -> str:
    pq.write_table(pa.table(columns), path)
    return str(path)


def write_corpus(folder: Path) -> str:
    rows = [
        {"_id": f"p{n}", "title": text.split()[0], "text": text.split()[1]} for n, text in enumerate(TEXTS)
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "corpus.jsonl")


def in_parquet_with_texts(folder: Path) -> IndexConfig:
    titles, texts = zip(*(text.split() for text in TEXTS), strict=True)
    columns = {"title": titles, "text": texts, "vector": list(VECTORS)}
    return IndexConfig(vectors=write_parquet(folder / "index.parquet", columns))


def in_parquet_with_ids(folder: Path) -> IndexConfig:
    columns = {"docid": ["p0", "p1", "p2"], "embedding": list(VECTORS.astype(np.float64))}
    return IndexConfig(vectors=write_parquet(folder / "index.parquet", columns), corpus=write_corpus(folder))


def in_npy(folder: Path) -> IndexConfig:
    np.save(folder / "vectors.npy", VECTORS.astype(np.float16))
    (folder / "ids.txt").write_text("p0\np1\np2\n")
    return IndexConfig(
        vectors=str(folder / "vectors.npy"), ids=str(folder / "ids.txt"), corpus=write_corpus(folder)
    )


@pytest.mark.parametrize("make", [in_parquet_with_texts, in_parquet_with_ids, in_npy])
def test_rows_are_recognised_by_their_texts(tmp_path, make):
    [found] = _batches(make(tmp_path), WANTED)
    assert found.texts == ["Chad landlocked", "Peru mountains"]
    assert found.keys_B.tolist() == keys_of(found.texts).tolist()
    np.testing.assert_array_equal(found.vectors_BE, VECTORS[[0, 2]])
    assert found.vectors_BE.dtype == np.float32


def test_the_first_of_several_rows_with_one_text_counts(tmp_path):
    columns = {"text": ["Chad landlocked"] * 2, "vector": [[1.0, 0.0], [0.0, 1.0]]}
    [found] = _batches(IndexConfig(vectors=write_parquet(tmp_path / "index.parquet", columns)), WANTED)
    assert found.vectors_BE.tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"], "v": [[1.0]]}, r"has the columns text, v; expected one of vector, embedding"),
        ({"name": ["a"], "vector": [[1.0]]}, r"expected one of text, .*, or index\.corpus"),
        ({"text": ["Chad landlocked", "b"], "vector": [[1.0], [1.0, 2.0]]}, r"all of one size"),
        ({"text": ["Chad landlocked"], "vector": [[float("nan")]]}, r"not finite"),
    ],
)
def test_a_file_that_is_no_index_is_refused(tmp_path, columns, message):
    index = IndexConfig(vectors=write_parquet(tmp_path / "index.parquet", columns))
    with pytest.raises(InputError, match=message):
        list(_batches(index, WANTED))


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    index = in_npy(tmp_path)
    (tmp_path / "ids.txt").write_text("p0\n")
    with pytest.raises(InputError, match=r"has the shape \(3, 4\) and .*ids\.txt 1 lines"):
        list(_batches(index, WANTED))
    with pytest.raises(InputError, match=r"needs index\.ids"):
        list(_batches(index.model_copy(update={"ids": None}), WANTED))
    with pytest.raises(InputError, match=r"index\.vectors: .* cannot be read as Parquet"):
        list(_batches(IndexConfig(vectors=str(tmp_path / "ids.txt")), WANTED))


def test_vectors_of_another_model_are_refused_with_the_worst_pair():
    ours = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    assert compare(["a", "b"], 3 * ours, ours, "index") == pytest.approx(1.0)  # the length does not matter
    theirs = np.array([[1.0, 0.0], [0.1, 1.0]], np.float32)
    with pytest.raises(InputError, match=r"the worst has cosine 0\.9950 .*for the text 'b'"):
        compare(["a", "b"], theirs, ours, "index")
    with pytest.raises(InputError, match=r"vectors of 3 dimensions, but the model's have 2"):
        compare(["a"], np.ones((1, 3), np.float32), ours[:1], "index")
    with pytest.raises(InputError, match=r"the worst has cosine nan"):
        compare(["a"], np.array([[np.nan, 0.0]], np.float32), ours[:1], "index")
