import asyncio
from collections.abc import Callable
import random

import pytest

from dualview.config import (
    AttributesJudge,
    Exam,
    FacetsWriter,
    LlmJudge,
    LlmWriter,
    Rules,
)
from dualview.engines import Completion, EngineDied, Request
from dualview.engines.scripted import Scripted, seeded_answers
from dualview.errors import InputError
from dualview.records import Passage, Requirement, Seed, Verdict, dual_views_from_table, dual_views_to_table
from dualview.synthesis.shard import Recipe, decide, finish_row, finish_shard, lineage, poison_row
from dualview.vocabulary import Vocabulary

REGIONS = ("africa", "asia", "europe", "oceania")
COASTS = ("landlocked", "island", "coastal")
VOCABULARY = Vocabulary(
    phrases={("region", r): (f"of {r}",) for r in REGIONS}
    | {("coast", c): (f"that are {c}",) for c in COASTS},
    names={("region", r): (r,) for r in REGIONS} | {("coast", c): (c,) for c in COASTS},
    inclusions=("Only keep countries {phrase}.",),
    exclusions=("Leave out countries {phrase}.",),
)
FACETS = FacetsWriter(
    kind="facets", seed=1, negation_share=0.2, same_facet_share=0.4, exclusion_share=0.2, compound_share=0.0
)
LLM = LlmWriter(kind="llm", prompt="write-v1", temperature=0.7, top_p=0.9, max_tokens=200, seed=1)
LLM_JUDGE = LlmJudge(
    kind="llm", prompt="judge-v1", min_margin=1.0, exam=Exam(num_pairs=10, min_auc=0.8, seed=1)
)
ATTRIBUTES = AttributesJudge(kind="attributes")


RULES = Rules(min_words=3, max_words=30, max_copied_words=5, max_similarity_to_original=0.9)


def country(id, region, coast):
    return Passage(id, f"{id}: {region}; {coast}", attributes={"region": region, "coast": coast})


SEED = Seed(
    id="chad-fiji",
    query_id="exports",
    query="main export commodities",
    instruction="Only passages about countries in Africa are relevant.",
    positive=country("chad", "africa", "landlocked"),
    instruction_negatives=(country("fiji", "oceania", "island"), country("laos", "asia", "landlocked")),
    requirements=(Requirement(True, "region", "africa"),),
)
ISLANDS = "Only keep countries that are island."


def engine(write: str | Completion, relevant: Callable[[str], float | None]) -> Scripted:
    """Writes one answer; judges a passage's text with a margin, None for no clear word."""

    def answer(request: Request) -> Completion:
        if not request.num_logprobs:
            return write if isinstance(write, Completion) else Completion(write, "stop", 100, 20, {})
        margin = relevant(request.prompt[-1].text.rsplit("Passage: ", 1)[1])
        logprobs = {"The": -1.0} if margin is None else {"yes": margin - 5, "no": -5.0}
        return Completion("?", "length", 30, 1, logprobs)

    return Scripted("model@1", answer)


def block(instruction):
    return f"Reasons.\n<instruction>{instruction}</instruction>"


def islands_only(text):
    return 3.0 if "island" in text else -3.0


def recipe(
    writer=LLM, judges=(LLM_JUDGE,), accept="llm", engine=None, vocabulary=VOCABULARY, exam_passed=True
):
    return Recipe(writer, judges, accept, RULES, vocabulary, engine, exam_passed)


def finish(made_by, seeds=(SEED,)):
    origin = lineage(made_by, run="r", shard=0, attempt="a", code_version="1")
    return asyncio.run(finish_shard(made_by, seeds, origin))


def test_a_full_flip_is_accepted_with_every_verdict_and_token():
    (row,) = finish(recipe(engine=engine(block(ISLANDS), islands_only), judges=(LLM_JUDGE, ATTRIBUTES)))

    assert (row.status, row.trainable, row.new_instruction) == ("accepted", True, ISLANDS)
    assert row.target_id == "fiji"
    assert row.new_requirements == (Requirement(True, "coast", "island"),)
    assert row.draft == block(ISLANDS)
    assert (row.prompt_tokens, row.completion_tokens) == (100 + 3 * 30, 20 + 3)
    name = row.lineage.judges[0]
    assert [(v.judge, v.passage_id, v.expected, v.margin) for v in row.verdicts] == [
        (name, "chad", False, pytest.approx(-3)),
        (name, "fiji", True, pytest.approx(3)),
        (name, "laos", False, pytest.approx(-3)),
        ("attributes", "chad", False, -1.0),
        ("attributes", "fiji", True, 1.0),
        ("attributes", "laos", False, -1.0),
    ]
    assert row.lineage.writer == "model@1"
    assert row.lineage.prompt.startswith("write-v1@")


@pytest.mark.parametrize(
    ("write", "relevant", "status", "num_verdicts"),
    [
        pytest.param(block("None"), islands_only, "declined", 0, id="declined"),
        pytest.param(ISLANDS, islands_only, "unparseable", 0, id="no block"),
        pytest.param(Completion("Hm", "length", 9, 9, {}), islands_only, "truncated", 0, id="cut off"),
        pytest.param(
            Completion("too long", "error", 9, 0, {}), islands_only, "engine_error", 0, id="refused"
        ),
        pytest.param(block("Islands."), islands_only, "bad_length", 0, id="a rule"),
        pytest.param(block(ISLANDS), lambda _: 3.0, "not_flipped", 3, id="keeps the positive"),
        pytest.param(block(ISLANDS), lambda _: -3.0, "not_flipped", 3, id="rejects the target"),
        pytest.param(
            block(ISLANDS),
            lambda text: 3.0 if "fiji" in text or "laos" in text else -3.0,
            "not_flipped",
            3,
            id="lets another negative in",
        ),
        pytest.param(block(ISLANDS), lambda _: None, "undecided", 3, id="no clear word"),
        pytest.param(
            block(ISLANDS), lambda text: islands_only(text) / 4, "undecided", 3, id="below the least margin"
        ),
        pytest.param(
            block(ISLANDS),
            lambda text: None if "laos" in text else islands_only(text),
            "undecided",
            3,
            id="one",
        ),
    ],
)
def test_every_other_end_has_its_reason_and_trains_nothing(write, relevant, status, num_verdicts):
    (row,) = finish(recipe(engine=engine(write, relevant)))
    assert (row.status, row.trainable, len(row.verdicts)) == (status, False, num_verdicts)


@pytest.mark.parametrize(
    ("accept", "exam_passed", "status", "trainable"),
    [
        ("attributes", False, "accepted", True),
        ("attributes", True, "accepted", True),
        ("llm", True, "not_flipped", False),
    ],
)
def test_only_the_named_judge_decides_and_the_other_is_kept(accept, exam_passed, status, trainable):
    wrong = engine(block(ISLANDS), lambda text: -islands_only(text))
    (row,) = finish(
        recipe(engine=wrong, judges=(LLM_JUDGE, ATTRIBUTES), accept=accept, exam_passed=exam_passed)
    )
    assert (row.status, row.trainable) == (status, trainable)
    assert len(row.verdicts) == 6


def test_an_llm_judge_that_failed_its_exam_accepts_but_trains_nothing():
    (row,) = finish(recipe(engine=engine(block(ISLANDS), islands_only), exam_passed=False))
    assert (row.status, row.trainable) == ("accepted", False)


def test_without_a_vocabulary_requirements_stay_unknown():
    (row,) = finish(recipe(engine=engine(block(ISLANDS), islands_only), vocabulary=None))
    assert (row.status, row.new_requirements) == ("accepted", ())


def world(num):
    rng = random.Random(1)
    return [
        Seed(
            id=f"seed-{i}",
            query_id="q",
            query="main export commodities",
            instruction="Relevant: Africa.",
            positive=country(f"p{i}", "africa", rng.choice(COASTS)),
            instruction_negatives=tuple(
                country(f"n{i}{k}", rng.choice(REGIONS[1:]), rng.choice(COASTS))
                for k in range(rng.randint(1, 3))
            ),
            requirements=(Requirement(True, "region", "africa"),),
        )
        for i in range(num)
    ]


def test_facets_rows_are_accepted_or_declined_without_any_engine():
    rows = finish(recipe(writer=FACETS, judges=(ATTRIBUTES,), accept="attributes"), world(100))

    assert {row.status for row in rows} == {"accepted", "declined"}
    assert sum(row.trainable for row in rows) > 70
    assert all((row.status == "declined") == (row.draft == "") for row in rows)
    assert rows[0].lineage.writer == "facets"
    assert rows[0].lineage.prompt.startswith("vocabulary@")
    assert dual_views_from_table(dual_views_to_table(rows)) == rows


@pytest.mark.parametrize("writer", [FACETS, LLM])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_rows_are_the_same_whatever_the_shards_and_the_mode(writer, size):
    made_by = recipe(writer=writer, judges=(LLM_JUDGE, ATTRIBUTES), engine=Scripted("s", seeded_answers(3)))
    seeds = world(40)
    origin = lineage(made_by, run="r", shard=0, attempt="a", code_version="1")

    whole = finish(made_by, seeds)
    cut = [row for i in range(0, 40, size) for row in finish(made_by, seeds[i : i + size])]
    one_by_one = [asyncio.run(finish_row(made_by, seed, origin)) for seed in reversed(seeds)][::-1]

    assert [row.seed.id for row in whole] == [seed.id for seed in seeds]
    assert whole == cut == one_by_one


def test_rows_of_a_shard_wait_for_the_engine_together():
    waiting, most = 0, 0

    class Slow(Scripted):
        async def complete(self, request):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            for _ in range(5):
                await asyncio.sleep(0)
            waiting -= 1
            return await super().complete(request)

    finish(recipe(engine=Slow("s", seeded_answers(3))), world(20))
    assert most >= 20


@pytest.mark.parametrize("while_judging", [False, True])
def test_a_dead_engine_ends_the_shard(while_judging):
    def answer(request):
        if while_judging and not request.num_logprobs:
            return Completion(block(ISLANDS), "stop", 1, 1, {})
        raise EngineDied("gone")

    with pytest.raises(EngineDied, match="gone"):
        finish(recipe(engine=Scripted("s", answer)), world(5))


def test_a_poison_row_carries_the_seed_and_nothing_else():
    made_by = recipe(engine=engine("", islands_only))
    row = poison_row(SEED, lineage(made_by, run="r", shard=0, attempt="a", code_version="1"))
    assert (row.status, row.trainable, row.seed, row.target_id) == ("poison", False, SEED, "fiji")
    assert dual_views_from_table(dual_views_to_table([row])) == [row]


def test_a_wrong_verdict_outweighs_an_undecided_one_and_other_judges_do_not_count():
    verdicts = [
        Verdict("llm", "p", expected=False, margin=None),
        Verdict("llm", "n", expected=True, margin=-2.0),
        Verdict("attributes", "n", expected=True, margin=1.0),
    ]
    assert decide(verdicts, {"llm": 0.5}) == "not_flipped"
    assert decide(verdicts, {"llm": 2.5}) == "undecided"
    assert decide(verdicts, {"attributes": 0.0}) == "accepted"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"judges": (ATTRIBUTES,), "accept": "llm", "engine": Scripted("s", seeded_answers(1))},
            "accept: llm",
        ),
        ({"judges": (), "engine": Scripted("s", seeded_answers(1))}, "accept: llm"),
        ({"engine": None}, "engine: "),
        ({"writer": FACETS, "judges": (LLM_JUDGE,), "engine": None}, "engine: "),
        (
            {"writer": FACETS, "judges": (ATTRIBUTES,), "accept": "attributes", "vocabulary": None},
            "vocabulary",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_row(changes, message):
    with pytest.raises(InputError, match=message):
        recipe(**changes)


def test_lineage_tells_prompts_and_vocabularies_apart():
    def origin(**changes):
        made_by = recipe(engine=engine("", islands_only), judges=(LLM_JUDGE, ATTRIBUTES), **changes)
        return lineage(made_by, run="r", shard=3, attempt="a", code_version="1")

    smaller = Vocabulary(dict(list(VOCABULARY.phrases.items())[1:]), {}, (), ())
    assert origin(writer=FACETS).prompt != origin(writer=FACETS, vocabulary=smaller).prompt
    assert origin().sampling == '{"max_tokens":200,"seed":1,"temperature":0.7,"top_p":0.9}'
    assert origin().shard == 3
