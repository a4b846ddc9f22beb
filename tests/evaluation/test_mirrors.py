"""Readers of hub data sets, compared with mteb's loader if it has one, otherwise tested on hand-written files."""

from functools import partial
import json
from pathlib import Path

import datasets
from hub_layout import followir, write_parquet_dataset
from mteb.abstasks.retrieval_dataset_loaders import RetrievalDatasetLoader
from mteb.tasks.instruction_reranking.multilingual import m_follow_ir
import pytest

from dualview.config.evaluate import FollowIR, HubBenchmark, Mair, Trec
from dualview.errors import InputError
from dualview.evaluation.benchmarks import read_benchmark
from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView
from dualview.records import Passage


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """mteb's loader keeps what it reads; not beyond the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def _followir(folder, subset=None):
    return FollowIR(kind="followir", name="core17", path=str(folder), subset=subset, score="MAP@1000")


def _hub(kind, folder):
    return HubBenchmark(kind=kind, name=kind, path=str(folder))


def _write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_followir_as_mteb_reads_it(tmp_path):
    write_parquet_dataset(tmp_path / "data", followir(3, 40, 10, 12))
    [ours] = read_benchmark(_followir(tmp_path / "data"))
    theirs = RetrievalDatasetLoader(str(tmp_path / "data"), revision=None).load()
    # mteb: text = (title + " " + text).strip() of a document, query + " " + instruction of a query
    assert {id: passage.full_text for id, passage in ours.passages.items()} == {
        row["id"]: f"{row['title']} {row['text']}".strip() for row in theirs["corpus"]
    }
    assert {view.id: (view.query, view.instruction) for view in ours.views} == {
        row["id"]: (row["text"], row["instruction"]) for row in theirs["queries"]
    }
    assert {view.id: view.grades for view in ours.views} == theirs["relevant_docs"]
    assert {view.id: list(view.candidates) for view in ours.views} == theirs["top_ranked"]
    assert {case.id: set(case.dropped) for case in ours.cases} == {
        row["query-id"]: set(row["corpus-ids"])
        for row in datasets.load_dataset(str(tmp_path / "data"), "qrel_diff", split="qrel_diff")
    }


def test_a_language_of_mfollowir_as_mteb_reads_it(tmp_path):
    write_parquet_dataset(tmp_path / "data", followir(2, 20, 8, 12, "-rus"))
    [ours] = read_benchmark(_followir(tmp_path / "data", "rus"))
    corpus, queries, instructions, qrels, top_ranked, diff = (
        part["rus"]["test"] for part in m_follow_ir.load_data(str(tmp_path / "data"), ["rus"], ["test"])
    )
    assert ours.passages.keys() == corpus.keys()
    assert {view.id: view.query for view in ours.views} == queries
    assert {view.id: view.instruction for view in ours.views} == instructions
    assert {view.id: view.grades for view in ours.views} == qrels
    assert {view.id: list(view.candidates) for view in ours.views} == top_ranked
    assert {case.id: set(case.dropped) for case in ours.cases} == {id: set(ids) for id, ids in diff.items()}


def test_instructir_and_nevir_group_queries_as_mteb_does(tmp_path):
    corpus = [{"_id": "d1", "title": "", "text": "one"}, {"_id": "d2", "title": "", "text": "two"}]
    ids = ["7_q1", "7_q2", "8_q1", "8_q2"]
    tables = {
        "corpus": corpus,
        "queries": [{"_id": id, "text": f"query {id}"} for id in ids],
        "default": [{"query-id": id, "corpus-id": f"d{1 + n % 2}", "score": 1} for n, id in enumerate(ids)],
    }
    instructed = {**tables, "instruction": [{"query-id": id, "instruction": f"only {id}"} for id in ids]}
    write_parquet_dataset(tmp_path / "instructir", instructed)
    listed = {**tables, "top_ranked": [{"query-id": id, "corpus-ids": ["d1", "d2"]} for id in ids]}
    write_parquet_dataset(tmp_path / "nevir", listed)
    for kind in ("instructir", "nevir"):
        [ours] = read_benchmark(_hub(kind, tmp_path / kind))
        theirs = RetrievalDatasetLoader(str(tmp_path / kind), revision=None).load()
        assert [list(case.views) for case in ours.cases] == [ids[:2], ids[2:]]
        assert {view.id: view.grades for view in ours.views} == theirs["relevant_docs"]
        assert {view.id: view.instruction for view in ours.views} == {
            row["id"]: row.get("instruction", "") for row in theirs["queries"]
        }
        assert {view.candidates for view in ours.views} == {None if kind == "instructir" else ("d1", "d2")}


@pytest.mark.parametrize("with_readme", [True, False])
def test_infosearch(tmp_path, with_readme):
    configs = {"corpus": "corpus.jsonl", "queries": "queries.jsonl"}
    _write_lines(tmp_path / "corpus.jsonl", [{"_id": id, "title": "", "text": id} for id in ("a", "b", "c")])
    query = {"_id": "q1", "text": "gardens", "keywords": "", "short_query": ""}
    instructions = {"instruction_og": "", "instruction_changed": "short", "instruction_reversed": "not short"}
    _write_lines(tmp_path / "queries.jsonl", [{**query, **instructions}])
    grades = {"og": [1, 1, 0], "changed": [1, 0, 0], "reversed": [0, 1, 0]}
    for name, scores in grades.items():
        configs[f"qrels_{name}"] = f"qrels_{name}/test.jsonl"
        rows = [{"query-id": "q1", "corpus-id": id, "score": s} for id, s in zip("abc", scores, strict=True)]
        _write_lines(tmp_path / f"qrels_{name}" / "test.jsonl", rows)
        (tmp_path / f"qrels_{name}" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n")  # lies there too
    if with_readme:
        declared = [
            {
                "config_name": name,
                "data_files": [{"split": "test" if "qrels" in name else name, "path": path}],
            }
            for name, path in configs.items()
        ]
        (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': declared})}\n---\n")
    [collection] = read_benchmark(_hub("infosearch", tmp_path))
    assert collection.cases == (
        Case(
            "q1",
            {
                "original": QueryView("q1-original", "gardens", "", {"a": 1, "b": 1, "c": 0}),
                "instructed": QueryView("q1-instructed", "gardens", "short", {"a": 1, "b": 0, "c": 0}),
                "reversed": QueryView("q1-reversed", "gardens", "not short", {"a": 0, "b": 1, "c": 0}),
            },
            frozenset(["b"]),
        ),
    )


@pytest.mark.parametrize(("query", "index"), [("ExcluQ", "index"), ("RQ_rewrite", "corpus_sub_index")])
def test_excluir(tmp_path, query, index):
    (tmp_path / "corpus.json").write_text(json.dumps(["about x", "about y"]))
    items = [{"question0": "x and y", query: "y but not x", index: [0, 1]}]
    (tmp_path / "test_manual_final.json").write_text(json.dumps(items))
    [collection] = read_benchmark(_hub("excluir", tmp_path))
    assert collection.passages["1"] == Passage("1", text="about y")
    assert collection.cases == (
        Case("0", {"original": QueryView("0", "y but not x", "", {"1": 1})}, frozenset(["0"])),
    )


def test_mair_has_a_collection_a_part(tmp_path):
    for part, num in (("length", 1), ("keywords", 2)):
        docs = [{"id": f"{part}{n}", "doc": f"text {n}"} for n in range(num)]
        _write_lines(tmp_path / "docs" / "IFEval" / f"{part}_docs.jsonl", docs)
        row = {
            "qid": "1",
            "instruction": "In one line.",
            "query": "Write.",
            "labels": [{"id": f"{part}0", "score": 2}],
        }
        _write_lines(tmp_path / "queries" / "IFEval" / f"{part}_queries.jsonl", [row])
    mair = Mair(
        kind="mair",
        name="ifeval",
        queries=str(tmp_path / "queries"),
        docs=str(tmp_path / "docs"),
        task="IFEval",
    )
    keywords, length = read_benchmark(mair)
    assert (keywords.name, length.name) == ("ifeval", "ifeval")
    assert (len(keywords.passages), len(length.passages)) == (2, 1)
    view = QueryView("length/1", "Write.", "In one line.", {"length0": 2})
    assert length.cases == (Case("length/1", {"original": view}, labels={"part": "length"}),)

    row["labels"][0]["score"] = float("inf")
    _write_lines(tmp_path / "queries" / "IFEval" / "length_queries.jsonl", [row])
    with pytest.raises(InputError, match=r"length_queries.jsonl line 1: `labels` must be a list of objects"):
        read_benchmark(mair)


TOPICS = {
    "lines": "301\torganized crime\n302\tpolio\n",
    "elements": "<top>\n<num> Number: 301\n<title> organized\ncrime\n<desc> Description:\nx\n</top>\n"
    "<top>\n<num> Number: 302\n<title> Topic: polio\n</top>\n",
}


def _trec(folder, topics=TOPICS["lines"], qrels="301 0 a 2\n301 0 b 0\n"):
    _write_lines(folder / "corpus.jsonl", [{"_id": id, "text": id} for id in "ab"])
    (folder / "topics").write_text(topics)
    (folder / "qrels").write_text(qrels)
    files = {name: str(folder / name) for name in ("topics", "qrels")}
    return Trec(kind="trec", name="trec", corpus=str(folder / "corpus.jsonl"), **files)


@pytest.mark.parametrize("form", TOPICS)
def test_trec(tmp_path, form):
    assert read_benchmark(_trec(tmp_path, TOPICS[form])) == [
        Collection(
            "trec",
            {id: Passage(id, text=id) for id in "ab"},
            (Case("301", {"original": QueryView("301", "organized crime", "", {"a": 2, "b": 0})}),),
        )
    ]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"topics": "301 organized crime\n"}, "topics line 1: has 1 fields, not 2"),
        ({"topics": "<top>\n<num> 301\n</top>"}, "topics: 0 of 1 topics have a unique <num>"),
        ({"qrels": "301 a 2\n"}, "qrels line 1: has 3 fields, not 4, for example: 301 0 FBIS3"),
        ({"qrels": "9 0 a 2\n"}, "qrels line 1: the topic '9' is not in .*topics"),
        ({"qrels": "301 0 z 2\n"}, "qrels line 1: the passage 'z' is not in .*corpus.jsonl"),
        ({"qrels": "301 0 a 2\n301 0 a 2\n"}, "qrels line 2: 'a' is judged twice"),
        ({"qrels": "301 0 a x\n"}, "qrels line 1: .*'x' is not a whole number"),
        ({"qrels": "301 0 a 0\n"}, "qrels: the query '301' has no relevant passage"),
        ({"qrels": "\n"}, "benchmark trec: has no query"),
    ],
)
def test_wrong_trec_files_are_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(InputError, match=sentence):
        read_benchmark(_trec(tmp_path, **changes))


def _drop_config(tables, name):
    return {config: rows for config, rows in tables.items() if config != name}


def _change(tables, name, **columns):
    first, *rest = tables[name]
    return {**tables, name: [{**first, **columns}, *rest]}


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: _drop_config(t, "corpus"), "has no config corpus with files .* mteb/Core17Instruction"),
        (lambda t: _drop_config(t, "qrel_diff"), "has no qrel_diff"),
        (
            lambda t: {**t, "corpus": [*t["corpus"], t["corpus"][0]]},
            "row 41: duplicate id 'd0'",
        ),
        (lambda t: _change(t, "corpus", _id=None), "row 1: `_id` must be .*, found None"),
        (lambda t: _change(t, "default", **{"query-id": "nine"}), "row 1: the query 'nine' is not among"),
        (lambda t: _change(t, "corpus", _id=""), "row 1: `_id` is empty; expected an id, for example"),
        *(
            (
                partial(_change, name="default", score=score),
                f"row 1: `score` must be a whole number, found {score}",
            )
            for score in (0.5, float("nan"), float("inf"))
        ),
        (lambda t: _change(t, "top_ranked", **{"corpus-ids": []}), "the query 'q0-og' has no candidate"),
        (
            lambda t: _change(t, "top_ranked", **{"corpus-ids": ["z"]}),
            "the candidate 'z' of 'q0-og' is not in",
        ),
        (lambda t: _change(t, "top_ranked", **{"query-id": "x"}), "the query 'q0-og' has no candidate"),
        (
            lambda t: {**t, "queries": t["queries"][:1], "default": t["default"][:3]},
            "expected the judged queries",
        ),
    ],
)
def test_wrong_hub_data_are_one_sentence(tmp_path, change, sentence):
    write_parquet_dataset(tmp_path, change(followir(2, 40, 10, 12)))
    with pytest.raises(InputError, match=sentence):
        read_benchmark(_followir(tmp_path))


def test_missing_data_say_how_to_get_them(tmp_path, monkeypatch):
    how = "run `hf download {} --repo-type dataset --local-dir FOLDER`, and name FOLDER"
    with pytest.raises(InputError, match=how.format("mteb/Core17InstructionRetrieval")):
        read_benchmark(_followir(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=how.format("mteb/InstructIR-mteb")):
        read_benchmark(_hub("instructir", tmp_path / "nowhere"))

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(InputError, match=r"hub:orionweller/NevIR-mteb: .* the hub \(OSError\)"):
        read_benchmark(_hub("nevir", "hub:orionweller/NevIR-mteb"))


def test_files_that_are_not_what_they_say(tmp_path):
    (tmp_path / "corpus.parquet").write_bytes(b"no parquet")
    (tmp_path / "queries.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"corpus.parquet: cannot be read as Parquet"):
        read_benchmark(_hub("nevir", tmp_path))
    (tmp_path / "corpus.json").write_text("{}")
    with pytest.raises(InputError, match=r"corpus.json: expected a JSON list, found dict"):
        read_benchmark(_hub("excluir", tmp_path))
    (tmp_path / "corpus.json").write_text('["one"]')
    Path(tmp_path / "test_manual_final.json").write_text('[{"ExcluQ": "x", "index": [0, 1]}]')
    with pytest.raises(InputError, match=r"item 0: expected a text `ExcluQ` and `index`, two indices"):
        read_benchmark(_hub("excluir", tmp_path))
