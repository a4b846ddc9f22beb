"""Kinds of attributes, their labels, and the values to ask for."""

import pytest

from dualview.catalog.attributes import attributes_of, common_values
from dualview.errors import InputError


def one(values):
    [attribute], unusable = attributes_of([{"a": value} for value in values])
    assert not unusable
    return attribute


@pytest.mark.parametrize(
    ("values", "kind", "read"),
    [
        (["red", "blue", None, ""], "category", ["red", "blue", None, None]),
        ([["a", "b"], [], "a"], "several", [{"a", "b"}, None, {"a"}]),
        (["a|b", "b", "a | c"], "several", [{"a", "b"}, {"b"}, {"a", "c"}]),
        ([True, False, None], "yes_no", ["yes", "no", None]),
        (["Yes", "no", "TRUE"], "yes_no", ["yes", "no", "yes"]),
        ([1990, 1.5, float("nan")], "number", [1990.0, 1.5, None]),
        (["1,200", "-3", "7"], "number", [1200.0, -3.0, 7.0]),
        (["2021-03-04", "2021-05", "2021-06-01T10:00:00Z"], "date", ["2021-03-04", "2021-05", "2021-06-01"]),
    ],
)
def test_the_kind_follows_from_the_values(values, kind, read):
    attribute = one(values)
    assert attribute.kind == kind
    assert list(attribute.values_D) == read


def test_nested_keys_are_joined_and_keys_may_be_missing():
    found, _ = attributes_of([{"maker": {"country": "NL"}}, {"year": 1990}])
    assert {attribute.name: list(attribute.values_D) for attribute in found} == {
        "maker.country": ["NL", None],
        "year": [None, 1990.0],
    }


def test_a_few_values_of_another_type_are_unknown_and_counted():
    attribute = one([*range(1990, 2009), "unclear"])
    assert (attribute.kind, attribute.num_odd, attribute.values_D[-1]) == ("number", 1, None)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([1, 2, "red", "blue"], "mixed types (50% numbers, 50% texts)"),
        ([None, "", []], "no document has a value"),
    ],
)
def test_an_unusable_key_has_its_reason(values, reason):
    found, [unusable] = attributes_of([{"a": value} for value in values])
    assert not found
    assert reason in unusable.reason


@pytest.mark.parametrize(
    ("values", "value", "labels"),
    [
        (["red", "blue", None], "red", [1, 0, -1]),
        ([["a", "b"], ["c"], None], "a", [1, 0, -1]),
        ([1980, 1989, 1990, None], "<1990", [1, 1, 0, -1]),
        ([1980, 1989, 1990, None], ">=1990", [0, 0, 1, -1]),
        ([1979, 1980, 1990, None], "1980..1990", [0, 1, 0, -1]),
        (["2021-12-31", "2022-01-01"], "<2022", [1, 0]),
        (["2021-12-31", "2022-01-01"], ">=2022-01", [0, 1]),
        (["2021-12-31", "2022-06-01"], "2022-01..2022-07", [0, 1]),
    ],
)
def test_labels(values, value, labels):
    assert one(values).labels(value).tolist() == labels


@pytest.mark.parametrize("value", ["1990", "<soon", "1980..later", "before 1990"])
def test_a_value_that_is_no_range_is_refused(value):
    with pytest.raises(InputError, match=r"a: .*not a range of a number.*1980\.\.1990"):
        one([1980, 1990]).labels(value)


def test_common_values_are_frequent_and_not_everywhere():
    values = ["red"] * 50 + ["blue"] * 30 + ["pink"] * 3
    assert common_values(one(values), min_documents=10, max_values=10) == ["red", "blue"]
    assert common_values(one(values), min_documents=10, max_values=1) == ["red"]
    assert common_values(one(["red"] * 50), min_documents=10, max_values=10) == []
    assert common_values(one([f"id{n}" for n in range(99)]), min_documents=10, max_values=10) == []


def test_thresholds_are_round_numbers_near_the_quantiles():
    assert common_values(one(range(1970, 2024)), 5, 40)[:4] == ["<1975", "<1985", "<1995", "<2010"]
    spread = [10**power for power in range(2, 9) for _ in range(20)]
    assert "<1000" in common_values(one(spread), 5, 40)
    dates = [f"20{year:02}-0{month}-15" for year in range(10, 25) for month in range(1, 10)]
    assert "<2017" in common_values(one(dates), 5, 40)
    within_a_year = [f"2022-{month:02}-15" for month in range(1, 13)]
    assert "<2022-07" in common_values(one(within_a_year), 2, 40)
