"""A million prepared groups: how soon training starts on them, and the memory that a worker holds for them.

    python tests/benchmarks/train_data.py [--quick]

Groups of two views and four passages as a run would have prepared them, of random tokens: 80 a passage, 30 a view,
so about 380 million tokens on disk. A process of its own opens them, plans an epoch and makes the batches of 20
steps of 512 groups. Its memory is what belongs to it alone (anonymous pages): the files are mapped and shared by
all ranks of a machine. The last line is a JSON object.
"""

from argparse import ArgumentParser
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from dualview.config.loading import load
from dualview.config.train import TrainConfig
from dualview.training.batches import Sampler, make_batch
from dualview.training.prepared import PIECE_SCHEMA, Prepared

GROUPS_PER_PIECE = 2000
PASSAGES, VIEWS = 4, 2
PASSAGE_TOKENS, VIEW_TOKENS = 80, 30
STEPS, GROUPS_PER_STEP = 20, 512


def every(count: int, size: int) -> pa.Array:
    """Offsets of lists that all have `size` items."""
    return pa.array(np.arange(count + 1, dtype=np.int32) * size)


def lists(values: pa.Array, size: int, kind: pa.DataType) -> pa.Array:
    return pa.ListArray.from_arrays(every(len(values) // size, size), values, type=kind)


def structs(kind: pa.DataType, **fields: pa.Array) -> pa.Array:
    return pa.StructArray.from_arrays([fields[field.name] for field in kind], fields=list(kind))


def piece(number: int) -> pa.Table:
    """GROUPS_PER_PIECE groups in PIECE_SCHEMA."""
    rng = np.random.default_rng(number)
    types = {field.name: field.type for field in PIECE_SCHEMA}
    passage, view, span = (types[name].value_type for name in ("passages", "views", "spans"))
    num_passages, num_views = GROUPS_PER_PIECE * PASSAGES, GROUPS_PER_PIECE * VIEWS
    keys = rng.integers(0, 2**63, num_passages).astype(np.uint64)

    def tokens(count: int, size: int, kind: pa.DataType) -> pa.Array:
        return lists(pa.array(rng.integers(0, 30000, count * size).astype(np.int32)), size, kind)

    def empty(count: int, kind: pa.DataType) -> pa.Array:
        return pa.ListArray.from_arrays(every(count, 0), pa.array([], kind.value_type), type=kind)

    of_views = np.repeat(keys.reshape(-1, PASSAGES), VIEWS, axis=0)
    labels = np.tile(np.array([[1, -1, -1, -1], [-1, 1, -1, -1]], dtype=np.int8), (GROUPS_PER_PIECE, 1))
    margins = pa.nulls(labels.size, pa.float32())
    fields = {field.name: field.type for field in view}
    views = structs(
        view,
        wordings=lists(tokens(num_views, VIEW_TOKENS, fields["wordings"].value_type), 1, fields["wordings"]),
        passages=lists(pa.array(of_views.ravel()), PASSAGES, fields["passages"]),
        labels=lists(pa.array(labels.ravel()), PASSAGES, fields["labels"]),
        margins=lists(margins, PASSAGES, fields["margins"]),
        requirements=empty(num_views, fields["requirements"]),
    )
    fields = {field.name: field.type for field in passage}
    passages = structs(
        passage,
        key=pa.array(keys),
        tokens=tokens(num_passages, PASSAGE_TOKENS, fields["tokens"]),
        attributes=empty(num_passages, fields["attributes"]),
    )
    fields = {field.name: field.type for field in span}
    spans = structs(
        span, rank=pa.array(keys[::PASSAGES]), tokens=tokens(GROUPS_PER_PIECE, 16, fields["tokens"])
    )
    columns = {
        "id": pa.array([f"seed-{number:04d}-{row:04d}" for row in range(GROUPS_PER_PIECE)]),
        "query_id_key": pa.array(rng.integers(0, 2**63, GROUPS_PER_PIECE).astype(np.uint64)),
        "query_text_key": pa.array(rng.integers(0, 2**63, GROUPS_PER_PIECE).astype(np.uint64)),
        "part": pa.array(np.zeros(GROUPS_PER_PIECE, dtype=np.int16)),
        "section": pa.array(np.zeros(GROUPS_PER_PIECE, dtype=np.int16)),
        "times": pa.array(np.ones(GROUPS_PER_PIECE, dtype=np.int32)),
        "num_hard_negatives": pa.array(np.full(GROUPS_PER_PIECE, 2, dtype=np.int32)),
        "passages": lists(passages, PASSAGES, types["passages"]),
        "views": lists(views, VIEWS, types["views"]),
        "spans": lists(spans, 1, types["spans"]),
    }
    return pa.Table.from_arrays([columns[name] for name in PIECE_SCHEMA.names], schema=PIECE_SCHEMA)


def anonymous_mib() -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


def work(folder: Path) -> None:
    """What a worker does with the groups; prints its figures."""
    sizes = {
        "batch.instances": VIEWS * GROUPS_PER_STEP,
        "batch.queries": None,
        "budget.instances": VIEWS * GROUPS_PER_STEP,
    }
    config = load(
        TrainConfig,
        "configs/demo/train-dual.yaml",
        [f"{key}={json.dumps(value)}" for key, value in sizes.items()],
    )
    before = anonymous_mib()
    started = time.perf_counter()
    prepared = Prepared(sorted(folder.glob("*.arrow")))
    opened = time.perf_counter()
    sampler = Sampler(prepared, config.batch, homogeneous=False, seed=0)
    planned = time.perf_counter()
    for step in range(STEPS):
        epoch, groups = sampler.step(step)
        batch = make_batch(
            prepared, [prepared.group(group) for group in groups], config.batch, [2], f"0:{epoch}"
        )
        batch.relation(range(len(batch.views)))
        [prepared.tokens(number).sum() for number in batch.passages]
        if step == 0:
            first = time.perf_counter()
    done = time.perf_counter()
    figures = {
        "num_groups": prepared.num_groups,
        "seconds_to_open": opened - started,
        "seconds_to_plan_an_epoch": planned - opened,
        "seconds_to_first_batch": first - started,
        "groups_per_second": (STEPS - 1) * GROUPS_PER_STEP / (done - first),
        "memory_mib": anonymous_mib() - before,
    }
    print(json.dumps({name: round(value, 2) for name, value in figures.items()}))


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the groups")
    parser.add_argument("--work", type=Path, help="be the worker, on this folder")
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    num_pieces = 50 if arguments.quick else 500
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_pieces):
            table = piece(number)
            with (
                pa.OSFile(f"{folder}/{number:04d}.arrow", "wb") as sink,
                pa.ipc.new_file(sink, table.schema) as writer,
            ):
                writer.write_table(table)
        disk = sum(file.stat().st_size for file in Path(folder).iterdir())
        command = [sys.executable, __file__, "--work", folder]
        figures = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    figures |= {
        "disk_mib": round(disk / 2**20),
        "measured_on": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    table = Table("", "")
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if not isinstance(value, str) else value)
    Console().print(table)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
