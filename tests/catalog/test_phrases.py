"""vocabulary.yaml: what is drafted, written, edited and refused."""

import pytest

from dualview.catalog.attributes import attributes_of
from dualview.catalog.vocabulary import draft, draft_phrases, parse, spoken, to_yaml, values_of
from dualview.errors import InputError

METADATA = [
    {"genres": ["Comedy", "Drama"][n % 2 :], "year": 1980 + n, "no": n % 3 == 0, "price": 10.0 * n}
    for n in range(40)
]
ATTRIBUTES = attributes_of(METADATA)[0]
DRAFTED = draft("movies", ATTRIBUTES, min_documents=5, max_values=10)


def test_a_drafted_file_reads_back_as_it_was():
    assert parse(to_yaml(DRAFTED), "v.yaml", ATTRIBUTES) == DRAFTED
    assert list(DRAFTED.attributes) == ["genres", "year", "no", "price"]  # `no` is not read as false


@pytest.mark.parametrize(
    ("name", "value", "phrase"),
    [
        ("genres", "Comedy", "movies of the genre Comedy"),
        ("year", "<1990", "movies from before 1990"),
        ("year", ">=1990", "movies after 1989"),
        ("year", "1980..1990", "movies from the 1980s"),
        ("price", ">=100", "movies with price of at least 100"),
        ("no", "yes", "movies with no"),
    ],
)
def test_drafted_phrases(name, value, phrase):
    [attribute] = [attribute for attribute in ATTRIBUTES if attribute.name == name]
    phrases = draft_phrases("movies", attribute, value)
    assert phrase in phrases
    assert len(phrases) == len(set(phrases)) >= 3


def test_large_numbers_and_dates_are_said_as_people_do():
    attributes, _ = attributes_of([{"people": 10**n, "added": f"2022-0{n}-01"} for n in range(1, 10)])
    people, added = attributes
    assert "towns with fewer than 10 million people" in draft_phrases("towns", people, "<10000000")
    assert "towns from before March 2022" in draft_phrases("towns", added, "<2022-03")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("genres", "genre"),
        ("releaseDate", "release date"),
        ("release_date", "release date"),
        ("maker.country", "country"),
        ("series", "series"),
        ("categories", "category"),
        ("class", "class"),
    ],
)
def test_names_are_spoken_as_words(name, words):
    assert spoken(name) == words


def test_phrases_are_split_and_values_without_any_get_drafted_ones():
    edited = """
noun: films
attributes:
  genres: {kind: several, values: {Comedy: [], Drama: ["weepies"]}}
"""
    comedy, drama = values_of(parse(edited, "v.yaml", ATTRIBUTES), ATTRIBUTES)
    splits = [set(comedy.phrases[split]) for split in ("train", "development", "test")]
    assert not (splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2])
    assert all(splits)
    assert drama.phrases["train"] == drama.phrases["test"] == ["weepies"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noun: [", "is not valid YAML"),
        ("noun: movies", "`attributes`"),
        (
            "noun: m\nattributes: {size: {kind: number, values: {}}}",
            "no attribute 'size'; expected one of genres",
        ),
        (
            "noun: m\nattributes: {year: {kind: date, values: {}}}",
            "year is of kind date, but .* it is number",
        ),
        ("noun: m\nattributes: {genres: {kind: several, values: {Noir: []}}}", "no document has .*'Noir'"),
        ("noun: m\nattributes: {year: {kind: number, values: {old: []}}}", "'old' is not a range"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(text, message):
    with pytest.raises(InputError, match=message):
        parse(text, "v.yaml", ATTRIBUTES)


def test_metadata_without_a_usable_attribute_are_refused():
    attributes, _ = attributes_of([{"id": f"x{n}"} for n in range(50)])
    with pytest.raises(
        InputError, match="no attribute of the metadata has a value that at least 5 documents"
    ):
        draft("things", attributes, min_documents=5, max_values=10)
