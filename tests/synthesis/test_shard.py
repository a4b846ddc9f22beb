import asyncio
from collections.abc import Callable
from dataclasses import replace
import random

from prompted import inside
import pytest

from dualview.arrow import dual_views_from_table, dual_views_to_table
from dualview.config.generate import (
    Accept,
    AttributesJudge,
    AttributesWriter,
    Bootstrap,
    Judgements,
    JudgeValidation,
    LlmJudge,
    LlmRewording,
    LlmWriter,
    PrecomputedWriter,
    Rules,
    Synthesis,
    VocabularyRewording,
)
from dualview.engines import Completion, EngineDied, Request
from dualview.engines.scripted import Scripted, seeded_answers
from dualview.errors import InputError
from dualview.records import Passage, Requirement, SourceExample
from dualview.synthesis.recipe import Recipe, check_parts, lineage
from dualview.synthesis.shard import Task, finish_row, finish_shard, poison_row, tasks_of
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
FACETS = AttributesWriter(
    kind="attributes",
    seed=1,
    negation_share=0.2,
    same_attribute_share=0.4,
    exclusion_share=0.2,
    compound_share=0.0,
)
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 200, "seed": 1}
LLM = LlmWriter(kind="llm", prompt="write-v1", drafts=1, **SAMPLING)
LLM_JUDGE = LlmJudge(
    kind="llm",
    prompt="judge-v1",
    query_prompt="judge-query-v1",
    min_margin=1.0,
    validation=JudgeValidation(num_pairs=10, min_auc=0.8, seed=1, gold=None),
)
ATTRIBUTES = AttributesJudge(kind="attributes")


RULES = Rules(
    min_words=3,
    max_words=30,
    max_sentences=4,
    max_copied_words=5,
    max_similarity_to_original=0.9,
    other_language=0.99,
    benchmarks=None,
)

BOOTSTRAP = Bootstrap(
    prompt="original-v1",
    lengths=("short", "long"),
    styles=("plain", "negated"),
    max_instruction_negatives=2,
    **SAMPLING,
)


def country(id, region, coast):
    return Passage(id, f"{id}: {region}; {coast}", attributes={"region": region, "coast": coast})


SEED = SourceExample(
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
    """Writes one answer; judges a passage's text with a margin, or undecided for None."""

    def answer(request: Request) -> Completion:
        if not request.num_logprobs:
            return write if isinstance(write, Completion) else Completion(write, "stop", 100, 20, {})
        margin = relevant(inside(request.prompt[-1].text, "passage"))
        logprobs = {"The": -1.0} if margin is None else {"yes": margin - 5, "no": -5.0}
        return Completion("?", "length", 30, 1, logprobs)

    return Scripted("model@1", answer)


def block(instruction):
    return f"Reasons.\n<instruction>{instruction}</instruction>"


def islands_only(text):
    return 3.0 if "island" in text else -3.0


def recipe(
    engine=None, vocabulary=VOCABULARY, judges_passed=True, accept="llm", conditions=("new",), **changes
):
    settings = {
        "bootstrap": None,
        "targets": 1,
        "writer": LLM,
        "rules": RULES,
        "judges": (LLM_JUDGE,),
        "judgements": Judgements(conditions=conditions, hard_negatives=False),
        "accept": Accept(judge=accept, conditions=conditions) if accept else None,
        "rewording": None,
    }
    made_of = Synthesis(**(settings | changes))
    check_parts(made_of, has_vocabulary=vocabulary is not None, has_engine=engine is not None)
    return Recipe(made_of, vocabulary, engine, judges_passed)


def finish(made_by, examples=(SEED,)):
    origin = lineage(made_by, run="r", shard=0, attempt="a", code_version="1")
    tasks = [task for example in examples for task in tasks_of(example, made_by.settings.targets)]
    return asyncio.run(finish_shard(made_by, tasks, origin))


def test_a_full_flip_is_accepted_with_every_verdict_and_token():
    (row,) = finish(recipe(engine=engine(block(ISLANDS), islands_only), judges=(LLM_JUDGE, ATTRIBUTES)))

    assert (row.status, row.trainable, row.new_instruction) == ("accepted", True, ISLANDS)
    assert row.target_id == "fiji"
    assert row.new_requirements == (Requirement(True, "coast", "island"),)
    assert [(d.answer, d.status, d.surplus) for d in row.drafts] == [
        (block(ISLANDS), "accepted", pytest.approx(3))
    ]
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
    ("accept", "judges_passed", "status", "trainable"),
    [
        ("attributes", False, "accepted", True),
        ("attributes", True, "accepted", True),
        ("llm", True, "not_flipped", False),
    ],
)
def test_only_the_named_judge_decides_and_the_other_is_kept(accept, judges_passed, status, trainable):
    wrong = engine(block(ISLANDS), lambda text: -islands_only(text))
    (row,) = finish(
        recipe(engine=wrong, judges=(LLM_JUDGE, ATTRIBUTES), accept=accept, judges_passed=judges_passed)
    )
    assert (row.status, row.trainable) == (status, trainable)
    assert len(row.verdicts) == 6


@pytest.mark.parametrize(
    ("write", "status", "trainable"), [(block(ISLANDS), "accepted", True), (block("None"), "declined", False)]
)
def test_without_verification_all_that_the_rules_let_through_is_trained_on(write, status, trainable):
    wrong = engine(write, lambda text: -islands_only(text))
    (row,) = finish(recipe(engine=wrong, accept="none", judges_passed=False))
    assert (row.status, row.trainable) == (status, trainable)
    assert bool(row.verdicts) == trainable
    assert all(verdict.surplus < 0 for verdict in row.verdicts)


def test_an_llm_judge_that_failed_its_exam_accepts_but_trains_nothing():
    (row,) = finish(recipe(engine=engine(block(ISLANDS), islands_only), judges_passed=False))
    assert (row.status, row.trainable) == ("accepted", False)


def test_without_a_vocabulary_requirements_stay_unknown():
    (row,) = finish(recipe(engine=engine(block(ISLANDS), islands_only), vocabulary=None))
    assert (row.status, row.new_requirements) == ("accepted", ())


def world(num):
    rng = random.Random(1)
    return [
        SourceExample(
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


def test_attributes_rows_are_accepted_or_declined_without_any_engine():
    rows = finish(recipe(writer=FACETS, judges=(ATTRIBUTES,), accept="attributes"), world(100))

    assert {row.status for row in rows} == {"accepted", "declined"}
    assert sum(row.trainable for row in rows) > 70
    assert all((row.status == "declined") == (row.new_instruction == "") for row in rows)
    assert rows[0].lineage.writer == "attributes"
    assert rows[0].lineage.prompt.startswith("vocabulary@")
    assert dual_views_from_table(dual_views_to_table(rows)) == rows


@pytest.mark.parametrize("writer", [FACETS, LLM])
@pytest.mark.parametrize("size", [1, 7, 40])
def test_rows_are_the_same_whatever_the_shards_and_the_mode(writer, size):
    made_by = recipe(writer=writer, judges=(LLM_JUDGE, ATTRIBUTES), engine=Scripted("s", seeded_answers(3)))
    examples = world(40)
    origin = lineage(made_by, run="r", shard=0, attempt="a", code_version="1")

    whole = finish(made_by, examples)
    cut = [row for i in range(0, 40, size) for row in finish(made_by, examples[i : i + size])]
    one_by_one = [
        asyncio.run(finish_row(made_by, *tasks_of(example, 1), origin)) for example in reversed(examples)
    ][::-1]

    assert [row.example.id for row in whole] == [example.id for example in examples]
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
    (task,) = tasks_of(SEED, 1)
    row = poison_row(task, lineage(made_by, run="r", shard=0, attempt="a", code_version="1"))
    assert (row.status, row.trainable, row.example, row.target_id) == ("poison", False, SEED, "fiji")
    assert dual_views_from_table(dual_views_to_table([row])) == [row]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judges": (ATTRIBUTES,)}, "accept.judge: llm"),
        ({"judges": ()}, "accept.judge: llm"),
        ({"engine": None}, "engine: "),
        ({"writer": FACETS, "engine": None}, "engine: "),
        (
            {"writer": FACETS, "judges": (ATTRIBUTES,), "accept": "attributes", "vocabulary": None},
            "vocabulary",
        ),
        (
            {"rewording": VocabularyRewording(kind="vocabulary", num=1, seed=1), "vocabulary": None},
            "vocabulary",
        ),
        ({"conditions": ("original",)}, "expected `new`"),
        (
            {"judgements": Judgements(conditions=("query",), hard_negatives=False)},
            "judgements.conditions",
        ),
        (
            {"conditions": ("query", "new"), "judges": (ATTRIBUTES,), "accept": "attributes"},
            "nothing about the query alone",
        ),
        (
            {
                "conditions": ("query", "new"),
                "judges": (LLM_JUDGE.model_copy(update={"query_prompt": None}),),
            },
            "needs `query_prompt`",
        ),
        ({"accept": None}, "judges: .*`accept: null`"),
        (
            {"accept": "none", "rewording": VocabularyRewording(kind="vocabulary", num=1, seed=1)},
            "rewording: .*accept.judge is none",
        ),
        (
            {"bootstrap": BOOTSTRAP, "judges": (ATTRIBUTES,), "accept": "attributes"},
            "bootstrap: an LLM judge",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused_before_any_row(changes, message):
    with pytest.raises(InputError, match=message):
        recipe(**{"engine": Scripted("s", seeded_answers(1)), **changes})


def test_lineage_tells_prompts_and_vocabularies_apart():
    def origin(**changes):
        made_by = recipe(engine=engine("", islands_only), judges=(LLM_JUDGE, ATTRIBUTES), **changes)
        return lineage(made_by, run="r", shard=3, attempt="a", code_version="1")

    smaller = Vocabulary(dict(list(VOCABULARY.phrases.items())[1:]), {}, (), ())
    assert origin(writer=FACETS).prompt != origin(writer=FACETS, vocabulary=smaller).prompt
    assert origin().sampling == '{"drafts":1,"max_tokens":200,"seed":1,"temperature":0.7,"top_p":0.9}'
    assert origin().shard == 3


# --- several targets, drafts and conditions -------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"), [(1, ["fiji"]), (2, ["fiji", "laos"]), ("all", ["fiji", "laos"])]
)
def test_every_target_has_a_row_of_its_own(targets, expected):
    rows = finish(recipe(writer=FACETS, judges=(ATTRIBUTES,), accept="attributes", targets=targets))
    assert [row.target_id for row in rows] == expected
    for row in rows:
        margins = {verdict.passage_id: verdict.margin for verdict in row.verdicts}
        assert row.status == "declined" or margins == {
            id: 1.0 if id == row.target_id else -1.0 for id in margins
        }
    assert rows[0].status == "accepted"


def drafting(*answers):
    """An engine that writes these answers one after the other, and judges by the instruction's first number.

    "Only islands 2." makes an island relevant by a margin of 2 and everything else irrelevant by as much.
    """
    left = list(answers)

    def answer(request):
        if not request.num_logprobs:
            return Completion(left.pop(0), "stop", 10, 5, {})
        question = request.prompt[-1].text
        strength = float(inside(question, "instruction").split(".")[0].split()[-1])
        margin = strength if "island" in inside(question, "passage") else -strength
        return Completion("", "length", 3, 1, {"yes": margin - 50, "no": -50.0})

    return Scripted("model@1", answer)


def test_of_several_drafts_the_one_with_the_largest_surplus_is_taken():
    writer = LLM.model_copy(update={"drafts": 4})
    answers = [block("Only islands 2."), "no block", block("Only islands 4."), block("Only islands 3.")]
    (row,) = finish(recipe(writer=writer, engine=drafting(*answers)))

    assert (row.status, row.new_instruction) == ("accepted", "Only islands 4.")
    assert [(d.status, d.surplus) for d in row.drafts] == [
        ("accepted", 2.0),
        ("unparseable", None),
        ("accepted", 4.0),
        ("accepted", 3.0),
    ]
    assert {abs(verdict.margin) for verdict in row.verdicts} == {4.0}
    assert (row.prompt_tokens, row.completion_tokens) == (4 * 10 + 9 * 3, 4 * 5 + 9)


def test_an_accepted_draft_goes_before_a_surer_one_that_was_rejected():
    writer = LLM.model_copy(update={"drafts": 2})
    (row,) = finish(
        recipe(writer=writer, engine=drafting(block("Only islands -9."), block("Only islands 2.")))
    )
    assert (row.status, row.new_instruction) == ("accepted", "Only islands 2.")


def by_condition(query=3.0, original=3.0):
    """Judge correctly under each condition, with margins scaled by the condition's factor."""

    def answer(request):
        if not request.num_logprobs:
            return Completion(block(ISLANDS), "stop", 100, 20, {})
        question = request.prompt[-1].text
        passage = inside(question, "passage")
        if "<instruction>" not in question:
            margin = query
        elif ISLANDS in question:
            margin = islands_only(passage)
        else:
            margin = original if "africa" in passage else -original
        return Completion("", "length", 30, 1, {"yes": margin - 50, "no": -50.0})

    return Scripted("model@1", answer)


@pytest.mark.parametrize(
    ("judged", "status"),
    [
        (by_condition(), "accepted"),
        (by_condition(query=-3.0), "not_confirmed"),
        (by_condition(original=-3.0), "not_confirmed"),
        (by_condition(query=0.5), "undecided"),
    ],
)
def test_the_whole_matrix_decides_where_all_conditions_count(judged, status):
    (row,) = finish(recipe(engine=judged, conditions=("query", "original", "new")))
    assert row.status == status
    assert [(v.condition, v.passage_id, v.expected) for v in row.verdicts] == [
        (condition, passage, expected[passage])
        for condition, expected in {
            "query": {"chad": True, "fiji": True, "laos": True},
            "original": {"chad": True, "fiji": False, "laos": False},
            "new": {"chad": False, "fiji": True, "laos": False},
        }.items()
        for passage in ("chad", "fiji", "laos")
    ]


def test_conditions_that_do_not_decide_are_judged_and_kept():
    judgements = Judgements(conditions=("query", "new"), hard_negatives=False)
    (row,) = finish(recipe(engine=by_condition(query=-3.0), judgements=judgements))
    assert (row.status, len(row.verdicts)) == ("accepted", 6)


def test_hard_negatives_of_accepted_rows_get_labels_that_nobody_gave():
    example = replace(
        SEED, hard_negatives=(country("cuba", "america", "island"), country("peru", "america", "coastal"))
    )
    judgements = Judgements(conditions=("original", "new"), hard_negatives=True)
    (row,) = finish(
        recipe(engine=by_condition(), judges=(LLM_JUDGE, ATTRIBUTES), judgements=judgements), [example]
    )

    labels = {
        (v.judge.partition(":")[0], v.condition, v.passage_id): v.margin
        for v in row.verdicts
        if v.expected is None
    }
    assert labels == {
        ("llm", "original", "cuba"): pytest.approx(-3),
        ("llm", "original", "peru"): pytest.approx(-3),
        ("llm", "new", "cuba"): pytest.approx(3),
        ("llm", "new", "peru"): pytest.approx(-3),
        ("attributes", "original", "cuba"): -1.0,
        ("attributes", "original", "peru"): -1.0,
        ("attributes", "new", "cuba"): 1.0,
        ("attributes", "new", "peru"): -1.0,
    }
    (rejected,) = finish(recipe(engine=engine("None", islands_only), judgements=judgements), [example])
    assert rejected.verdicts == ()


# --- two passes -----------------------------------------------------------------------------------


def test_writing_and_judging_apart_gives_what_both_at_once_give():
    one_pass = finish(recipe(engine=Scripted("m", seeded_answers(3))), world(40))

    def without_lineage(rows):
        return [replace(row, lineage=None, prompt_tokens=0, completion_tokens=0) for row in rows]

    writes = recipe(engine=Scripted("m", seeded_answers(3)), judges=(), accept=None)
    written = finish(writes, world(40))
    assert {row.status for row in written} <= {"written", "bad_length", "near_original"}
    assert not any(row.trainable for row in written)

    judges = recipe(
        engine=Scripted("another", seeded_answers(3)), writer=PrecomputedWriter(kind="precomputed")
    )
    origin = lineage(judges, run="second", shard=0, attempt="a", code_version="1")
    tasks = [Task(row.example, row.target_id, row) for row in written]
    judged = asyncio.run(finish_shard(judges, tasks, origin))
    assert without_lineage(judged) == without_lineage(one_pass)
    assert {(row.lineage.writer, row.lineage.judge_model, row.lineage.written_in) for row in judged} == {
        ("m", "another", "r")
    }


def test_a_row_that_poisoned_the_writing_pass_stays_what_it_is():
    judges = recipe(engine=engine("", islands_only), writer=PrecomputedWriter(kind="precomputed"))
    origin = lineage(judges, run="second", shard=0, attempt="a", code_version="1")
    (task,) = tasks_of(SEED, 1)
    given = poison_row(task, origin)
    row = asyncio.run(finish_row(judges, Task(SEED, "fiji", given), origin))
    assert (row.status, row.trainable) == ("poison", False)


# --- plain examples -------------------------------------------------------------------------------

PLAIN = replace(
    SEED,
    instruction="",
    instruction_negatives=(),
    requirements=(),
    hard_negatives=(
        country("cuba", "america", "island"),  # breaks the written original
        country("mali", "africa", "landlocked"),  # obeys it: not a negative of any kind
        country("off-topic", "asia", "coastal"),
        country("fiji", "oceania", "island"),  # breaks it, less clearly
    ),
)
ORIGINAL = "Only keep countries of africa."


def bootstrapping(*, original=ORIGINAL, confirms=3.0):
    def answer(request):
        question = request.prompt[-1].text
        if not request.num_logprobs:
            return Completion(block(original if "<found>" in question else ISLANDS), "stop", 10, 5, {})
        passage = inside(question, "passage")
        if "<instruction>" not in question:
            margin = -3.0 if "off-topic" in passage else 3.0
        elif ORIGINAL in question:
            margin = confirms if "africa" in passage else (-2.0 if "fiji" in passage else -4.0)
        else:
            margin = islands_only(passage) if "fiji" not in passage else -3.0
        return Completion("", "length", 1, 1, {"yes": margin - 50, "no": -50.0})

    return Scripted("model@1", answer)


def test_a_plain_seed_gets_an_instruction_and_what_breaks_it_is_found_among_the_mined():
    (row,) = finish(recipe(engine=bootstrapping(), bootstrap=BOOTSTRAP), [PLAIN])

    assert (row.status, row.target_id) == ("accepted", "cuba")
    assert row.example.instruction == ORIGINAL
    assert row.example.requirements == (Requirement(True, "region", "africa"),)
    assert [passage.id for passage in row.example.instruction_negatives] == ["cuba", "fiji"]
    assert [passage.id for passage in row.example.hard_negatives] == ["off-topic"]
    assert [(draft.condition, draft.status) for draft in row.drafts] == [
        ("original", "accepted"),
        ("new", "accepted"),
    ]
    assert dual_views_from_table(dual_views_to_table([row])) == [row]


def test_of_copies_among_the_mined_one_is_looked_at():
    copies = (
        replace(PLAIN.positive, id="copy of the positive"),
        *PLAIN.hard_negatives,
        *(replace(passage, id=f"copy of {passage.id}") for passage in PLAIN.hard_negatives),
    )
    (row,) = finish(
        recipe(engine=bootstrapping(), bootstrap=BOOTSTRAP), [replace(PLAIN, hard_negatives=copies)]
    )
    assert [passage.id for passage in row.example.instruction_negatives] == ["cuba", "fiji"]
    assert [passage.id for passage in row.example.hard_negatives] == ["off-topic"]


@pytest.mark.parametrize(
    ("writes", "mined", "status"),
    [
        (bootstrapping(original="None"), PLAIN.hard_negatives, "declined"),
        (bootstrapping(original="In short, see passage 2."), PLAIN.hard_negatives, "meta_language"),
        (bootstrapping(confirms=-3.0), PLAIN.hard_negatives, "no_original"),
        (bootstrapping(confirms=0.5), PLAIN.hard_negatives, "no_original"),
        (bootstrapping(), PLAIN.hard_negatives[1:3], "no_instruction_negative"),
    ],
)
def test_a_plain_seed_without_an_instruction_to_be_had_says_why(writes, mined, status):
    example = replace(PLAIN, hard_negatives=mined)
    (row,) = finish(recipe(engine=writes, bootstrap=BOOTSTRAP), [example])
    assert (row.status, row.example, row.target_id, row.trainable) == (status, example, "", False)


# --- rewordings -----------------------------------------------------------------------------------


def rewording_engine(reword):
    """Writes ISLANDS; rewords with the function; judges a passage relevant if its text says island."""

    def answer(request):
        question = request.prompt[-1].text
        if not request.num_logprobs:
            if "Form of yours:" in question:
                said = inside(question, "below")
                return Completion(block(reword(said)), "stop", 10, 5, {})
            return Completion(block(ISLANDS), "stop", 10, 5, {})
        instruction, passage = (
            inside(question, "instruction"),
            inside(question, "passage"),
        )
        if "Africa" in instruction:
            margin = 3.0 if "africa" in passage else -3.0
        else:
            margin = islands_only(passage) if "island" in instruction else 3.0
        return Completion("", "length", 1, 1, {"yes": margin - 50, "no": -50.0})

    return Scripted("model@1", answer)


@pytest.mark.parametrize(
    ("reword", "statuses"),
    [
        (lambda said: f"What I want: {said}", {"original": "accepted", "new": "accepted"}),
        (lambda said: said, {"original": "near_original", "new": "near_original"}),
        (
            lambda _: "Everything about exports, please.",
            {"original": "meaning_changed", "new": "meaning_changed"},
        ),
        (lambda _: "None", {"original": "declined", "new": "declined"}),
    ],
)
def test_a_rewording_stays_only_if_the_verdicts_stay(reword, statuses):
    settings = LlmRewording(kind="llm", prompt="reword-v1", num=2, **SAMPLING)
    (row,) = finish(recipe(engine=rewording_engine(reword), rewording=settings))
    assert row.status == "accepted"
    assert [(wording.condition, wording.status) for wording in row.rewordings] == [
        (condition, statuses[condition]) for condition in ("original", "new") for _ in range(2)
    ]


def test_rewordings_from_the_vocabulary_say_the_same_requirements_in_other_words():
    vocabulary = replace(
        VOCABULARY,
        inclusions=("Only keep countries {phrase}.", "Countries {phrase} only.", "Show me those {phrase}."),
        exclusions=("Leave out countries {phrase}.", "No countries {phrase}."),
    )
    made_by = recipe(
        writer=FACETS,
        judges=(ATTRIBUTES,),
        accept="attributes",
        vocabulary=vocabulary,
        rewording=VocabularyRewording(kind="vocabulary", num=2, seed=1),
    )
    for row in finish(made_by, world(30)):
        if row.status != "accepted":
            assert row.rewordings == ()
            continue
        new = [wording.instruction for wording in row.rewordings if wording.condition == "new"]
        assert new
        assert row.new_instruction not in new
        assert len(set(new)) == len(new)
        for wording in new:
            assert vocabulary.read(wording) == row.new_requirements
