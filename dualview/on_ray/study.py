"""A study on Ray: what is missing of its grid is run, several at once where they fit, and all of it is reported."""

from collections import deque
from collections.abc import Sequence
from typing import Any

import ray

from dualview.config import StudyConfig, TrainConfig
from dualview.errors import InputError, Interruption
from dualview.on_ray.cluster import errors_of_workers, join_cluster
from dualview.on_ray.evaluate import evaluate
from dualview.on_ray.prepare import plan_mixture
from dualview.on_ray.train import train
from dualview.storage import check_reachable, open_store
from dualview.studies.plans import Run, plan_study


def run_study(study: StudyConfig) -> tuple[list[Run], dict[str, str]]:
    """Trains and evaluates what is missing. Returns all runs, and for those that failed the reason, by folder.

    A run that fails is tried again, and then does not stop the others. The same command goes on where a
    killed driver stopped, as every run does.
    """
    runs = plan_study(study)
    check_reachable(open_store(study.output))
    join_cluster(max((run.train.workers for run in runs), key=lambda workers: workers.num * workers.cpus))
    for run in runs:
        plan_mixture(run.train)  # a recipe that asks for more than there is, before any is run
    to_do = deque(run for run in runs if not _is_finished(run))
    print(f"{len(runs) - len(to_do)} of {len(runs)} runs are finished, {len(to_do)} to do")
    failed: dict[str, str] = {}
    tries: dict[str, int] = {}
    under_way: dict[Any, Run] = {}
    # Training and evaluation ask for their own resources; the task that waits for them needs none.
    task = ray.remote(num_cpus=0, max_retries=0)(_train_and_evaluate)
    while to_do or under_way:
        while to_do and (not under_way or len(under_way) < _room(to_do[0].train)):
            run = to_do.popleft()
            tries[run.folder] = tries.get(run.folder, 0) + 1
            under_way[task.remote(run)] = run
        [done], _ = ray.wait(list(under_way), num_returns=1)
        run = under_way.pop(done)
        try:
            with errors_of_workers():
                ray.get(done)
            print(f"finished: {run.name}", flush=True)
        except Exception as error:  # whatever it is, the other runs go on
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            final = isinstance(error, InputError | Interruption) or tries[run.folder] >= study.max_tries
            print(f"{'failed' if final else 'tried again'}: {run.name}: {reason}", flush=True)
            if final:
                failed[run.folder] = reason
            else:
                to_do.append(run)
    return runs, failed


def _train_and_evaluate(run: Run) -> None:
    train(run.train)
    evaluate(run.evaluate)


def _is_finished(run: Run) -> bool:
    return bool(open_store(run.evaluate.output).list("scores.parquet"))


def _room(config: TrainConfig) -> int:
    """How many such runs the cluster holds at once."""
    resources = ray.cluster_resources()
    workers = config.workers
    rooms = [int(resources.get("CPU", 0) / (workers.num * workers.cpus))]
    if workers.gpus:
        rooms.append(int(resources.get("GPU", 0) / (workers.num * workers.gpus)))
    return min(rooms)


def costs_of(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """What each finished run spent, by folder."""
    import json

    costs = {}
    for run in runs:
        store = open_store(run.train.output)
        if store.list("result.json"):
            result = json.loads(store.get("result.json"))
            costs[run.folder] = {
                name: result[name] for name in ("steps", "instances", "seconds_since_resume")
            }
    return costs
