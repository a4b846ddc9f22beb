"""Embeddings that are kept: what decides one, and the objects that hold them. Under a folder of their own:

    SPEC/UNIT.arrow    key, vector and cut of some texts; created once

SPEC is the fingerprint of an EmbeddingSpec, UNIT of the keys. Mining, training beside frozen documents, evaluation and
search ask for the same texts under the same spec and so find the same vectors. A vector's last bits depend on the texts
that it was encoded among, so which of two equal units stands may show in the seventh digit of a score.
"""

# N = texts that are asked for, D = texts of a unit, E = embedding size

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
import hashlib
import json
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
import pyarrow as pa

from dualview.config.base import fingerprint
from dualview.errors import InputError
from dualview.models import Side
from dualview.storage import Store, arrow_filesystem


def text_key(text: str) -> int:
    """64 bits of a hash: among ten million texts, two share one with a probability of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest())


def keys_of(texts: Iterable[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(text_key, texts), np.uint64)


@dataclass(frozen=True)
class EmbeddingSpec:
    """All that decides the vector of a text."""

    model: str  # the fingerprint of its files
    side: Side
    pooling: Literal["mean", "cls"] | None  # then unit length; None: as the model was saved
    prompt: str  # before every text
    max_tokens: int
    precision: Literal["bf16", "fp32"]

    @property
    def folder(self) -> str:
        # Weights were once of the precision of the model's file.
        return fingerprint({**asdict(self), "weights": "float32"})


class Tokenized(NamedTuple):
    """Texts as tokens, prompt and special tokens included."""

    tokens: Sequence[NDArray[np.int32]]
    cut: Sequence[bool]  # whether the text has more tokens than these


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
    """What a unit holds of the texts that were asked for. A text that occurs twice has two numbers."""

    key: str  # of the object
    rows_D: NDArray[np.int32]
    numbers_D: NDArray[np.int32]


def keys_by_unit(store: Store, spec: EmbeddingSpec) -> dict[str, NDArray[np.uint64]]:
    """The keys of each unit that stands. Raises InputError if one is no whole file."""
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
            f"{store.url}/{spec.folder}: the vectors of {num:,} of {len(keys_N):,} texts are missing; run again what"
            " made them, with the models where its config has them"
        )
    return units


def read_vectors(store: Store, unit: Unit) -> NDArray[np.float32]:
    """(D, E), of its rows."""
    return vectors_of(pa.ipc.open_file(pa.BufferReader(store.get(unit.key))).read_all())[unit.rows_D]


def vectors_of(unit: pa.Table) -> NDArray[np.float32]:
    """(D, E), of a unit as it was read; a memory map stays one."""
    column = unit["vector"].chunk(0)
    flat: NDArray[np.float32] = column.values.to_numpy()
    return flat.reshape(len(column), -1)


def gather(store: Store, units: Sequence[Unit]) -> NDArray[np.float32]:
    """(N, E), in the order in which the texts were asked for."""
    numbers = np.concatenate([unit.numbers_D for unit in units])
    return np.concatenate([read_vectors(store, unit) for unit in units])[np.argsort(numbers)]


def num_cut(store: Store, units: Sequence[Unit]) -> int:
    """How many distinct texts have more tokens than were read."""
    return sum(int(_column(store, unit.key, "cut")[np.unique(unit.rows_D)].sum()) for unit in units)


def _column(store: Store, key: str, name: str) -> NDArray[Any]:
    """One column, without the vectors."""
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
                f"{store.url}/{key}: is not a whole Arrow file of vectors ({reason}); remove it, and it is encoded again"
            ) from None
    return column


@dataclass(frozen=True)
class Wanted:
    """Texts whose vectors are to be kept.

    `payload` gives what a process elsewhere needs for some of them, by their numbers, and `read` makes texts of that
    there: all of a corpus need not be in memory.
    """

    model: str
    spec: EmbeddingSpec
    keys_N: NDArray[np.uint64]
    payload: Callable[[Sequence[int]], Any]
    read: Callable[[Any], Sequence[str] | Tokenized]
    rows_per_unit: int


class Missing(NamedTuple):
    """A unit that is to be made."""

    wanted: int  # its place among what was wanted
    keys_D: NDArray[np.uint64]
    numbers_D: NDArray[np.int64]


def missing_units(store: Store, wanted: Sequence[Wanted]) -> list[Missing]:
    """What has to be encoded so that all that is wanted stands, each text once.

    The cut depends only on what is wanted: an interrupted run goes on with the units of an uninterrupted one.
    """
    standing: dict[str, NDArray[np.uint64]] = {}
    units = []
    for place, one in enumerate(wanted):
        folder = one.spec.folder
        if folder not in standing:
            held = keys_by_unit(store, one.spec).values()
            standing[folder] = np.concatenate([np.empty(0, np.uint64), *held])
        keys, first = np.unique(one.keys_N, return_index=True)
        is_missing = ~np.isin(keys, standing[folder])
        for start in range(0, len(keys), one.rows_per_unit):
            some = slice(start, start + one.rows_per_unit)
            if is_missing[some].any():
                units.append(Missing(place, keys[some][is_missing[some]], first[some][is_missing[some]]))
        standing[folder] = np.concatenate([standing[folder], keys[is_missing]])
    return units
