"""Searches an evaluation's index for one query under several instructions, with each of its encoders."""

# V = views, one for each instruction

from collections.abc import Iterable, Mapping, Sequence
import json

from pydantic import ValidationError

from dualview.config.evaluate import EncoderModel, EvaluateConfig
from dualview.config.renames import with_new_names
from dualview.errors import InputError
from dualview.evaluation.benchmarks.collections import Collection, QueryView
from dualview.evaluation.side_by_side import Found, Hit
from dualview.models import Side
from dualview.pipelines.evaluate import (
    CONFIG_KEY,
    Benchmark,
    candidates_of,
    hits_of,
    open_benchmark,
    search_among,
    specs_of,
    texts_of_passages,
    vectors_store,
)
from dualview.retrieval.embeddings import EmbeddingSpec, keys_of, locate
from dualview.retrieval.ranking import rankings_of
from dualview.retrieval.search import Block, by_vectors
from dualview.storage import Store, check_reachable, open_store


def search(url: str, query: str | None, instructions: Sequence[str], num_hits: int = 5) -> list[Found]:
    """Searches for a query under each of the instructions, with each encoder of the evaluation at `url`.

    Encodes only the query; passages keep the evaluation's vectors. If `query` is None, takes the first query of
    the benchmark with an instruction that excludes something, under its own two instructions. For a query of the
    benchmark, the hits are among its candidates and have labels; any other query searches the whole corpus of the
    first benchmark. Raises InputError if there is no such evaluation at `url`.
    """
    store, config, fingerprints = _evaluation(url)
    benchmark = open_benchmark(config.benchmarks[0], config.query_template)
    collection = benchmark.collections[0]
    views = _example(collection) if query is None else _asked(collection, query, instructions)
    hits = {
        name: _best(
            vectors_store(config, store),
            config,
            model,
            specs_of(config, model, fingerprints[model.model]),
            benchmark,
            views,
            num_hits,
        )
        for name, model in config.encoders.items()
        if isinstance(model, EncoderModel)
    }
    if not hits:
        raise InputError(
            f"{url}: has no encoder, only rankings of other models; expected an evaluation of an encoder"
        )
    return [
        Found(view.query, view.instruction, {name: of_views[number] for name, of_views in hits.items()})
        for number, view in enumerate(views)
    ]


def _evaluation(url: str) -> tuple[Store, EvaluateConfig, dict[str, dict[Side, str]]]:
    """Its store, its settings, and the fingerprints of its models' sides."""
    store = open_store(url)
    check_reachable(store)
    try:
        settings = json.loads(store.get(CONFIG_KEY))
        content, _ = settings.pop("content"), settings.pop("stamps")
        current = with_new_names(EvaluateConfig, settings)
        return store, EvaluateConfig.model_validate(current), content["models"]
    except FileNotFoundError:
        expected = "expected the output of jobs/evaluate.py"
        raise InputError(f"{url}: there is no {CONFIG_KEY}; {expected}") from None
    except (ValueError, KeyError, AttributeError, ValidationError):
        raise InputError(
            f"{url}/{CONFIG_KEY}: is not the manifest of an evaluation, or an earlier version wrote it;"
            " evaluate into another output"
        ) from None


def _example(collection: Collection) -> list[QueryView]:
    """Two views of the first case with an exclusion; if none is labelled so, of the first case with several views."""
    candidates = [case for case in collection.cases if len(case.views) > 1]
    if not candidates:
        raise InputError(
            f"{collection.name}: has no query with two instructions; give one of your own, for example"
            ' --query "main exports" --instruction "Only islands." --instruction "No islands."'
        )
    excluding = [case for case in candidates if case.labels.get("polarity") == "exclusion"]
    return list((excluding or candidates)[0].views.values())[:2]


def _asked(collection: Collection, query: str, instructions: Sequence[str]) -> list[QueryView]:
    known = {(view.query, view.instruction): view for view in collection.views}
    return [
        known.get((query, instruction)) or QueryView(str(number), query, instruction, grades={})
        for number, instruction in enumerate(instructions or [""])
    ]


def _best(
    store: Store,
    config: EvaluateConfig,
    model: EncoderModel,
    specs: Mapping[Side, EmbeddingSpec],
    benchmark: Benchmark,
    views: Sequence[QueryView],
    num_hits: int,
) -> list[list[Hit]]:
    """INPUT views -> their vectors -> OUTPUT the best passages of each view."""
    from dualview.retrieval.encoder import encode_queries, encoder_of  # seconds to import

    collection = benchmark.collections[0]
    units = locate(store, specs["document"], keys_of(texts_of_passages(collection)))
    encoder = encoder_of(model.model, specs["query"].pooling, trust_remote_code=config.trust_remote_code)
    texts = [benchmark.text(view) for view in views]
    queries_VE = encode_queries(encoder, specs, texts, [view.instruction for view in views])
    return [
        _hits(view, collection, by_vectors(store, units, query_E[None]), num_hits)
        for view, query_E in zip(views, queries_VE, strict=True)
    ]


def _hits(view: QueryView, collection: Collection, shards: Iterable[Block], num_hits: int) -> list[Hit]:
    found = search_among(shards, 1, candidates_of(collection, [view]), num_hits)
    (ranking,) = rankings_of(hits_of(found, view), 1, sorted(collection.passages))
    return [
        Hit(collection.passages[id], view.grades.get(id, 0) > 0 if view.grades else None)
        for id in ranking.ids[:num_hits]
    ]
