from dataclasses import replace

import pytest

from dualview.config.train import Part
from dualview.errors import InputError
from dualview.records import DualView, Lineage, Passage, Rewording, SourceExample, Verdict
from dualview.training.groups import groups_of

LINEAGE = Lineage("facets", "", "{}", (), "", "0", "", "run", 0, "a")


def row(target_id="fiji", **changes):
    return replace(
        DualView(
            example=SourceExample(
                id="example-1",
                query_id="exports",
                query="main exports",
                instruction="Only Africa.",
                positive=Passage("chad", "Chad"),
                instruction_negatives=(Passage("fiji", "Fiji"), Passage("laos", "Laos")),
                hard_negatives=(Passage("peru", "Peru"), Passage("cuba", "Cuba")),
            ),
            target_id=target_id,
            new_instruction="Only islands." if target_id == "fiji" else "Only Asia.",
            new_requirements=(),
            status="accepted",
            trainable=True,
            verdicts=(),
            drafts=(),
            rewordings=(),
            prompt_tokens=0,
            completion_tokens=0,
            lineage=LINEAGE,
        ),
        **changes,
    )


def part(views="both", **changes):
    settings = {
        "data": "s3://b/data",
        "views": views,
        "num_instances": 2,
        "weight": None,
        "num_hard_negatives": 1,
        "rewordings": False,
        "min_judged_margin": None,
    }
    return Part(**{**settings, **changes})


def labels_of(view):
    return {label.passage_id: label.label for label in view.labels}


def test_the_complementary_view_swaps_positive_and_target_and_keeps_the_other_negatives():
    [group] = groups_of([row()], part())
    original, swapped = group.views
    assert [passage.id for passage in group.passages] == ["chad", "fiji", "laos", "peru", "cuba"]
    assert group.num_hard_negatives == 2
    assert labels_of(original) == {"chad": 1, "fiji": -1, "laos": -1, "peru": -1, "cuba": -1}
    assert labels_of(swapped) == {"chad": -1, "fiji": 1, "laos": -1}  # nobody looked at the hard negatives
    assert (original.wordings, swapped.wordings) == (("Only Africa.",), ("Only islands.",))


def test_the_rows_of_a_seed_are_views_of_one_group():
    [group] = groups_of([row("fiji"), row("laos")], part())
    assert [labels_of(view)["laos"] for view in group.views] == [-1, -1, 1]


def test_views_apart_are_groups_of_their_own_and_one_is_one_of_them():
    apart = list(groups_of([row("fiji"), row("laos")], part("apart")))
    assert [group.views[0].wordings[0] for group in apart] == ["Only Africa.", "Only islands.", "Only Asia."]
    [one] = groups_of([row("fiji"), row("laos")], part("one"))
    assert one in apart


def test_over_many_seeds_one_of_the_views_is_each_of_them():
    drawn = set()
    for number in range(40):
        one = row()
        [group] = groups_of([replace(one, example=replace(one.example, id=f"seed-{number}"))], part("one"))
        drawn.add(group.views[0].wordings[0])
    assert drawn == {"Only Africa.", "Only islands."}


def test_a_plain_view_asks_the_query_alone_and_leaves_out_what_is_on_topic():
    [group] = groups_of([row()], part("plain"))
    [view] = group.views
    assert view.wordings == ("",)
    assert labels_of(view) == {"chad": 1, "peru": -1, "cuba": -1}


VERDICTS = (
    Verdict("llm", "original", "peru", None, 3.0),
    Verdict("llm", "original", "cuba", None, -0.5),
    Verdict("llm", "new", "peru", None, -2.0),
    Verdict("llm", "new", "cuba", None, 1.5),
    Verdict("llm", "new", "chad", False, -1.0),
    Verdict("other", "new", "cuba", None, -9.0),
)


def test_clear_verdicts_label_hard_negatives_in_both_views_and_never_the_examples_own_passages():
    [group] = groups_of([row(verdicts=VERDICTS)], part(min_judged_margin=1.0))
    original, swapped = group.views
    assert labels_of(original) == {"chad": 1, "fiji": -1, "laos": -1, "peru": 1, "cuba": -1}
    assert labels_of(swapped) == {"chad": -1, "fiji": 1, "laos": -1, "peru": -1, "cuba": 1}
    assert {label.passage_id: label.margin for label in swapped.labels}["chad"] == -1.0


def test_without_a_minimum_no_verdict_labels():
    [group] = groups_of([row(verdicts=VERDICTS)], part())
    assert labels_of(group.views[1]) == {"chad": -1, "fiji": 1, "laos": -1}
    assert all(label.margin is None for view in group.views for label in view.labels)


def test_accepted_rewordings_are_wordings_of_their_view():
    rewordings = (
        Rewording("new", "Islands, please.", "accepted"),
        Rewording("new", "Only coasts.", "meaning_changed"),
        Rewording("original", "African ones.", "accepted"),
    )
    [group] = groups_of([row(rewordings=rewordings)], part(rewordings=True))
    assert [view.wordings for view in group.views] == [
        ("Only Africa.", "African ones."),
        ("Only islands.", "Islands, please."),
    ]


@pytest.mark.parametrize(
    ("passage", "message"), [(Passage("peru", " "), "peru has no text"), (Passage("chad", "Chad"), "same id")]
)
def test_passages_that_cannot_be_trained_on_are_one_sentence(passage, message):
    broken = row()
    broken = replace(broken, example=replace(broken.example, hard_negatives=(passage,)))
    with pytest.raises(InputError, match=message):
        list(groups_of([broken], part()))


def example_with(**passages):
    return row(example=replace(row().example, **passages))


def test_a_hard_negative_with_the_text_of_another_passage_is_left_out():
    repeated = (Passage("copy of chad", "Chad"), Passage("peru", "Peru"), Passage("copy of peru", "Peru"))
    [group] = groups_of([example_with(hard_negatives=repeated)], part())
    assert [passage.id for passage in group.passages] == ["chad", "fiji", "laos", "peru"]
    assert group.num_hard_negatives == 1
    assert labels_of(group.views[0]) == {"chad": 1, "fiji": -1, "laos": -1, "peru": -1}


def test_an_instruction_negative_with_the_text_of_the_positive_is_refused():
    both = (Passage("fiji", "Fiji"), Passage("copy", "Chad"))
    with pytest.raises(InputError, match="passage copy"):
        list(groups_of([example_with(instruction_negatives=both)], part()))
