import pytest

from dualview.config import Mixture
from dualview.errors import InputError
from dualview.records import DualView, Lineage, Passage, Seed
from dualview.training.groups import group_of, mix

LINEAGE = Lineage("facets", "", "{}", (), "", "0", "", "run", 0, "a")


def row(n=0, trainable=True, target_id="fiji"):
    return DualView(
        seed=Seed(
            id=f"seed-{n:03d}",
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
        status="accepted" if trainable else "not_flipped",
        trainable=trainable,
        verdicts=(),
        drafts=(),
        rewordings=(),
        prompt_tokens=0,
        completion_tokens=0,
        lineage=LINEAGE,
    )


def mixture(views, num_instances):
    return Mixture(data="s3://b/data", views=views, num_hard_negatives=0, num_instances=num_instances)


def test_the_complementary_view_swaps_positive_and_target_and_keeps_the_other_negatives():
    group = group_of([row()], "both", num_hard_negatives=1)
    original, swapped = group.views
    assert [passage.id for passage in group.passages] == ["chad", "fiji", "laos", "peru"]
    assert original.labels == {"chad": 1, "fiji": -1, "laos": -1, "peru": -1}
    assert swapped.labels == {"chad": -1, "fiji": 1, "laos": -1}
    assert (original.instruction, swapped.instruction) == ("Only Africa.", "Only islands.")


def test_equal_budgets_are_equal_in_views_and_draw_the_same_seeds_first():
    rows = [row(n) for n in range(20)]
    both = mix(rows, mixture("both", 16), seed=3)
    original = mix(reversed(rows), mixture("original", 16), seed=3)
    assert sum(len(group.views) for group in both) == sum(len(group.views) for group in original) == 16
    assert [group.id for group in both] == [group.id for group in original][:8]
    assert [group.id for group in mix(rows, mixture("both", 16), seed=4)] != [group.id for group in both]


def test_the_rows_of_a_seed_are_views_of_one_group_and_the_last_is_cut_to_the_budget():
    rows = [row(n, target_id=target) for n in range(4) for target in ("fiji", "laos")]
    groups = mix(rows, mixture("both", 8), seed=0)
    assert [len(group.views) for group in groups] == [3, 3, 2]
    original, fiji, laos = groups[0].views
    assert (fiji.labels["fiji"], laos.labels["laos"]) == (1, 1)
    assert laos.labels == {"chad": -1, "fiji": -1, "laos": 1}
    assert original.labels["chad"] == 1


def test_rows_that_are_not_trainable_are_never_drawn():
    rows = [row(n, trainable=n % 2 == 0) for n in range(20)]
    drawn = {group.id for group in mix(rows, mixture("original", 10), seed=0)}
    assert drawn == {f"seed-{n:03d}" for n in range(0, 20, 2)}


@pytest.mark.parametrize(("views", "num_instances"), [("both", 42), ("both", 7), ("original", 21)])
def test_more_than_the_data_holds_is_one_sentence(views, num_instances):
    with pytest.raises(InputError, match=rf"{num_instances} was asked for, but s3://b/data fills"):
        mix([row(n) for n in range(20)], mixture(views, num_instances), seed=0)
