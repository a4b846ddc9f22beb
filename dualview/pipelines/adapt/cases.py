"""The second stage: queries, and pairs of instructions on them for development and test."""

# K = documents on a query's topic

from collections.abc import Iterator, Mapping, Sequence
import json
import random
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from dualview.beir import read_rows
from dualview.catalog.instructions import Case, draw_cases, to_json
from dualview.catalog.queries import candidate_phrases, choose
from dualview.catalog.wordings import Split
from dualview.config.base import fingerprint
from dualview.errors import InputError
from dualview.pipelines.adapt.state import CASES_KEY, AdaptRun

_TOPIC_SHARE = 50  # at most one document in so many is on a query's topic


def draw(run: AdaptRun) -> Iterator[str]:
    """Puts cases.json: queries, and pairs of instructions on them for development and test."""
    queries = _drafted(run) if run.config.queries is None else _given(run.config.queries)
    on_topic = _on_topic(run, queries)
    splits = _split(run, on_topic)
    unseen = _unseen(run)
    cases = {split: _cases(run, split, numbers, on_topic, unseen) for split, numbers in splits.items()}
    content = {
        "vocabulary": fingerprint(run.vocabulary_text),
        "queries": queries,
        "splits": splits,
        "unseen": sorted(unseen),
        "cases": {split: [to_json(case) for case in of_split] for split, of_split in cases.items()},
        "on_topic": {number: documents.tolist() for number, documents in on_topic.items()},
    }
    run.store.put_new(CASES_KEY, json.dumps(content, indent=1).encode(), attempt=uuid4().hex)
    yield (
        f"{len(queries)} {'drafted' if run.config.queries is None else 'given'} queries, for example {queries[0]!r};"
        f" {len(cases['development'])} pairs of instructions for development and {len(cases['test'])} for the test"
    )


def _given(url: str) -> list[str]:
    return list(dict.fromkeys(row.text("text") for row in read_rows(url)))


def _drafted(run: AdaptRun) -> list[str]:
    """Key phrases without the names of attributes and values: queries are about the topic alone."""
    names = [text for value in run.values for text in (value.attribute, value.value)]
    phrases = candidate_phrases(run.documents.texts, names)
    if not phrases:
        raise InputError(
            f"{run.config.corpus}: no phrase occurs in several documents, so no query can be drafted; expected `queries`, a"
            ' file of your own, for example {"text": "prison escape"}'
        )
    num = run.config.draft.num_queries
    chosen = choose(run.encode_queries(phrases), run.documents.vectors_DE, num)
    return [phrases[place] for place in chosen]


def _split(run: AdaptRun, on_topic: Mapping[int, NDArray[np.int64]]) -> dict[Split, list[int]]:
    shuffled = random.Random(run.config.seed).sample(sorted(on_topic), len(on_topic))
    num_test = _num_for_test([on_topic[number] for number in shuffled], len(run.documents.passages))
    return {"test": shuffled[:num_test], "development": shuffled[num_test:]}


def _cases(
    run: AdaptRun,
    split: Split,
    queries: Sequence[int],
    on_topic: Mapping[int, NDArray[np.int64]],
    unseen: frozenset[int],
) -> list[Case]:
    """Raises InputError if there are too few."""
    cases = draw_cases(
        run.values,
        [value for value in run.usable if split == "test" or value not in unseen],
        unseen,
        run.labels_DV,
        {number: on_topic[number] for number in queries},
        run.config.draft.cases_per_query,
        split,
        run.config.seed,
    )
    if len(cases) < _MIN_CASES:
        raise InputError(
            f"{run.config.corpus}: only {len(cases)} pairs of instructions can be made for {split}, of {len(queries)}"
            f" queries; expected {_MIN_CASES}: give more `queries`, or values that more documents have"
            " (draft.min_documents)"
        )
    if split == "development" and len(cases) > _MAX_DEVELOPMENT:
        return random.Random(run.config.seed).sample(cases, _MAX_DEVELOPMENT)
    return cases


_MIN_CASES = 20
_MAX_DEVELOPMENT = 240  # enough to choose a step and a strength, and scored at each evaluation
_TEST_SHARE_OF_QUERIES = 0.6
_TEST_SHARE_OF_DOCUMENTS = 0.25


def _num_for_test(on_topic: Sequence[NDArray[np.int64]], num_documents: int) -> int:
    """How many of the first queries are for the test: their documents are not trained on, so not too many."""
    held: set[int] = set()
    for number, documents in enumerate(on_topic):
        held.update(documents.tolist())
        if number >= _TEST_SHARE_OF_QUERIES * len(on_topic) or (
            len(held) > _TEST_SHARE_OF_DOCUMENTS * num_documents
        ):
            return number
    return len(on_topic)


def _on_topic(run: AdaptRun, queries: Sequence[str]) -> dict[int, NDArray[np.int64]]:
    """The documents that the untouched encoder ranks first for each query."""
    num_documents = len(run.documents.passages)
    num = max(10, min(run.config.draft.documents_on_topic, num_documents // _TOPIC_SHARE))
    queries_QE = run.encode_queries(queries)
    return {
        number: np.argsort(-(run.documents.vectors_DE @ query_E), kind="stable")[:num]
        for number, query_E in enumerate(queries_QE)
    }


def _unseen(run: AdaptRun) -> frozenset[int]:
    """A share of the values of categories, which training does not name."""
    of_categories = [number for number in run.usable if run.values[number].kind in ("category", "several")]
    num = int(run.config.draft.unseen_share * len(of_categories))
    return frozenset(random.Random(run.config.seed).sample(of_categories, num))
