"""Clauses, their wording, and the cases of a test."""

import random

import numpy as np

from dualview.catalog.instructions import (
    Clause,
    draw_cases,
    draw_clauses,
    from_json,
    obeying,
    to_json,
    word,
)
from dualview.catalog.vocabulary import Value
from dualview.catalog.wordings import SPLITS

VALUES = [
    Value("genre", "several", "comedy", {split: [f"{split} comedies"] for split in SPLITS}),
    Value("genre", "several", "drama", {split: [f"{split} dramas"] for split in SPLITS}),
    Value("year", "number", "<1990", {split: [f"{split} old ones"] for split in SPLITS}),
]
LABELS = np.random.default_rng(0).choice(np.array([0, 1, -1], np.int8), size=(60, 3), p=[0.5, 0.4, 0.1])
ON_TOPIC = {7: np.arange(40), 9: np.arange(20, 60)}
IN, NOT_IN = Clause(True, 0), Clause(False, 0)


def test_a_document_obeys_all_requirements_or_breaks_one_or_is_unknown():
    labels = np.array([[1, 0, 1], [0, 0, 1], [-1, 0, 1], [-1, 0, 0], [1, 0, -1]], np.int8)
    assert obeying(labels, [IN]).tolist() == [1, 0, -1, -1, 1]
    assert obeying(labels, [NOT_IN]).tolist() == [0, 1, -1, -1, 0]
    assert obeying(labels, [IN, Clause(True, 2)]).tolist() == [1, 0, -1, 0, -1]


def test_an_instruction_uses_the_phrases_of_its_split_alone():
    rng = random.Random(0)
    for split in SPLITS:
        text = word(VALUES, [IN, Clause(False, 2)], split, rng).lower()
        assert f"{split} comedies" in text
        assert f"{split} old ones" in text


def test_drawn_requirements_are_of_different_attributes_and_of_both_polarities():
    rng = random.Random(0)
    drawn = [draw_clauses(VALUES, [0, 1, 2], 0.5, rng) for _ in range(400)]
    double = [clauses for clauses in drawn if len(clauses) == 2]
    assert 150 < len(double) < 250
    assert all(
        len({VALUES[clause.value].attribute for clause in clauses}) == len(clauses) for clauses in drawn
    )
    assert 0.4 < np.mean([clause.include for clauses in drawn for clause in clauses]) < 0.6


def cases_of(usable=(0, 1, 2), unseen=frozenset[int](), seed=0):
    return draw_cases(VALUES, usable, unseen, LABELS, ON_TOPIC, 6, "test", seed)


def test_a_case_changes_the_labels_of_documents_on_its_topic():
    cases = [case for seed in range(5) for case in cases_of(seed=seed)]
    assert {case.query for case in cases} == {7, 9}
    assert {case.kind for case in cases} == {"another value", "reversal", "compound"}
    for case in cases:
        labels = LABELS[ON_TOPIC[case.query]]
        before, after = (obeying(labels, case.clauses[view]) for view in ("original", "changed"))
        assert ((before == 1) & (after == 0)).sum() >= 2
        assert ((before == 0) & (after == 1)).sum() >= 2
        clauses = [*case.clauses["original"], *case.clauses["changed"]]
        assert (case.labels["polarity"] == "inclusion") == all(clause.include for clause in clauses)
        assert (case.labels["range"] == "yes") == any(clause.value == 2 for clause in clauses)


def test_cases_ask_for_usable_values_alone_and_say_which_are_unseen():
    cases = cases_of(usable=(0, 1), unseen=frozenset({1}))
    asked = [{clause.value for clauses in case.clauses.values() for clause in clauses} for case in cases]
    assert all(values <= {0, 1} for values in asked)
    assert [case.labels["value"] == "unseen" for case in cases] == [1 in values for values in asked]


def test_cases_depend_on_the_seed_alone_and_survive_storage():
    assert cases_of() == cases_of() != cases_of(seed=1)
    assert [from_json(to_json(case)) for case in cases_of()] == cases_of()
