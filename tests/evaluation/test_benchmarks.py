import json
from pathlib import Path

from faulty_s3 import FaultyS3, bucket
import pytest

from dualview.config.evaluate import Beir, Flips
from dualview.errors import InputError
from dualview.evaluation.benchmarks import read_benchmark
from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView
from dualview.evaluation.benchmarks.flips import read_flips
from dualview.evaluation.benchmarks.plain import read_beir
from dualview.records import FlipCollection, FlipQuery, Passage
from dualview.storage import open_store

SHARED = Path(__file__).parents[3] / "shared" / "data"
real_data = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the development collections are not on this machine"
)

CORPUS = [{"_id": id, "title": "", "text": f"text {id}"} for id in "abcd"]
FLIP = {
    "_id": "q1",
    "query": "tax",
    "instructions": {"for": "Only what is in favour.", "against": "Only what is against."},
    "relevant": {"for": ["a", "b"], "against": ["c"]},
}
QUERIES = [{"_id": "1", "text": "wing"}, {"_id": "2", "text": "heat"}]
QRELS = "query-id\tcorpus-id\tscore\n1\ta\t2\n1\tb\t0\n"


def _flips(folder):
    return Flips(kind="flips", name="stance", path=str(folder), original="for", changed="against")


def _beir(folder):
    return Beir(kind="beir", name="wings", path=str(folder))


def _write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("corpus", ["corpus.jsonl", "dev/corpus.jsonl"])
def test_flips_read_the_corpus_of_the_folder_or_its_parent(tmp_path, corpus):
    second = {**FLIP, "_id": "q2", "relevant": {"for": ["a"], "against": ["b", "a", "b"], "unused": []}}
    _write(tmp_path / corpus, CORPUS)
    _write(tmp_path / "dev" / "queries.jsonl", [FLIP, "\n", second])
    collection = read_flips(_flips(tmp_path / "dev"))
    assert collection == FlipCollection(
        name="stance",
        passages={id: Passage(id, text=f"text {id}") for id in "abc"},  # d is relevant to no query
        queries=tuple(
            FlipQuery(
                id=id,
                query="tax",
                instructions={"original": "Only what is in favour.", "changed": "Only what is against."},
                relevant=relevant,
                candidates=("a", "b", "c"),
            )
            for id, relevant in [
                ("q1", {"original": ("a", "b"), "changed": ("c",)}),
                ("q2", {"original": ("a",), "changed": ("b", "a")}),
            ]
        ),
    )


@pytest.mark.parametrize("qrels", ["qrels.tsv", "qrels/test.tsv"])
def test_beir_reads_the_judged_queries(tmp_path, qrels):
    _write(
        tmp_path / "corpus.jsonl", [{"_id": "a", "title": "t", "text": "\u2028 b"}, {"_id": "b", "text": ""}]
    )
    _write(tmp_path / "queries.jsonl", QUERIES)
    _write(tmp_path / qrels, [QRELS])
    assert read_benchmark(_beir(tmp_path)) == [
        Collection(
            "wings",
            {"a": Passage("a", title="t", text="\u2028 b"), "b": Passage("b", text="")},
            (Case("1", {"original": QueryView("1", "wing", "", {"a": 2, "b": 0})}),),
        )
    ]


@pytest.fixture(scope="module")
def s3():
    with bucket(FaultyS3(), "data") as url:
        yield url


@pytest.fixture(params=["folder", "file", "s3", "the bucket itself", "hub"])
def place_of(request, monkeypatch):
    """Where a folder's files are to be read from, for readers."""

    def place(folder):
        if request.param in ("folder", "file"):
            return f"file://{folder}" if request.param == "file" else f"{folder}/"
        if request.param == "hub":

            def snapshot_download(repository, *, repo_type):
                assert (repository, repo_type) == ("ours/data", "dataset")
                return str(folder)

            monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
            return "hub:ours/data"
        s3 = request.getfixturevalue("s3")
        url = s3 if request.param == "the bucket itself" else f"{s3}/{folder.parent.name}/{folder.name}/"
        for path in folder.iterdir():
            open_store(url).put_new(path.name, path.read_bytes(), "test")
        return url

    yield place
    if request.param == "the bucket itself":
        open_store(request.getfixturevalue("s3")).remove("")


def test_flips_are_read_from_anywhere(tmp_path, place_of):
    _write(tmp_path / "dev" / "corpus.jsonl", CORPUS)
    _write(tmp_path / "dev" / "queries.jsonl", [FLIP])
    expected = read_flips(_flips(tmp_path / "dev"))
    assert read_flips(_flips(place_of(tmp_path / "dev"))) == expected


def test_splits_on_a_bucket_share_the_corpus_beside_them(tmp_path, s3):
    split, shared = open_store(f"{s3}/shared/dev"), open_store(f"{s3}/shared")
    shared.put_new("corpus.jsonl", "".join(json.dumps(row) + "\n" for row in CORPUS).encode(), "test")
    split.put_new("corpus.jsonl.old", b"another", "test")
    split.put_new("queries.jsonl", json.dumps(FLIP).encode(), "test")
    assert list(read_flips(_flips(f"{s3}/shared/dev")).passages) == ["a", "b", "c"]


def test_beir_is_read_from_anywhere(tmp_path, place_of):
    for name, rows in (("corpus.jsonl", CORPUS), ("queries.jsonl", QUERIES), ("qrels.tsv", [QRELS])):
        _write(tmp_path / "wings" / name, rows)
    expected = read_beir(_beir(tmp_path / "wings"))
    assert read_beir(_beir(place_of(tmp_path / "wings"))) == expected


@pytest.mark.parametrize("read", [lambda path: read_flips(_flips(path)), lambda path: read_beir(_beir(path))])
def test_a_place_that_cannot_be_reached_is_one_sentence(read, s3, monkeypatch):
    with pytest.raises(InputError, match="s3://nobodys/data: there is no bucket `nobodys`"):
        read("s3://nobodys/data")
    with pytest.raises(InputError, match=r"corpus.jsonl: cannot be read \(there is no such file\)"):
        read(f"{s3}/nowhere")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"hub:ours/data: .* the hub .* run `hf download"):
        read("hub:ours/data")


def test_a_query_may_name_its_candidates_and_labels(tmp_path):
    named = {
        **FLIP,
        "_id": "q2",
        "candidates": ["d", "c", "a", "b", "a"],
        "labels": {"polarity": "exclusion"},
    }
    _write(tmp_path / "corpus.jsonl", [*CORPUS, {"_id": "e", "text": "nobody's candidate"}])
    _write(tmp_path / "queries.jsonl", [FLIP, named])
    collection = read_flips(_flips(tmp_path))
    assert list(collection.passages) == ["a", "b", "c", "d"]
    first, second = collection.queries
    assert (first.candidates, first.labels) == (("a", "b", "c"), {})
    assert (second.candidates, second.labels) == (("d", "c", "a", "b"), {"polarity": "exclusion"})


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "queries.jsonl: is empty"),
        ([FLIP, "{broken\n"], "queries.jsonl line 2: is not valid JSON"),
        (["[1]\n"], "queries.jsonl line 1: expected a JSON object"),
        ([FLIP, FLIP], "queries.jsonl line 2: duplicate id 'q1'"),
        ([{**FLIP, "_id": 7}], "line 1: `_id` must be .*, found 7"),
        ([{**FLIP, "query": None}], "line 1: `query` must be .*, found None"),
        ([{**FLIP, "instructions": {"for": "x"}}], "line 1: `instructions` must map 'against' to a text"),
        ([{**FLIP, "relevant": {"for": ["a"], "against": []}}], "line 1: `relevant` must map 'against'"),
        ([{**FLIP, "relevant": ["a"]}], "line 1: `relevant` must map 'for'"),
        ([{**FLIP, "relevant": {"for": ["z"], "against": ["a"]}}], "passage 'z' is not in corpus.jsonl"),
        (
            [{**FLIP, "relevant": {"for": [["a"]], "against": ["a"]}}],
            r"passage \['a'\] is not in corpus.jsonl",
        ),
        ([{**FLIP, "relevant": {"for": ["a", "b"], "against": ["b", "a"]}}], "the same relevant passages"),
        ([{**FLIP, "candidates": "a"}], "line 1: `candidates` must be a list of passage ids, found 'a'"),
        ([{**FLIP, "candidates": ["a", "z"]}], "line 1: the candidate 'z' is not in corpus.jsonl"),
        ([{**FLIP, "candidates": ["a", "b"]}], "relevant passage 'c' is not among the `candidates`"),
        ([{**FLIP, "labels": ["exclusion"]}], "line 1: `labels` must map names to texts"),
        ([{**FLIP, "labels": {"seen": True}}], "line 1: `labels` must map names to texts"),
    ],
)
def test_wrong_flips_are_refused_with_file_and_line(tmp_path, rows, sentence):
    _write(tmp_path / "corpus.jsonl", CORPUS)
    _write(tmp_path / "queries.jsonl", rows)
    with pytest.raises(InputError, match=sentence):
        read_flips(_flips(tmp_path))


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("corpus.jsonl", None, "corpus.jsonl: cannot be read"),
        ("corpus.jsonl", [], "corpus.jsonl: is empty"),
        ("corpus.jsonl", [*CORPUS, CORPUS[0]], "corpus.jsonl line 5: duplicate id 'a'"),
        ("corpus.jsonl", [{"_id": "a"}], "corpus.jsonl line 1: `text` must be .*, found 'nothing'"),
        ("corpus.jsonl", [{"_id": "a", "text": "", "title": None}], "line 1: `title` must be"),
        ("corpus.jsonl", [{"_id": "", "text": "x"}], "corpus.jsonl line 1: `_id` is empty; expected an id"),
        ("corpus.jsonl", ['{"_id": "a", "text": "\\ud800"}\n'], "line 1: is not valid JSON .*surrogates"),
        ("queries.jsonl", [{"_id": "", "text": "x"}], "queries.jsonl line 1: `_id` is empty; expected an id"),
        ("queries.jsonl", None, "queries.jsonl: cannot be read"),
        ("qrels.tsv", None, "qrels.tsv: cannot be read"),
        ("qrels.tsv", [], "qrels.tsv: begins with ''; expected 'query-id"),
        ("qrels.tsv", ["1 0 a 2\n"], "qrels.tsv: begins with '1 0 a 2'"),
        ("qrels.tsv", ["query-id\tcorpus-id\tscore\n"], "qrels.tsv: has no .*judgements"),
        (
            "qrels.tsv",
            [QRELS, "1\tc\t1.5\n"],
            "qrels.tsv line 4: expected .* integer grade",
        ),
        ("qrels.tsv", [QRELS, "1\tc\n"], "qrels.tsv line 4: expected .* integer grade"),
        ("qrels.tsv", [QRELS, "9\tc\t1\n"], "line 4: the query '9' is not in queries.jsonl"),
        ("qrels.tsv", [QRELS, "1\tz\t1\n"], "line 4: the passage 'z' is not in corpus.jsonl"),
        ("qrels.tsv", [QRELS, "1\ta\t1\n"], "line 4: duplicate .* '1' .* 'a'"),
        ("qrels.tsv", [QRELS, "2\ta\t0\n", "2\tb\t-1\n"], "the query '2' has no relevant passage"),
    ],
)
def test_wrong_beir_is_refused_with_file_and_line(tmp_path, file, content, sentence):
    files = {"corpus.jsonl": CORPUS, "queries.jsonl": QUERIES, "qrels.tsv": [QRELS], file: content}
    for name, rows in files.items():
        if rows is not None:
            _write(tmp_path / name, rows)
    with pytest.raises(InputError, match=sentence):
        read_beir(_beir(tmp_path))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "corpus.jsonl").write_bytes(b'{"_id": "a", "text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"corpus.jsonl line 1: is not UTF-8"):
        read_beir(_beir(tmp_path))


@real_data
def test_the_shared_collections():
    perspectrum = read_flips(
        Flips(
            kind="flips",
            name="perspectrum",
            path=str(SHARED / "perspectrum" / "dev"),
            original="support",
            changed="oppose",
        )
    )
    assert (len(perspectrum.queries), len(perspectrum.passages)) == (110, 1729)
    condaqa = read_flips(
        Flips(
            kind="flips", name="condaqa", path=str(SHARED / "condaqa" / "dev"), original="yes", changed="no"
        )
    )
    assert (len(condaqa.queries), len(condaqa.passages)) == (234, 398)
    cranfield = read_beir(Beir(kind="beir", name="cranfield", path=str(SHARED / "cranfield")))
    assert (len(cranfield.cases), len(cranfield.passages)) == (225, 1400)
    assert sum(len(view.grades) for view in cranfield.views) == 1612
