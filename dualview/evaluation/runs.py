"""TREC run files, ours and others', and lists of the most moved passages for people to read.

301 Q0 FBIS3-10082 1 12.25 ours                            query, passage, rank, score and tag, separated by spaces
301 Q0 Geneva%20Durben 2 11.5 ours+percent-encoded         the passage "Geneva Durben"

White space and % in ids are percent-encoded, which a suffix of the line's tag marks. Only lines with this suffix are
decoded, because in the files of other tools % is literal.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
import json
import math
import re
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from dualview.beir import fields_of, read_lines
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Collection, QueryView
from dualview.evaluation.metrics import rank_change
from dualview.retrieval.ranking import Ranking, rank

_EXAMPLE = "301 Q0 FBIS3-10082 1 12.25 ours"
_ENCODED = "+percent-encoded"
_TO_ENCODE = re.compile(r"[\s%]")
_LARGEST = float(np.finfo(np.float32).max)  # scores are compared in float32, as in trec_eval
_NUM_MOVED = 10  # in each direction


def run_lines(rankings: Mapping[str, Ranking], tag: str) -> Iterator[str]:
    """Lines `query Q0 passage rank score tag`; scores at full precision, so that only ties stay ties."""
    tag = "-".join(tag.split())
    for query_id, ranking in rankings.items():
        for place, (id, score) in enumerate(zip(*ranking, strict=True), start=1):
            query, passage = _encoded(query_id), _encoded(id)
            mark = "" if (query, passage) == (query_id, id) else _ENCODED
            yield f"{query} Q0 {passage} {place} {score:.9g} {tag}{mark}\n"


def _encoded(id: str) -> str:
    return _TO_ENCODE.sub(lambda found: quote(found[0], safe=""), id)


def read_run(url: str, views: Sequence[QueryView], passages: Mapping[str, Any]) -> dict[str, Ranking]:
    """The rankings of all views, sorted by (score, id) descending. Ranks in the file are ignored, as in trec_eval.

    A query without a line has an empty ranking. Raises InputError if the file cannot be read, a line is malformed,
    or a query or passage is unknown.
    """
    wanted = {view.id: view for view in views}
    scores: dict[str, dict[str, float]] = defaultdict(dict)
    for where, line in read_lines(url):
        match fields_of(line):
            case []:
                continue
            case [query_id, _, id, _, score, tag]:
                if tag.endswith(_ENCODED):
                    query_id, id = unquote(query_id), unquote(id)
            case fields:
                raise InputError(f"{where}: has {len(fields)} fields, not 6, for example: {_EXAMPLE}")
        if query_id not in wanted:
            example = ", ".join(list(wanted)[:2])
            raise InputError(
                f"{where}: the query {query_id!r} is not in this benchmark; expected one of {example}, ..."
            )
        candidates = wanted[query_id].candidates
        if id not in passages or (candidates is not None and id not in candidates):
            raise InputError(f"{where}: the passage {id!r} is not a candidate of {query_id!r}")
        if id in scores[query_id]:
            raise InputError(f"{where}: the passage {id!r} is ranked twice for {query_id!r}")
        scores[query_id][id] = _number(score, where)
    return {view.id: _sorted(scores.get(view.id, {})) for view in views}


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not abs(number) <= _LARGEST:
        raise InputError(f"{where}: the score {text!r} is not a finite number, for example: 12.25")
    return number


def _sorted(scores: Mapping[str, float]) -> Ranking:
    ids = rank(list(scores.values()), list(scores))
    return Ranking(ids, [float(np.float32(scores[id])) for id in ids])


def most_moved(collection: Collection, rankings: Mapping[str, Ranking]) -> Iterator[str]:
    """JSON lines of the dropped passages that fell most and rose most, for people to read."""
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
                allow_nan=False,
            )
            + "\n"
        )


def _ends(rows: Sequence[Any]) -> Iterable[Any]:
    return rows if len(rows) <= 2 * _NUM_MOVED else [*rows[:_NUM_MOVED], *rows[-_NUM_MOVED:]]
