"""The untouched encoder's vectors of frozen passages: encoded by Ray actors once, and kept where other runs find them.

    SPACE/UNIT.arrow    key and vector of some passages; created once

A key is 64 bits of the SHA-256 of a passage's tokens. SPACE is of all else that decides its vector, UNIT is of the
keys. A run lists the units that it looks things up in, in its own vectors.json.
"""

# P = passages of a run, E = embedding size

from collections.abc import Callable, Sequence
import hashlib
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from dualview.config.base import fingerprint
from dualview.config.train import TrainConfig
from dualview.distributed.cluster import ENCODING_ENVIRONMENT, errors_of_workers
from dualview.errors import InputError
from dualview.models import model_fingerprint
from dualview.pipelines.train.prepare import on_this_node, open_prepared, untouched_encoder
from dualview.progress import Progress
from dualview.retrieval.encoder import encode_tokens
from dualview.runs.manifest import claim_shelf
from dualview.storage import Store, arrow_filesystem, open_store
from dualview.training.prepared import Prepared

UNITS_KEY = "vectors.json"
PASSAGES_PER_UNIT = 1024  # so that the passages of a small run, too, are work for several actors


def keep_vectors(config: TrainConfig, prepared: Prepared) -> None:
    """Encodes the passages whose vectors are not kept yet. What an interrupted run or another one kept is used.

    Raises InputError where vectors that the run has begun with are not there any more, or a file is no whole one.
    """
    if config.embeddings is not None:
        claim_shelf(open_store(config.embeddings))
    store, shelf = open_store(config.output), _shelf(config)
    names = [entry.key for entry in shelf.list()]
    if store.list(UNITS_KEY):
        if lost := sorted(set(json.loads(store.get(UNITS_KEY))) - set(names)):
            raise InputError(
                f"{shelf.url}/{lost[0]}: the vectors that {store.url} began with are not there; expected `embeddings`"
                " as when it began and nothing removed there, or another output"
            )
        return
    keys_P = _keys(prepared)
    standing = {name: _keys_of_unit(shelf, name) for name in names}
    known = np.concatenate([np.empty(0, np.uint64), *standing.values()])
    keys, first = np.unique(keys_P, return_index=True)  # texts that occur twice are encoded once
    missing = ~np.isin(keys, known)
    keys, numbers = keys[missing], first[missing]
    units = {}
    for start in range(0, len(keys), PASSAGES_PER_UNIT):
        some = slice(start, start + PASSAGES_PER_UNIT)
        name = f"{fingerprint(keys[some].tolist())}.arrow"
        standing[name] = keys[some]
        units[name] = numbers[some].tolist()
    if units:
        _encode(config, units)
    needed = sorted(name for name, of_unit in standing.items() if np.isin(of_unit, keys_P).any())
    store.put_new(UNITS_KEY, json.dumps(needed, indent=1).encode(), attempt="driver")


def look_up_vectors(
    config: TrainConfig, prepared: Prepared
) -> Callable[[Sequence[int]], NDArray[np.float32]]:
    """Passage numbers to their vectors (len(numbers), E), read through a memory map."""
    shelf = _shelf(config)
    names = json.loads(open_store(config.output).get(UNITS_KEY))
    folder = on_this_node(shelf, names)
    units = [pa.ipc.open_file(pa.memory_map(str(folder / name))).read_all() for name in names]
    columns = [unit["vector"].chunk(0) for unit in units]
    vectors = [column.values.to_numpy().reshape(len(column), -1) for column in columns]
    keys = np.concatenate([unit["key"].to_numpy() for unit in units])
    unit_of = np.repeat(np.arange(len(units)), [len(column) for column in columns])
    row_of = np.concatenate([np.arange(len(column)) for column in columns])
    order = np.argsort(keys, kind="stable")
    place_P = order[np.searchsorted(keys, _keys(prepared), sorter=order)]

    def look_up(numbers: Sequence[int]) -> NDArray[np.float32]:
        return np.stack([vectors[unit_of[place]][row_of[place]] for place in place_P[list(numbers)]])

    return look_up


def _shelf(config: TrainConfig) -> Store:
    settings = config.encoder
    # float32: weights were once of the precision of the model's file.
    space = [model_fingerprint(settings.model, "document"), settings.pooling, config.precision, "float32"]
    folder = config.embeddings or f"{config.output.rstrip('/')}/embeddings"
    return open_store(f"{folder.rstrip('/')}/{fingerprint(space)}")


def _keys(prepared: Prepared) -> NDArray[np.uint64]:
    """(P,)"""
    numbers = range(prepared.num_passages)
    return np.fromiter((_key(prepared.tokens(number)) for number in numbers), np.uint64, len(numbers))


def _key(tokens: NDArray[np.int32]) -> int:
    return int.from_bytes(hashlib.sha256(tokens.astype("<i4").tobytes()).digest()[:8], "big")


def _keys_of_unit(shelf: Store, name: str) -> NDArray[np.uint64]:
    filesystem, path = arrow_filesystem(f"{shelf.url}/{name}")
    with filesystem.open_input_file(path) as file:
        try:  # not its vectors
            options = pa.ipc.IpcReadOptions(included_fields=[0])
            found: NDArray[np.uint64] = pa.ipc.open_file(file, options=options).read_all()["key"].to_numpy()
        except (pa.ArrowInvalid, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{shelf.url}/{name}: is not a whole Arrow file of vectors ({reason}); remove it, and it is encoded again"
            ) from None
    return found


def _encode(config: TrainConfig, units: dict[str, list[int]]) -> None:
    workers = config.workers
    rows = ray.data.from_items(
        [{"name": name, "passages": numbers} for name, numbers in units.items()],
        override_num_blocks=len(units),
    ).map(
        EncodePassages,
        fn_constructor_args=(config.model_dump(mode="json"),),
        compute=ActorPoolStrategy(size=min(workers.num, len(units))),
        num_cpus=workers.cpus,
        num_gpus=workers.gpus,
        runtime_env=ENCODING_ENVIRONMENT,
    )
    total = sum(map(len, units.values()))
    with errors_of_workers(), Progress("encoding passages", total, "passages", trail=None) as progress:
        for row in rows.iter_rows():
            progress.advance(row["num_passages"])


class EncodePassages:
    """An actor with the untouched encoder."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.config = TrainConfig.model_validate(settings, strict=False)
        self.prepared = open_prepared(self.config)
        self.shelf = _shelf(self.config)
        self.encoder = untouched_encoder(self.config)
        if ray.get_gpu_ids():
            self.encoder.to("cuda")

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        tokens = [self.prepared.tokens(number) for number in unit["passages"]]
        vectors_PE = encode_tokens(self.encoder, tokens, side="document", precision=self.config.precision)
        flat, size = vectors_PE.numpy().ravel(), vectors_PE.shape[1]
        keys = pa.array(map(_key, tokens), pa.uint64())
        table = pa.table({"key": keys, "vector": pa.FixedSizeListArray.from_arrays(flat, size)})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        self.shelf.put_new(unit["name"], sink.getvalue().to_pybytes(), attempt="actor")
        return {"num_passages": len(tokens)}
