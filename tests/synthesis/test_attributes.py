from collections import Counter
from dataclasses import replace
import random

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from dualview.config.generate import AttributesWriter
from dualview.records import Passage, Requirement, SourceExample, all_hold
from dualview.synthesis.attributes import compose
from dualview.vocabulary import Vocabulary

WORLD = {
    "region": ("africa", "asia", "europe", "oceania"),
    "coast": ("landlocked", "island", "coastal"),
    "government": ("republic", "monarchy"),
    "climate": ("arid", "tropical", "cold"),
}
VALUES = [(facet, value) for facet, values in WORLD.items() for value in values]
WRITER = AttributesWriter(
    kind="attributes",
    seed=1,
    negation_share=0.15,
    same_attribute_share=0.45,
    exclusion_share=0.15,
    compound_share=0.0,
)


def vocabulary(known):
    return Vocabulary(
        phrases={key: (f"of the {key[1]} kind", f"that are {key[1]}") for key in known},
        names={key: (key[1],) for key in known},
        inclusions=("Only countries {phrase}.", "Keep states {phrase}."),
        exclusions=("No countries {phrase}.", "Drop states {phrase}."),
    )


ALL = vocabulary(VALUES)


def example(positive, negatives, requirements=(), id="s"):
    return SourceExample(
        id=id,
        query_id="q",
        query="exports",
        instruction="Only countries of the africa kind.",
        positive=Passage("P", "p", attributes=positive),
        instruction_negatives=tuple(Passage(f"N{i}", "n", attributes=a) for i, a in enumerate(negatives)),
        requirements=tuple(requirements),
    )


attributes = st.fixed_dictionaries(
    {}, optional={facet: st.sampled_from(values) for facet, values in WORLD.items()}
)


@settings(max_examples=300, deadline=None)
@given(
    positive=attributes,
    negatives=st.lists(attributes, min_size=1, max_size=3),
    known=st.sets(st.sampled_from(VALUES)),
    original=st.builds(
        lambda include, key: Requirement(include, *key), st.booleans(), st.sampled_from(VALUES)
    ),
    id=st.text(max_size=5),
)
def test_a_complement_flips_exactly_and_is_found_whenever_there_is_one(
    positive, negatives, known, original, id
):
    row = example(positive, negatives, [original], id)
    target = row.instruction_negatives[0]
    others = (row.positive, *row.instruction_negatives[1:])
    possible = {
        requirement
        for include in (True, False)
        for key in known
        for requirement in [Requirement(include, *key)]
        if requirement.holds(target.attributes) is True
        and all(requirement.holds(passage.attributes) is False for passage in others)
    }

    composed = compose(row, target, WRITER, vocabulary(known))

    if composed is None:
        assert not possible
    else:
        instruction, requirements = composed
        assert set(requirements) <= possible
        assert ALL.read(instruction) == requirements


def test_the_same_example_gets_the_same_words_in_any_order():
    row = example({"region": "africa", "coast": "island"}, [{"region": "asia", "coast": "coastal"}])
    first = compose(row, row.instruction_negatives[0], WRITER, ALL)
    for i in range(20):
        other = example(row.positive.attributes, [{"region": "europe"}], id=str(i))
        compose(other, other.instruction_negatives[0], WRITER, ALL)
    assert compose(row, row.instruction_negatives[0], WRITER, ALL) == first


def drawn(writer, positive, negative, original, num=2000):
    """The share of each requirement over `num` examples that differ only in their id."""
    counts = Counter()
    for i in range(num):
        row = example(positive, [negative], [original], id=str(i))
        _, [requirement] = compose(row, row.instruction_negatives[0], writer, ALL)
        counts[requirement] += 1 / num
    return counts


def test_kinds_and_polarities_come_in_the_shares_asked_for():
    shares = drawn(
        WRITER,
        {"region": "africa", "coast": "island"},
        {"region": "asia", "coast": "coastal"},
        Requirement(True, "region", "africa"),
    )
    # The only exclusion on the same facet is the negation, so its 0.15 of exclusions go to the coast.
    assert shares[Requirement(False, "region", "africa")] == pytest.approx(0.15, abs=0.03)
    assert shares[Requirement(True, "region", "asia")] == pytest.approx(0.45 * 0.85, abs=0.03)
    assert shares[Requirement(True, "coast", "coastal")] == pytest.approx(0.40 * 0.85, abs=0.03)
    assert shares[Requirement(False, "coast", "island")] == pytest.approx(0.85 * 0.15, abs=0.03)
    assert sum(shares.values()) == pytest.approx(1)


@pytest.mark.parametrize(("negation", "same"), [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_an_impossible_kind_is_replaced_by_a_possible_one(negation, same):
    writer = WRITER.model_copy(update={"negation_share": negation, "same_attribute_share": same})
    shares = drawn(
        writer, {"climate": "cold"}, {"climate": "arid"}, Requirement(True, "region", "africa"), num=50
    )
    assert set(shares) <= {Requirement(True, "climate", "arid"), Requirement(False, "climate", "cold")}


def test_a_compound_flips_too_and_its_second_requirement_is_about_something_else():
    writer = WRITER.model_copy(update={"compound_share": 1.0, "exclusion_share": 0.5})
    row = example({"region": "africa", "coast": "island"}, [{"region": "asia", "coast": "coastal"}])
    target = row.instruction_negatives[0]
    seen = set()
    for i in range(200):
        instruction, requirements = compose(replace(row, id=str(i)), target, writer, ALL)
        assert len({requirement.facet for requirement in requirements}) == 2
        assert ALL.read(instruction) == requirements
        assert all_hold(requirements, target.attributes) is True
        assert all_hold(requirements, row.positive.attributes) is False
        seen.add(requirements)
    assert {(a.include, b.include) for a, b in seen} == {
        (True, True),
        (False, False),
        (True, False),
        (False, True),
    }


def test_values_without_phrases_are_never_used():
    row = example({"region": "africa"}, [{"region": "asia"}], [Requirement(True, "region", "africa")])
    only_originals = vocabulary([("region", "africa")])
    for i in range(20):
        writer = WRITER.model_copy(update={"seed": i})
        _, [requirement] = compose(row, row.instruction_negatives[0], writer, only_originals)
        assert requirement == Requirement(False, "region", "africa")
    assert compose(row, row.instruction_negatives[0], WRITER, vocabulary([("region", "europe")])) is None


def test_another_negative_that_would_be_relevant_too_rules_a_complement_out():
    row = example({"region": "africa"}, [{"region": "asia"}, {"region": "europe"}])
    for i in range(20):
        writer = WRITER.model_copy(update={"seed": random.Random(i).randrange(10**6)})
        _, [requirement] = compose(row, row.instruction_negatives[0], writer, ALL)
        assert requirement == Requirement(True, "region", "asia")
