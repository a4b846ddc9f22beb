import json

from hypothesis import example, given, settings
from hypothesis import strategies as st
import pytest
import pytrec_eval

from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView
from dualview.evaluation.metrics import average_precision
from dualview.evaluation.runs import most_moved, read_run, run_lines
from dualview.records import Passage
from dualview.retrieval.ranking import Ranking

IDS = [f"d{number}" for number in range(12)]
VIEWS = [QueryView("1", "q", "", {"d1": 1}), QueryView("2", "q", "", {"d2": 1}, ("d1", "d2"))]


def _read(folder, text):
    (folder / "wings.trec").write_text(text)
    return read_run(str(folder / "wings.trec"), VIEWS, dict.fromkeys(IDS))


@settings(max_examples=50, deadline=None)
@given(
    run=st.dictionaries(
        st.sampled_from(IDS), st.one_of(st.sampled_from([0.0, 0.5]), st.floats(-3, 3, width=32)), min_size=1
    )
)
def test_a_run_file_is_read_as_pytrec_eval_reads_it(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    lines = [f"1 Q0 {id} {place} {score!r} theirs" for place, (id, score) in enumerate(run.items())]
    ranking = _read(folder, "\n".join(lines))["1"]
    with (folder / "wings.trec").open() as file:
        theirs = pytrec_eval.parse_run(file)
    grades = {"d1": 1, "d5": 1}
    expected = pytrec_eval.RelevanceEvaluator({"1": grades}, {"map_cut.1000"}).evaluate(theirs)
    assert average_precision(ranking.ids, grades, 1000) == pytest.approx(expected["1"]["map_cut_1000"])
    # Written again, it is the same ranking to the last digit, ties included.
    assert _read(folder, "".join(run_lines({"1": ranking}, "our tag")))["1"] == ranking


def test_a_query_without_a_line_has_an_empty_ranking(tmp_path):
    assert _read(tmp_path, "1 Q0 d1 1 0.5 x\n")["2"] == Ranking([], [])


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("1 Q0 d1 1 0.5", "wings.trec line 2: has 5 fields, not 6, for example: 301 Q0"),
        ("3 Q0 d1 1 0.5 x", "line 2: the query '3' is not in this benchmark; expected one of 1, 2, ..."),
        ("1 Q0 z 1 0.5 x", "line 2: the passage 'z' is not a candidate of '1'"),
        ("2 Q0 d3 1 0.5 x", "line 2: the passage 'd3' is not a candidate of '2'"),
        ("1 Q0 d0 1 0.5 x", "line 2: the passage 'd0' is ranked twice for '1'"),
        *(
            (
                f"1 Q0 d1 1 {score} x",
                f"line 2: the score '{score}' is not a finite number, for example: 12.25",
            )
            for score in ("high", "nan", "inf", "-Infinity", "1e39")
        ),
    ],
)
def test_wrong_lines_are_one_sentence(tmp_path, line, sentence):
    with pytest.raises(InputError, match=sentence):
        _read(tmp_path, f"1 Q0 d0 1 0.5 x\n{line}\n")


@settings(max_examples=100, deadline=None)
@given(
    query=st.text(min_size=1, alphabet=st.characters(codec="utf-8")),
    ids=st.lists(st.text(min_size=1, alphabet=st.characters(codec="utf-8")), unique=True, min_size=1),
)
@example(query="q 1", ids=["a b", "a%20b", "a%2520b", "100%", "tab\t", "line\n", "\u2028", "\xa0", " "])
def test_any_id_comes_back_from_a_run_file(query, ids, tmp_path_factory):
    file = tmp_path_factory.mktemp("runs") / "wings.trec"
    ranking = Ranking(sorted(ids, reverse=True), [0.5] * len(ids))
    file.write_text("".join(run_lines({query: ranking}, "our tag")), newline="")
    assert read_run(str(file), [QueryView(query, "q", "", {})], dict.fromkeys(ids))[query] == ranking
    with file.open() as lines:  # Python's idea of white space is wider than C's
        assert [len(line.split()) for line in lines] == [6] * len(ids)


def test_a_line_with_encoded_ids_says_so_and_others_are_as_they_were():
    lines = list(run_lines({"1": Ranking(["Geneva Durben", "plain"], [2.0, 1.0])}, "ours"))
    assert lines == ["1 Q0 Geneva%20Durben 1 2 ours+percent-encoded\n", "1 Q0 plain 2 1 ours\n"]


def test_in_other_peoples_files_a_percent_sign_is_one(tmp_path):
    (tmp_path / "wings.trec").write_text("1 Q0 a%20b 1 0.5 theirs%\n1 Q0 c\u00a0d 2 0.25 theirs%\n")
    passages = dict.fromkeys(["a%20b", "a b", "c\u00a0d"])
    ranking = read_run(str(tmp_path / "wings.trec"), [QueryView("1", "q", "", {})], passages)["1"]
    assert ranking.ids == ["a%20b", "c\u00a0d"]


def test_a_run_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"wings.trec: cannot be read"):
        read_run(str(tmp_path / "wings.trec"), VIEWS, {})


def test_the_passages_that_moved_most():
    views = {name: QueryView(name, "q", name, {}) for name in ("original", "changed")}
    passages = {id: Passage(id, text=id) for id in (f"p{n:02d}" for n in range(30))}
    collection = Collection("moves", passages, (Case("t", views, frozenset(passages)),))
    ids = list(passages)
    rankings = {"original": Ranking(ids, [0.0] * 30), "changed": Ranking(ids[::-1], [0.0] * 30)}
    moved = [json.loads(line) for line in most_moved(collection, rankings)]
    assert len(moved) == 20
    assert (moved[0]["passage_id"], moved[0]["rank"], moved[0]["new_rank"]) == ("p00", 1, 30)
    assert (moved[-1]["passage_id"], moved[-1]["rank"], moved[-1]["new_rank"]) == ("p29", 30, 1)
