"""What happens to a run when the things around it fail: credentials, nodes."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from faulty_s3 import ALWAYS, FaultyS3, error
import psutil
import pytest
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.ray_constants import PROCESS_TYPE_RAYLET
from test_generate import LLM, Job, config_of, rows_of, undisturbed, wait_until

from dualview.commit.shards import is_complete
from dualview.records import DualView
from dualview.storage import open_store

DEADLINE_SECONDS = 600  # against a hang, and not a measure


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[DualView]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(config_of(LLM, folder), folder)


@pytest.mark.usefixtures("cluster")
def test_credentials_that_expire_end_the_run_and_renewed_ones_finish_it(
    s3: str, faulty_s3: FaultyS3, expected: list[DualView], tmp_path: Path
) -> None:
    config = config_of(LLM, f"{s3}/faults/expired")
    faulty_s3.faults = [("faults/expired/data/shard-000007", error(400, "ExpiredToken"), ALWAYS)]
    job = Job(config, tmp_path)
    assert job.process.wait(DEADLINE_SECONDS) == 3
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == (
        f"stopped: {config.output}: the credentials are no longer accepted (ExpiredToken); renew them,"
        " then give the same command again; what is done stands"
    )

    faulty_s3.faults = []
    Job(config, tmp_path).must_succeed()
    assert rows_of(open_store(config.output)) == expected


@pytest.mark.usefixtures("cluster")
def test_an_engine_that_answers_nonsense_ends_the_run_and_a_lower_bar_finishes_it(
    s3: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    changes = {"source": {**LLM["source"], "num_seeds": 700}, "rows_per_shard": 50}
    strict = config_of(LLM, f"{s3}/faults/nonsense", **changes, min_accepted_share=0.9)
    # One more than the rows that are judged, because Ray Data hands out a report when it has the next.
    with faulty_s3.hold_after(500 // strict.rows_per_shard + 1):
        job = Job(strict, tmp_path)
        assert job.process.wait(DEADLINE_SECONDS) == 3
    last = (tmp_path / "log.txt").read_text().splitlines()[-1]
    assert last.startswith(f"stopped: {strict.output}: of the last 500 rows ")
    assert not is_complete(open_store(strict.output))

    Job(config_of(LLM, strict.output, **changes), tmp_path).must_succeed()
    assert is_complete(open_store(strict.output))


class AnotherNode:
    """Another raylet of this machine, as a node of the cluster.

    Made as ray.cluster_utils does: `ray start` would make the cluster the default one of this machine.
    """

    def __init__(self, address: str, num_cpus: int) -> None:
        settings = RayParams(
            gcs_address=address,
            num_cpus=num_cpus,
            num_gpus=0,
            object_store_memory=150 * 2**20,
            min_worker_port=0,
            max_worker_port=0,
            node_manager_port=0,
            include_log_monitor=False,
        )
        settings.dashboard_agent_listen_port = None  # any that is free
        before = num_nodes()
        for is_last_try in (False, False, True):
            try:
                self._node = Node(settings, head=False, shutdown_at_exit=False, spawn_reaper=True)
                break
            except Exception:  # Ray gives its processes seconds to come up, and a busy machine needs more
                if is_last_try:
                    raise
        wait_until(lambda: num_nodes() == before + 1)

    def is_busy(self) -> bool:
        """Whether it has a worker that does something, or that holds an actor."""
        raylet = psutil.Process(self._node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)
        names: list[str] = []
        for process in raylet.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                names += process.cmdline()[:1]
        return any(name.startswith("ray::") and name != "ray::IDLE" for name in names)

    def die(self) -> None:
        """At once, so that nobody has time to say good-bye; its workers follow their raylet."""
        before = num_nodes()
        self._node.kill_raylet()
        self.close()
        wait_until(lambda: num_nodes() == before - 1)

    def close(self) -> None:
        self._node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)


def num_nodes() -> int:
    return sum(node["Alive"] for node in ray.nodes())


@pytest.fixture
def second_node(cluster: str) -> Iterator[AnotherNode]:
    node = AnotherNode(cluster, num_cpus=2)
    yield node
    node.close()


def test_a_run_survives_the_death_of_a_node(
    s3: str, faulty_s3: FaultyS3, second_node: AnotherNode, expected: list[DualView], tmp_path: Path
) -> None:
    """Each node has room for one of the two actors, and the dead one is not replaced."""
    config = config_of(LLM, f"{s3}/faults/node", actors={**LLM["actors"], "num": 2, "cpus": 1.5})
    store = open_store(config.output)
    with faulty_s3.hold_after(3):
        job = Job(config, tmp_path)
        wait_until(lambda: len(store.list("attempts/")) >= 3 + 2 * config.shards_in_flight)
        second_node.die()

    job.must_succeed()
    assert rows_of(store) == expected
    assert len(store.list("attempts/")) > len(store.list("data/"))
