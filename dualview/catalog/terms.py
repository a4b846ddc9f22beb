"""Frequent terms of the texts as further values: they teach an instruction encoder what words mean in this index.

A catalog has a few dozen values, and an encoder trained on those alone learns these by heart. With the terms it keeps
finding the direction of a word that it was not trained on.
"""

# D = documents, T = terms, E = embedding size

from collections.abc import Iterable, Sequence
import re

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, CountVectorizer

from dualview.catalog.attributes import YES
from dualview.catalog.probe import directions
from dualview.catalog.vocabulary import Value

_MIN_DOCUMENTS, _MIN_SHARE, _MAX_SHARE = 12, 0.002, 0.15
_MAX_CANDIDATES = 2000
_STEM = 5  # letters: two words that share them count as the same
_FORMS = (
    "{t} {n}",
    "{n} about {t}",
    "{t}",
    "anything about {t}",
    "{n} that mention {t}",
    "{n} with {t}",
    "{n} concerning {t}",
    "{n} involving {t}",
    "{n} that deal with {t}",
    "{n} that turn out to be about {t}",
    "{n} that go into {t}",
    "{n} where {t} comes up",
    "{n} set off by {t}",
)


def terms_of(
    texts: Sequence[str],
    vectors_DE: NDArray[np.float32],
    noun: str,
    left_out: Iterable[str],
    num: int,
) -> tuple[list[Value], NDArray[np.float64]]:
    """The terms that the vectors know best, with their directions (T, E). Leaves out terms with a word of `left_out`."""
    counted = CountVectorizer(
        ngram_range=(1, 2),
        token_pattern=r"(?u)\b[^\W\d_]{2,}\b",
        min_df=min(len(texts), max(_MIN_DOCUMENTS, int(_MIN_SHARE * len(texts)))),
        max_df=_MAX_SHARE,
        max_features=_MAX_CANDIDATES,
        binary=True,
    )
    none: tuple[list[Value], NDArray[np.float64]] = [], np.empty((0, vectors_DE.shape[1]))
    try:
        matrix = counted.fit_transform(texts)
    except ValueError:  # no term is that frequent
        return none
    stems = {word[:_STEM] for text in left_out for word in re.findall(r"\w+", text.lower())}
    names = counted.get_feature_names_out().tolist()
    kept = [
        place
        for place, name in enumerate(names)
        if not any(word in ENGLISH_STOP_WORDS or word[:_STEM] in stems for word in name.split())
    ]
    if not kept:
        return none
    labels_DT = matrix[:, kept].toarray().astype(np.int8)
    directions_TE = directions(vectors_DE, labels_DT, np.ones(len(texts), bool))
    scores_DT = vectors_DE @ directions_TE.T
    is_in = labels_DT == YES
    num_T = is_in.sum(axis=0)
    gaps_T = (scores_DT * is_in).sum(axis=0) / num_T - scores_DT.mean(axis=0)
    known_T = gaps_T / scores_DT.std(axis=0) * np.sqrt(num_T)
    best = np.argsort(-known_T, kind="stable")[:num]
    values = []
    for place in best.tolist():
        phrases = [form.format(t=names[kept[place]], n=noun) for form in _FORMS]
        values.append(Value("", "category", names[kept[place]], {"train": phrases}))
    return values, directions_TE[best]
