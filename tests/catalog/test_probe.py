"""The linear probe."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from dualview.catalog.probe import SHRINKAGE, directions, is_usable, probe

RNG = np.random.default_rng(0)
NUM, SIZE = 600, 8
VECTORS = RNG.normal(size=(NUM, SIZE)).astype(np.float32)
SHOWN = (VECTORS[:, 0] + 0.3 * RNG.normal(size=NUM) > 0.5).astype(np.int8)
HIDDEN = (RNG.random(NUM) < 0.3).astype(np.int8)
EVERYTHING = np.ones(NUM, bool)


def test_a_direction_is_that_of_linear_discriminant_analysis():
    [found] = directions(VECTORS, SHOWN[:, None], EVERYTHING)
    centred = VECTORS - VECTORS.mean(axis=0)
    within = sum(np.cov(VECTORS[kind == SHOWN].T, bias=True) * (kind == SHOWN).mean() for kind in (0, 1))
    between = np.cov(centred.T, bias=True) - within
    # Shrinkage of the total covariance: the same direction as with shrinkage of the covariance within.
    shrunk = within + SHRINKAGE * np.trace(within + between) / SIZE * np.eye(SIZE)
    means = VECTORS[SHOWN == 1].mean(axis=0) - VECTORS[SHOWN == 0].mean(axis=0)
    expected = np.linalg.solve(shrunk, means)
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-5)
    theirs = LinearDiscriminantAnalysis().fit(VECTORS, SHOWN).coef_[0]
    assert found @ theirs / np.linalg.norm(found) / np.linalg.norm(theirs) > 0.99


def test_the_probe_tells_what_the_vectors_know():
    shown, hidden = probe(VECTORS, np.stack([SHOWN, HIDDEN], axis=1), seed=0)
    assert shown.low > 0.9
    assert hidden.low < 0.5 < hidden.high
    assert (shown.num_having, shown.num_lacking) == (SHOWN.sum(), NUM - SHOWN.sum())
    assert [is_usable(found.auc, 0.75) for found in (shown, hidden)] == [True, False]


def test_unknown_documents_count_on_neither_side():
    labels = SHOWN.copy()
    labels[::3] = -1
    [found] = probe(VECTORS, labels[:, None], seed=0)
    assert found.num_having + found.num_lacking == (labels >= 0).sum()
    other = VECTORS.copy()
    other[::3] += 0  # their vectors still shape the covariance
    np.testing.assert_allclose(directions(other, labels[:, None], EVERYTHING)[0][0] > 0, True)


def test_a_value_that_no_document_lacks_cannot_be_probed():
    [found] = probe(VECTORS, np.ones((NUM, 1), np.int8), seed=0)
    assert np.isnan(found.auc)
    assert not is_usable(found.auc, 0.0)
    assert not is_usable(None, 0.0)


def test_a_perfect_sample_is_not_a_certain_probe():
    labels = (VECTORS[:, :1] > 1.8).astype(np.int8)  # few documents
    vectors = np.concatenate([VECTORS, 50 * labels], axis=1).astype(np.float32)
    [found] = probe(vectors, labels, seed=0)
    assert found.auc == pytest.approx(1.0)
    assert found.low < 1.0
