"""The topics that the bootstrap draws, for each kind of benchmark, from its files to its scores."""

import json

from hub_layout import followir, write_parquet_dataset
from hypothesis import given
from hypothesis import strategies as st
import pytest

from dualview.config.evaluate import Beir, Flips, FollowIR, HubBenchmark, Mair, Trec
from dualview.evaluation.benchmarks import read_benchmark
from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView, topics_of
from dualview.evaluation.scores import KINDS, score
from dualview.retrieval.ranking import Ranking


def write_lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def mteb_task(folder, texts, relevant, passages, **tables):
    write_parquet_dataset(
        folder,
        {
            "corpus": [{"_id": id, "title": "", "text": text} for id, text in passages.items()],
            "queries": [{"_id": id, "text": text} for id, text in texts.items()],
            "default": [
                {"query-id": id, "corpus-id": passage, "score": 1} for id, passage in relevant.items()
            ],
            **tables,
        },
    )


def instructir(folder):
    """Two queries under ten instructions each."""
    ids = [f"{key}_{number}" for key in (7, 8) for number in range(10)]
    texts = {id: f"query {id[0]}" for id in ids}
    instruction = [{"query-id": id, "instruction": f"only {id}"} for id in ids]
    mteb_task(folder, texts, dict.fromkeys(ids, "d"), {"d": "text"}, instruction=instruction)
    return HubBenchmark(kind="instructir", name="b", path=str(folder))


def nevir(folder):
    """One passage edited twice, in two pairs under different ids; and a pair of another passage."""
    passages = {
        "1a": "It was",
        "1b": "It was not",
        "2a": "It was",
        "2b": "It never was",
        "3a": "x",
        "3b": "y",
    }
    texts = {f"{key}_q{number}": f"{key} {number}?" for key in "123" for number in "12"}
    relevant = {id: id[0] + {"1": "a", "2": "b"}[id[-1]] for id in texts}
    listed = [{"query-id": id, "corpus-ids": [f"{id[0]}a", f"{id[0]}b"]} for id in texts]
    mteb_task(folder, texts, relevant, passages, top_ranked=listed)
    return HubBenchmark(kind="nevir", name="b", path=str(folder))


def infosearch(folder):
    """A query under three conditions, and another one."""
    write_lines(folder / "corpus.jsonl", [{"_id": id, "title": "", "text": id} for id in "ab"])
    texts = {"1": "gardens", "2": "gardens", "3": "Gardens ", "4": "ports"}
    names = ("og", "changed", "reversed")
    write_lines(
        folder / "queries.jsonl",
        [
            {"_id": id, "text": text, **{f"instruction_{name}": f"{name} {id}" for name in names}}
            for id, text in texts.items()
        ],
    )
    for name in names:
        rows = [{"query-id": id, "corpus-id": passage, "score": 1} for id in texts for passage in "ab"]
        write_lines(folder / f"qrels_{name}.jsonl", rows)
    return HubBenchmark(kind="infosearch", name="b", path=str(folder))


def excluir(folder):
    folder.mkdir(exist_ok=True)
    (folder / "corpus.json").write_text(json.dumps(["about x", "about y", "about z"]))
    items = [{"ExcluQ": "y but not x", "index": [0, 1]}, {"ExcluQ": "z but not x", "index": [0, 2]}]
    (folder / "test_manual_final.json").write_text(json.dumps(items))
    return HubBenchmark(kind="excluir", name="b", path=str(folder))


def mair(folder):
    """A query twice in a part and once in another; one without a query, as instructions may say all."""
    asked = {
        "keywords": {"1": "Write.", "2": "Write.", "3": "Sing."},
        "length": {"1": "Write.", "2": "", "3": ""},
    }
    for part, queries in asked.items():
        write_lines(folder / "docs" / "IFEval" / f"{part}_docs.jsonl", [{"id": "d", "doc": "text"}])
        labels = [{"id": "d", "score": 1}]
        rows = [
            {"qid": id, "query": query, "instruction": f"{part} {id}", "labels": labels}
            for id, query in queries.items()
        ]
        write_lines(folder / "queries" / "IFEval" / f"{part}_queries.jsonl", rows)
    paths = {name: str(folder / name) for name in ("queries", "docs")}
    return Mair(kind="mair", name="b", task="IFEval", **paths)


def flips(folder):
    """Rows of one query; rows that name their topic; rows that name none."""
    write_lines(folder / "corpus.jsonl", [{"_id": id, "title": "", "text": id} for id in "ab"])
    asked = {
        "1": {"query": "tax"},
        "2": {"query": "tax"},
        "3": {"query": "wing", "topic": "birds"},
        "4": {"query": "beak", "topic": "birds"},
        "5": {"query": "feather"},
    }
    rest = {"instructions": {"for": "x", "against": "y"}, "relevant": {"for": ["a"], "against": ["b"]}}
    write_lines(folder / "queries.jsonl", [{"_id": id, **row, **rest} for id, row in asked.items()])
    return Flips(kind="flips", name="b", path=str(folder), original="for", changed="against")


def beir(folder):
    write_lines(folder / "corpus.jsonl", [{"_id": "a", "text": "text"}])
    texts = {"1": "wing", "2": "heat", "3": "wing"}
    write_lines(folder / "queries.jsonl", [{"_id": id, "text": text} for id, text in texts.items()])
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1\ta\t1\n2\ta\t1\n3\ta\t1\n")
    return Beir(kind="beir", name="b", path=str(folder))


def trec(folder):
    write_lines(folder / "corpus.jsonl", [{"_id": "a", "text": "text"}])
    (folder / "topics").write_text("301\torganized crime\n302\tpolio\n")
    (folder / "qrels").write_text("301 0 a 1\n302 0 a 1\n")
    files = {name: str(folder / name) for name in ("topics", "qrels")}
    return Trec(kind="trec", name="b", corpus=str(folder / "corpus.jsonl"), **files)


def of_followir(folder):
    write_parquet_dataset(folder, followir(2, 40, 10, 12))
    return FollowIR(kind="followir", name="b", path=str(folder), subset=None, score="MAP@1000")


@pytest.mark.parametrize(
    ("make", "expected"),  # topic -> its cases
    [
        (instructir, {"7": ["7"], "8": ["8"]}),
        (nevir, {"1": ["1", "2"], "3": ["3"]}),
        (infosearch, {"1": ["1", "2", "3"], "4": ["4"]}),
        (excluir, {"0": ["0"], "1": ["1"]}),
        (
            mair,
            {
                "keywords/1": ["keywords/1", "keywords/2", "length/1"],
                "keywords/3": ["keywords/3"],
                "length/2": ["length/2"],
                "length/3": ["length/3"],
            },
        ),
        (flips, {"1": ["1", "2"], "3": ["3", "4"], "5": ["5"]}),
        (beir, {"1": ["1", "3"], "2": ["2"]}),
        (trec, {"301": ["301"], "302": ["302"]}),
        (of_followir, {"q0": ["q0"], "q1": ["q1"]}),
    ],
)
def test_the_topics_of_every_kind(tmp_path, make, expected):
    settings = make(tmp_path / "data")
    collections = read_benchmark(settings)
    cases: dict[str, list[str]] = {}
    for case, topic in topics_of(collections).items():
        cases.setdefault(topic, []).append(case)
    assert cases == expected

    kind = KINDS[f"followir {settings.score}" if settings.kind == "followir" else settings.kind]
    rankings = [
        {view.id: Ranking(sorted(each.passages), [0.0] * len(each.passages)) for view in each.views}
        for each in collections
    ]
    scores = score(kind, collections, rankings)
    assert {each.topic_id for each in scores} == set(expected)
    # All scores of a case have its topic: those of the case, and those of its views if they are scored separately.
    asked = {
        case.id: {case.id, *(view.id for view in case.views.values())}
        for c in collections
        for case in c.cases
    }
    for each in scores:
        assert each.query_id in set().union(*(asked[case] for case in expected[each.topic_id]))


def test_instructions_of_a_query_are_scored_one_by_one_and_drawn_together(tmp_path):
    [collection] = read_benchmark(instructir(tmp_path / "data"))
    rankings = {view.id: Ranking(["d"], [1.0]) for view in collection.views}
    scores = score(KINDS["instructir"], [collection], [rankings])
    of_metric = {
        metric: [(each.topic_id, each.query_id) for each in scores if each.metric == metric]
        for metric in ("nDCG@10", "Robustness@10")
    }
    assert of_metric["nDCG@10"] == [(key, f"{key}_{number}") for key in "78" for number in range(10)]
    assert of_metric["Robustness@10"] == [("7", "7"), ("8", "8")]


MARKS = st.frozensets(st.sampled_from("abcdefgh"), max_size=3)


@given(asked=st.lists(st.tuples(MARKS, MARKS), max_size=12), cut=st.integers(0, 12))
def test_topics_are_what_is_linked_in_any_number_of_steps(asked, cut):
    """Queries and what cases are about link each for itself; a number of collections changes nothing."""
    cases = [
        Case(
            str(number),
            {query: QueryView(f"{number}{query}", query, "", {}) for query in queries},
            about=about,
        )
        for number, (queries, about) in enumerate(asked)
    ]
    linked = [{number} for number in range(len(cases))]
    for _ in cases:  # no chain is longer
        for first, second in ((a, b) for a in range(len(cases)) for b in range(len(cases))):
            if asked[first][0] & asked[second][0] or asked[first][1] & asked[second][1]:
                linked[first] |= linked[second]
    parts = [Collection("b", {}, tuple(part)) for part in (cases[:cut], cases[cut:])]
    assert topics_of(parts) == {str(number): str(min(linked[number])) for number in range(len(cases))}
