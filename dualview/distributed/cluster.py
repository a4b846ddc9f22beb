"""Joining a cluster, asking whether it can hold what a job wants, and hearing what went wrong in its workers."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
import logging
import os
import time
from typing import Any, TypeVar

import ray
from ray.autoscaler.sdk import request_resources
import ray.data
from ray.exceptions import ActorDiedError, RayTaskError
from ray.train import TrainingFailedError

from dualview.config.base import Actors
from dualview.errors import InputError, Interruption

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

WAIT_VARIABLE = "DUALVIEW_WAIT_FOR_NODES_S"

# Of actors that encode: the C library else gives a layer's memory back to the kernel and fetches it anew for the
# next, a tenth to a fifth of the time on a CPU.
ENCODING_ENVIRONMENT = {
    "env_vars": {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
}


def join_cluster(actors: Actors, *, dashboard: bool = False) -> None:
    """Connects to the cluster of RAY_ADDRESS or a running local one, else starts one on this machine.

    Such a one, of this job alone, has a dashboard only where asked for: it takes seconds of a laptop's cores.
    Credentials are not carried over: every node finds its own in its environment.
    Raises InputError where the cluster cannot hold the actors: Ray would wait for ever, quietly. A cluster
    that grows says so by DUALVIEW_WAIT_FOR_NODES_S in its head's environment, and is given that time.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, include_dashboard=dashboard)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # our own progress says it shorter
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # What ends a run reaches the driver as it was raised (see errors_of_workers), and Ray Data logs its
    # traceback, which is raised anyway, not a second and third time.
    context.raise_original_map_exception = True
    for module in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{module}").setLevel(logging.CRITICAL)
    _wait_for_capacity(actors)


def _wait_for_capacity(actors: Actors) -> None:
    """Asks the autoscaler for what is missing, and waits while the cluster may grow.

    Whatever the end, the request is withdrawn: it would hold nodes, and their price, after the job.
    """
    deadline = time.monotonic() + _seconds_to_wait()
    asked = False
    try:
        while True:
            try:
                check_capacity(actors, [node["Resources"] for node in ray.nodes() if node["Alive"]])
                return
            except InputError as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise
                if not asked:
                    logger.info(f"{error}; waiting up to {left:.0f} s for nodes ({WAIT_VARIABLE})")
                    asked = True
                    request_resources(bundles=[_needs_of(actors)] * actors.num)
            time.sleep(1)  # Ray has no call that returns when a node joins
    finally:
        if asked:
            request_resources(bundles=[])


def _seconds_to_wait() -> float:
    text = os.environ.get(WAIT_VARIABLE, "0")
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise InputError(f"{WAIT_VARIABLE}={text}: expected seconds, for example 1800")


def _needs_of(actors: Actors) -> dict[str, float]:
    return {"CPU": actors.cpus, **({"GPU": actors.gpus} if actors.gpus else {})}


def check_capacity(actors: Actors, nodes: list[dict[str, float]]) -> None:
    """Raises InputError where the actors do not fit on nodes with these resources."""
    each = _needs_of(actors)
    # Rounded as Ray counts, to 0.0001: three tenths hold three times a tenth.
    per_node = [
        min(int(round(node.get(name, 0.0) / amount, 4)) for name, amount in each.items()) for node in nodes
    ]
    if sum(per_node) >= actors.num:
        return
    for name, amount in each.items():
        wanted, there = actors.num * amount, sum(node.get(name, 0.0) for node in nodes)
        if wanted > there:
            raise InputError(
                f"the cluster has {there:g} {name}s, but {actors.num} actors of {amount:g} {name}s each"
                f" need {wanted:g}; ask for fewer actors or smaller ones, or add nodes"
            )
    shape = " and ".join(f"{amount:g} {name}s" for name, amount in each.items())
    raise InputError(
        f"the nodes of the cluster hold {sum(per_node)} actors of {shape} each, but {actors.num} are asked for,"
        " and an actor lies on one node whole; ask for fewer actors or smaller ones, or add nodes"
    )


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """An InputError or Interruption that ended a worker is raised here as what it was there.

    Everything else keeps the wrapping and the traceback that Ray gave it.
    """
    try:
        yield
    except Exception as error:
        for original in _originals(error):
            if isinstance(original, InputError | Interruption):
                # Ray Data adds lines of advice to the sentence.
                raise type(original)(str(original).partition("\n")[0]) from None
        raise


def _originals(error: Any) -> Iterator[BaseException | None]:
    """What Ray wrapped into `error`: raised in a task, in the constructor of an actor, in a training worker."""
    match error:
        case RayTaskError():
            yield error.cause
        case ActorDiedError(args=[RayTaskError() as creation, *_]):
            yield creation.cause
        case TrainingFailedError():
            yield from getattr(error, "worker_failures", {}).values()


def map_on_cluster(
    actors: Actors, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """map_in_order, on a cluster that is joined for it; a single item is done here, without one."""
    items = list(items)
    if len(items) < 2:
        yield from map(function, items)
        return
    join_cluster(actors)
    yield from map_in_order(function, items)


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` by tasks of one CPU each. At most two results a CPU wait to be taken, so memory stays flat."""
    # Not `function` itself: Ray takes no partial functions.
    call = ray.remote(num_cpus=1)(lambda item: function(item))
    limit = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    pending: deque[Any] = deque()
    with errors_of_workers():
        for item in items:
            if len(pending) == limit:
                yield ray.get(pending.popleft())
            pending.append(call.remote(item))
        while pending:
            yield ray.get(pending.popleft())
