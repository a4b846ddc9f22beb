from dataclasses import replace
import re

from hypothesis import given
from hypothesis import strategies as st
import pytest

from dualview.config.generate import Rules
from dualview.records import Passage, SourceExample
from dualview.synthesis.contamination import benchmark_texts
from dualview.synthesis.rules import broken_rule, shares_run

RULES = Rules(
    min_words=4,
    max_words=12,
    max_sentences=2,
    max_copied_words=4,
    max_similarity_to_original=0.6,
    other_language=0.99,
    benchmarks=None,
)
SEED = SourceExample(
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
    assert broken_rule(instruction, SEED, RULES, None) is None


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("Only islands please.", "bad_length"),
        ("Keep " + "very " * 12 + "small countries.", "bad_length"),
        ("Only small islands. Not the large ones. None with a king.", "bad_length"),
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
        ("Nur Länder, die auf einer Insel liegen.", "other_language"),
        ("Seuls les pays insulaires sont pertinents.", "other_language"),
        ("Оставьте только островные государства Океании.", "other_language"),
        ("只保留关于岛国的内容。", "other_language"),
    ],
)
def test_each_rule_names_its_reason(instruction, reason):
    assert broken_rule(instruction, SEED, RULES, None) == reason


def test_a_copied_run_is_a_leak_only_beyond_the_limit():
    assert broken_rule("Keep any presidential republic in Chad central Africa", SEED, RULES, None) is None
    assert (
        broken_rule("Keep any republic in Chad, Central Africa south of it", SEED, RULES, None)
        == "leaks_passage"
    )


def test_length_limits_are_inclusive():
    reasons = [broken_rule(" ".join(f"word{i}" for i in range(n)), SEED, RULES, None) for n in (3, 4, 12, 13)]
    assert reasons == ["bad_length", None, None, "bad_length"]


@given(
    words=st.lists(st.sampled_from(["a", "ab", "b", "é"]), max_size=8),
    texts=st.lists(st.text(alphabet="aAbBéÉ ,", max_size=30), max_size=3),
    length=st.integers(1, 4),
)
def test_a_shared_run_is_found_anywhere(words, texts, length):
    def runs(of):
        return {tuple(of[start : start + length]) for start in range(len(of) - length + 1)}

    expected = any(runs(words) & runs(re.findall(r"\w+", text.lower())) for text in texts)
    assert shares_run(words, texts, length) == expected


def test_abbreviations_end_no_sentence():
    instruction = "Only the U.S. and e.g. St. Croix, please. No others."
    assert broken_rule(instruction, SEED, RULES, None) is None


def test_without_a_threshold_any_language_will_do():
    lenient = RULES.model_copy(update={"other_language": None})
    assert broken_rule("Nur Länder, die auf einer Insel liegen.", SEED, lenient, None) is None


def test_other_languages_keep_to_their_queries():
    german = replace(SEED, query="wichtigste Exportgüter", instruction="Nur Staaten in Afrika zählen.")
    assert broken_rule("Nur Länder, die auf einer Insel liegen.", german, RULES, None) is None
    assert broken_rule("Leave out every country that has a king.", german, RULES, None) == "other_language"
    chinese = replace(SEED, query="主要出口商品", instruction="仅限非洲国家。")
    assert broken_rule("只保留关于岛国的内容。", chinese, RULES, None) is None
    assert broken_rule("岛国。", chinese, RULES, None) == "bad_length"


def test_what_a_benchmark_holds_is_contaminated():
    benchmarks = benchmark_texts(["Only islands that trade with their former colonisers", "Ports of Asia"], 4)
    for instruction, reason in [
        ("Keep islands that trade with their neighbours.", "contaminated"),
        ("Keep islands that trade with great neighbours.", None),
        ("Only the ports of Asia.", None),  # a short text must match as a whole
    ]:
        assert broken_rule(instruction, SEED, RULES, benchmarks) == reason
    for example in (replace(SEED, query="ports of asia?"), replace(SEED, instruction="Ports of Asia!")):
        assert (
            broken_rule("Keep texts on island states of Oceania.", example, RULES, benchmarks)
            == "contaminated"
        )
