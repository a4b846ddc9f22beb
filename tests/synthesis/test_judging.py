import asyncio
import math

import pytest

from dualview.config.generate import JudgeValidation, LlmJudge
from dualview.engines import Completion
from dualview.engines.scripted import Scripted
from dualview.records import Passage, Requirement, Verdict
from dualview.synthesis.judging import ask, decide, judge_name, look_up, yes_no_margin

JUDGE = LlmJudge(
    kind="llm",
    prompt="judge-v1",
    query_prompt="judge-query-v1",
    min_margin=0.5,
    validation=JudgeValidation(num_pairs=10, min_auc=0.8, seed=1, gold=None),
)


@pytest.mark.parametrize(
    ("logprobs", "margin"),
    [
        pytest.param({"yes": -1.0, "no": -3.0}, 2.0, id="yes"),
        pytest.param({"yes": -4.0, "no": -0.5, "maybe": -9.0}, -3.5, id="no"),
        pytest.param(
            {"Yes": math.log(0.2), " yes": math.log(0.3), "NO": math.log(0.25)}, math.log(2), id="spellings"
        ),
        pytest.param({"yes": -0.1, "The": -5.0, "I": -7.0}, 6.9, id="no is not listed: at most the rarest"),
        pytest.param({"no": -0.1, "The": -5.0}, -4.9, id="yes is not listed"),
        pytest.param({"The": -0.1, "I": -5.0}, None, id="neither is listed"),
        pytest.param({}, None, id="nothing is listed"),
        pytest.param({"The": -0.1, "no": -5.0}, None, id="no is the rarest, and yes may be as rare"),
        pytest.param({"yes": -1.0, "no": -1.0}, None, id="equal"),
        pytest.param({"yes": -800.0, "no": -801.0, "Yes": -800.0}, 1 + math.log(2), id="no underflow"),
        pytest.param({"yesterday": -0.1, "now": -1.0}, None, id="other words"),
    ],
)
def test_margin_of_yes_over_no(logprobs, margin):
    assert yes_no_margin(logprobs) == (None if margin is None else pytest.approx(margin))


def test_an_llm_judge_reads_the_first_token_of_one_greedy_word():
    requests = []

    def answer(request):
        requests.append(request)
        return Completion("yes", "length", 42, 1, {"yes": -0.1, "no": -3.1})

    margin = asyncio.run(
        ask(
            Scripted("s", answer),
            JUDGE,
            "exports",
            "Only islands.",
            Passage("p", "island; fish", title="Fiji"),
        )
    )

    assert margin == pytest.approx(3.0)
    assert (requests[0].max_tokens, requests[0].temperature, requests[0].num_logprobs) == (1, 0.0, 20)
    assert all(
        text in requests[0].prompt[-1].text for text in ("exports", "Only islands.", "Fiji island; fish")
    )


def test_the_query_alone_has_a_prompt_of_its_own():
    requests = []

    def answer(request):
        requests.append(request)
        return Completion("yes", "length", 42, 1, {"yes": -0.1, "no": -3.1})

    asyncio.run(ask(Scripted("s", answer), JUDGE, "exports", None, Passage("p", "island")))
    text = requests[0].prompt[-1].text
    assert "exports" in text
    assert "nstruction" not in text


def test_a_refused_question_is_no_verdict():
    engine = Scripted("s", lambda _: Completion("too long", "error", 0, 0, {}))
    assert asyncio.run(ask(engine, JUDGE, "q", "i", Passage("p", "t"))) is None


def test_attributes_judge_looks_requirements_up():
    island = Passage("p", "", attributes={"coast": "island"})
    is_island, in_asia = Requirement(True, "coast", "island"), Requirement(True, "region", "asia")
    assert look_up([is_island], island) == 1.0
    assert look_up([Requirement(False, "coast", "island"), in_asia], island) == -1.0
    assert look_up([is_island, in_asia], island) is None
    assert look_up([], island) is None


def test_a_judge_is_named_after_its_prompt():
    assert judge_name(JUDGE).startswith("llm:judge-v1@")


@pytest.mark.parametrize(
    ("judge", "min_margin", "conditions", "expected"),
    [
        ("llm", 0.5, {"new"}, ("not_flipped", -2.0)),  # a wrong verdict outweighs an undecided one
        ("llm", 2.5, {"new"}, ("undecided", -2.0)),
        ("attributes", 0.0, {"new"}, ("accepted", 1.0)),  # other judges do not count
        ("llm", 0.5, {"original"}, ("accepted", 4.0)),  # nor do other conditions
        ("llm", 0.5, {"query"}, ("not_confirmed", -1.0)),
        ("llm", 0.5, {"query", "new"}, ("not_confirmed", -2.0)),
    ],
)
def test_the_verdicts_of_the_named_judge_and_conditions_decide(judge, min_margin, conditions, expected):
    verdicts = [
        Verdict("llm", "new", "p", expected=False, margin=None),
        Verdict("llm", "new", "n", expected=True, margin=-2.0),
        Verdict("attributes", "new", "n", expected=True, margin=1.0),
        Verdict("llm", "original", "n", expected=False, margin=-4.0),
        Verdict("llm", "query", "p", expected=True, margin=-1.0),
        Verdict("llm", "new", "hard", expected=None, margin=-9.0),  # unlabelled: never counts
    ]
    assert decide(verdicts, {judge: min_margin}, conditions) == expected
