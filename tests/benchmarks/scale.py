"""How the driver of `jobs/generate.py` takes more seeds: planning, resuming, rows a second, memory, disk.

    python tests/benchmarks/scale.py [--quick]

For each size a run over Parquet seed files on a local disk, with the scripted engine and one actor a core. Its
driver is a process of its own and is killed when half of the rows are there; the same command then ends the
run, and once more finds nothing to do. Planning is the time to a plan. Resuming a half-finished run is the
time to its first new shard; resuming a finished one is the whole command, with its closing count of the
rows. Python's imports and the start of a Ray cluster count in none. Rows a second are those between the
first and the last new shard of the half that was resumed. The last line is a JSON object.
"""

from argparse import ArgumentParser
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
from threading import Thread
import time
from typing import IO, Any

import psutil
from rich.console import Console
from rich.table import Table
from synthetic import NUM_HARD_NEGATIVES, NUM_INSTRUCTION_NEGATIVES, scripted_config, write_examples

from dualview.config.base import Pool
from dualview.config.generate import GenerateConfig
from dualview.config.loading import load

ROWS_PER_SHARD = 500
_SECONDS_BETWEEN_LOOKS = 0.05
_MIB = 2**20


@dataclass(frozen=True)
class Watched:
    """One run of the driver, as seen from outside."""

    seconds_to_plan: float
    seconds_to_first_shard: float  # 0 where none was to do
    seconds: float
    rows_per_second: float  # 0 where fewer than two shards were done
    mib_at_start: float  # resident memory after the imports and Ray's start
    mib_peak: float


@dataclass(frozen=True)
class Figures:
    seeds: int
    planning_seconds: float
    resume_half_seconds: float
    resume_finished_seconds: float
    rows_per_second: float
    rows_per_second_per_core: float
    driver_mib_at_start: float
    driver_mib_peak: float
    seeds_mib_on_disk: float
    run_mib_on_disk: float


def drive(config_file: str) -> None:
    """The process of a driver: `jobs/generate.py` on a cluster that nobody else uses."""
    import ray

    from dualview.pipelines.generate.run import generate

    config = load(GenerateConfig, config_file)
    os.environ.update(RAY_worker_niceness="0")  # Ray's own is 15, which loses to anything else on the machine
    ray.init(address="local", num_cpus=config.actors.num, include_dashboard=False, log_to_driver=False)
    print("begins", flush=True)
    generate(config)
    print("ends", flush=True)


def watch(config: GenerateConfig, folder: Path, kill_at_row: int | None) -> Watched:
    """Runs a driver to its end, or kills it when `kill_at_row` rows or more have been reported."""
    assert config.trail is not None
    trail = Path(config.trail)
    trail.unlink(missing_ok=True)
    config_file = folder / "config.yaml"
    config_file.write_text(config.model_dump_json())  # JSON is YAML
    errors = folder / "errors.txt"
    with errors.open("w") as stderr:
        driver = subprocess.Popen(
            [sys.executable, "-u", __file__, "--drive", str(config_file)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    assert driver.stdout is not None
    times: dict[str, float] = {}
    reader = Thread(target=_note_times, args=(driver.stdout, times))
    reader.start()
    process = psutil.Process(driver.pid)
    at_start = peak = 0
    killed = False
    while driver.poll() is None:
        try:
            resident = process.memory_info().rss
        except psutil.NoSuchProcess:
            break
        peak = max(peak, resident)
        if "begins" in times:
            at_start = at_start or resident
        if kill_at_row is not None and _rows_done(trail) >= kill_at_row:
            driver.kill()
            killed = True
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    reader.join()
    if driver.wait() != 0 and not killed:
        sys.exit(f"the driver failed:\n{errors.read_text()}")
    shards = [json.loads(line) for line in trail.read_text().splitlines()] if trail.exists() else []
    begin = times["begins"]
    span = shards[-1]["time"] - shards[0]["time"] if shards else 0.0
    return Watched(
        seconds_to_plan=times["planned"] - begin,
        seconds_to_first_shard=shards[0]["time"] - begin if shards else 0.0,
        seconds=times.get("ends", time.time()) - begin,
        rows_per_second=(shards[-1]["done"] - shards[0]["done"]) / span if span else 0.0,
        mib_at_start=at_start / _MIB,
        mib_peak=peak / _MIB,
    )


def _note_times(lines: IO[str], times: dict[str, float]) -> None:
    for line in lines:
        for mark in ("begins", "planned", "ends"):
            if mark in line:
                times.setdefault(mark, time.time())


def _rows_done(trail: Path) -> int:
    """As the last whole line of the trail says; it may be growing."""
    if not trail.exists():
        return 0
    with trail.open("rb") as file:
        file.seek(max(trail.stat().st_size - 4096, 0))
        lines = file.read().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith(b"\n")]
    return int(json.loads(whole[-1])["done"]) if whole else 0


def _mib_on_disk(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / _MIB


def measure(num_seeds: int, folder: Path) -> Figures:
    write_examples(folder / "seeds", num_seeds)
    num_actors = os.cpu_count() or 1
    config = scripted_config(folder / "seeds", folder / "run", ROWS_PER_SHARD).model_copy(
        update={
            "actors": Pool(num=num_actors, cpus=1.0, gpus=0.0, max_num=None),
            "shards_in_flight": 1,  # more would only help an engine that waits
            "trail": str(folder / "trail.jsonl"),
        }
    )
    first = watch(config, folder, kill_at_row=num_seeds // 2)
    second = watch(config, folder, kill_at_row=None)
    third = watch(config, folder, kill_at_row=None)
    return Figures(
        seeds=num_seeds,
        planning_seconds=round(first.seconds_to_plan, 2),
        resume_half_seconds=round(second.seconds_to_first_shard, 2),
        resume_finished_seconds=round(third.seconds, 2),
        rows_per_second=round(second.rows_per_second, 1),
        rows_per_second_per_core=round(second.rows_per_second / num_actors, 1),
        driver_mib_at_start=round(first.mib_at_start, 1),
        driver_mib_peak=round(max(first.mib_peak, second.mib_peak, third.mib_peak), 1),
        seeds_mib_on_disk=round(_mib_on_disk(folder / "seeds"), 1),
        run_mib_on_disk=round(_mib_on_disk(folder / "run"), 1),
    )


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="10,000 and 40,000 seeds instead of up to a million"
    )
    parser.add_argument("--drive", metavar="CONFIG", help="be the driver; the script starts itself so")
    arguments = parser.parse_args()
    if arguments.drive:
        drive(arguments.drive)
        return
    rows = []
    for num_seeds in (10_000, 40_000) if arguments.quick else (10_000, 100_000, 1_000_000):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(num_seeds, Path(folder)))
        # The next size takes ten times as long.
        print(f"measured: {json.dumps(asdict(rows[-1]))}", file=sys.stderr)
    table = Table("", *(f"{row.seeds:,}" for row in rows), title="SourceExamples")
    for name in list(asdict(rows[0]))[1:]:
        table.add_row(name.replace("_", " "), *(f"{getattr(row, name):,}" for row in rows))
    Console().print(table)
    figures: dict[str, Any] = {
        "rows_per_second_per_core": rows[-1].rows_per_second_per_core,
        "sizes": [asdict(row) for row in rows],
        "rows_per_shard": ROWS_PER_SHARD,
        "passages_per_example": 1 + NUM_INSTRUCTION_NEGATIVES + NUM_HARD_NEGATIVES,
        "measured_on": f"{os.cpu_count()} cores, {platform.machine()}, scripted engine, local disk",
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
