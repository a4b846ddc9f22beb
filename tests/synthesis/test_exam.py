import asyncio
import random

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dualview.config import Exam, LlmJudge
from dualview.engines import Completion
from dualview.engines.scripted import Scripted
from dualview.errors import InputError
from dualview.records import Passage, Seed
from dualview.synthesis.exam import exam_pairs, roc_auc, sit_exam

JUDGE = LlmJudge(
    kind="llm",
    prompt="judge-v1",
    query_prompt="judge-query-v1",
    min_margin=0.0,
    exam=Exam(num_pairs=20, min_auc=0.8, seed=1, gold=None),
)
SEEDS = [
    Seed(
        id=str(i),
        query_id=str(i),
        query=f"query {i}",
        instruction="Only islands.",
        positive=Passage(f"p{i}", "an island"),
        instruction_negatives=tuple(Passage(f"n{i}{k}", "a desert") for k in range(2)),
    )
    for i in range(12)
]


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2).filter(
        lambda pairs: len({gold for _, gold in pairs}) == 2
    )
)
def test_auc_is_that_of_sklearn_with_ties(pairs):
    margins = np.array([float(margin) for margin, _ in pairs])
    golds = np.array([gold for _, gold in pairs])
    assert roc_auc(margins, golds) == pytest.approx(roc_auc_score(golds, margins))


def test_auc_of_one_class_is_refused():
    with pytest.raises(ValueError, match="both"):
        roc_auc(np.array([1.0, 2.0]), np.array([True, True]))


def test_pairs_are_balanced_distinct_and_the_seeds_own_labels():
    pairs = exam_pairs(SEEDS, 21, random.Random(1))
    assert [pair.gold for pair in pairs].count(True) == 10
    assert len({(pair.query, pair.passage.id) for pair in pairs}) == 21
    assert all(pair.gold == (pair.passage.text == "an island") for pair in pairs)
    assert pairs == exam_pairs(SEEDS, 21, random.Random(1))
    assert pairs != exam_pairs(SEEDS, 21, random.Random(2))


def test_more_pairs_than_there_are_is_refused_with_what_would_do():
    with pytest.raises(InputError, match=r"exam.num_pairs: 100 .* 12 and 24; try 24"):
        exam_pairs(SEEDS, 100, random.Random(1))


def answering(answer):
    """A judge that is given the passage's line of the prompt."""

    def complete(request):
        logprobs = answer(request.prompt[-1].text.rsplit("Passage:", 1)[1])
        return Completion("", "length", 1, 1, logprobs)

    return Scripted("judge", complete)


def exam(answer):
    return asyncio.run(sit_exam(answering(answer), JUDGE, exam_pairs(SEEDS, 20, random.Random(1))))


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
