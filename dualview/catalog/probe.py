"""A linear probe: what an index can obey at all.

With frozen documents an instruction is one direction in the vector space, so how well the best direction separates the
documents with a value from those without it bounds every instruction that asks for the value.
"""

# D = documents, E = embedding size, V = values

from math import sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from dualview.catalog.attributes import NO, YES

NUM_FOLDS = 5
SHRINKAGE = 0.1  # of the covariance, in units of its mean eigenvalue
_USUAL_GAP = 0.25
_MIN_GAP = 0.1
_QUANTILE = 1.96  # of the normal distribution, for 95%


class Probed(NamedTuple):
    """How well the vectors separate the documents with a value from those without it."""

    num_having: int
    num_lacking: int
    auc: float  # cross-validated: the probability that a document with the value scores above one without it
    low: float  # its 95% interval
    high: float


def probe(vectors_DE: NDArray[np.float32], labels_DV: NDArray[np.int8], seed: int) -> list[Probed]:
    """The cross-validated probe of each value. NaN where a fold has documents of one kind only."""
    folds_D = np.random.default_rng(seed).permutation(len(vectors_DE)) % NUM_FOLDS
    scores_DV = np.zeros(labels_DV.shape)
    for fold in range(NUM_FOLDS):
        directions_VE = directions(vectors_DE, labels_DV, folds_D != fold)
        scores_DV[folds_D == fold] = vectors_DE[folds_D == fold] @ directions_VE.T
    return [_probed(labels_D, scores_D) for labels_D, scores_D in zip(labels_DV.T, scores_DV.T, strict=True)]


def _probed(labels_D: NDArray[np.int8], scores_D: NDArray[np.float64]) -> Probed:
    having, lacking = int((labels_D == YES).sum()), int((labels_D == NO).sum())
    known = labels_D >= 0
    if not having or not lacking or not np.isfinite(scores_D[known]).all():
        return Probed(having, lacking, np.nan, np.nan, np.nan)
    auc = float(roc_auc_score(labels_D[known], scores_D[known]))
    half = _half_width(auc, having, lacking)
    return Probed(having, lacking, auc, max(0.0, auc - half), min(1.0, auc + half))


def _half_width(auc: float, having: int, lacking: int) -> float:
    """Half of the 95% interval. [Hanley and McNeil 1982]"""
    auc = min(auc, 1 - 0.5 / (having * lacking))  # a perfect sample does not make a certain probe
    both_having, both_lacking = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    variance = (
        auc * (1 - auc) + (having - 1) * (both_having - auc**2) + (lacking - 1) * (both_lacking - auc**2)
    ) / (having * lacking)
    return _QUANTILE * sqrt(max(variance, 0.0))


def directions(
    vectors_DE: NDArray[np.float32], labels_DV: NDArray[np.int8], used_D: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The direction (V, E) towards the documents with each value, away from those without it.

    Linear discriminants with one covariance for all values [Fisher 1936]. Their length depends on how far apart the two
    kinds lie along them, so that equal strengths count more nearly alike for different values; NaN without documents of
    both kinds among `used_D`.
    """
    vectors, labels = vectors_DE[used_D].astype(np.float64), labels_DV[used_D]
    mean_E = vectors.mean(axis=0)
    vectors -= mean_E
    covariance = vectors.T @ vectors / len(vectors)
    size = len(covariance)
    covariance += SHRINKAGE * np.trace(covariance) / size * np.eye(size)
    with np.errstate(invalid="ignore"):  # without documents of a kind, its mean is NaN
        differences_VE = _means(labels, YES, vectors) - _means(labels, NO, vectors)
        found_VE = np.linalg.solve(covariance, differences_VE.T).T
        found_VE /= np.linalg.norm(found_VE, axis=1, keepdims=True)
        gaps_V = (found_VE * differences_VE).sum(axis=1)
        lengths_V: NDArray[np.float64] = np.sqrt(_USUAL_GAP / np.maximum(gaps_V, _MIN_GAP))
        return found_VE * lengths_V[:, None]


_BLOCK = 128  # values at a time, to bound memory


def _means(labels_DV: NDArray[np.int8], kind: int, vectors_DE: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean vector (V, E) of the documents with this label; NaN without any."""
    blocks = []
    for start in range(0, labels_DV.shape[1], _BLOCK):
        is_kind = labels_DV[:, start : start + _BLOCK] == kind
        blocks.append((is_kind.T.astype(np.float64) @ vectors_DE) / is_kind.sum(axis=0)[:, None])
    return np.concatenate(blocks)


def is_usable(auc: float | None, min_auc: float) -> bool:
    """Whether an instruction on a value with this AUC can work with the index; not if it was not measured."""
    return auc is not None and auc >= min_auc  # NaN is not
