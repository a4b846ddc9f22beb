"""The embedding cache. Its objects, under one folder:

    SPEC/UNIT.arrow    key, vector and cut of some texts; created once

SPEC is the fingerprint of an EmbeddingSpec, UNIT that of the keys. Mining, query-side training, evaluation and search
share the vectors of the same texts under the same spec. A vector's last bits depend on the other texts in its batch, so
scores may differ in the seventh digit depending on which of two equivalent units exists.
"""

# N = requested texts, D = texts of a unit, E = embedding size

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
import hashlib
import json
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa

from dualview.config.base import PoolingMode, fingerprint
from dualview.errors import InputError
from dualview.models import Side
from dualview.storage import Store, arrow_filesystem


def text_key(text: str) -> int:
    """64 bits of a hash: among ten million texts, the probability of a collision is 3 in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def keys_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(text_key, texts), np.uint64)


@dataclass(frozen=True)
class EmbeddingSpec:
    """Everything that determines the vector of a text."""

    model: str  # the fingerprint of its files
    side: Side
    pooling: PoolingMode | None  # followed by normalisation; None: as the model was saved
    prompt: str  # prepended to every text
    max_tokens: int
    precision: Literal["bf16", "fp32"]

    @property
    def folder(self) -> str:
        # Invalidates vectors of earlier versions, which took the weights' precision from the model's file.
        return fingerprint({**asdict(self), "weights": "float32"})


class Tokenized(NamedTuple):
    """Texts as tokens, including prompt and special tokens."""

    tokens: Sequence[NDArray[np.int32]]
    cut: Sequence[bool]  # whether the text was truncated


class Embedded(NamedTuple):
    vectors_NE: NDArray[np.float32]
    cut_N: NDArray[np.bool_]


def unit_name(keys_D: NDArray[np.uint64]) -> str:
    return f"{fingerprint(keys_D.tolist())}.arrow"


def put_unit(
    store: Store, name: str, spec: EmbeddingSpec, keys_D: NDArray[np.uint64], found: Embedded, attempt: str
) -> None:
    vectors = pa.FixedSizeListArray.from_arrays(found.vectors_NE.ravel(), found.vectors_NE.shape[1])
    table = pa.table({"key": keys_D, "vector": vectors, "cut": found.cut_N})
    table = table.replace_schema_metadata({"dualview": json.dumps(asdict(spec))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    store.put_new(f"{spec.folder}/{name}", sink.getvalue().to_pybytes(), attempt)


class Unit(NamedTuple):
    """The requested texts that a unit holds. A text requested twice has two numbers."""

    key: str  # of the object
    rows_D: NDArray[np.int32]
    numbers_D: NDArray[np.int32]


def keys_by_unit(store: Store, spec: EmbeddingSpec) -> dict[str, NDArray[np.uint64]]:
    """The keys of each existing unit. Raises InputError if a file is incomplete."""
    return {entry.key: _column(store, entry.key, "key") for entry in store.list(f"{spec.folder}/")}


def locate(
    store: Store,
    spec: EmbeddingSpec,
    keys_N: NDArray[np.uint64],
    keys_of_units: Mapping[str, NDArray[np.uint64]] | None = None,
) -> list[Unit]:
    """The units that together hold each of these texts once. Raises InputError if one is missing."""
    held = keys_by_unit(store, spec) if keys_of_units is None else keys_of_units
    order_N = np.argsort(keys_N, kind="stable")
    sorted_N = keys_N[order_N]
    is_missing = np.ones(len(keys_N), bool)
    units = []
    for name, keys_D in sorted(held.items()):
        first, last = (np.searchsorted(sorted_N, keys_D, side) for side in ("left", "right"))
        times = np.where(is_missing[np.minimum(first, len(keys_N) - 1)], last - first, 0)
        if not times.any():
            continue
        rows = np.repeat(np.arange(len(keys_D)), times)
        places = np.concatenate([np.arange(a, a + n) for a, n in zip(first, times, strict=True) if n])
        is_missing[places] = False
        units.append(Unit(name, rows.astype(np.int32), order_N[places].astype(np.int32)))
    if num := int(is_missing.sum()):
        raise InputError(
            f"{store.url}/{spec.folder}: the vectors of {num:,} of {len(keys_N):,} texts are missing; rerun the command"
            " that made them, with the models at the paths of its config"
        )
    return units


def read_vectors(store: Store, unit: Unit) -> NDArray[np.float32]:
    """Vectors of the unit's rows; (D, E)."""
    return vectors_of(pa.ipc.open_file(pa.BufferReader(store.get(unit.key))).read_all())[unit.rows_D]


def vectors_of(unit: pa.Table) -> NDArray[np.float32]:
    """All vectors of a unit's table, (D, E), without a copy."""
    column = unit["vector"].chunk(0)
    flat: NDArray[np.float32] = column.values.to_numpy()
    return flat.reshape(len(column), -1)


def gather(store: Store, units: Sequence[Unit]) -> NDArray[np.float32]:
    """Vectors (N, E) in the order of the requested texts."""
    numbers = np.concatenate([unit.numbers_D for unit in units])
    return np.concatenate([read_vectors(store, unit) for unit in units])[np.argsort(numbers)]


def num_cut(store: Store, units: Sequence[Unit]) -> int:
    """How many distinct texts were truncated."""
    return sum(int(_column(store, unit.key, "cut")[np.unique(unit.rows_D)].sum()) for unit in units)


def _column(store: Store, key: str, name: str) -> NDArray[Any]:
    """One column; does not read the vectors."""
    filesystem, path = arrow_filesystem(f"{store.url}/{key}")
    with filesystem.open_input_file(path) as file:
        try:
            schema = pa.ipc.open_file(file).schema
            options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)])
            table = pa.ipc.open_file(file, options=options).read_all()
            column: NDArray[Any] = table[name].to_numpy()
        except (pa.ArrowInvalid, KeyError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"{store.url}/{key}: is not a complete Arrow file of vectors ({reason}); remove it and rerun the command"
            ) from None
    return column


@dataclass(frozen=True)
class Wanted:
    """Texts whose vectors the cache must hold.

    `payload` returns what a worker process needs for the texts with these numbers, and `read` turns it into texts on
    the worker, so a corpus need not fit in memory.
    """

    model: str
    spec: EmbeddingSpec
    keys_N: NDArray[np.uint64]
    payload: Callable[[Sequence[int]], Any]
    read: Callable[[Any], Sequence[str] | Tokenized]
    rows_per_unit: int


class Missing(NamedTuple):
    """A unit that has to be encoded."""

    wanted: int  # index into `wanted`
    keys_D: NDArray[np.uint64]
    numbers_D: NDArray[np.int64]


def missing_units(store: Store, wanted: Sequence[Wanted]) -> list[Missing]:
    """The units to encode so that the cache holds all wanted texts, each once.

    The split into units depends only on `wanted`, so an interrupted run resumes with the same units.
    """
    cached: dict[str, NDArray[np.uint64]] = {}
    units = []
    for place, texts in enumerate(wanted):
        folder = texts.spec.folder
        if folder not in cached:
            held = keys_by_unit(store, texts.spec).values()
            cached[folder] = np.concatenate([np.empty(0, np.uint64), *held])
        keys, first = np.unique(texts.keys_N, return_index=True)
        is_missing = ~np.isin(keys, cached[folder])
        for start in range(0, len(keys), texts.rows_per_unit):
            rows = slice(start, start + texts.rows_per_unit)
            if is_missing[rows].any():
                units.append(Missing(place, keys[rows][is_missing[rows]], first[rows][is_missing[rows]]))
        cached[folder] = np.concatenate([cached[folder], keys[is_missing]])
    return units
