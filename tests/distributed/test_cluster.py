"""Whether the actors of a job fit on a cluster, and what the driver hears of an error in one of them."""

from concurrent.futures import ThreadPoolExecutor
import re
from threading import Event
from typing import Any

import pytest
import ray
from ray.autoscaler.sdk import request_resources
from ray.data import ActorPoolStrategy
from ray.train import WorkerGroupError
from ray_processes import AnotherNode

from dualview.config.base import Actors
from dualview.distributed import cluster as cluster_module
from dualview.distributed.cluster import (
    WAIT_VARIABLE,
    check_capacity,
    errors_of_workers,
    join_cluster,
    map_in_order,
)
from dualview.errors import InputError, Interruption

LARGE, SMALL, HEAD = {"CPU": 8.0, "GPU": 4.0}, {"CPU": 4.0, "memory": 1.0}, {"memory": 1.0}


@pytest.mark.parametrize(
    ("nodes", "num", "cpus", "gpus"),
    [
        ([SMALL], 4, 1.0, 0.0),
        ([SMALL, SMALL], 2, 3.0, 0.0),
        ([HEAD, SMALL], 8, 0.5, 0.0),
        ([{"CPU": 0.3}], 3, 0.1, 0.0),
        ([SMALL, LARGE], 4, 2.0, 1.0),
    ],
)
def test_actors_that_fit(nodes: list[dict[str, float]], num: int, cpus: float, gpus: float) -> None:
    check_capacity(Actors(num=num, cpus=cpus, gpus=gpus), nodes)


@pytest.mark.parametrize(
    ("nodes", "num", "cpus", "gpus", "sentence"),
    [
        ([SMALL, LARGE], 13, 1.0, 0.0, "has 12 CPUs, but 13 actors of 1 CPUs each need 13"),
        ([SMALL, LARGE], 5, 1.0, 1.0, "has 4 GPUs, but 5 actors of 1 GPUs each need 5"),
        ([SMALL, SMALL], 1, 5.0, 0.0, "hold 0 actors of 5 CPUs each, but 1 are"),
        ([SMALL, SMALL, SMALL], 4, 3.0, 0.0, "hold 3 actors of 3 CPUs each, but 4 are"),
        ([SMALL, LARGE], 3, 3.0, 1.0, "hold 2 actors of 3 CPUs and 1 GPUs each, but 3 are"),
    ],
)
def test_actors_that_do_not_fit(
    nodes: list[dict[str, float]], num: int, cpus: float, gpus: float, sentence: str
) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        check_capacity(Actors(num=num, cpus=cpus, gpus=gpus), nodes)


@pytest.mark.usefixtures("cluster")
def test_an_error_for_the_user_reaches_the_driver_as_its_sentence() -> None:
    class Fails:  # in here, so that it travels to the workers as it is, and not by the name of this module
        def __init__(self, where: str, error: Exception) -> None:
            self.where, self.error = where, error
            if where == "constructor":
                raise error

        def __call__(self, _: dict[str, Any]) -> dict[str, Any]:
            raise self.error

    join_cluster(Actors(num=1, cpus=1.0, gpus=0.0))
    for where, kind in (("constructor", InputError), ("call", Interruption)):
        rows = ray.data.range(2, override_num_blocks=2).map_batches(
            Fails,
            fn_constructor_args=(where, kind("seeds.jsonl line 2: is empty")),
            batch_size=1,
            compute=ActorPoolStrategy(size=1),
        )
        with pytest.raises(kind, match=r"^seeds\.jsonl line 2: is empty$"), errors_of_workers():
            list(rows.iter_rows())


def test_so_does_one_of_a_training_worker() -> None:
    with pytest.raises(Interruption, match=r"^out: is full$"), errors_of_workers():
        raise WorkerGroupError(
            "Rank 1: ...", {0: RuntimeError("rank 1 died"), 1: Interruption("out: is full")}
        )


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(WorkerGroupError), errors_of_workers():
        raise WorkerGroupError("Rank 0: ...", {0: KeyError("a bug")})


@pytest.mark.parametrize("num_items", [0, 23])
@pytest.mark.usefixtures("cluster")
def test_results_come_in_the_order_of_the_items(num_items: int) -> None:
    results = map_in_order(lambda number: number / 2, range(num_items))
    assert list(results) == [number / 2 for number in range(num_items)]


@pytest.mark.usefixtures("cluster")
def test_a_users_mistake_stays_one_sentence() -> None:
    def refuse(number: int) -> None:
        raise InputError(f"{number}: expected something else")

    with pytest.raises(InputError) as caught:
        list(map_in_order(refuse, [4]))
    assert str(caught.value) == "4: expected something else"


class Requests:
    """What the autoscaler is asked for, on its way there."""

    def __init__(self) -> None:
        self.made: list[list[dict[str, float]]] = []
        self.first = Event()

    def __call__(self, bundles: list[dict[str, float]]) -> None:
        request_resources(bundles=bundles)
        self.made.append(bundles)
        self.first.set()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    requests = Requests()
    monkeypatch.setattr(cluster_module, "request_resources", requests)
    return requests


FOUR = Actors(num=4, cpus=1.0, gpus=0.0)  # the cluster of the tests has two CPUs


def test_a_cluster_that_grows_is_waited_for(
    cluster: str, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, "600")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(join_cluster, FOUR)
        requests.first.wait()
        node = AnotherNode(
            cluster, num_cpus=2
        )  # in this thread, as its processes die with the one that made them
        try:
            waiting.result()
        finally:
            node.die()
    assert requests.made == [[{"CPU": 1.0}] * 4, []]


@pytest.mark.usefixtures("cluster")
def test_and_not_for_ever(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked of the autoscaler is withdrawn, or it would start nodes for a job that has ended."""
    monkeypatch.setenv(WAIT_VARIABLE, "0.5")
    with pytest.raises(InputError, match="need 4; "):
        join_cluster(FOUR)
    assert requests.made == [[{"CPU": 1.0}] * 4, []]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("text", ["soon", "nan", "-1", "inf"])
def test_a_wait_that_is_no_time_is_told(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(WAIT_VARIABLE, text)
    with pytest.raises(InputError, match=f"DUALVIEW_WAIT_FOR_NODES_S={text}: expected seconds"):
        join_cluster(Actors(num=1, cpus=1.0, gpus=0.0))
