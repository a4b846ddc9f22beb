import asyncio
import random

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from prompted import inside
import pytest
from scipy.stats import binomtest

from dualview.config.generate import JudgeValidation, LlmJudge
from dualview.engines import Completion
from dualview.engines.scripted import Scripted
from dualview.errors import InputError
from dualview.records import FlipCollection, FlipQuery, Passage, SourceExample
from dualview.synthesis.judge_validation import (
    as_floats,
    auc_interval,
    draw_gold_pairs,
    flip_pairs,
    grade,
    kept,
    measure,
    reliability,
    smallest_threshold,
    validate_judge,
)

JUDGE = LlmJudge(
    kind="llm",
    prompt="judge-v1",
    query_prompt="judge-query-v1",
    min_margin=0.0,
    validation=JudgeValidation(num_pairs=20, min_auc=0.8, seed=1, gold=None),
)
SEEDS = [
    SourceExample(
        id=str(i),
        query_id=str(i),
        query=f"query {i}",
        instruction="Only islands.",
        positive=Passage(f"p{i}", "an island"),
        instruction_negatives=tuple(Passage(f"n{i}{k}", "a desert") for k in range(2)),
    )
    for i in range(12)
]


MARGINS_AND_GOLDS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(-3, 3)), st.booleans()), min_size=2, max_size=30
).filter(lambda pairs: len({gold for _, gold in pairs}) == 2)


def arrays(pairs):
    return as_floats([margin for margin, _ in pairs]), np.array([gold for _, gold in pairs])


@settings(deadline=None)
@given(MARGINS_AND_GOLDS)
def test_auc_is_the_share_of_pairs_in_the_right_order_and_an_undecided_one_is_in_the_wrong(pairs):
    margins, golds = arrays(pairs)

    def order(relevant, irrelevant):
        if np.isnan(relevant) or np.isnan(irrelevant):
            return 0.0
        return 1.0 if relevant > irrelevant else 0.5 if relevant == irrelevant else 0.0

    orders = [order(relevant, irrelevant) for relevant in margins[golds] for irrelevant in margins[~golds]]
    result = grade(margins, golds)
    # Two undecided pairs are not a tie: the relevant one counts as a certain no, the irrelevant one as a certain yes.
    assert result.auc == pytest.approx(np.mean(orders))
    assert result.agreement == np.mean(
        [margin is not None and (margin > 0) == gold for margin, gold in pairs]
    )
    assert result.num_undecided == sum(margin is None for margin, _ in pairs)


def test_pairs_are_balanced_distinct_and_the_seeds_own_labels():
    pairs = draw_gold_pairs(SEEDS, 21, random.Random(1))
    assert [pair.gold for pair in pairs].count(True) == 10
    assert len({(pair.query, pair.passage.id) for pair in pairs}) == 21
    assert all(pair.gold == (pair.passage.text == "an island") for pair in pairs)
    assert pairs == draw_gold_pairs(SEEDS, 21, random.Random(1))
    assert pairs != draw_gold_pairs(SEEDS, 21, random.Random(2))


def test_more_pairs_than_there_are_is_refused_with_what_would_do():
    with pytest.raises(InputError, match=r"validation.num_pairs: 100 .* 12 and 24; try 24"):
        draw_gold_pairs(SEEDS, 100, random.Random(1))


def test_pairs_of_a_collection_are_relevant_under_one_instruction_and_not_under_the_other():
    passages = {id: Passage(id, id) for id in "abcdx"}
    queries = [
        FlipQuery(
            id=str(i),
            query=f"query {i}",
            instructions={"original": "pro", "changed": "contra"},
            relevant={"original": ("a", "b", "c"), "changed": ("c", "d")},
            candidates=tuple("abcdx"),
        )
        for i in range(3)
    ]
    collection = FlipCollection("claims", passages, queries)
    pairs = flip_pairs(collection, 18, random.Random(1))
    gold = {(pair.query, pair.instruction, pair.passage.id): pair.gold for pair in pairs}
    assert len(gold) == 18
    for query in queries:
        labels = {key[1:]: value for key, value in gold.items() if key[0] == query.query}
        yes = {("pro", "a"), ("pro", "b"), ("pro", "c"), ("contra", "c"), ("contra", "d")}
        no = {("pro", "d"), ("contra", "a"), ("contra", "b")}
        assert {key for key, value in labels.items() if value} <= yes
        assert {key for key, value in labels.items() if not value} == no
    with pytest.raises(InputError, match=r"but claims has 15 and 9; try 18"):
        flip_pairs(collection, 20, random.Random(1))


def answering(answer):
    """An engine that judges by the passage's line of the prompt."""

    def complete(request):
        logprobs = answer(inside(request.prompt[-1].text, "passage"))
        return Completion("", "length", 1, 1, logprobs)

    return Scripted("judge", complete)


def exam(answer):
    return asyncio.run(validate_judge(answering(answer), JUDGE, draw_gold_pairs(SEEDS, 20, random.Random(1))))


def test_a_perfect_judge_a_coin_and_a_mute_one():
    perfect = exam(lambda text: {"yes": -1.0, "no": -2.0} if "island" in text else {"yes": -2.0, "no": -1.0})
    assert (perfect.auc, perfect.agreement, perfect.num_pairs, perfect.num_undecided) == (1.0, 1.0, 20, 0)

    always_yes = exam(lambda _: {"yes": -1.0, "no": -2.0})
    assert (always_yes.auc, always_yes.agreement) == (0.5, 0.5)

    mute = exam(lambda _: {"The": -1.0})
    assert (mute.auc, mute.agreement, mute.num_undecided) == (0.0, 0.0, 20)


def test_a_judge_that_only_answers_when_it_is_sure_of_yes_fails_on_what_it_leaves_out():
    half = exam(lambda text: {"yes": -1.0, "no": -2.0} if "island" in text else {"The": -1.0})
    assert half.num_undecided == 10
    assert half.auc == 0.0
    assert half.agreement == 0.5


# --- measures -------------------------------------------------------------------------------------


def measured(margins, golds, **changes):
    chosen = {"min_margin": 0.0, "wanted_precision": 0.9, "samples": 50, "seed": 1, **changes}
    queries = [f"query {i // 2}" for i in range(len(golds))]
    return measure(queries, np.array(golds), as_floats(margins), **chosen)


GOLDS = [True, False] * 200
RNG = np.random.default_rng(5)
NOISE = RNG.normal(0, 2, len(GOLDS))


def signs(golds):
    return np.where(golds, 1.0, -1.0)


def test_a_perfect_judge():
    m = measured(8 * signs(GOLDS), GOLDS)
    assert (m.result.auc, m.auc_low, m.auc_high, m.result.agreement) == (1.0, 1.0, 1.0, 1.0)
    assert m.result.ece < 0.001
    assert (m.min_margin.threshold, m.min_margin.num_kept, m.min_margin.precision) == (8.0, 400, 1.0)
    assert m.min_margin.low < 1.0  # 400 correct verdicts do not prove that all are
    assert (m.min_yes.threshold, m.min_yes.num_kept) == (8.0, 200)


def test_a_coin():
    m = measured(NOISE, GOLDS)
    assert m.auc_low < 0.5 < m.auc_high
    assert 0.4 < m.at_min_margin.precision < 0.6
    assert m.at_min_margin.num_kept == 400


def test_an_inverted_judge():
    m = measured(-8 * signs(GOLDS), GOLDS)
    assert (m.result.auc, m.result.agreement) == (0.0, 0.0)
    assert m.result.ece > 0.999
    assert m.min_margin is None
    assert m.min_yes is None


def test_an_over_confident_judge_is_as_good_as_its_calibrated_self_but_for_its_calibration():
    """Gold labels drawn with the margin's probability; then the margin times ten."""
    golds = RNG.random(len(NOISE)) < 1 / (1 + np.exp(-NOISE))
    calm, loud = measured(NOISE, golds), measured(10 * NOISE, golds)
    assert calm.result.auc == loud.result.auc
    assert calm.result.ece < 0.08  # the noise of 40 pairs per bin
    assert loud.result.ece > 0.15
    assert loud.min_margin.threshold == 10 * calm.min_margin.threshold
    assert loud.min_margin.num_kept == calm.min_margin.num_kept


def test_a_judge_that_says_nothing():
    m = measured([None] * len(GOLDS), GOLDS)
    assert (m.result.auc, m.result.ece, m.result.num_undecided) == (0.0, None, len(GOLDS))
    assert (m.bins, m.at_min_margin, m.min_margin, m.min_yes) == ((), None, None, None)


def test_bins_hold_every_decided_pair_once_and_their_means():
    margins = as_floats([None, -1000, -2, 0.1, 0.3, 1000])
    bins = reliability(margins, np.array([True, False, False, True, False, True]))
    assert [(round(bin.low, 1), bin.num_pairs, bin.share_relevant) for bin in bins] == [
        (0.0, 1, 0.0),
        (0.1, 1, 0.0),
        (0.5, 2, 0.5),
        (0.9, 1, 1.0),
    ]
    assert bins[2].mean_probability == pytest.approx((1 / (1 + np.exp(-0.1)) + 1 / (1 + np.exp(-0.3))) / 2)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(0, 8)), st.booleans()), min_size=1),
    st.sampled_from([0.3, 0.5, 0.75, 0.9, 1.0]),
)
def test_the_threshold_reaches_the_precision_and_no_smaller_one_does(pairs, wanted):
    scores, hits = arrays(pairs)

    def precision(threshold):
        return np.mean(hits[scores >= threshold])

    reaching = [score for score in set(scores[~np.isnan(scores)]) if precision(score) >= wanted]
    found = smallest_threshold([str(n // 2) for n in range(len(pairs))], scores, hits, wanted)
    if found is None:
        assert reaching == []
        return
    assert found.threshold == min(reaching)
    assert found.precision == precision(found.threshold) >= wanted
    assert found.num_kept == np.sum(scores >= found.threshold)
    assert found.low <= found.precision <= found.high


def test_the_interval_is_wider_where_queries_have_many_pairs_that_are_alike():
    margins, golds = np.repeat(NOISE[:40], 10), np.repeat(GOLDS[:40], 10)
    together = [f"query {i // 20}" for i in range(400)]  # each with ten relevant and ten irrelevant pairs
    apart = [f"query {i}" for i in range(400)]
    (low, high), (low_apart, high_apart) = (
        auc_interval(queries, golds, margins, 50, 1) for queries in (together, apart)
    )
    assert low < grade(margins, golds).auc < high
    assert high - low > 2 * (high_apart - low_apart)


@pytest.mark.parametrize("num_hits", [0, 1, 30, 39, 40])
def test_of_pairs_that_are_each_of_another_query_the_interval_is_wilsons(num_hits):
    hits = np.arange(40) < num_hits
    found = kept([f"query {n}" for n in range(40)], np.ones(40), hits, 0.5)
    expected = binomtest(num_hits, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize("num_hits", [0, 1, 30, 39, 40])
def test_copies_of_a_pair_make_nothing_surer(num_hits):
    right, golds = np.repeat(np.arange(40) < num_hits, 10), np.arange(400) % 2 == 0
    found = measure(
        [f"query {n // 10}" for n in range(400)],
        golds,
        np.where(right == golds, 1.0, -1.0),
        min_margin=0.5,
        wanted_precision=0.9,
        samples=2,
        seed=1,
    ).at_min_margin
    expected = binomtest(num_hits, 40).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.005)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.97])
@pytest.mark.parametrize("likeness", [0.0, 0.3, 1.0])  # correlation of a query's hits
def test_the_interval_holds_the_share_of_all_queries_nearly_as_often_as_it_says(share, likeness):
    rng = np.random.default_rng(1)
    queries = [f"query {n // 5}" for n in range(120)]
    holds = 0
    for _ in range(300):
        of_query = np.repeat(rng.random(24) < share, 5)
        hits = np.where(rng.random(120) < np.sqrt(likeness), of_query, rng.random(120) < share)
        found = kept(queries, np.ones(120), hits, 0.5)
        holds += found.low <= share <= found.high
    assert holds / 300 > 0.9  # correlated pairs in an interval for independent ones: 0.5 to 0.9


def test_a_query_alone_shows_nothing_of_others():
    found = kept(["query"] * 40, np.ones(40), np.arange(40) < 36, 0.5)
    assert found.low < 0.2 < found.precision == 0.9


def test_an_interval_is_there_even_if_most_draws_lack_a_class():
    low, high = auc_interval(["a", "b"], np.array([True, False]), np.array([1.0, -1.0]), 20, 1)
    assert (low, high) == (1.0, 1.0)
