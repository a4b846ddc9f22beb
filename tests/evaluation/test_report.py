import json

import numpy as np
import pyarrow as pa
import pytest

from dualview.errors import InputError
from dualview.evaluation.report import html_report, print_table, summary
from dualview.evaluation.scores import QueryScore, scores_to_table
from dualview.evaluation.significance import bootstrap_interval, paired_difference


def _scores(shift):
    rng = np.random.default_rng(0)
    scores = []
    for number in range(20):
        labels = {"polarity": ("inclusion", "exclusion")[number % 2], "kind": "negation"}
        value = float(rng.uniform(-0.5, 0.5)) + shift
        scores.append(QueryScore("facts", f"q{number}", "p-MRR", value, labels))
        scores.append(QueryScore("facts", f"q{number}", "nDCG@10", value + 0.5, labels))
        scores.append(QueryScore("wings", f"w{number}", "nDCG@10", float(rng.uniform()), {}))
    return scores


@pytest.fixture
def table():
    return pa.concat_tables([scores_to_table("dual", _scores(0.2)), scores_to_table("single", _scores(0.1))])


def test_means_intervals_and_splits(table):
    result = summary(table, [("dual", "single")], samples=200, seed=1)
    rows = sorted(_scores(0.2), key=lambda row: row.query_id)
    expected = {
        "p-MRR": [row.value for row in rows if row.metric == "p-MRR"],
        "p-MRR inclusion": [
            row.value for row in rows if row.metric == "p-MRR" and row.labels["polarity"] == "inclusion"
        ],
        "p-MRR exclusion": [
            row.value for row in rows if row.metric == "p-MRR" and row.labels["polarity"] == "exclusion"
        ],
        "p-MRR kind=negation": [row.value for row in rows if row.metric == "p-MRR"],
        "nDCG@10": [row.value for row in rows if row.metric == "nDCG@10" and row.benchmark == "facts"],
    }
    assert result["encoders"]["dual"]["facts"] == {
        metric: {**bootstrap_interval(values, 200, 1)._asdict(), "num_queries": len(values)}
        for metric, values in expected.items()
    }
    assert set(result["encoders"]["dual"]["wings"]) == {"nDCG@10"}


def test_differences_are_paired_by_query(table):
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    result = summary(shuffled, [("dual", "single"), ("dual", "dual")], samples=200, seed=1)
    forward, same = result["differences"]
    assert (forward["first"], forward["second"]) == ("dual", "single")
    first, second = (
        {row.query_id: row.value for row in _scores(shift) if row.metric == "p-MRR"} for shift in (0.2, 0.1)
    )
    assert forward["benchmarks"]["facts"]["p-MRR"] == paired_difference(first, second, 200, 1)._asdict()
    assert forward["benchmarks"]["facts"]["p-MRR"]["mean"] == pytest.approx(0.1)
    assert same["benchmarks"]["facts"]["p-MRR"] == {
        "mean": 0,
        "low": 0,
        "high": 0,
        "p_value": 1,
        "num_queries": 20,
        "num_needed": 0,
    }
    assert forward["benchmarks"]["wings"]["nDCG@10"]["mean"] == 0


def test_the_order_of_the_rows_changes_nothing(table):
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    pairs = [("dual", "single")]
    assert summary(shuffled, pairs, samples=50, seed=1) == summary(table, pairs, samples=50, seed=1)


def test_a_summary_is_json(table):
    result = summary(table, [("dual", "single")], samples=50, seed=1)
    assert json.loads(json.dumps(result)) == result


def test_an_unknown_encoder_is_refused(table):
    with pytest.raises(InputError, match="compare: no encoder is named 'dul'; there are dual, single"):
        summary(table, [("dul", "single")], samples=50, seed=1)


def test_the_printed_table(capsys):
    scores = [QueryScore("facts [b]", "q", "p-MRR", 0.25), QueryScore("facts [b]", "r", "p-MRR", 0.25)]
    zero = [QueryScore("facts [b]", "q", "p-MRR", 0.0), QueryScore("facts [b]", "r", "p-MRR", 0.0)]
    table = pa.concat_tables([scores_to_table("[red]dual", scores), scores_to_table("single", zero)])
    result = summary(table, [("[red]dual", "single")], samples=99, seed=1)
    print_table(result)
    printed = capsys.readouterr().out
    assert "facts [b]" in printed
    assert "[red]dual minus single" in printed
    assert "25.0 [25.0, 25.0]" in printed
    p_value = result["differences"][0]["benchmarks"]["facts [b]"]["p-MRR"]["p_value"]
    assert p_value == pytest.approx(0.5, abs=0.15)  # two of the four assignments of signs are as large
    assert f"+25.0 [25.0, 25.0] p={p_value:.2g}" in printed


def test_too_few_topics_are_said(capsys):
    rng = np.random.default_rng(0)
    scores = {
        name: [QueryScore("facts", f"q{n}", "p-MRR", float(rng.normal(shift))) for n in range(20)]
        for name, shift in (("large", 5), ("small", 0.1), ("none", 0))
    }
    table = pa.concat_tables([scores_to_table(name, of) for name, of in scores.items()])
    print_table(summary(table, [("large", "none"), ("small", "none")], samples=99, seed=1))
    printed = capsys.readouterr().out
    assert "large minus none: too few" not in printed
    assert (
        "small minus none: too few topics to tell from none the differences in p-MRR (takes about" in printed
    )


def test_queries_of_one_arm_only_are_left_out_of_the_difference():
    first = [QueryScore("facts", name, "p-MRR", 0.5) for name in "abc"]
    second = [QueryScore("facts", name, "p-MRR", 0.25) for name in "ab"] + [
        QueryScore("facts", "d", "nDCG@10", 0)
    ]
    table = pa.concat_tables([scores_to_table("one", first), scores_to_table("other", second)])
    [pair] = summary(table, [("one", "other")], samples=9, seed=1)["differences"]
    assert pair["benchmarks"]["facts"].keys() == {"p-MRR"}
    assert pair["benchmarks"]["facts"]["p-MRR"]["num_queries"] == 2


def test_the_page_holds_the_tables(table):
    page = html_report(summary(table, [("dual", "single")], samples=50, seed=1))
    assert page.startswith("<!DOCTYPE html>")
    assert "dual minus single" in page
    assert "http" not in page
