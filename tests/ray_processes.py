"""Ray's processes of a test's own cluster: more nodes, and what is there to be killed."""

from contextlib import suppress

from generate_runs import wait_until
import psutil
import ray
from ray._private.node import Node
from ray._private.parameter import RayParams
from ray._private.ray_constants import PROCESS_TYPE_RAYLET


def workers_of(kind: str) -> list[psutil.Process]:
    """Those whose title names this actor; the cluster's raylet is a child of this process, and another's is not."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(kind in part for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return found


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
