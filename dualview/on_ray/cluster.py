"""Joining a cluster, and asking whether it can hold what a job wants before the job waits for ever."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
import logging
from typing import Any, TypeVar

import ray
import ray.data
from ray.exceptions import RayTaskError

from dualview.config import Actors
from dualview.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def join_cluster(actors: Actors) -> None:
    """Connects to the cluster of RAY_ADDRESS or a running local one, else starts one on this machine.

    Credentials are not carried over: every node finds its own in its environment.
    Raises InputError where the cluster cannot hold the actors: Ray would wait for ever, quietly.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    # Our own progress says it shorter.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    resources = ray.cluster_resources()
    for name, each in (("CPU", actors.cpus), ("GPU", actors.gpus)):
        wanted, there = actors.num * each, resources.get(name, 0.0)
        if wanted > there:
            raise InputError(
                f"the cluster has {there:g} {name}s, but {actors.num} actors of {each:g} {name}s each"
                f" need {wanted:g}; ask for fewer actors or smaller ones, or add nodes"
            )


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` by tasks of one CPU each. At most two results a CPU wait to be taken, so memory stays flat."""
    # Not `function` itself: Ray takes no partial functions.
    call = ray.remote(num_cpus=1)(lambda item: function(item))
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    for item in items:
        if len(pending) == limit:
            yield _result(pending.popleft())
        pending.append(call.remote(item))
    while pending:
        yield _result(pending.popleft())


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except RayTaskError as error:
        raise error.cause from error  # an InputError stays one sentence
