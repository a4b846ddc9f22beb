"""Rankings as files of TREC, ours and others', and as what people read."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
from typing import Any

import numpy as np

from dualview.beir import read_lines
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Collection, View
from dualview.evaluation.metrics import rank_change
from dualview.evaluation.ranking import Ranking, rank

_EXAMPLE = "301 Q0 FBIS3-10082 1 12.25 ours"
_NUM_MOVED = 10  # in each direction


def run_lines(rankings: Mapping[str, Ranking], tag: str) -> Iterator[str]:
    """`query Q0 passage rank score tag`; scores to the last digit, so that ties stay ties."""
    tag = "-".join(tag.split())
    for query_id, ranking in rankings.items():
        for place, (id, score) in enumerate(zip(*ranking, strict=True), start=1):
            yield f"{query_id} Q0 {id} {place} {score:.9g} {tag}\n"


def read_run(url: str, views: Sequence[View], passages: Mapping[str, Any]) -> dict[str, Ranking]:
    """The rankings of all views, sorted by (score, id) descending whatever ranks stand there, as trec_eval does it.

    A query without a line has an empty ranking. Raises InputError where the file cannot be read, a line is wrong,
    or a query or a passage is unknown.
    """
    wanted = {view.id: view for view in views}
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for where, line in read_lines(url):
        match line.split():
            case []:
                continue
            case [query_id, _, id, _, score, _]:
                pass
            case fields:
                raise InputError(f"{where}: has {len(fields)} fields, not 6, for example: {_EXAMPLE}")
        if query_id not in wanted:
            example = ", ".join(list(wanted)[:2])
            raise InputError(
                f"{where}: the query {query_id!r} is not of this benchmark, whose are {example}, ..."
            )
        candidates = wanted[query_id].candidates
        if id not in passages or (candidates is not None and id not in candidates):
            raise InputError(f"{where}: the passage {id!r} is not among those to be ranked for {query_id!r}")
        if id in scores[query_id]:
            raise InputError(f"{where}: the passage {id!r} is ranked twice for {query_id!r}")
        try:
            scores[query_id][id] = float(score)
        except ValueError:
            raise InputError(f"{where}: the score {score!r} is not a number") from None
    return {view.id: _sorted(scores.get(view.id, {})) for view in views}


def _sorted(scores: Mapping[str, float]) -> Ranking:
    ids = rank(list(scores.values()), list(scores))
    return Ranking(ids, [float(np.float32(scores[id])) for id in ids])


def most_moved(collection: Collection, rankings: Mapping[str, Ranking]) -> Iterator[str]:
    """JSON lines of the dropped passages that fell most, and of those that rose most: to be read."""
    moved = []
    for case in collection.cases:
        if case.dropped and len(case.views) > 1:
            first, second = list(case.views.values())[:2]
            before, after = ({id: n for n, id in enumerate(rankings[v.id].ids, 1)} for v in (first, second))
            for id in sorted(case.dropped & before.keys() & after.keys()):
                change = rank_change(before[id], after[id])
                moved.append((change, case.id, first, second, id, before[id], after[id]))
    moved.sort(key=lambda row: row[:2], reverse=True)
    for change, case_id, first, second, id, place, new_place in _ends(moved):
        yield (
            json.dumps(
                {
                    "p-MRR": round(change, 4),
                    "query_id": case_id,
                    "query": first.query,
                    "instruction": first.instruction,
                    "new_instruction": second.instruction,
                    "passage_id": id,
                    "passage": collection.passages[id].full_text,
                    "rank": place,
                    "new_rank": new_place,
                },
                ensure_ascii=False,
            )
            + "\n"
        )


def _ends(rows: Sequence[Any]) -> Iterable[Any]:
    return rows if len(rows) <= 2 * _NUM_MOVED else [*rows[:_NUM_MOVED], *rows[-_NUM_MOVED:]]
