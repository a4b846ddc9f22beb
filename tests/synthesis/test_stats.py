from collections import Counter
from dataclasses import replace
import io
import json

from finished_run import ExtendedAfterReading, finish_run, row
import numpy as np
import pytest
from rich.console import Console

from dualview.config.generate import NearDuplicates
from dualview.provenance import code
from dualview.records import Draft, Rewording, Verdict
from dualview.runs.run import open_run
from dualview.storage import open_store
from dualview.synthesis.duplicates import mark_near_duplicates
from dualview.synthesis.stats import VerdictCounts, made_by, print_stats, quantiles, run_stats, state

NEAR = NearDuplicates(threshold=0.9, num_perm=64, ngram=2)
SETTINGS = {"judges": [{"kind": "llm", "prompt": "j", "min_margin": 0.5}, {"kind": "attributes"}]}
ROWS = [
    row(
        "a",
        verdicts=(
            Verdict("llm:j@1", "new", "peru", True, 2.0),
            Verdict("llm:j@1", "new", "kenya", False, -1.0),
            Verdict("llm:j@1", "original", "peru", False, 3.0),
            Verdict("llm:j@1", "new", "chad", True, 0.4),  # below the minimum
            Verdict("llm:j@1", "new", "mali", False, None),
            Verdict("llm:j@1", "query", "mali", None, 1.0),
            Verdict("attributes", "new", "peru", True, 1.0),
        ),
    ),
    row("b", new_instruction="Only islands with a king, please.", verdicts=(), rewordings=()),
    row(
        "c",
        new_instruction="",
        status="declined",
        trainable=False,
        verdicts=(),
        rewordings=(Rewording("new", "As it was.", "near_original"),),
        drafts=(Draft("new", "There is none.", "", "declined", None),),
    ),
    row("d"),  # repeats the first
    row("e", status="not_flipped", trainable=False, verdicts=()),
    row("f", status="declined", trainable=False, verdicts=()),
]


def stats_of(tmp_path, shards, settings=SETTINGS, num_missing=0):
    return run_stats(finish_run(open_store(str(tmp_path)), shards, settings, num_missing))


@pytest.mark.parametrize("cut", [6, 4, 1])
def test_everything_is_counted_however_it_is_cut(tmp_path, cut):
    stats = stats_of(tmp_path, [ROWS[start : start + cut] for start in range(0, 6, cut)])
    assert stats.finished
    assert stats.statuses == {"accepted": 3, "declined": 2, "not_flipped": 1}
    assert stats.accepted_share == 0.5
    assert stats.num_trainable == 3
    assert (stats.prompt_tokens, stats.completion_tokens) == (600, 60)
    assert stats.drafts == {("new", "accepted"): 5, ("new", "declined"): 1}
    assert stats.rewordings == {("new", "accepted"): 4, ("new", "near_original"): 1}
    assert stats.verdict_counts["llm:j@1", "new"] == VerdictCounts(
        right=2, wrong=0, undecided=2, unlabelled=0, surpluses=Counter([2.0, 1.0])
    )
    assert stats.verdict_counts["llm:j@1", "original"] == VerdictCounts(wrong=1, surpluses=Counter([-3.0]))
    assert stats.verdict_counts["llm:j@1", "query"] == VerdictCounts(undecided=0, unlabelled=2)
    assert stats.verdict_counts["attributes", "new"] == VerdictCounts(right=2, surpluses=Counter([1.0, 1.5]))
    assert stats.lengths["new instruction"] == {3: 2, 6: 1}
    assert stats.lengths["query"] == {2: 3}
    assert [dict(origin)["writer"] for origin in stats.origins] == ["demo"]
    assert list(stats.origins.values()) == [6]


def test_a_run_that_two_versions_made_shows_both(tmp_path):
    def by(code_version, seed_id):
        made = row(seed_id)
        return replace(made, lineage=replace(made.lineage, code_version=code_version))

    stats = stats_of(
        tmp_path, [[by("0.1.0 files a", "a"), by("0.1.0 files a", "b"), by("0.1.0 files b", "c")]]
    )
    assert made_by(stats)[1:] == [["0.1.0 files a", "2"], ["0.1.0 files b", "1"]]
    assert [noted for noted, _ in stats.codes] == [code()]  # of the driver that planned it
    output = io.StringIO()
    print_stats(stats, Console(file=output, width=160))
    assert "code that made the rows" in output.getvalue()


def test_examples_are_the_first_accepted_rows_and_one_of_each_reason(tmp_path):
    stats = stats_of(tmp_path, [[row(str(number)) for number in range(9)], ROWS])
    assert [example.status for example in stats.accepted_examples] == ["accepted"] * 5
    assert [example.status for example in stats.rejected_examples] == ["declined", "not_flipped"]
    declined = stats.rejected_examples[0]
    assert declined.answer == "There is none."  # because no instruction was written
    assert (declined.positive, declined.target) == (
        "Kenya lies in Africa.",
        "Peru Peru lies in South America.",
    )


def test_near_duplicates_are_counted_as_such(tmp_path):
    run = finish_run(open_store(str(tmp_path)), [ROWS], {**SETTINGS, "near_duplicates": NEAR.model_dump()})
    before = run_stats(run)
    assert not before.finished
    assert "have not been searched for near-duplicates" in state(before)
    mark_near_duplicates(run, NEAR)
    after = run_stats(run)
    assert after.finished
    assert after.statuses == {"accepted": 2, "declined": 2, "not_flipped": 1, "near_duplicate": 1}
    assert (after.num_rows, after.num_trainable) == (6, 2)


def test_an_unfinished_run_says_so(tmp_path):
    stats = stats_of(tmp_path, [ROWS[:2], ROWS[2:4], ROWS[4:]], num_missing=2)
    assert state(stats).startswith("not finished: 1 of 3 shards")
    assert stats.num_rows == 2


def test_a_run_that_is_extended_meanwhile_is_counted_as_it_was(tmp_path):
    run = finish_run(open_store(str(tmp_path)), [ROWS], {**SETTINGS, "near_duplicates": NEAR.model_dump()})
    mark_near_duplicates(run, NEAR)
    stats = run_stats(open_run(ExtendedAfterReading(tmp_path, (row("g"),))))
    assert stats.finished
    assert (stats.num_shards, stats.num_rows) == (1, len(ROWS))
    assert stats.statuses["near_duplicate"] == 1


@pytest.mark.parametrize("size", [1, 2, 19, 20, 500])
def test_quantiles_are_numpys(size):
    values = np.random.default_rng(size).integers(-9, 9, size) / 2
    expected = np.quantile(values, (0.05, 0.25, 0.5, 0.75, 0.95), method="inverted_cdf")
    assert quantiles(Counter(values.tolist())) == expected.tolist()


def test_the_tables_show_the_figures(tmp_path):
    store = open_store(str(tmp_path))
    store.put_new("exam.json", json.dumps({"llm:j@1": {"auc": 0.91234, "num_pairs": 60}}).encode(), "one")
    stats = stats_of(tmp_path, [ROWS])
    stats.accepted_examples[0].query = "main [bold]ports[/bold]"
    output = io.StringIO()
    print_stats(stats, Console(file=output, width=160))
    shown = output.getvalue()
    for text in (
        "finished: 6 rows in 1 shards",
        "declined",
        "33.3%",
        "llm:j@1",
        "0.912",
        "accepted 50.0%; trainable 3; tokens: 600 prompt, 60 completion",
        "main [bold]ports[/bold]",
        "There is none.",
    ):
        assert text in shown
    print_stats(stats_of(tmp_path / "nothing-yet", [ROWS], num_missing=1), Console(file=output))
    assert "not finished: 0 of 1 shards" in output.getvalue()
