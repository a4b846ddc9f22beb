import pytest

from dualview.config import Rules
from dualview.records import Passage, Seed
from dualview.synthesis.rules import broken_rule

RULES = Rules(min_words=4, max_words=12, max_copied_words=4, max_similarity_to_original=0.6)
SEED = Seed(
    id="s",
    query_id="q",
    query="main export commodities",
    instruction="Only passages about countries in Africa are relevant.",
    positive=Passage(
        "chad", "Central Africa, south of Libya; landlocked; presidential republic", title="Chad"
    ),
    instruction_negatives=(
        Passage("fiji", "island group in the South Pacific Ocean; parliamentary republic"),
    ),
    hard_negatives=(Passage("mali", "interior Western Africa, southwest of Algeria"),),
)


@pytest.mark.parametrize(
    "instruction",
    [
        "Keep texts on island states of Oceania.",
        "Only passages about monarchies of the Gulf are relevant.",
        "Find official documents on trade in Europe.",
        "The document must discuss the positive effects of tariffs.",
        "Look for reports of the second world war.",
        "Cover the task of parliaments in monarchies.",
    ],
)
def test_instructions_about_topics_pass(instruction):
    assert broken_rule(instruction, SEED, RULES) is None


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Only islands please.", "bad_length"),
        ("Keep " + "very " * 12 + "small countries.", "bad_length"),
        ("Prefer what passage 2 describes over others.", "meta_language"),
        ("Prefer what is like Passage B here.", "meta_language"),
        ("Exclude the first passage on central states.", "meta_language"),
        ("Take the positive passage as the wrong one.", "meta_language"),
        ("Keep whatever the negatives are about here.", "meta_language"),
        ("Do the opposite of the original instruction.", "meta_language"),
        ("Solve the task for island nations only.", "meta_language"),
        ("Ignore the documents above about landlocked states.", "meta_language"),
        ("Keep an island group in the South, please.", "leaks_passage"),
        ("Not interior western Africa southwest of Algeria.", "leaks_passage"),
        ("Passages are relevant only about countries in Africa.", "near_original"),
    ],
)
def test_each_rule_names_its_reason(instruction, reason):
    assert broken_rule(instruction, SEED, RULES) == reason


def test_a_copied_run_is_a_leak_only_beyond_the_limit():
    assert broken_rule("Keep any presidential republic in Chad central Africa", SEED, RULES) is None
    assert (
        broken_rule("Keep any republic in Chad, Central Africa south of it", SEED, RULES) == "leaks_passage"
    )


def test_length_limits_are_inclusive():
    reasons = [broken_rule(" ".join(f"word{i}" for i in range(n)), SEED, RULES) for n in (3, 4, 12, 13)]
    assert reasons == ["bad_length", None, None, "bad_length"]
