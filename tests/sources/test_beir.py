from collections.abc import Callable
import json
from pathlib import Path
import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from dualview.arrow import EXAMPLE_SCHEMA, example_from_columns, examples_to_table
from dualview.config.sources import BeirSource
from dualview.errors import InputError
from dualview.records import Passage
from dualview.sources.beir import (
    BLANK,
    JudgedQuery,
    check_mining,
    choose_negatives,
    example_of,
    read_collection,
)

CORPUS = [{"_id": id, "title": f"title {id}", "text": f"text {id}"} for id in "abcdef"]
QUERIES = [{"_id": "1", "text": "wing"}, {"_id": "2", "text": "heat"}, {"_id": "3", "text": "other split"}]
HEADER = "query-id\tcorpus-id\tscore\n"
QRELS = f"{HEADER}2\ta\t1\n2\tb\t2\n2\tc\t0\n1\td\t1\n2\te\t2\n"


def source(folder: Path, **changes: Any) -> BeirSource:
    mining = {
        "bm25": {"k1": 0.9, "b": 0.4, "stopwords": "english"},
        "dense": None,
        "first_rank": 1,
        "last_rank": 10,
        "relative_margin": 0.05,
        "num_negatives": 4,
        "passages_per_shard": 128,
        "queries_per_shard": 128,
        "actors": {"num": 1, "cpus": 1.0, "gpus": 0.0},
        **changes.pop("mining", {}),
    }
    settings = {"kind": "beir", "path": str(folder), "qrels": "qrels/train.tsv", "mining": mining}
    return BeirSource.model_validate({**settings, "min_grade": 1, "max_positives": 5, **changes})


def write(folder: Path, corpus: Any = CORPUS, queries: Any = QUERIES, qrels: Any = QRELS) -> Path:
    """Lists become JSON Lines, strings are written as they are; None omits the file."""
    for name, content in {
        "corpus.jsonl": corpus,
        "queries.jsonl": queries,
        "qrels/train.tsv": qrels,
    }.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        if content is not None:
            path.write_text(content)
    return folder


# --- reading --------------------------------------------------------------------------------------


def test_positives_come_best_grade_first_and_all_relevant_passages_are_known(tmp_path: Path) -> None:
    collection = read_collection(source(write(tmp_path)))
    assert collection.queries == (
        JudgedQuery("1", "wing", positives=(3,), relevant=(3,)),
        JudgedQuery("2", "heat", positives=(1, 4, 0), relevant=(0, 1, 4)),
    )


def test_positives_are_cut_by_grade_and_number(tmp_path: Path) -> None:
    qrels = QRELS.replace("1\td\t1", "1\td\t2")
    by_grade = read_collection(source(write(tmp_path, qrels=qrels), min_grade=2))
    assert by_grade.queries[1] == JudgedQuery("2", "heat", positives=(1, 4), relevant=(0, 1, 4))
    by_number = read_collection(source(tmp_path, max_positives=1))
    assert by_number.queries[1] == JudgedQuery("2", "heat", positives=(1,), relevant=(0, 1, 4))


def test_a_positive_without_text_makes_no_example(tmp_path: Path) -> None:
    corpus = [{**row, "title": "", "text": " "} if row["_id"] in "bd" else row for row in CORPUS]
    collection = read_collection(source(write(tmp_path, corpus=corpus)))
    assert [(query.id, query.positives) for query in collection.queries] == [("2", (4, 0))]
    assert collection.corpus.texts[1] == collection.corpus.texts[3] == BLANK


def test_passages_are_read_in_any_order_from_anywhere_in_the_file(tmp_path: Path) -> None:
    rng = random.Random(0)
    # Some rows exceed the gap that is read over, or together the largest span; some lines are blank.
    rows = [
        {"_id": f"é{n}", "title": f"t{n}", "text": "x\u2028" * rng.choice([1, 100, 60_000])}
        for n in range(200)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + rng.choice(["\n", "\r\n", "\n\n"]) for row in rows)
    queries, qrels = [{"_id": "1", "text": "q"}], f"{HEADER}1\té7\t1\n"
    corpus = read_collection(source(write(tmp_path, lines, queries, qrels))).corpus
    wanted = rng.choices(range(200), k=300)
    expected = [Passage(rows[n]["_id"], rows[n]["text"], rows[n]["title"]) for n in wanted]
    assert corpus.read(wanted) == expected
    assert corpus.read([]) == []


def test_passages_are_read_from_any_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write(tmp_path))
    corpus = read_collection(source(Path())).corpus
    monkeypatch.chdir("/")
    assert [passage.id for passage in corpus.read([5, 0])] == ["f", "a"]


def test_a_title_alone_is_the_text(tmp_path: Path) -> None:
    corpus = read_collection(
        source(write(tmp_path, corpus=[*CORPUS, {"_id": "g", "title": "t", "text": ""}]))
    )
    assert corpus.corpus.read([6]) == [Passage("g", text="t")]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write(folder, corpus=[*CORPUS[:5], {**CORPUS[5], "text": "changed"}]),
        lambda folder: write(folder, corpus=[*CORPUS[:5], {**CORPUS[5], "_id": "g"}]),
        lambda folder: write(folder, queries=[{"_id": "1", "text": "wings"}, *QUERIES[1:]]),
        lambda folder: write(folder, qrels=QRELS.replace("c\t0", "c\t1")),
    ],
)
def test_what_decides_the_examples_decides_the_checksums(
    tmp_path: Path, change: Callable[[Path], Path]
) -> None:
    before = read_collection(source(write(tmp_path))).checksums
    assert read_collection(source(tmp_path)).checksums == before
    assert read_collection(source(change(tmp_path))).checksums != before


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({"corpus": None}, r"corpus.jsonl: cannot be read \(there is no such file\)"),
        ({"queries": None}, r"queries.jsonl: cannot be read \(there is no such file\)"),
        ({"qrels": None}, r"qrels/train.tsv: cannot be read \(there is no such file\)"),
        ({"corpus": ""}, "corpus.jsonl: is empty"),
        ({"corpus": '{"_id": "a", "text": "x"}\n{"_id": '}, "corpus.jsonl line 2: is not valid JSON"),
        ({"corpus": [*CORPUS, {"_id": "g"}]}, "corpus.jsonl line 7: `text` must be .*, found 'nothing'"),
        ({"corpus": [*CORPUS, CORPUS[2]]}, "corpus.jsonl line 7: duplicate id 'c'"),
        ({"corpus": CORPUS[1:]}, "train.tsv line 2: the passage 'a' is not in corpus.jsonl"),
        ({"queries": QUERIES[1:]}, "train.tsv line 5: the query '1' is not in queries.jsonl"),
        (
            {"queries": [*QUERIES, QUERIES[0]]},
            "queries.jsonl line 4: duplicate id '1'",
        ),
        (
            {"corpus": [*CORPUS, {"_id": "", "text": "x"}]},
            "corpus.jsonl line 7: `_id` is empty; expected an id",
        ),
        ({"queries": [{"_id": "1", "text": " "}]}, "queries.jsonl line 1: query '1' has no text"),
        ({"qrels": HEADER}, "train.tsv: has no .*judgements"),
        ({"qrels": "1\ta\t1\n"}, "train.tsv: begins with '1.ta.t1'; expected 'query-id"),
        ({"qrels": f"{QRELS}2\ta\t1\n"}, "line 7: duplicate .* '2' .* 'a'"),
        ({"qrels": f"{HEADER}1\ta\t0\n"}, "query '1' has no passage of grade 1"),
        ({"corpus": [{"_id": "a", "text": ""}], "qrels": f"{HEADER}1\ta\t1\n"}, "no positive has a title"),
    ],
)
def test_wrong_folders_are_refused_with_file_and_line(
    tmp_path: Path, files: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        read_collection(source(write(tmp_path, **files)))


@pytest.mark.parametrize(
    ("mining", "sentence"),
    [
        ({"bm25": None}, "`bm25` and `dense` are"),
        ({"first_rank": 11}, "`first_rank` 11 .*`last_rank` 10"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, mining: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        check_mining(source(tmp_path, mining=mining).mining)


# --- choosing -------------------------------------------------------------------------------------

NUM_PASSAGES = 12
ROWS = st.permutations(range(NUM_PASSAGES)).flatmap(
    lambda rows: st.integers(0, NUM_PASSAGES).map(lambda num: rows[:num])
)


@st.composite
def choices(draw: st.DrawFn) -> dict[str, Any]:
    positive = draw(st.integers(0, NUM_PASSAGES - 1))
    first_rank = draw(st.integers(1, 6))
    mining = {
        "first_rank": first_rank,
        "last_rank": draw(st.integers(first_rank, NUM_PASSAGES)),
        "relative_margin": draw(st.sampled_from([0.0, 0.05, 0.5, 1.0])),
        "num_negatives": draw(st.integers(1, NUM_PASSAGES)),
    }
    # Few distinct texts and scores, for many copies and ties.
    texts = draw(st.lists(st.sampled_from([BLANK, 1, 2, 3, 4, 5, 6, 7]), min_size=12, max_size=12))
    scores = draw(st.lists(st.integers(-4, 8), min_size=12, max_size=12))
    return {
        "rankings": draw(st.lists(ROWS, min_size=1, max_size=2)),
        "scores": {row: score / 4 for row, score in enumerate(scores)},
        "positive": positive,
        "relevant": draw(st.sets(st.integers(0, NUM_PASSAGES - 1), max_size=3)) | {positive},
        "texts": np.array(texts, np.uint64),
        "mining": source(Path(), mining=mining).mining,
    }


@given(choices())
def test_every_negative_keeps_every_rule(choice: dict[str, Any]) -> None:
    mining, texts, scores = choice["mining"], choice["texts"], choice["scores"]
    chosen = choose_negatives(**choice)
    assert len(chosen) <= mining.num_negatives
    assert len({texts[row] for row in chosen}) == len(chosen)
    for row in chosen:
        ranks = [1 + rows.index(row) for rows in choice["rankings"] if row in rows]
        assert any(mining.first_rank <= rank <= mining.last_rank for rank in ranks)
        of_positive = scores[choice["positive"]]
        assert of_positive - scores[row] >= mining.relative_margin * abs(of_positive) - 1e-9
        assert row not in choice["relevant"]
        assert texts[row] not in {texts[relevant] for relevant in choice["relevant"]} | {BLANK}


@given(choices())
def test_nothing_that_keeps_the_rules_is_left_out_while_there_is_room(choice: dict[str, Any]) -> None:
    mining, texts = choice["mining"], choice["texts"]
    chosen = choose_negatives(**choice)
    if len(chosen) < mining.num_negatives:
        # Alone it would be chosen, so a passage with its text must have been chosen.
        for row in {row for rows in choice["rankings"] for row in rows}:
            windowed = [[row] if row in rows else [] for rows in choice["rankings"]]
            in_window = any(
                row in rows[mining.first_rank - 1 : mining.last_rank] for rows in choice["rankings"]
            )
            alone = mining.model_copy(update={"first_rank": 1, "last_rank": 1})
            if in_window and choose_negatives(**{**choice, "rankings": windowed, "mining": alone}):
                assert texts[row] in {texts[other] for other in chosen}


@given(choices())
def test_fewer_negatives_are_the_first_of_more(choice: dict[str, Any]) -> None:
    more = choose_negatives(**{**choice, "mining": choice["mining"].model_copy(update={"num_negatives": 12})})
    assert choose_negatives(**choice) == more[: choice["mining"].num_negatives]


def test_retrievers_take_turns(tmp_path: Path) -> None:
    mining = source(tmp_path, mining={"first_rank": 2, "num_negatives": 6, "relative_margin": 0.1}).mining
    scores = dict.fromkeys(range(10), 0.5) | {0: 1.0, 5: 0.91, 6: 0.9}
    texts = np.arange(10, dtype=np.uint64)
    # 1 and 7 rank before the window, 5 is too near the positive, 3 is ranked by both.
    rankings = [[1, 0, 2, 3, 4], [7, 3, 5, 6, 8]]
    assert choose_negatives(rankings, scores, 0, {0}, texts, mining) == [2, 3, 6, 4, 8]


# --- examples -------------------------------------------------------------------------------------


def test_examples_round_trip_through_their_table() -> None:
    example = example_of(JudgedQuery("1", "wing", (0,), (0,)), Passage("a", "x", "t"), [Passage("b", "y")])
    table = examples_to_table([example])
    assert table.schema == EXAMPLE_SCHEMA
    assert [example_from_columns(row) for row in table.to_pylist()] == [example]


@given(st.lists(st.tuples(*[st.text("ab/%é", max_size=4)] * 2), unique=True, max_size=20))
def test_no_two_pairs_have_the_same_example_id(pairs: list[tuple[str, str]]) -> None:
    examples = [example_of(JudgedQuery(query, "q", (0,), (0,)), Passage(id, "x"), []) for query, id in pairs]
    assert len({example.id for example in examples}) == len(pairs)
