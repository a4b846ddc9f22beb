"""Encoding on Ray: actors with an encoder add the missing vectors to the store."""

from collections.abc import Sequence
import logging
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import ray
from ray.data import ActorPoolStrategy

from dualview.config.base import Actors, Pool
from dualview.distributed.cluster import ENCODING_ENVIRONMENT, errors_of_workers, join_cluster
from dualview.errors import InputError
from dualview.progress import Progress
from dualview.retrieval.embeddings import Wanted, missing_units, put_unit, unit_name
from dualview.storage import Store

if TYPE_CHECKING:  # sentence-transformers takes seconds to import, and only the actors need it
    from sentence_transformers import SentenceTransformer

    from dualview.retrieval.embeddings import EmbeddingSpec


logger = logging.getLogger(__name__)


def ensure_embeddings(
    store: Store, wanted: Sequence[Wanted], actors: Actors, *, trust_remote_code: bool
) -> None:
    """Encodes the wanted texts that have no vectors in the store yet, from this run or any other.

    INPUT units of missing texts -> FAN-OUT actors with an encoder -> OUTPUT one put per unit.
    Raises InputError if an encoder cannot be used.
    """
    missing = missing_units(store, wanted)
    if not missing:
        return
    # Grouped by model, because an actor takes long to load another one.
    missing.sort(key=lambda unit: wanted[unit.wanted].model)
    units = [
        {
            "wanted": unit.wanted,
            "keys": unit.keys_D,
            "payload": wanted[unit.wanted].payload(unit.numbers_D.tolist()),
        }
        for unit in missing
    ]
    join_cluster(actors)
    size = actors.size(len(units)) if isinstance(actors, Pool) else {"size": min(actors.num, len(units))}
    requests = [(request.model, request.spec, request.read) for request in wanted]
    rows = ray.data.from_items(units, override_num_blocks=len(units)).map(
        EncodeUnit,
        fn_constructor_args=(store, requests, trust_remote_code),
        compute=ActorPoolStrategy(**size),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
        runtime_env=ENCODING_ENVIRONMENT,
    )
    total = sum(len(unit.keys_D) for unit in missing)
    with errors_of_workers(), Progress("encoding", total, unit="texts", trail=None) as progress:
        shown = set()
        for row in rows.iter_rows():
            if (read := tuple(row["read"])) not in shown:
                shown.add(read)
                logger.info(f"{read[1].replace('_', ' ')} as {read[0]} reads it: {row['first']}")
            progress.advance(row["num_texts"])


class EncodeUnit:
    """An actor that encodes units and puts their vectors; keeps the last encoder loaded."""

    def __init__(
        self, store: Store, requests: Sequence[tuple[str, Any, Any]], trust_remote_code: bool
    ) -> None:
        self.store, self.requests, self.trust_remote_code = store, requests, trust_remote_code
        self.loaded: tuple[str, str | None] | None = None

    def encoder_of(self, model: str, spec: "EmbeddingSpec") -> "SentenceTransformer":
        from dualview.retrieval.encoder import encoder_of

        if (model, spec.pooling) != self.loaded:
            self.loaded = (model, spec.pooling)
            self.encoder = encoder_of(model, spec.pooling, trust_remote_code=self.trust_remote_code)
            if ray.get_gpu_ids():
                self.encoder.to("cuda")
        return self.encoder

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        from dualview.retrieval.encoder import as_read, encode

        model, spec, read = self.requests[unit["wanted"]]
        keys_D = np.asarray(unit["keys"], np.uint64)
        texts = read(unit["payload"])
        try:
            encoder = self.encoder_of(model, spec)
            encoded, first = encode(encoder, spec, texts), as_read(encoder, spec, texts)
        except InputError as error:
            name = f"model {model}: "
            raise InputError(name + str(error).removeprefix(name)) from None
        put_unit(self.store, unit_name(keys_D), spec, keys_D, encoded, uuid4().hex)
        return {"num_texts": len(keys_D), "read": (model, spec.side), "first": first}
