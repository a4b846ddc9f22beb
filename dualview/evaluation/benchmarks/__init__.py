"""Read any benchmark from its authors' files into one format."""

from collections import Counter

from dualview.config.evaluate import Beir, BenchmarkConfig, Flips, FollowIR, HubBenchmark, Mair, Trec
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Collection
from dualview.evaluation.benchmarks.flips import from_flips, read_flips
from dualview.evaluation.benchmarks.hub import HUB_READERS, read_followir, read_mair
from dualview.evaluation.benchmarks.plain import read_beir, read_trec


def read_benchmark(settings: BenchmarkConfig) -> list[Collection]:
    """The benchmark's collections: one, except for MAIR tasks of several parts. How they are scored: scores.KINDS.

    Raises InputError if a row is malformed or a file is missing; the message says how to get it.
    """
    match settings:
        case Flips():
            collections = [from_flips(read_flips(settings))]
        case Beir():
            collections = [read_beir(settings)]
        case Trec():
            collections = [read_trec(settings)]
        case FollowIR():
            collections = [read_followir(settings)]
        case HubBenchmark():
            collections = [HUB_READERS[settings.kind](settings)]
        case Mair():
            collections = read_mair(settings)
    for collection in collections:
        _check(collection)
    return collections


def _check(collection: Collection) -> None:
    name = collection.name
    if not collection.passages or not collection.cases:
        what = "query" if collection.passages else "passage"
        raise InputError(f"benchmark {name}: has no {what}; expected a corpus and judged queries")
    if twice := [id for id, count in Counter(view.id for view in collection.views).items() if count > 1]:
        raise InputError(f"benchmark {name}: the query id {twice[0]!r} occurs twice")
    for view in collection.views:
        if view.candidates is not None and not view.candidates:
            raise InputError(f"benchmark {name}: the query {view.id!r} has no candidates")
        for id in view.candidates or ():
            if id not in collection.passages:
                raise InputError(
                    f"benchmark {name}: the candidate {id!r} of {view.id!r} is not in the corpus"
                )
