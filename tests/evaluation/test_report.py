import json

import numpy as np
import pyarrow as pa
import pytest

from dualview.config.base import plain_json
from dualview.errors import InputError
from dualview.evaluation.report import html_report, print_table, summary
from dualview.evaluation.scores import QueryScore, scores_to_table
from dualview.evaluation.significance import bootstrap_interval, paired_difference


def _of(benchmark, query_id, *rest):
    """A query that is the only one of its topic."""
    return QueryScore(benchmark, query_id, query_id, *rest)


def _scores(shift):
    rng = np.random.default_rng(0)
    scores = []
    for number in range(20):
        labels = {"polarity": ("inclusion", "exclusion")[number % 2], "kind": "negation"}
        value = float(rng.uniform(-0.5, 0.5)) + shift
        scores.append(_of("facts", f"q{number}", "p-MRR", value, labels))
        scores.append(_of("facts", f"q{number}", "nDCG@10", value + 0.5, labels))
        scores.append(_of("wings", f"w{number}", "nDCG@10", float(rng.uniform()), {}))
    return scores


def _values(rows):
    return {(row.topic_id, row.query_id): row.value for row in rows}


@pytest.fixture
def table():
    return pa.concat_tables([scores_to_table("dual", _scores(0.2)), scores_to_table("single", _scores(0.1))])


def test_means_intervals_and_splits(table):
    result = summary(table, [("dual", "single")], samples=200, seed=1)
    rows = [row for row in _scores(0.2) if row.benchmark == "facts"]
    p_mrr = [row for row in rows if row.metric == "p-MRR"]
    expected = {
        "p-MRR": _values(p_mrr),
        "p-MRR inclusion": _values(row for row in p_mrr if row.labels["polarity"] == "inclusion"),
        "p-MRR exclusion": _values(row for row in p_mrr if row.labels["polarity"] == "exclusion"),
        "p-MRR kind=negation": _values(p_mrr),
        "nDCG@10": _values(row for row in rows if row.metric == "nDCG@10"),
    }
    assert result["encoders"]["dual"]["facts"] == {
        metric: {**bootstrap_interval(values, 200, 1)._asdict(), "num_topics": len(values)}
        for metric, values in expected.items()
    }
    assert set(result["encoders"]["dual"]["wings"]) == {"nDCG@10"}


def test_over_one_topic_bounds_are_null_in_json():
    rows = [QueryScore("facts", "topic", id, "p-MRR", value) for id, value in (("q1", 0.25), ("q2", 0.75))]
    result = summary(
        pa.concat_tables([scores_to_table(name, rows) for name in ("dual", "single")]),
        [("dual", "single")],
        samples=200,
        seed=1,
    )
    read = json.loads(plain_json(result), parse_constant=pytest.fail)  # of NaN, Infinity
    assert read["encoders"]["dual"]["facts"]["p-MRR"] == {
        "mean": 0.5,
        "low": None,
        "high": None,
        "num_topics": 1,
    }
    assert read["differences"][0]["benchmarks"]["facts"]["p-MRR"]["low"] is None


def test_differences_are_paired_by_query(table):
    shuffled = table.take(np.random.default_rng(0).permutation(len(table)))
    result = summary(shuffled, [("dual", "single"), ("dual", "dual")], samples=200, seed=1)
    forward, same = result["differences"]
    assert (forward["first"], forward["second"]) == ("dual", "single")
    first, second = (_values(row for row in _scores(shift) if row.metric == "p-MRR") for shift in (0.2, 0.1))
    assert forward["benchmarks"]["facts"]["p-MRR"] == paired_difference(first, second, 200, 1)._asdict()
    assert forward["benchmarks"]["facts"]["p-MRR"]["mean"] == pytest.approx(0.1)
    assert same["benchmarks"]["facts"]["p-MRR"] == {
        "mean": 0,
        "low": 0,
        "high": 0,
        "p_value": 1,
        "num_topics": 20,
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
    with pytest.raises(InputError, match=r"compare: .* 'dul'; .* dual, single"):
        summary(table, [("dul", "single")], samples=50, seed=1)


def test_the_printed_table(capsys):
    scores = [_of("facts [b]", "q", "p-MRR", 0.25), _of("facts [b]", "r", "p-MRR", 0.25)]
    zero = [_of("facts [b]", "q", "p-MRR", 0.0), _of("facts [b]", "r", "p-MRR", 0.0)]
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
        name: [_of("facts", f"q{n}", "p-MRR", float(rng.normal(shift))) for n in range(20)]
        for name, shift in (("large", 5), ("small", 0.1), ("none", 0))
    }
    table = pa.concat_tables([scores_to_table(name, of) for name, of in scores.items()])
    print_table(summary(table, [("large", "none"), ("small", "none")], samples=99, seed=1))
    printed = capsys.readouterr().out
    assert "large minus none: too few" not in printed
    assert (
        "small minus none: too few topics to distinguish from zero the difference in p-MRR (takes about"
        in printed
    )


def _instructed(shifts):
    """30 queries under 8 instructions each, a few of them under 3: easy or hard under all of them."""
    rng = np.random.default_rng(0)
    return [
        QueryScore(
            "instructed", f"q{topic:02d}", f"q{topic:02d}_{number}", "nDCG@10", value + shifts[topic], {}
        )
        for topic, ease in enumerate(rng.normal(0.4, 0.2, 30))
        for number, value in enumerate(rng.normal(ease, 0.05, 3 if topic % 10 == 0 else 8))
    ]


def test_topics_are_drawn_with_all_their_queries():
    """Against a plain loop over draws of topics, means of all their queries."""
    arms = {"first": _instructed(0.02 + 0.1 * np.sin(np.arange(30))), "second": _instructed(np.zeros(30))}
    table = pa.concat_tables([scores_to_table(name, rows) for name, rows in arms.items()])
    result = summary(table, [("first", "second")], samples=4000, seed=1)
    values = [np.array([row.value for row in rows]) for rows in arms.values()]
    topics = np.array([row.topic_id for row in arms["first"]])
    rng = np.random.default_rng(2)
    for measured, own in (
        (result["encoders"]["first"]["instructed"]["nDCG@10"], values[0]),
        (result["differences"][0]["benchmarks"]["instructed"]["nDCG@10"], values[0] - values[1]),
    ):
        of_topic = [own[topics == topic] for topic in sorted(set(topics))]
        means = [
            np.concatenate([of_topic[number] for number in rng.integers(30, size=30)]).mean()
            for _ in range(4000)
        ]
        low, high = np.percentile(means, [2.5, 97.5])
        assert measured["num_topics"] == 30
        assert measured["mean"] == pytest.approx(own.mean(), abs=1e-12)
        # two independent draws of 4,000: an end's standard error is about a fiftieth of the width
        assert (measured["low"], measured["high"]) == pytest.approx((low, high), abs=0.1 * (high - low))
    sums = [(values[0] - values[1])[topics == topic].sum() for topic in sorted(set(topics))]
    flipped = [abs((rng.choice([-1, 1], size=30) * sums).sum()) for _ in range(4000)]
    p_value = np.mean([each >= abs(sum(sums)) for each in flipped])
    assert 0.05 < p_value < 0.3  # with a separate sign for each of 225 queries it would be below 0.001
    # two independent estimates, each with a standard error below 0.007
    found = result["differences"][0]["benchmarks"]["instructed"]["nDCG@10"]["p_value"]
    assert found == pytest.approx(p_value, abs=0.04)


def test_the_table_says_where_arms_have_different_topics(capsys):
    tables = [
        scores_to_table(name, [_of("facts", f"q{number}", "p-MRR", number / 9) for number in range(count)])
        for name, count in (("ours", 9), ("theirs", 7))
    ]
    print_table(summary(pa.concat_tables(tables), [("ours", "theirs")], samples=9, seed=1))
    scores, differences = capsys.readouterr().out.split("ours minus theirs")[:2]
    assert "7 to 9" in scores
    assert " 7 " in differences


def test_queries_of_one_arm_only_are_left_out_of_the_difference():
    first = [_of("facts", name, "p-MRR", 0.5) for name in "abc"]
    second = [_of("facts", name, "p-MRR", 0.25) for name in "ab"] + [_of("facts", "d", "nDCG@10", 0)]
    table = pa.concat_tables([scores_to_table("one", first), scores_to_table("other", second)])
    [pair] = summary(table, [("one", "other")], samples=9, seed=1)["differences"]
    assert pair["benchmarks"]["facts"].keys() == {"p-MRR"}
    assert pair["benchmarks"]["facts"]["p-MRR"]["num_topics"] == 2


def test_the_page_holds_the_tables(table):
    page = html_report(summary(table, [("dual", "single")], samples=50, seed=1))
    assert page.startswith("<!DOCTYPE html>")
    assert "dual minus single" in page
    assert "http" not in page
