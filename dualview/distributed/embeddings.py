"""Encoding on Ray: actors that hold an encoder put vectors on a store, where other evaluations find them.

    FINGERPRINT/TEXTS.parquet    text_sha256 and vector of some texts, in their order; created once

FINGERPRINT is of all that decides a vector, TEXTS of the texts: what stands is not encoded again.
"""

# D, N = texts of a shard, of any list; E = embedding size

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
import hashlib
import json
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy

from dualview.config.base import ENCODING_GROUP, Pool, fingerprint
from dualview.distributed.cluster import ENCODING_ENVIRONMENT, errors_of_workers, join_cluster
from dualview.errors import InputError
from dualview.models import Side
from dualview.progress import Progress
from dualview.storage import Store, arrow_filesystem

if TYPE_CHECKING:  # sentence-transformers takes seconds to import, and only the actors need it
    from sentence_transformers import SentenceTransformer

    from dualview.retrieval.encoder import Precision


@dataclass(frozen=True)
class Space:
    """All that decides the vector of a text."""

    fingerprint: str  # of the model's files
    side: Side
    max_tokens: int
    precision: "Precision"
    prompt: str | None  # before every text; None: the model's own

    @property
    def folder(self) -> str:
        # Before weights were float32 whatever the file says, vectors of files in half precision were others.
        return fingerprint({**asdict(self), "weights": "float32"})


@dataclass(frozen=True)
class Shard:
    """Texts whose vectors are one object."""

    model: str
    space: Space
    texts: tuple[str, ...]

    @cached_property
    def key(self) -> str:
        return f"{self.space.folder}/{fingerprint(self.texts)}.parquet"


def shards_of(model: str, space: Space, texts: Iterable[str], size: int) -> list[Shard]:
    """Each distinct text once, those of like length together, whatever their order."""
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    return [
        Shard(model, space, tuple(distinct[start : start + size])) for start in range(0, len(distinct), size)
    ]


def keep_vectors(store: Store, shards: Sequence[Shard], actors: Pool, *, trust_remote_code: bool) -> None:
    """Encodes what of the shards is not on the store yet. A vector does not depend on the size of shards.

    Raises InputError where an encoder cannot be used.
    """
    folders = {shard.space.folder for shard in shards}
    standing = {entry.key for folder in folders for entry in store.list(f"{folder}/")}
    to_do = {shard.key: shard for shard in shards if shard.key not in standing}
    # Those of a model together, because actors change models slowly, and long texts first, so that none is
    # begun last.
    order = sorted(to_do.items(), key=lambda item: (item[1].model, -len(item[1].texts[-1])))
    units = [{"key": key, **asdict(shard)} for key, shard in order]
    if not units:
        return
    join_cluster(actors)
    rows = ray.data.from_items(units, override_num_blocks=len(units)).map(
        KeepUnit,
        fn_constructor_args=(store, trust_remote_code),
        compute=ActorPoolStrategy(**actors.size(len(units))),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        runtime_env=ENCODING_ENVIRONMENT,
    )
    total = sum(len(shard.texts) for shard in to_do.values())
    with errors_of_workers(), Progress("encoding", total, unit="texts", trail=None) as progress:
        for row in rows.iter_rows():
            progress.advance(row["num_texts"])


class KeepUnit:
    """Puts the vectors of a shard; an actor that keeps the encoder it was last asked for."""

    def __init__(self, store: Store, trust_remote_code: bool) -> None:
        self.store, self.trust_remote_code = store, trust_remote_code
        self.model = ""

    def encoder_of(self, model: str) -> "SentenceTransformer":
        from dualview.retrieval.encoder import load_encoder

        if model != self.model:
            self.model = model
            self.encoder = load_encoder(model, trust_remote_code=self.trust_remote_code)
            if ray.get_gpu_ids():
                self.encoder.to("cuda")
        return self.encoder

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        space, texts = Space(**unit["space"]), list(unit["texts"])
        try:
            found = encode_in(self.encoder_of(unit["model"]), space, texts)
        except InputError as error:
            name = f"model {unit['model']}: "
            raise InputError(name + str(error).removeprefix(name)) from None
        notes = {**asdict(space), "prompt": found.prompt, "num_cut": found.num_cut}
        table = pa.table(
            {
                "text_sha256": [hashlib.sha256(text.encode()).hexdigest() for text in texts],
                "vector": pa.FixedSizeListArray.from_arrays(
                    found.vectors_NE.ravel(), found.vectors_NE.shape[1]
                ),
            }
        ).replace_schema_metadata({"dualview": json.dumps(notes)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="none", use_dictionary=False)  # floats do not get smaller
        self.store.put_new(unit["key"], sink.getvalue().to_pybytes(), uuid4().hex)
        return {"num_texts": len(texts)}


class Encoded(NamedTuple):
    vectors_NE: NDArray[np.float32]
    prompt: str  # that stood before every text
    num_cut: int  # texts with more tokens than are read


def encode_in(encoder: "SentenceTransformer", space: Space, texts: Sequence[str]) -> Encoded:
    """The texts' vectors, in their order. Raises InputError where the encoder cannot be used so."""
    from dualview.retrieval.encoder import (
        check_length,
        comparable,
        encode_tokens,
        num_cut,
        own_prompt,
        tokenize,
    )

    side = "query" if space.side == "query" else "passage"
    check_length(encoder, f"max_{side}_tokens", space.max_tokens)
    prompt = own_prompt(encoder, space.side) if space.prompt is None else space.prompt
    prompted = [prompt + text for text in texts]
    vectors, at_limit = [], []
    for start in range(0, len(texts), ENCODING_GROUP):
        some = prompted[start : start + ENCODING_GROUP]
        tokens = tokenize(encoder, some, space.max_tokens)
        found = encode_tokens(encoder, tokens, side=space.side, precision=space.precision)
        vectors.append(comparable(encoder, found).numpy())
        at_limit += [text for text, ids in zip(some, tokens, strict=True) if len(ids) == space.max_tokens]
    return Encoded(np.concatenate(vectors), prompt, num_cut(encoder, at_limit, space.max_tokens))


def kept_texts(store: Store, key: str) -> list[str]:
    """SHA-256 of each text whose vector the object holds, in their order."""
    filesystem, path = arrow_filesystem(f"{store.url}/{key}")
    with filesystem.open_input_file(path) as file:  # without the vectors
        digests: list[str] = pq.read_table(file, columns=["text_sha256"])["text_sha256"].to_pylist()
    return digests


def kept_vectors(store: Store, key: str) -> NDArray[np.float32]:
    """(D, E), in the order of the shard's texts."""
    column = pq.read_table(pa.BufferReader(store.get(key)), columns=["vector"])["vector"].combine_chunks()
    flat: NDArray[np.float32] = column.values.to_numpy()
    return flat.reshape(len(column), -1)


def kept_notes(store: Store, key: str) -> dict[str, Any]:
    """The space, its prompt in words, and num_cut: how many of the texts are longer than max_tokens."""
    filesystem, path = arrow_filesystem(f"{store.url}/{key}")
    with filesystem.open_input_file(path) as file:  # not all of it
        notes: dict[str, Any] = json.loads(pq.read_metadata(file).metadata[b"dualview"])
    return notes
