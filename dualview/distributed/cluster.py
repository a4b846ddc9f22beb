"""Joins a Ray cluster, checks that it can hold a job, spreads work over it and re-raises its workers' errors."""

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

# For actors that encode: by default malloc returns a layer's memory to the kernel and requests it again for the
# next layer, which takes a tenth to a fifth of the time on a CPU.
ENCODING_ENVIRONMENT = {
    "env_vars": {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**30)}
}


def join_cluster(actors: Actors, *, dashboard: bool = False) -> None:
    """Connects to the cluster at RAY_ADDRESS or a running local one; otherwise starts one on this machine.

    A cluster started here gets a dashboard only on request: it takes seconds of a laptop's cores.
    Credentials are not forwarded: every node reads its own from its environment.
    Raises InputError if the cluster cannot hold the actors: Ray would wait silently, forever. A cluster that
    autoscales sets DUALVIEW_WAIT_FOR_NODES_S in its head's environment and gets that long to grow.
    """
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, include_dashboard=dashboard)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # our own is shorter
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    # The driver gets the original exception (see errors_of_workers), with its traceback. Ray Data need not log
    # that a second and third time.
    context.raise_original_map_exception = True
    for module in ("exceptions", "_internal.execution.streaming_executor_state"):
        logging.getLogger(f"ray.data.{module}").setLevel(logging.CRITICAL)
    _wait_for_capacity(actors)


def _wait_for_capacity(actors: Actors) -> None:
    """Asks the autoscaler for the missing nodes, and waits while the cluster may still grow.

    Always withdraws the request in the end: it would hold nodes, at a cost, after the job.
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
    """Raises InputError if the actors do not fit on nodes with these resources."""
    needs = _needs_of(actors)
    # Rounded to 0.0001, as Ray counts: a node with 0.3 CPUs holds three actors of 0.1.
    per_node = [
        min(int(round(node.get(name, 0.0) / amount, 4)) for name, amount in needs.items()) for node in nodes
    ]
    if sum(per_node) >= actors.num:
        return
    for name, amount in needs.items():
        needed, available = actors.num * amount, sum(node.get(name, 0.0) for node in nodes)
        if needed > available:
            raise InputError(
                f"the cluster has {available:g} {name}s, but {actors.num} actors of {amount:g} {name}s each"
                f" need {needed:g}; ask for fewer or smaller actors, or add nodes"
            )
    shape = " and ".join(f"{amount:g} {name}s" for name, amount in needs.items())
    raise InputError(
        f"the nodes of the cluster hold {sum(per_node)} actors of {shape} each, but {actors.num} are needed,"
        " and an actor cannot span nodes; ask for fewer or smaller actors, or add nodes"
    )


@contextmanager
def errors_of_workers() -> Iterator[None]:
    """Unwraps an InputError or Interruption that a worker raised.

    Any other exception keeps Ray's wrapper and traceback.
    """
    try:
        yield
    except Exception as error:
        for original in _originals(error):
            if isinstance(original, InputError | Interruption):
                # Ray Data appends lines of advice to the message.
                raise type(original)(str(original).partition("\n")[0]) from None
        raise


def _originals(error: Any) -> Iterator[BaseException | None]:
    """The exceptions that Ray wrapped in `error`: of a task, an actor's constructor or the training workers."""
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
    """Joins a cluster and runs map_in_order on it; maps a single item locally, without a cluster."""
    items = list(items)
    if len(items) < 2:
        yield from map(function, items)
        return
    join_cluster(actors)
    yield from map_in_order(function, items)


def map_in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map` in tasks of one CPU each. At most two tasks per CPU are pending, so memory stays flat."""
    # A lambda, because Ray does not accept functools.partial.
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
