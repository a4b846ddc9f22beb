import pytest
from tiny import train_config

from dualview.config.train import Part
from dualview.errors import InputError
from dualview.training.mixtures import draw, instances_of_parts, num_views

EXAMPLES = {f"seed-{n:03d}": 1 for n in range(20)}


def part(views, num_instances=None, weight=None):
    return Part(
        data="s3://b/data",
        views=views,
        num_instances=num_instances,
        weight=weight,
        num_hard_negatives=0,
        rewordings=False,
        min_judged_margin=None,
    )


def filled(part, drawn):
    return sum(num_views(part, of_example.num_rows) * of_example.times for of_example in drawn.values())


@pytest.mark.parametrize("views", ["both", "apart", "one", "original", "plain"])
def test_a_number_of_instances_is_filled_exactly(views):
    own = part(views, num_instances=16)
    assert filled(own, draw(own, EXAMPLES, 16, seed=3)) == 16


def test_every_arm_draws_the_same_seeds_first():
    both = draw(part("both", 16), EXAMPLES, 16, seed=3)
    original = draw(part("original", 16), dict(reversed(EXAMPLES.items())), 16, seed=3)
    assert list(both) == list(original)[:8]
    assert list(draw(part("both", 16), EXAMPLES, 16, seed=4)) != list(both)


def test_the_last_example_is_cut_to_the_budget():
    drawn = draw(part("both", 8), dict.fromkeys(EXAMPLES, 2), 8, seed=0)
    assert [of_example.num_rows for of_example in drawn.values()] == [2, 2, 1]


@pytest.mark.parametrize(("views", "num_instances"), [("both", 42), ("both", 7), ("original", 21)])
def test_more_than_the_data_holds_is_one_sentence(views, num_instances):
    with pytest.raises(InputError, match=rf"{num_instances} instances .* s3://b/data"):
        draw(part(views, num_instances), EXAMPLES, num_instances, seed=0)


def test_weights_are_shares_of_the_budget_and_examples_repeat():
    config = train_config(
        budget__instances=800, mixture__parts__0__num_instances=None, mixture__parts__0__weight=1
    )
    assert instances_of_parts(config) == [800]
    own = part("both", weight=1.0)
    drawn = draw(own, EXAMPLES, 90, seed=0)
    assert filled(own, drawn) == 90
    assert {of_example.times for of_example in drawn.values()} == {2, 3}


def test_a_source_without_trainable_examples_is_one_sentence():
    with pytest.raises(InputError, match=r"mixture: .* 0 trainable examples"):
        draw(part("both", weight=1.0), {}, 90, seed=0)
