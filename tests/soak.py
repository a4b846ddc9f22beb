"""Generation under random kills and faults, against the rows of undisturbed runs.

    python tests/soak.py --faults 200 --seed 1

Jobs run on a cluster of two nodes and a real S3 server, one after the other, and every few requests to S3
something breaks, drawn by lot: an answer of S3, a connection, the credentials, an actor, the driver, a node.
A job that ended is started again by the same command until its run is complete. What breaks follows from the
seed; the moment it hits depends on the machine. Prints a table, and as its last line a JSON object. Exit code
1 where a row is missing, repeated or wrong, or a job ended in another way than the faults explain.
"""

from argparse import ArgumentParser
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
import hashlib
import json
import logging
import os
from pathlib import Path
import platform
from queue import Empty, SimpleQueue
import random
from signal import SIGKILL
import sys
import tempfile
from threading import Lock
import time

from demo_data import demo_examples
from faulty_s3 import Fault, FaultyS3, bucket, cut_answer, cut_request, error, lost_answer, silence
from generate_runs import LLM, Job, config_of, rows_of, undisturbed
import psutil
import ray
from ray_processes import AnotherNode, workers_of
from rich.console import Console
from rich.table import Table

from dualview.config.generate import GenerateConfig
from dualview.records import DualView
from dualview.storage import Store, open_store

NUM_SEEDS, ROWS_PER_SHARD = 600, 4
REQUESTS_BETWEEN_FAULTS = (6, 24)
FREEZE_SECONDS = 3
STOPPED = 3  # the exit code of a job that an Interruption ended

# Kind -> how often it is drawn.
S3_FAULTS: dict[str, tuple[Fault, int]] = {
    "S3: 500 InternalError": (error(500, "InternalError"), 10),
    "S3: 503 SlowDown": (error(503, "SlowDown"), 10),
    "S3: 409 in a race": (error(409, "ConditionalRequestConflict"), 8),
    "S3: clock out of step": (error(403, "RequestTimeTooSkewed"), 5),
    "S3: answer lost": (lost_answer, 14),
    "S3: reset in mid-answer": (cut_answer, 8),
    "S3: reset in mid-request": (cut_request, 10),
    "S3: silence until time-out": (silence, 2),
}
EXPIRY, DRIVER, ACTOR, FREEZE, NODE = (
    "credentials expire",
    "driver killed",
    "actor killed",
    "actor frozen for a while",
    "node killed",
)
DEATHS = {EXPIRY: 3, DRIVER: 8, ACTOR: 12, FREEZE: 5, NODE: 5}


class Chaos(FaultyS3):
    """Draws what breaks next while a job runs. Deaths wait in `deaths` for whoever can bring them about."""

    def __init__(self, num_faults: int, rng: random.Random) -> None:
        super().__init__()
        self.left, self.counts, self.deaths = num_faults, Counter[str](), SimpleQueue[str]()
        self.armed = self.expired = False
        self._rng, self._drawing = rng, Lock()
        self._next_kind, self._requests_to_go = self._draw_next()

    def _draw_next(self) -> tuple[str, int]:
        shares = {kind: share for kind, (_, share) in S3_FAULTS.items()} | DEATHS
        (kind,) = self._rng.choices(list(shares), list(shares.values()))
        return kind, self._rng.randint(*REQUESTS_BETWEEN_FAULTS)

    def draw(self, request: str) -> Fault | None:
        with self._drawing:
            if self.expired:
                return error(400, "ExpiredToken")
            if not self.armed or not self.left:
                return None
            self._requests_to_go -= 1
            kind = self._next_kind
            # Deaths strike in mid-run, where rows can be lost, and not while a job starts.
            if self._requests_to_go > 0 or (kind in DEATHS and "/data/" not in request):
                return None
            self.left -= 1
            self.counts[kind] += 1
            self._next_kind, self._requests_to_go = self._draw_next()
            if kind in S3_FAULTS:
                return S3_FAULTS[kind][0]
            if kind == EXPIRY:
                self.expired = True
                return error(400, "ExpiredToken")
            self.deaths.put(kind)
            return None


class Soak:
    def __init__(self, address: str, chaos: Chaos, rng: random.Random) -> None:
        self._address, self._chaos, self._rng = address, chaos, rng
        self._node = AnotherNode(address, num_cpus=1)
        self.num_drivers = 0

    def run(self, config: GenerateConfig, folder: Path) -> None:
        """The same command again and again, until it says that the run is complete."""
        while True:
            self.num_drivers += 1
            exit_code, expected = self._one_job(Job(config, folder))
            if exit_code == 0:
                return
            if exit_code not in expected:
                sys.exit(f"a job ended with {exit_code}:\n{(folder / 'log.txt').read_text()[-5000:]}")

    def _one_job(self, job: Job) -> tuple[int, set[int]]:
        """Its exit code, and which but 0 are explained."""
        expected: set[int] = set()
        self._chaos.armed = True
        while job.process.poll() is None:
            try:
                kind = self._chaos.deaths.get(timeout=0.1)
            except Empty:
                continue
            if kind == DRIVER:
                expected.add(-SIGKILL)
                job.process.kill()
                job.process.wait()
            elif kind == NODE:
                self._node.die()
                self._node = AnotherNode(self._address, num_cpus=1)
            elif not self._strike_an_actor(kind):
                self._chaos.deaths.put(kind)  # none is up yet, or one just died: later
        if self._chaos.expired:
            expected.add(STOPPED)
        self._chaos.armed = self._chaos.expired = False
        return job.process.returncode, expected

    def _strike_an_actor(self, kind: str) -> bool:
        try:
            actor = self._rng.choice(workers_of("ShardActor"))
            if kind == ACTOR:
                actor.kill()
            else:
                actor.suspend()
                time.sleep(FREEZE_SECONDS)
                actor.resume()
        except (IndexError, psutil.NoSuchProcess):
            return False
        return True

    def close(self) -> None:
        self._node.close()


@contextmanager
def cluster() -> Iterator[str]:
    """One CPU, so that a second actor must go to the second node."""
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=1,
        object_store_memory=300 * 2**20,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
    )
    os.environ["RAY_ADDRESS"] = address = ray.get_runtime_context().gcs_address
    try:
        yield address
    finally:
        ray.shutdown()


def checksum(rows: list[DualView]) -> str:
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def num_objects(store: Store, prefix: str) -> int:
    return len(store.list(prefix))


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--faults", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line for each request, and what we reset
    chaos = Chaos(arguments.faults, random.Random(arguments.seed))
    started = time.monotonic()
    total = Counter[str]()
    with bucket(chaos, "soak") as url, tempfile.TemporaryDirectory() as scratch, cluster() as address:
        soak = Soak(address, chaos, random.Random(arguments.seed))
        while chaos.left:
            total["runs"] += 1
            config = config_of(
                LLM,
                f"{url}/{total['runs']}",
                source=demo_examples(NUM_SEEDS, seed=total["runs"]),
                rows_per_shard=ROWS_PER_SHARD,
                actors={**LLM["actors"], "num": 2},
            )
            folder = Path(scratch) / str(total["runs"])
            expected = undisturbed(config, folder / "undisturbed")
            soak.run(config, folder)
            store = open_store(config.output)
            rows = rows_of(store)
            times = Counter(row.example.id for row in rows)
            total += Counter(
                rows=len(rows),
                shards=num_objects(store, "data/"),
                attempts=num_objects(store, "attempts/"),
                rows_missing=sum(row.example.id not in times for row in expected),
                rows_repeated=sum(count - 1 for count in times.values()),
                rows_wrong=sum(found != right for found, right in zip(rows, expected, strict=False)),
                runs_with_right_checksum=int(checksum(rows) == checksum(expected)),
            )
            print(
                f"run {total['runs']}: {len(rows)} rows, checksum {checksum(rows)[:16]}, undisturbed"
                f" {checksum(expected)[:16]}; {sum(chaos.counts.values())} faults so far,"
                f" {time.monotonic() - started:.0f} s",
                flush=True,
            )
        soak.close()
    figures = {
        name: total[name]
        for name in (
            *("runs", "runs_with_right_checksum", "rows", "rows_missing", "rows_repeated", "rows_wrong"),
            *("shards", "attempts"),
        )
    } | {"drivers": soak.num_drivers, "seconds": round(time.monotonic() - started)}
    table = Table("what", "times")
    for kind in [*S3_FAULTS, *DEATHS]:
        table.add_row(kind, str(chaos.counts[kind]))
    table.add_row("all faults", str(sum(chaos.counts.values())), style="bold", end_section=True)
    for name, figure in figures.items():
        table.add_row(name.replace("_", " "), f"{figure:,}")
    Console().print(table)
    measured_on = {"cores": os.cpu_count(), "machine": platform.machine(), "ray": ray.__version__}
    print(
        json.dumps(
            {"faults": sum(chaos.counts.values()), "by_kind": dict(chaos.counts), **figures}
            | {"seed": arguments.seed, "measured_on": measured_on}
        )
    )
    wrong = figures["rows_missing"] + figures["rows_repeated"] + figures["rows_wrong"]
    sys.exit(1 if wrong or figures["runs_with_right_checksum"] < figures["runs"] else 0)


if __name__ == "__main__":
    main()
