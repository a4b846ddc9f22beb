"""What else can be done with the query vector."""

import numpy as np

from dualview.catalog.instructions import Case, Clause
from dualview.catalog.rivals import phrase_vectors, rows_of, signed_sums
from dualview.catalog.vocabulary import Value

VALUES = [
    Value("genre", "several", name, {"train": [f"{name} {n}" for n in range(4)]})
    for name in ("comedy", "drama")
]
DIRECTIONS = np.eye(2, 6)
CASE = Case(
    0,
    "compound",
    {"original": "Comedies, no dramas.", "changed": ""},
    {"original": (Clause(True, 0), Clause(False, 1)), "changed": ()},
    {},
)


def encode(texts):
    """The vector of a text depends on it alone."""
    return np.stack([np.random.default_rng(sum(map(ord, text))).normal(size=6) for text in texts]).astype(
        np.float32
    )


def test_phrase_vectors_are_means_of_phrases_in_order():
    found = phrase_vectors(VALUES, encode)
    np.testing.assert_allclose(found[1], encode(["drama 0", "drama 1", "drama 2"]).mean(axis=0), rtol=1e-6)


def test_rows():
    phrases = phrase_vectors(VALUES, encode)
    rows = rows_of("original", [CASE], ["prison escape"], VALUES, phrases, DIRECTIONS, encode)
    wanted = phrases[0] - phrases[1]
    query, whole, included = encode(
        ["prison escape", "prison escape. Comedies, no dramas.", "prison escape. comedy 0"]
    )
    for name, base, added in (
        ("query alone", query, 0),
        ("untouched", whole, 0),
        ("subtraction", included, -phrases[1]),
        ("DEO", whole, wanted),
        ("arithmetic", query, wanted),
        ("probe", query, DIRECTIONS[0] - DIRECTIONS[1]),
    ):
        np.testing.assert_allclose(rows[name].at(0.5)[0], base + 0.5 * added, rtol=1e-5, err_msg=name)


def test_deo_is_where_its_objective_is_stationary():
    """a |u - p|^2 - a |u - n|^2 + |u - o|^2 has its gradient 0 at o + a (p - n). [2603.09185]"""
    wanted, unwanted, original = encode(["p", "n", "o"]).astype(np.float64)
    for weight in (0.25, 1.0, 2.0):
        u = original + weight * (wanted - unwanted)
        gradient = 2 * weight * (u - wanted) - 2 * weight * (u - unwanted) + 2 * (u - original)
        np.testing.assert_allclose(gradient, 0, atol=1e-9)


def test_signed_sums_of_exclusions_alone():
    clauses = [CASE.clauses["original"]]
    np.testing.assert_array_equal(signed_sums(clauses, DIRECTIONS, only_excluded=True)[0], -DIRECTIONS[1])
