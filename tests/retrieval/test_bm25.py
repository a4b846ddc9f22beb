"""BM25 over parts, against bm25s over the whole and against the formula written out."""

from collections import Counter
from math import log
import random

import bm25s
import numpy as np
import pytest

from dualview.config.sources import Bm25
from dualview.retrieval import bm25

SETTINGS = Bm25(k1=0.9, b=0.4, stopwords="english")
WORDS = [
    "wing",
    "heat",
    "plate",
    "flow",
    "shock",
    "jet",
    "body",
    "cone",
    "drag",
    "lift",
    "the",
    "of",
    "wave",
    "layer",
    "gas",
]
QUERIES = ["heat of the wing", "drag drag on a cone", "nothing known", "the of", ""]


def texts(num: int) -> list[str]:
    rng = random.Random(1)
    return ["", "the of", *(" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(num - 2))]


def scores_by_parts(passages: list[str], num_parts: int, settings: Bm25) -> np.ndarray:
    """(queries, passages) through statistics, indices and their bytes, part by part."""
    query_terms = bm25.terms_of(QUERIES, settings)
    vocabulary = bm25.vocabulary_of(query_terms)
    queries = bm25.numbered(query_terms, vocabulary)
    parts = [
        bm25.numbered(bm25.terms_of([passages[row] for row in rows], settings), vocabulary)
        for rows in np.array_split(np.arange(len(passages)), num_parts)
    ]
    statistics = bm25.total(bm25.count(part, len(vocabulary)) for part in parts)
    indices = [bm25.from_bytes(bm25.to_bytes(bm25.index_part(part, statistics, settings))) for part in parts]
    return np.array(
        [np.concatenate([bm25.scores_of(index, terms) for index in indices]) for terms in queries]
    )


@pytest.mark.parametrize("num_parts", [1, 3, 7, 60])
@pytest.mark.parametrize("stopwords", ["english", None])
def test_parts_score_bit_for_bit_as_bm25s_scores_the_whole(num_parts, stopwords):
    settings = SETTINGS.model_copy(update={"stopwords": stopwords})
    passages = texts(50)
    whole = bm25s.BM25(k1=settings.k1, b=settings.b, method="lucene")
    tokens = bm25s.tokenize(passages, stopwords=stopwords, return_ids=False, show_progress=False)
    whole.index(tokens, show_progress=False)
    expected = [
        whole.get_scores(known)
        if (known := [term for term in terms if term in whole.vocab_dict])
        else np.zeros(50)
        for terms in bm25s.tokenize(QUERIES, stopwords=stopwords, return_ids=False, show_progress=False)
    ]
    np.testing.assert_array_equal(scores_by_parts(passages, num_parts, settings), np.float32(expected))


def test_scores_follow_the_formula():
    passages = texts(40)
    split = [[word for word in text.split() if word not in ("the", "of")] for text in passages]
    mean_length = sum(map(len, split)) / len(split)
    for query, scores in zip(QUERIES, scores_by_parts(passages, 3, SETTINGS), strict=True):
        for words, score in zip(split, scores, strict=True):
            counts, expected = Counter(words), 0.0
            for term in (word for word in query.split() if word not in ("the", "of", "on", "a")):
                num_with = sum(term in other for other in split)
                idf = log(1 + (len(split) - num_with + 0.5) / (num_with + 0.5))
                length = 1 - SETTINGS.b + SETTINGS.b * len(words) / mean_length
                expected += idf * counts[term] / (counts[term] + SETTINGS.k1 * length)
            assert score == pytest.approx(expected, rel=1e-5)


def test_a_corpus_without_a_term_scores_zero():
    np.testing.assert_array_equal(scores_by_parts(["", "the of", "!"], 2, SETTINGS), np.zeros((5, 3)))
