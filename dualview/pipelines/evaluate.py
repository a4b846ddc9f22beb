"""Evaluation on Ray: actors encode, tasks search shards, the driver scores. Files under the output:

config.json                       the models and benchmarks, by name and content; created once
embeddings/                       vectors, see retrieval/embeddings.py, unless `embeddings` names another place
runs/ENCODER/BENCHMARK.trec       rankings
moved/ENCODER/BENCHMARK.jsonl     passages that an instruction moved most, for human readers
results/ENCODER/BENCHMARK.json    scores in mteb's layout, and the encoder's settings
scores.parquet                    each query's scores and topic; created last
report.html                       the tables of scores
"""

# V = views of a collection, E = embedding size, D = passages of a shard

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
import json
import logging
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from dualview.beir import file_sha256
from dualview.config.base import Actors
from dualview.config.evaluate import (
    BenchmarkConfig,
    Bm25Model,
    EncoderModel,
    EvaluateConfig,
    FollowIR,
    RunFiles,
)
from dualview.distributed.cluster import join_cluster, map_on_cluster
from dualview.distributed.embeddings import ensure_embeddings
from dualview.errors import InputError
from dualview.evaluation.benchmarks import read_benchmark
from dualview.evaluation.benchmarks.collections import Collection, QueryView, fingerprint_of
from dualview.evaluation.report import Summary, html_report, summary
from dualview.evaluation.runs import most_moved, read_run, run_lines
from dualview.evaluation.scores import (
    KINDS,
    SCORES_SCHEMA,
    BenchmarkKind,
    QueryScore,
    mteb_result,
    score,
    scores_to_table,
)
from dualview.models import (
    QUERY_SIDES,
    Side,
    check_model,
    model_fingerprint,
    model_stamp,
    query_side,
    saved_settings,
)
from dualview.retrieval import bm25
from dualview.retrieval.embeddings import (
    EmbeddingSpec,
    Unit,
    Wanted,
    gather,
    keys_by_unit,
    keys_of,
    locate,
    num_cut,
)
from dualview.retrieval.ranking import Hits, Ranking, rankings_of
from dualview.retrieval.search import Block, Found, by_vectors, merge, search
from dualview.runs.manifest import pin_embedding_cache, pin_manifest
from dualview.storage import Store, check_reachable, open_store

logger = logging.getLogger(__name__)

CONFIG_KEY = "config.json"
SCORES_KEY = "scores.parquet"
DEPTH = 1000  # of a ranking of the whole corpus, as in mteb; listed candidates are all ranked
_PASSAGES_A_TASK = 16_384  # up to this many are searched on the driver, without a cluster


@dataclass(frozen=True)
class Benchmark:
    name: str
    kind: BenchmarkKind
    template: str
    collections: tuple[Collection, ...]

    def text(self, view: QueryView) -> str:
        """The query text that models get."""
        if not view.instruction:
            return view.query
        return self.template.format(query=view.query, instruction=view.instruction)


def evaluate(config: EvaluateConfig) -> Summary:
    """Scores every model on every benchmark. Only reads a finished evaluation, and reuses existing vectors.

    Returns the summary: means with bootstrap intervals, and paired differences.
    """
    store = open_store(config.output)
    check_reachable(store)
    if config.embeddings is not None:
        check_reachable(open_store(config.embeddings))
        pin_embedding_cache(open_store(config.embeddings))
    _check_comparisons(config)
    for model in config.encoders.values():
        if isinstance(model, EncoderModel):
            check_model(model.model)
    benchmarks = [open_benchmark(benchmark, config.query_template) for benchmark in config.benchmarks]
    content, stamps = _content(config, benchmarks, _pinned(store))
    deciding = config.deciding()
    settings = config.model_dump(mode="json")
    metadata = {key: value for key, value in settings.items() if key not in deciding}
    pin_manifest(store, CONFIG_KEY, {**deciding, "content": content}, metadata={**metadata, "stamps": stamps})
    if store.list(SCORES_KEY):
        logger.info(f"{config.output} is finished; nothing to do")
    else:
        tables = _evaluate(config, store, benchmarks, content["models"])
        sink = pa.BufferOutputStream()
        pq.write_table(pa.concat_tables(tables), sink)
        store.put_new(SCORES_KEY, sink.getvalue().to_pybytes(), attempt="driver")
    result = summary(read_scores(store), config.compare, config.bootstrap_samples, config.seed)
    store.put_new("report.html", html_report(result).encode(), attempt="driver")
    return result


def _pinned(store: Store) -> dict[str, Any]:
    """The manifest of the output, {} if there is none yet.

    Raises InputError if it has only names: its scores may be of earlier content under these names.
    """
    try:
        pinned: dict[str, Any] = json.loads(store.get(CONFIG_KEY))
    except FileNotFoundError:
        return {}
    except ValueError:
        pinned = {}
    if not isinstance(pinned, dict) or "content" not in pinned:
        raise InputError(
            f"{store.url}/{CONFIG_KEY}: does not identify the content of its models and benchmarks, because an earlier"
            " version wrote it; choose another output, or, if nothing has changed since, remove this file and run the"
            " same command again: it recomputes nothing"
        )
    return pinned


def _content(
    config: EvaluateConfig, benchmarks: Sequence[Benchmark], pinned: Mapping[str, Any]
) -> tuple[dict[str, dict[str, Any]], dict[str, str | None]]:
    """Fingerprints of the models (by side), run files and benchmarks that the config names, and the models' stamps.

    A model with the pinned stamp is not read again. Raises InputError if a run file is missing.
    """
    models, runs, stamps = dict[str, Any](), dict[str, str](), dict[str, str | None]()
    for model in config.encoders.values():
        if isinstance(model, EncoderModel):
            stamp = stamps[model.model] = model_stamp(model.model)
            if stamp is not None and stamp == pinned.get("stamps", {}).get(model.model):
                models[model.model] = pinned["content"]["models"][model.model]
            else:
                models[model.model] = {
                    side: model_fingerprint(model.model, side) for side in saved_settings(model.model).sides
                }
        elif isinstance(model, RunFiles):
            urls = [_run_url(model, benchmark) for benchmark in benchmarks]
            runs |= {url: file_sha256(url)[:16] for url in urls}
    of_benchmarks = {benchmark.name: fingerprint_of(benchmark.collections) for benchmark in benchmarks}
    return {"models": models, "runs": runs, "benchmarks": of_benchmarks}, stamps


def _run_url(model: RunFiles, benchmark: Benchmark) -> str:
    return f"{model.path.rstrip('/')}/{benchmark.name}.trec"


def read_scores(store: Store) -> pa.Table:
    """The scores of a finished evaluation, in SCORES_SCHEMA.

    Raises InputError if an earlier version wrote them without topics: intervals would then resample single queries.
    """
    table = pq.read_table(pa.BufferReader(store.get(SCORES_KEY)))
    if table.schema.names != SCORES_SCHEMA.names:
        lacking = ", ".join(name for name in SCORES_SCHEMA.names if name not in table.schema.names)
        raise InputError(
            f"{store.url}/{SCORES_KEY}: lacks {lacking}, because an earlier version wrote it; remove it and"
            " report.html beside it and run the same command again: it reuses all vectors"
        )
    return table


def _check_comparisons(config: EvaluateConfig) -> None:
    for name in (name for pair in config.compare for name in pair):
        if name not in config.encoders:
            raise InputError(
                f"compare: `{name}` is not among the encoders; expected one of {', '.join(config.encoders)}"
            )


def open_benchmark(settings: BenchmarkConfig, template: str | None = None) -> Benchmark:
    """Raises InputError if its data are missing or invalid."""
    collections = read_benchmark(settings)
    kind = KINDS[f"followir {settings.score}" if isinstance(settings, FollowIR) else settings.kind]
    return Benchmark(collections[0].name, kind, template or kind.template, tuple(collections))


def _evaluate(
    config: EvaluateConfig,
    store: Store,
    benchmarks: Sequence[Benchmark],
    fingerprints: Mapping[str, Mapping[Side, str]],
) -> list[pa.Table]:
    index = _Index(config, benchmarks, fingerprints)
    tables = []
    for name, model in config.encoders.items():
        for benchmark in benchmarks:
            rankings: list[Mapping[str, Ranking]] = []
            notes: dict[str, Any] = {"template": benchmark.template}
            for collection in benchmark.collections:
                if isinstance(model, RunFiles):
                    url = _run_url(model, benchmark)
                    rankings.append(read_run(url, collection.views, collection.passages))
                    missing = sum(not ranking.ids for ranking in rankings[-1].values())
                    notes = _with(notes, {"run": url, "num_queries_without_a_line": missing})
                    continue
                if isinstance(model, Bm25Model):
                    hits = _hits_of_bm25(config.actors, model, benchmark, collection)
                    notes = _with(notes, model.model_dump(mode="json"))
                else:
                    hits = index.hits(name, collection)
                    notes = _with(notes, index.notes(name, collection))
                found = rankings_of(hits, len(collection.views), sorted(collection.passages))
                rankings.append(
                    {view.id: ranking for view, ranking in zip(collection.views, found, strict=True)}
                )
            scores = score(benchmark.kind, benchmark.collections, rankings)
            _put_files(store, name, benchmark, rankings, scores, notes)
            logger.info(f"{name} on {benchmark.name}: {_sentence(notes)}")
            tables.append(scores_to_table(name, scores))
    return tables


def _with(notes: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Merges notes; the counts of several collections are added up."""
    return {
        **notes,
        **{
            key: notes.get(key, 0) + value if key.startswith("num_") else value for key, value in more.items()
        },
    }


def _put_files(
    store: Store,
    name: str,
    benchmark: Benchmark,
    rankings: Sequence[Mapping[str, Ranking]],
    scores: Sequence[QueryScore],
    notes: Mapping[str, Any],
) -> None:
    def put(key: str, text: str) -> None:
        if text:
            store.put_new(key, text.encode(), attempt="driver")

    pairs = list(zip(benchmark.collections, rankings, strict=True))
    put(
        f"runs/{name}/{benchmark.name}.trec",
        "".join(line for _, of_views in pairs for line in run_lines(of_views, name)),
    )
    put(f"moved/{name}/{benchmark.name}.jsonl", "".join(line for pair in pairs for line in most_moved(*pair)))
    result = mteb_result(benchmark.kind, benchmark.collections, rankings, scores, notes)
    put(f"results/{name}/{benchmark.name}.json", json.dumps(result, indent=2, allow_nan=False))


def _sentence(notes: Mapping[str, Any]) -> str:
    """The query template, the number of texts that were cut, and the number of queries without a line."""
    cut = [
        f"{notes[f'num_{side}_texts_cut']:,} of {notes[f'num_{side}_texts']:,} {side} texts are longer than"
        f" {notes[f'{side}_max_tokens']} tokens and were cut"
        for side in ("query", "passage")
        if notes.get(f"num_{side}_texts_cut")
    ]
    missing = notes.get("num_queries_without_a_line", 0)
    return "; ".join([notes["template"], *cut, *([f"{missing:,} queries have no line"] if missing else [])])


# --- encoders -------------------------------------------------------------------------------------


class _Asked(NamedTuple):
    """The texts of one side of a collection, for one encoder."""

    spec: EmbeddingSpec
    keys_N: NDArray[np.uint64]
    numbers_N: NDArray[np.int64]  # of the views or passages


class _Index:
    """The vectors of all texts, in the store."""

    def __init__(
        self,
        config: EvaluateConfig,
        benchmarks: Sequence[Benchmark],
        fingerprints: Mapping[str, Mapping[Side, str]],  # model -> side -> of its files
    ) -> None:
        self.config, self.store = config, vectors_store(config, open_store(config.output))
        self.asked: dict[tuple[str, int, Side], _Asked] = {}
        wanted = []
        for name, model in config.encoders.items():
            if not isinstance(model, EncoderModel):
                continue
            specs = specs_of(config, model, fingerprints[model.model])
            for benchmark, collection in ((b, c) for b in benchmarks for c in b.collections):
                sides_V = [query_side(view.instruction, specs) for view in collection.views]
                numbers_of = {
                    side: [v for v, of_view in enumerate(sides_V) if of_view == side] for side in QUERY_SIDES
                }
                texts_of: dict[Side, list[str]] = {
                    side: [benchmark.text(collection.views[v]) for v in numbers]
                    for side, numbers in numbers_of.items()
                    if numbers
                }
                texts_of["document"] = texts_of_passages(collection)
                for side, texts in texts_of.items():
                    numbers_N = np.array(numbers_of.get(side, range(len(texts))))
                    asked = _Asked(specs[side], keys_of(texts), numbers_N)
                    self.asked[name, id(collection), side] = asked
                    payload = partial(_pick, texts)
                    wanted.append(
                        Wanted(model.model, asked.spec, asked.keys_N, payload, list, config.rows_per_shard)
                    )
        ensure_embeddings(self.store, wanted, config.actors, trust_remote_code=config.trust_remote_code)
        self.keys_of_units = {
            asked.spec: keys_by_unit(self.store, asked.spec) for asked in self.asked.values()
        }

    def units(self, name: str, collection: Collection, side: Side) -> list[Unit]:
        asked = self.asked[name, id(collection), side]
        return locate(self.store, asked.spec, asked.keys_N, self.keys_of_units[asked.spec])

    def sides(self, name: str, collection: Collection) -> list[Side]:
        """The sides of the collection's queries."""
        return [side for side in QUERY_SIDES if (name, id(collection), side) in self.asked]

    def queries(self, name: str, collection: Collection) -> NDArray[np.float32]:
        """Vectors (V, E) of the collection's views."""
        sides = self.sides(name, collection)
        numbers_V = np.concatenate([self.asked[name, id(collection), side].numbers_N for side in sides])
        vectors_VE = np.concatenate(
            [gather(self.store, self.units(name, collection, side)) for side in sides]
        )
        return vectors_VE[np.argsort(numbers_V)]

    def hits(self, name: str, collection: Collection) -> Hits:
        """INPUT units of passages -> FAN-OUT tasks -> OUTPUT the best hits of each; vectors stay in the tasks."""
        units = self.units(name, collection, "document")
        queries_VE = self.queries(name, collection)
        batches = list(_batches(units, max(1, _PASSAGES_A_TASK // self.config.rows_per_shard)))
        questions: Any = (queries_VE, candidates_of(collection, collection.views))
        if len(batches) > 1:
            join_cluster(self.config.actors)
            questions = ray.put(questions)
        parts = map_on_cluster(self.config.actors, partial(_search_units, self.store, questions), batches)
        return _merged(parts, collection)

    def notes(self, name: str, collection: Collection) -> dict[str, Any]:
        """The prompts and token limits, and how many texts were cut."""
        notes: dict[str, Any] = {}
        sides_of: dict[str, list[Side]] = {"query": self.sides(name, collection), "passage": ["document"]}
        for label, sides in sides_of.items():
            of_sides = [self.asked[name, id(collection), side] for side in sides]
            units = [self.units(name, collection, side) for side in sides]
            notes |= {
                f"{label}_prompt": of_sides[0].spec.prompt,
                f"{label}_max_tokens": of_sides[0].spec.max_tokens,
                f"num_{label}_texts": sum(len(np.unique(asked.keys_N)) for asked in of_sides),
                f"num_{label}_texts_cut": sum(num_cut(self.store, of_side) for of_side in units),
            }
        return notes


def texts_of_passages(collection: Collection) -> list[str]:
    """Texts of the passages, in the order of their ids, which is also that of their numbers."""
    return [collection.passages[id].full_text for id in sorted(collection.passages)]


def _pick(texts: Sequence[str], numbers: Sequence[int]) -> list[str]:
    return [texts[number] for number in numbers]


def vectors_store(config: EvaluateConfig, output: Store) -> Store:
    """The store of an evaluation's vectors; `output` is its current place."""
    return open_store(config.embeddings or f"{output.url.rstrip('/')}/embeddings")


def specs_of(
    config: EvaluateConfig, model: EncoderModel, fingerprints: Mapping[Side, str]
) -> dict[Side, EmbeddingSpec]:
    """What determines the vectors of each side of the model; `fingerprints` are those of its files."""
    saved = saved_settings(model.model)
    of_queries = (model.query_prompt, config.max_query_tokens)
    of_passages = (model.passage_prompt, config.max_passage_tokens)
    specs: dict[Side, EmbeddingSpec] = {}
    for side, content in fingerprints.items():
        prompt, max_tokens = of_passages if side == "document" else of_queries
        prompt = saved.prompts[side] if prompt is None else prompt
        specs[side] = EmbeddingSpec(content, side, saved.pooling, prompt, max_tokens, config.precision)
    return specs


def candidates_of(collection: Collection, views: Sequence[QueryView]) -> list[NDArray[np.int32]] | None:
    """The numbers of each view's candidates; None if every passage is one, for all views of a collection alike."""
    number_of = {id: number for number, id in enumerate(sorted(collection.passages))}
    listed = [view.candidates for view in views]
    if listed[0] is None:
        return None
    return [np.array([number_of[id] for id in candidates or ()], np.int32) for candidates in listed]


def _batches(items: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _search_units(store: Store, questions: Any, units: Sequence[Unit]) -> Found:
    queries_VE, candidates = ray.get(questions) if isinstance(questions, ray.ObjectRef) else questions
    return search_among(by_vectors(store, units, queries_VE), len(queries_VE), candidates)


def search_among(
    shards: Iterable[Block],
    num_views: int,
    candidates: Sequence[NDArray[np.int32]] | None,
    k: int = DEPTH,
) -> Found:
    """Scores all of each view's candidates; if none are listed, finds the k best passages."""
    return search(shards, num_views, k=0 if candidates else k, listed=candidates)


def hits_of(found: Found, view: QueryView) -> Hits:
    """The hits that rank views like this one."""
    return found.best if view.candidates is None else found.listed


def _merged(parts: Iterable[Found], collection: Collection) -> Hits:
    return hits_of(merge(list(parts), DEPTH), collection.views[0])


# --- BM25 -----------------------------------------------------------------------------------------


def _hits_of_bm25(actors: Actors, model: Bm25Model, benchmark: Benchmark, collection: Collection) -> Hits:
    """FAN-OUT parts of the corpus twice: to count terms, and to score each part with the counts of the whole."""
    terms = bm25.terms_of([benchmark.text(view) for view in collection.views], model)
    vocabulary = bm25.vocabulary_of(terms)
    texts = texts_of_passages(collection)
    parts = [
        (start, texts[start : start + _PASSAGES_A_TASK]) for start in range(0, len(texts), _PASSAGES_A_TASK)
    ]
    statistics = bm25.total(map_on_cluster(actors, partial(_count, model, vocabulary), parts))
    queries = bm25.numbered(terms, vocabulary)
    candidates = candidates_of(collection, collection.views)
    search_part = partial(_search_words, model, vocabulary, statistics, queries, candidates)
    return _merged(map_on_cluster(actors, search_part, parts), collection)


def _count(model: Bm25Model, vocabulary: Mapping[str, int], part: tuple[int, list[str]]) -> bm25.Statistics:
    return bm25.count(bm25.numbered(bm25.terms_of(part[1], model), vocabulary), len(vocabulary))


def _search_words(
    model: Bm25Model,
    vocabulary: Mapping[str, int],
    statistics: bm25.Statistics,
    queries: Sequence[Sequence[int]],
    candidates: Sequence[NDArray[np.int32]] | None,
    part: tuple[int, list[str]],
) -> Found:
    first, texts = part
    index = bm25.index_part(bm25.numbered(bm25.terms_of(texts, model), vocabulary), statistics, model)
    passages_D = np.arange(first, first + len(texts), dtype=np.int32)
    found = search_among(
        [Block(passages_D, partial(bm25.scores_of_all, index, queries))], len(queries), candidates
    )
    return Found(bm25.with_a_word(found.best), found.listed)
