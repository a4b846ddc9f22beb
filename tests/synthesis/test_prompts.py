import pytest

from dualview.errors import InputError
from dualview.records import Passage, SourceExample
from dualview.synthesis import prompts

TARGET = Passage("n1", "Landlocked; exports $$5 of ${gold}", title="Chad")
SEED = SourceExample(
    id="s",
    query_id="q",
    query="main exports",
    instruction="Only islands.",
    positive=Passage("p", "island; fish", title="Fiji"),
    instruction_negatives=(TARGET, Passage("n2", "coastal; oil", title="Gabon")),
)


WRITING = ["write-v1", "write-small-v1", "write-compound-v1", "write-few-shot-v1"]


@pytest.mark.parametrize("name", WRITING)
def test_a_writing_prompt_ends_with_a_turn_that_shows_the_target_as_it_is(name):
    text = prompts.writing_prompt(prompts.load(name), SEED, TARGET)[-1].text
    assert text.count("Chad Landlocked; exports $$5 of ${gold}") == 1


def test_the_full_writing_prompt_shows_everything_it_is_about():
    (turn,) = prompts.writing_prompt(prompts.load("write-v1"), SEED, TARGET)
    for part in ("main exports", "Only islands.", "Fiji island; fish", "Gabon coastal; oil"):
        assert part in turn.text


def test_judging_prompts_of_one_row_differ_only_after_query_and_instruction():
    prompt = prompts.load("judge-v1")
    first, second = (
        prompts.judging_prompt(prompt, "main exports", "Only islands.", passage)[0].text
        for passage in SEED.instruction_negatives
    )
    shared = first[: first.index(TARGET.full_text)]
    assert "main exports" in shared
    assert "Only islands." in shared
    assert second.startswith(shared)


@pytest.mark.parametrize(
    "name", [*WRITING, "judge-v1", "judge-query-v1", "original-v1", "reword-v1", "reword-small-v1"]
)
def test_turns_alternate_and_leave_the_last_word_to_the_model(name):
    roles = [role for role, _ in prompts.load(name).turns]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


def test_a_version_is_the_name_and_a_hash_of_the_wording():
    versions = {name: prompts.load(name).version for name in ("write-v1", "judge-v1")}
    assert all(len(version) == len(name) + 1 + 12 for name, version in versions.items())
    assert versions["judge-v1"].startswith("judge-v1@")


def test_an_unknown_prompt_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match="no `jugde-v1`; expected one of judge-query-v1, judge-v1, "):
        prompts.load("jugde-v1")


def test_a_writing_prompt_in_the_place_of_a_judge_is_refused():
    with pytest.raises(InputError, match=r"write-v1@.* has no value for \$others"):
        prompts.judging_prompt(prompts.load("write-v1"), "q", "i", TARGET)


def test_an_original_is_asked_for_in_every_length_and_style():
    prompt = prompts.load("original-v1")
    asked = {
        prompts.original_prompt(prompt, SEED, SEED.instruction_negatives, length, style)[0].text
        for length in prompts.LENGTHS
        for style in prompts.STYLES
    }
    assert len(asked) == len(prompts.LENGTHS) * len(prompts.STYLES)
    for part in ("main exports", "Fiji island; fish", "Gabon coastal; oil"):
        assert all(part in text for text in asked)


@pytest.mark.parametrize("form", prompts.FORMS)
def test_a_rewording_is_asked_for_in_its_form(form):
    (turn,) = prompts.rewording_prompt(prompts.load("reword-v1"), "main exports", "Only islands.", form)
    for part in ("main exports", "<below>\nOnly islands.\n</below>", form):
        assert part in turn.text
