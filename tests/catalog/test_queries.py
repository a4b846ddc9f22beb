"""Queries drafted from a corpus, and frequent terms."""

import numpy as np

from dualview.catalog.queries import candidate_phrases, choose
from dualview.catalog.terms import terms_of

TEXTS = [
    f"In {city} a daring prison escape begins. The stolen diamond is lost, and a comedy unfolds."
    for city in ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Delhi")
] + [f"Something else happens in story number {n}." for n in range(500)]


def test_phrases_are_frequent_and_without_names_stop_words_and_given_words():
    phrases = candidate_phrases([text.replace("daring", "Daring") for text in TEXTS], ["Comedy"])
    assert "prison escape" in phrases
    assert "stolen diamond" in phrases
    assert not [phrase for phrase in phrases if {"comedy", "paris", "daring", "the"} & set(phrase.split())]
    assert "escape begins" in phrases
    assert "begins stolen" not in phrases  # no phrase crosses a full stop
    assert not [phrase for phrase in phrases if "story number" in phrase]  # in too many texts


def test_a_corpus_without_frequent_phrases_has_none():
    assert candidate_phrases(["one two", "three four"], []) == []


def test_phrases_with_near_documents_come_first_and_no_two_are_alike():
    documents = np.eye(4, dtype=np.float32)[[0] * 30 + [1] * 30 + [2] * 2 + [3] * 200]
    near_0, also_near_0, near_1, far = np.eye(4, dtype=np.float32)[[0, 0, 1, 2]]
    also_near_0 = also_near_0 * 0.9 + near_1 * 0.1
    phrases = np.stack([far, near_1, also_near_0, near_0])
    assert choose(phrases, documents, 2) == [1, 3]
    assert set(choose(phrases, documents, 10)) == {0, 1, 3}


def test_terms_have_the_direction_of_the_texts_that_contain_them():
    rng = np.random.default_rng(0)
    texts, vectors = [], []
    for number in range(400):
        words = [word for word in ("ghost", "cowboy", "comedy") if rng.random() < 0.1]
        texts.append(f"a tale of {' and '.join(words)} {number}")
        signal = [float("ghost" in words), float("cowboy" in words), 0.0]
        vectors.append(signal + 0.1 * rng.normal(size=3))
    terms, found = terms_of(texts, np.array(vectors, np.float32), "films", ["Comedies"], num=2)
    assert {term.value for term in terms} == {
        "ghost",
        "cowboy",
    }  # "comedy" shares a stem with a value left out
    for term, direction in zip(terms, found, strict=True):
        assert np.argmax(direction) == ["ghost", "cowboy"].index(term.value)
        assert f"films about {term.value}" in term.phrases["train"]


def test_without_frequent_terms_there_are_none():
    terms, found = terms_of(["a", "b"], np.eye(2, dtype=np.float32), "films", [], num=5)
    assert terms == []
    assert found.shape == (0, 2)
