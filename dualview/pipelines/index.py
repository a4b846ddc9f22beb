"""The vectors of an index that exists: taken over for the frozen passages of a run, in place of encoding them again.

A sample is compared with the model's own vectors first. Passages are recognised by their text.
"""

# E = embedding size, B = rows of a batch

from collections.abc import Iterator, Mapping
import logging
from typing import NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import ray

from dualview.beir import read_rows
from dualview.config.base import Actors
from dualview.config.train import IndexConfig
from dualview.distributed.cluster import errors_of_workers, join_cluster
from dualview.errors import InputError
from dualview.retrieval.embeddings import (
    Embedded,
    EmbeddingSpec,
    keys_by_unit,
    put_unit,
    text_key,
    unit_name,
)
from dualview.retrieval.encoder import encode, encoder_of
from dualview.storage import Store, arrow_filesystem

logger = logging.getLogger(__name__)

NUM_COMPARED = 64
MIN_COSINE = 0.999
_BATCH = 8192


class Found(NamedTuple):
    """Passages that the index has; one row each."""

    keys_B: NDArray[np.uint64]  # of their texts
    texts: list[str]
    vectors_BE: NDArray[np.float32]


class Model(NamedTuple):
    """The model of the index, and where it is run to compare."""

    name: str
    trust_remote_code: bool
    actors: Actors


def take_over(
    index: IndexConfig,
    model: Model,
    store: Store,
    spec: EmbeddingSpec,
    text_keys: NDArray[np.uint64],
    cut: NDArray[np.bool_],
) -> None:
    """Puts the index's vectors of these texts into the embedding cache, unless the cache has them.

    cut: whether each text is longer than the model reads. Raises InputError if a file cannot be read, the index has none
    of the texts, or the vectors are not the model's.
    """
    held = keys_by_unit(store, spec).values()
    wanted = np.setdiff1d(text_keys, np.concatenate([np.empty(0, np.uint64), *held]))
    if not len(wanted):
        return
    was_cut = dict(zip(text_keys.tolist(), cut.tolist(), strict=True))
    num_found, in_unit_length = 0, True
    for found in _batches(index, wanted):
        if not num_found:
            in_unit_length = _compare(index, model, spec, found)
        taken = np.isin(found.keys_B, wanted)  # the first of several copies of a text counts
        if not taken.any():
            continue
        keys_B, vectors_BE = found.keys_B[taken], found.vectors_BE[taken]
        if in_unit_length:
            vectors_BE = _unit_length(vectors_BE)
        wanted = np.setdiff1d(wanted, keys_B)
        embedded = Embedded(vectors_BE, np.array([was_cut[key] for key in keys_B.tolist()], bool))
        put_unit(store, unit_name(keys_B), spec, keys_B, embedded, uuid4().hex)
        num_found += len(keys_B)
    if not num_found:
        raise InputError(
            f"index.vectors: {index.vectors} has none of the {len(text_keys):,} passages to train on; expected their"
            " texts as the training data has them, title and text"
        )
    logger.info(
        f"{index.vectors}: vectors of {num_found:,} passages taken over, {len(wanted):,} left to encode"
    )


def compare(
    texts: list[str], theirs_BE: NDArray[np.float32], ours_BE: NDArray[np.float32], name: str
) -> float:
    """The smallest cosine of an index's vectors to the model's own.

    Raises InputError, which shows the worst pair, below MIN_COSINE or if the sizes differ.
    """
    if theirs_BE.shape[1] != ours_BE.shape[1]:
        raise InputError(
            f"index.vectors: {name} has vectors of {theirs_BE.shape[1]} dimensions, but the model's have"
            f" {ours_BE.shape[1]}; expected the model that made the index"
        )
    cosines = (_unit_length(theirs_BE) * _unit_length(ours_BE)).sum(axis=1)
    worst = int(cosines.argmin())
    if not cosines[worst] >= MIN_COSINE:
        start = {"index": theirs_BE[worst, :4], "model": ours_BE[worst, :4]}
        shown = "; ".join(
            f"{side} [{', '.join(f'{x:.4f}' for x in of_side)}, ...]" for side, of_side in start.items()
        )
        raise InputError(
            f"index.vectors: {name} was not made by this model: of {len(texts)} passages the worst has cosine"
            f" {cosines[worst]:.4f} to the model's own vector ({shown}), for the text {texts[worst][:80]!r}; expected at"
            f" least {MIN_COSINE}. Check encoder.pooling, encoder.prompts.document and encoder.max_passage_tokens"
        )
    return float(cosines[worst])


def _compare(index: IndexConfig, model: Model, spec: EmbeddingSpec, found: Found) -> bool:
    """Compares a sample; returns whether the model's vectors have unit length."""
    texts = found.texts[:NUM_COMPARED]
    join_cluster(model.actors)
    of_model = ray.remote(_encode).options(num_cpus=model.actors.cpus, num_gpus=model.actors.gpus)
    with errors_of_workers():
        ours_BE = ray.get(of_model.remote(model.name, spec, texts, model.trust_remote_code))
    smallest = compare(texts, found.vectors_BE[:NUM_COMPARED], ours_BE, index.vectors)
    logger.info(f"{index.vectors}: {len(texts)} vectors have cosine {smallest:.5f} or more to the model's")
    return bool(np.allclose(np.linalg.norm(ours_BE, axis=1), 1.0, atol=1e-3))


def _encode(
    model: str, spec: EmbeddingSpec, texts: list[str], trust_remote_code: bool
) -> NDArray[np.float32]:
    encoder = encoder_of(model, spec.pooling, trust_remote_code=trust_remote_code)
    if ray.get_gpu_ids():
        encoder.to("cuda")
    vectors_NE: NDArray[np.float32] = encode(encoder, spec, texts).vectors_NE
    return vectors_NE


def _unit_length(vectors_BE: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths_B1 = np.linalg.norm(vectors_BE, axis=1, keepdims=True)
    scaled_BE: NDArray[np.float32] = np.divide(vectors_BE, np.maximum(lengths_B1, 1e-12), dtype=np.float32)
    return scaled_BE


# --- reading --------------------------------------------------------------------------------------


def _batches(index: IndexConfig, wanted: NDArray[np.uint64]) -> Iterator[Found]:
    """The rows of the index whose texts are wanted; batches without any are left out."""
    texts_of = None if index.corpus is None else _texts_by_id(index.corpus, wanted)
    rows = _rows_of_npy(index) if index.vectors.endswith(".npy") else _rows_of_parquet(index)
    for ids_or_texts, vectors_BE in rows:
        texts = ids_or_texts if texts_of is None else [texts_of.get(id, "") for id in ids_or_texts]
        keys_B = np.fromiter(map(text_key, texts), np.uint64, len(texts))
        first = np.unique(keys_B, return_index=True)[1]  # of several rows with one text
        taken = np.sort(first[np.isin(keys_B[first], wanted)])
        if not len(taken):
            continue
        if not np.isfinite(vectors_BE[taken]).all():
            raise InputError(
                f"index.vectors: {index.vectors} has a vector that is not finite (NaN or infinite)"
            )
        yield Found(keys_B[taken], [texts[n] for n in taken], vectors_BE[taken])


def _texts_by_id(corpus: str, wanted: NDArray[np.uint64]) -> Mapping[str, str]:
    """The texts of a corpus.jsonl that are wanted, by id."""
    keys = frozenset(wanted.tolist())
    passages = (row.passage() for row in read_rows(corpus))
    return {passage.id: passage.full_text for passage in passages if text_key(passage.full_text) in keys}


def _rows_of_parquet(index: IndexConfig) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    filesystem, path = arrow_filesystem(index.vectors)
    try:
        dataset = pads.dataset(path, filesystem=filesystem, format="parquet")
    except (OSError, pa.ArrowInvalid) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"index.vectors: {index.vectors} cannot be read as Parquet ({reason})") from None
    names = dataset.schema.names
    vector = _column(index, names, ("vector", "embedding", "embeddings", "values"))
    if index.corpus is None:
        text = _column(index, names, ("text", "full_text", "document", "contents"))
        columns = [*(("title",) if "title" in names else ()), text]
    else:
        columns = [_column(index, names, ("id", "_id", "docid", "doc_id"))]
    for batch in dataset.to_batches(columns=[*columns, vector], batch_size=_BATCH):
        if batch.num_rows:
            parts = [batch[name].to_pylist() for name in columns]
            texts = [
                " ".join("" if part is None else str(part) for part in row).strip()
                for row in zip(*parts, strict=True)
            ]
            yield texts, _matrix(index, batch[vector])


def _column(index: IndexConfig, names: list[str], known: tuple[str, ...]) -> str:
    if found := next((name for name in known if name in names), None):
        return found
    raise InputError(
        f"index.vectors: {index.vectors} has the columns {', '.join(names)}; expected one of {', '.join(known)}"
        + (", or index.corpus with the texts by id" if "text" in known else "")
    )


def _matrix(index: IndexConfig, column: pa.Array) -> NDArray[np.float32]:
    lengths = set() if column.null_count else set(pc.list_value_length(column).to_pylist())
    if len(lengths) != 1:
        raise InputError(f"index.vectors: {index.vectors}: expected a vector in each row, all of one size")
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    return flat.reshape(len(column), -1)


def _rows_of_npy(index: IndexConfig) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    if index.ids is None or index.corpus is None:
        raise InputError(
            f"index.vectors: {index.vectors} needs index.ids, a file with the id of each row on a line, and index.corpus, a"
            " corpus.jsonl with the texts"
        )
    try:
        vectors = np.load(index.vectors, mmap_mode="r", allow_pickle=False)
        with open(index.ids, encoding="utf-8") as file:
            ids = file.read().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"index: {index.vectors} or {index.ids} cannot be read ({error})") from None
    if vectors.ndim != 2 or len(ids) != len(vectors):
        raise InputError(
            f"index: {index.vectors} has the shape {vectors.shape} and {index.ids} {len(ids):,} lines; expected a row for"
            " each line"
        )
    for start in range(0, len(ids), _BATCH):
        yield ids[start : start + _BATCH], np.asarray(vectors[start : start + _BATCH], np.float32)
