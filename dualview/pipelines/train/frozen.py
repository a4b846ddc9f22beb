"""The base encoder's vectors of frozen passages: kept in an embedding cache, looked up in training.

A run lists the units that it reads in its own vectors.json.
"""

# E = embedding size

from collections.abc import Callable, Sequence
from functools import cache, partial
import json

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa

from dualview.config.train import TrainConfig
from dualview.distributed.embeddings import ensure_embeddings
from dualview.errors import InputError
from dualview.models import model_fingerprint, pooling_of
from dualview.pipelines.index import Model, take_over
from dualview.pipelines.train.prepare import on_this_node, open_prepared
from dualview.retrieval.embeddings import EmbeddingSpec, Tokenized, Wanted, locate, vectors_of
from dualview.runs.manifest import pin_embedding_cache
from dualview.storage import Store, open_store
from dualview.training.prepared import Prepared

UNITS_KEY = "vectors.json"
PASSAGES_PER_UNIT = 1024  # small enough that even a small run has work for several actors


def keep_vectors(config: TrainConfig, prepared: Prepared) -> None:
    """Encodes the passages that have no vectors in the cache yet, from this run or any other.

    Raises InputError if vectors that the run began with are gone, or a file is incomplete.
    """
    if config.embeddings is not None:
        pin_embedding_cache(open_store(config.embeddings))
    store, cache_store, spec = open_store(config.output), vectors_store(config), spec_of(config)
    if store.list(UNITS_KEY):
        names = {entry.key for entry in cache_store.list(f"{spec.folder}/")}
        if lost := sorted(set(json.loads(store.get(UNITS_KEY))) - names):
            raise InputError(
                f"{cache_store.url}/{lost[0]}: the vectors that {store.url} began with are missing; restore them, set"
                " `embeddings` as when it began, or choose another output"
            )
        return
    if config.index is not None:
        of_index = Model(config.encoder.model, config.encoder.trust_remote_code, config.workers)
        take_over(config.index, of_index, cache_store, spec, prepared.text_keys, prepared.cut)
    model = config.encoder.model
    read = partial(_read_tokens, config.model_dump_json())
    wanted = Wanted(model, spec, prepared.text_keys, list, read, PASSAGES_PER_UNIT)
    ensure_embeddings(
        cache_store, [wanted], config.workers, trust_remote_code=config.encoder.trust_remote_code
    )
    names_of_units = [unit.key for unit in locate(cache_store, spec, prepared.text_keys)]
    store.put_new(UNITS_KEY, json.dumps(names_of_units, indent=1).encode(), attempt="driver")


def look_up_vectors(
    config: TrainConfig, prepared: Prepared
) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Maps passage numbers to their vectors (len(numbers), E), read through a memory map."""
    cache_store, spec = vectors_store(config), spec_of(config)
    names = json.loads(open_store(config.output).get(UNITS_KEY))
    folder = on_this_node(cache_store, names, under=f"{spec.folder}/")
    tables = {name: pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all() for name in names}
    vectors = [vectors_of(table) for table in tables.values()]
    keys = {name: table["key"].to_numpy() for name, table in tables.items()}
    unit_of, row_of = np.empty((2, prepared.num_passages), np.int64)
    places = {name: place for place, name in enumerate(tables)}
    for unit in locate(cache_store, spec, prepared.text_keys, keys):
        unit_of[unit.numbers_D], row_of[unit.numbers_D] = places[unit.key], unit.rows_D

    def look_up(numbers: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([vectors[unit_of[number]][row_of[number]] for number in numbers])

    return look_up


def vectors_store(config: TrainConfig) -> Store:
    return open_store(config.embeddings or f"{config.output.rstrip('/')}/embeddings")


def spec_of(config: TrainConfig) -> EmbeddingSpec:
    settings = config.encoder
    return EmbeddingSpec(
        model_fingerprint(settings.model, "document"),
        "document",
        pooling_of(settings.model, settings.pooling),
        settings.prompts.document,
        settings.max_passage_tokens,
        config.precision,
    )


def _read_tokens(settings: str, numbers: Sequence[int]) -> Tokenized:
    prepared = _prepared(settings)
    return Tokenized([prepared.tokens(number) for number in numbers], prepared.cut[list(numbers)].tolist())


@cache  # once per actor
def _prepared(settings: str) -> Prepared:
    return open_prepared(TrainConfig.model_validate_json(settings))
