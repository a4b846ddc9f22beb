"""Instructions in plain words, read for the marks of a search."""

import pytest

from dualview.catalog.attributes import attributes_of
from dualview.catalog.reading import obeying, read

MOVIES = [
    {"genres": ["Comedy"], "year": 1985, "award": True},
    {"genres": ["Drama", "War"], "year": 1999, "award": False},
    {"genres": ["War"], "year": 2004, "award": False},
    {"genres": None, "year": 1990, "award": None},
]
ATTRIBUTES = attributes_of(MOVIES)[0]


@pytest.mark.parametrize(
    ("instruction", "labels"),
    [
        ("Only comedies.", [1, 0, 0, -1]),
        ("No war movies", [1, 0, 0, -1]),
        ("Comedies or dramas only", [1, 1, 0, -1]),
        ("nothing after 1990, no comedies", [0, 0, 0, -1]),
        ("Movies from before 1990.", [1, 0, 0, 0]),
        ("made since 1999", [0, 1, 1, 0]),
        ("from the 1990s", [0, 1, 0, 1]),
        ("between 1985 and 1999", [1, 1, 0, 1]),
        ("with an award", [1, 0, 0, -1]),
        ("War, but nothing older than 2000", [0, 0, 1, 0]),
    ],
)
def test_what_an_instruction_asks_for(instruction, labels):
    assert obeying(read(instruction, ATTRIBUTES)).tolist() == labels


def test_what_is_not_recognised_is_not_marked():
    assert read("Something cheerful, please.", ATTRIBUTES) == []
    assert obeying([]) is None


def test_numbers_belong_to_the_attribute_that_is_named():
    attributes, _ = attributes_of([{"price": 10, "people": 3_000_000}, {"price": 99, "people": 500}])
    assert obeying(read("a price below 50", attributes)).tolist() == [1, 0]
    assert obeying(read("more than 2 million people", attributes)).tolist() == [1, 0]
    assert read("more than 7", attributes) == []  # of what?
