"""Joining a cluster, and asking whether it can hold what a job wants before the job waits for ever."""

import logging

import ray
import ray.data

from dualview.config import Actors
from dualview.errors import InputError


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
