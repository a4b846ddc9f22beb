"""Drafts queries from a corpus: its key phrases, such as "prison escape"."""

# P = phrases, E = embedding size, D = documents

from collections import Counter
from collections.abc import Iterable, Sequence
import re

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

_WORD = r"(?u)\b[^\W\d_]{2,}\b"
# Punctuation is a token too, so that no phrase crosses it.
_TOKEN = rf"{_WORD}|[.,;:()!?]"
_MIN_DOCUMENTS = 5
_MAX_SHARE = 0.02  # of the documents that contain a phrase
_NEAREST = 20
_TOO_SIMILAR = 0.8  # cosine of two queries


def candidate_phrases(texts: Sequence[str], left_out: Iterable[str]) -> list[str]:
    """Phrases of two or three words that several texts contain, without names and without words of `left_out`."""
    lower, upper = Counter[str](), Counter[str]()
    for text in texts:
        for word in re.findall(_WORD, text):
            (lower if word[0].islower() else upper)[word.lower()] += 1
    names = {word for word, count in upper.items() if count > lower[word]}
    excluded = (
        names | ENGLISH_STOP_WORDS | {word for text in left_out for word in re.findall(_WORD, text.lower())}
    )
    max_documents = max(_MIN_DOCUMENTS, int(_MAX_SHARE * len(texts)))
    counted = CountVectorizer(
        ngram_range=(2, 3), token_pattern=_TOKEN, min_df=_MIN_DOCUMENTS, max_df=max_documents, binary=True
    )
    try:
        counted.fit(texts)
    except ValueError:  # no phrase is that frequent
        return []
    return [
        phrase
        for phrase in counted.get_feature_names_out().tolist()
        if all(word.isalpha() and word not in excluded for word in phrase.split())
    ]


def choose(phrases_PE: NDArray[np.float32], vectors_DE: NDArray[np.float32], num: int) -> list[int]:
    """The phrases about which the corpus has most to say, no two of them alike: indices, best first.

    A phrase counts by how much nearer its nearest documents are than the others.
    """
    scores_PD = phrases_PE @ vectors_DE.T
    nearest = min(_NEAREST, scores_PD.shape[1])
    top_P = np.partition(scores_PD, -nearest, axis=1)[:, -nearest:].mean(axis=1)
    chosen: list[int] = []
    for phrase in np.argsort(scores_PD.mean(axis=1) - top_P, kind="stable").tolist():
        if len(chosen) == num:
            break
        if not chosen or (phrases_PE[chosen] @ phrases_PE[phrase]).max() < _TOO_SIMILAR:
            chosen.append(phrase)
    return chosen
