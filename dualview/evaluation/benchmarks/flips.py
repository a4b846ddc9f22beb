"""Our own simple format: a query, its instructions, and the passages that are relevant under each."""

from collections.abc import Mapping
from typing import Any

from dualview.beir import Row
from dualview.config.evaluate import Flips
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Case, Collection, QueryView
from dualview.evaluation.benchmarks.plain import read_corpus, rows_by_id
from dualview.models import open_data
from dualview.records import FlipCollection, FlipQuery, Passage
from dualview.storage import holds, parent_of


def from_flips(flips: FlipCollection) -> Collection:
    return Collection(
        flips.name,
        flips.passages,
        tuple(
            Case(
                query.id,
                {
                    name: QueryView(
                        f"{query.id}-{name}",
                        query.query,
                        query.instructions[name],
                        dict.fromkeys(query.relevant[name], 1),
                        query.candidates,
                    )
                    for name in ("original", "changed")
                },
                frozenset(query.relevant["original"]) - frozenset(query.relevant["changed"]),
                query.labels,
                frozenset([query.topic] if query.topic else []),
            )
            for query in flips.queries
        ),
    )


def read_flips(settings: Flips) -> FlipCollection:
    """The folder's queries under the two named instructions.

    corpus.jsonl is in the folder, or in its parent if several splits share it. Optional columns of a row:

    topic        a text; queries with the same topic are drawn together, as are those with the same query text
    candidates   ids of the passages to rank; default: all passages that are relevant to some query
    labels       {"polarity": "exclusion", ...}; scores are also broken down by these

    Drops passages that are not a candidate of any query.
    Raises InputError if a file is missing or a row is malformed.
    """
    folder = open_data(settings.path)
    parent = parent_of(folder)
    is_shared = not holds(folder, "corpus.jsonl") and holds(parent, "corpus.jsonl")
    corpus = read_corpus(f"{(parent if is_shared else folder).url}/corpus.jsonl")
    names = {"original": settings.original, "changed": settings.changed}
    rows = rows_by_id(f"{folder.url}/queries.jsonl")
    relevant = {id: _flip(row, names, corpus) for id, row in rows.items()}
    of_some_query = tuple(sorted({id for views in relevant.values() for ids in views.values() for id in ids}))
    candidates = {
        id: _candidates(row, relevant[id], corpus) if "candidates" in row.columns else of_some_query
        for id, row in rows.items()
    }
    return FlipCollection(
        name=settings.name,
        passages={id: corpus[id] for id in sorted({id for ids in candidates.values() for id in ids})},
        queries=tuple(
            FlipQuery(
                id=id,
                query=row.text("query"),
                instructions={view: _instruction(row, name) for view, name in names.items()},
                relevant=relevant[id],
                candidates=candidates[id],
                labels=_labels(row),
                topic=row.text("topic") if "topic" in row.columns else "",
            )
            for id, row in rows.items()
        ),
    )


def _instruction(row: Row, name: str) -> str:
    instructions = row.columns.get("instructions")
    if not isinstance(instructions, dict) or not isinstance(instructions.get(name), str):
        raise InputError(f"{row.where}: `instructions` must map {name!r} to a text, found {instructions!r}")
    return str(instructions[name])


def _flip(row: Row, names: Mapping[str, str], corpus: Mapping[str, Passage]) -> dict[str, tuple[str, ...]]:
    """view -> ids of the relevant passages, each once."""
    relevant = {view: _relevant(row, name, corpus) for view, name in names.items()}
    if set(relevant["original"]) == set(relevant["changed"]):
        first, second = names.values()
        raise InputError(
            f"{row.where}: {first!r} and {second!r} have the same relevant passages; "
            "expected at least one passage whose label changes"
        )
    return relevant


def _relevant(row: Row, name: str, corpus: Mapping[str, Passage]) -> tuple[str, ...]:
    relevant = row.columns.get("relevant")
    ids = relevant.get(name) if isinstance(relevant, dict) else None
    if not isinstance(ids, list) or not ids:
        raise InputError(
            f"{row.where}: `relevant` must map {name!r} to a list of at least one passage id, found {ids!r}"
        )
    return _in_corpus(ids, f"{row.where}: the relevant passage", corpus)


def _candidates(
    row: Row, relevant: Mapping[str, tuple[str, ...]], corpus: Mapping[str, Passage]
) -> tuple[str, ...]:
    ids = row.columns["candidates"]
    if not isinstance(ids, list):
        raise InputError(f"{row.where}: `candidates` must be a list of passage ids, found {ids!r:.60}")
    candidates = _in_corpus(ids, f"{row.where}: the candidate", corpus)
    if absent := {id for ids in relevant.values() for id in ids} - set(candidates):
        raise InputError(
            f"{row.where}: the relevant passage {min(absent)!r} is not among the `candidates`; expected all of them"
        )
    return candidates


def _in_corpus(ids: list[Any], what: str, corpus: Mapping[str, Passage]) -> tuple[str, ...]:
    for id in ids:
        if not isinstance(id, str) or id not in corpus:
            raise InputError(f"{what} {id!r} is not in corpus.jsonl")
    return tuple(dict.fromkeys(ids))  # hand-made label files sometimes repeat a passage


def _labels(row: Row) -> dict[str, str]:
    labels = row.columns.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
        raise InputError(
            f'{row.where}: `labels` must map names to texts, for example {{"polarity": "exclusion"}}, found {labels!r:.60}'
        )
    return labels
