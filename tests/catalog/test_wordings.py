"""The stock of wordings."""

import random

import pytest

from dualview.catalog.wordings import SPLITS, _part, _stock, includes, say, split_of

STOCK = _stock()
PARTS = [(polarity, part) for polarity in ("inclusions", "exclusions") for part in ("verbs", "sentences")]


def test_the_file_is_whole():
    assert all(frame.count("{verb}") == frame.count("{what}") == 1 for frame in STOCK["frames"])
    for polarity, part in PARTS:
        entries = STOCK[polarity][part]
        assert len(entries) == len(set(entries)) > 50
        assert all(entry.count("{what}") == (part == "sentences") for entry in entries)
    for part in ("verbs", "sentences"):
        assert not set(STOCK["inclusions"][part]) & set(STOCK["exclusions"][part])


@pytest.mark.parametrize(("polarity", "part"), PARTS)
def test_no_two_splits_share_a_wording(polarity, part):
    entries = STOCK[polarity][part]
    splits = _part(entries)
    assert sorted(entry for split in SPLITS for entry in splits[split]) == sorted(entries)
    assert len(splits["train"]) > 0.7 * len(entries)


def test_wordings_of_a_split_come_from_it_alone():
    allowed = {entry for polarity, part in PARTS for entry in _part(STOCK[polarity][part])["test"]}
    rng = random.Random(0)
    for _ in range(300):
        text = say(rng.random() < 0.5, "XX", "test", rng)
        assert "XX" in text
        assert any(
            part.lower() in text.lower()
            for entry in allowed
            for part in [max(entry.split("{what}"), key=len).strip(" .?")]
        )


def test_the_polarity_of_every_wording_is_read_back():
    rng = random.Random(0)
    said = [
        (include, say(include, "comedies", "train", rng)) for include in (True, False) for _ in range(400)
    ]
    wrong = {text for include, text in said if includes(text) != include}
    assert len(wrong) < 0.02 * len(said), wrong


@pytest.mark.parametrize(
    ("clause", "include"),
    [
        ("comedies", True),
        ("nothing but comedies", True),
        ("nothing after 1990", False),
        ("Please leave out comedies", False),
        ("comedies are not relevant", False),
        ("I know nobody who likes snow", True),
    ],
)
def test_polarity(clause, include):
    assert includes(clause) == include


def test_small_lists_still_have_three_parts():
    assert {len(part) for part in split_of(["a", "b", "c"], seed=0).values()} == {1}
