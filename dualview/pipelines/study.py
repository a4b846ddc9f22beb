"""A study on Ray: executes the missing runs of its grid, as many at once as fit, and reports on all."""

from collections import deque
from collections.abc import Mapping, Sequence
import json
import logging
from typing import Any

import ray

from dualview.config.base import fingerprint
from dualview.config.evaluate import EvaluateConfig
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig
from dualview.costs import Spent, TrainingCost
from dualview.distributed.cluster import errors_of_workers, join_cluster
from dualview.errors import InputError, Interruption
from dualview.evaluation.report import values_of
from dualview.logs import show_logs_of_worker, worker_environment
from dualview.pipelines.evaluate import SCORES_KEY, evaluate, open_benchmark, read_scores
from dualview.pipelines.train.prepare import expected_tokens, plan_mixture
from dualview.pipelines.train.run import RESULT_KEY, train
from dualview.progress import Progress
from dualview.runs.manifest import read_codes, record_code
from dualview.runs.run import GenerateRun, open_run
from dualview.storage import check_reachable, open_store
from dualview.studies.plans import Run, plan_study, scoring_of_baselines
from dualview.studies.render import Section, as_markdown, as_page, study_sections
from dualview.studies.results import Values

logger = logging.getLogger(__name__)


def run_study(study: StudyConfig) -> tuple[list[Run], dict[str, str]]:
    """Trains and evaluates the missing runs. Returns all runs, and folder -> reason of those that failed.

    A run that fails is retried, and does not stop the others. After a killed driver, the same command continues.
    """
    runs = plan_study(study)
    check_reachable(open_store(study.output))
    names = [open_benchmark(benchmark).name for benchmark in runs[0].evaluate.benchmarks]
    for metric in study.metrics:
        if metric.partition(" ")[0] not in names:
            raise InputError(
                f"metrics: `{metric}` belongs to none of the benchmarks of {study.evaluate}, {', '.join(names)};"
                f" expected for example `{names[0]} nDCG@10`"
            )
    largest = max((run.train.workers for run in runs), key=lambda workers: workers.num * workers.cpus)
    join_cluster(largest, dashboard=True)  # as for a training run
    for run in runs:
        plan_mixture(run.train)  # finds a recipe that asks for too much data before any run starts
    record_code(open_store(study.output))
    # Repeat by repeat: a study that is cut short then has fewer repeats, not fewer recipes.
    repeats = list(study.axes[study.seeds])
    missing = [run for run in runs if not _is_finished(run)]
    logger.info(f"{len(runs) - len(missing)} of {len(runs)} runs are finished, {len(missing)} to do")
    if study.baselines:
        evaluate(scoring_of_baselines(study))
    if not missing:
        return runs, {}
    return runs, _run_all(study, sorted(missing, key=lambda run: repeats.index(run.point[study.seeds])))


def _run_all(study: StudyConfig, missing: Sequence[Run]) -> dict[str, str]:
    """Executes as many runs at once as fit. Returns folder -> reason of those that failed."""
    to_do = deque(missing)
    failed: dict[str, str] = {}
    tries: dict[str, int] = {}
    under_way: dict[Any, Run] = {}
    # Training and evaluation request their own resources; the task that waits for them needs none.
    environment = {"env_vars": worker_environment()}
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(_train_and_evaluate)
    with Progress("study", total=len(missing), unit="runs", trail=None) as progress:
        while to_do or under_way:
            while to_do and (not under_way or len(under_way) < _concurrent_runs(to_do[0].train)):
                run = to_do.popleft()
                tries[run.folder] = tries.get(run.folder, 0) + 1
                under_way[task.remote(run)] = run
            [done], _ = ray.wait(list(under_way), num_returns=1)
            run = under_way.pop(done)
            try:
                with errors_of_workers():
                    ray.get(done)
            except Exception as error:  # of any kind: the other runs continue
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                if tries[run.folder] < study.max_tries and not isinstance(error, InputError | Interruption):
                    logger.warning(f"retrying: {run.name}: {reason}")
                    to_do.append(run)
                    continue
                logger.warning(f"failed: {run.name}: {reason}")
                failed[run.folder] = reason
            else:
                logger.info(f"finished: {run.name}")
                _values_of_run(run, study)  # a missing metric ends the study here
            progress.advance(1)
    return failed


def _train_and_evaluate(run: Run) -> None:
    show_logs_of_worker()
    train(run.train)
    evaluate(run.evaluate)


def _is_finished(run: Run) -> bool:
    return bool(open_store(run.evaluate.output).list(SCORES_KEY))


def _concurrent_runs(config: TrainConfig) -> int:
    """How many such runs fit on the cluster at once."""
    resources = ray.cluster_resources()
    workers = config.workers
    limits = [int(resources.get("CPU", 0) / (workers.num * workers.cpus))]
    if workers.gpus:
        limits.append(int(resources.get("GPU", 0) / (workers.num * workers.gpus)))
    return min(limits)


def estimate_study(study: StudyConfig, runs: Sequence[Run]) -> str:
    """One sentence on the cost of the missing runs: tokens by the data, time and money by the finished runs.

    If the data does not exist yet, the sentence says so: a study may be planned before its data is generated.
    """
    try:
        for url in {study.output, *(part.data for run in runs for part in run.train.mixture.parts)}:
            check_reachable(open_store(url))
        to_do = [run for run in runs if not _is_finished(run)]
        tokens = sum(expected_tokens(run.train) for run in to_do)
    except InputError as error:
        return f"{len(runs)} runs; their tokens cannot be estimated yet: {error}"
    finished = [_cost_of(run) for run in runs if run not in to_do]
    sentence = f"{len(to_do)} of {len(runs)} runs to do, about {tokens:,} training tokens"
    if not finished:
        return sentence
    seconds = tokens * sum(cost.device_seconds for cost in finished) / sum(cost.tokens for cost in finished)
    price = f" and ${Spent(gpu_seconds=seconds).dollars(study.price):,.2f}" if study.price else ""
    return (
        f"{sentence}; judging by the finished ones, {seconds:,.0f} device seconds{price}, without evaluation"
    )


def report_study(study: StudyConfig, runs: Sequence[Run], failed: Mapping[str, str]) -> str:
    """Reports on the finished runs, as Markdown; also puts it in the store, as Markdown and HTML named by content."""
    values, costs = {}, {}
    for run in runs:
        if _is_finished(run):
            values[run.folder] = _values_of_run(run, study)
            costs[run.folder] = _cost_of(run)
    baselines = _values_of_baselines(study)
    title = f"Study: {' x '.join(study.axes)}"
    sections = study_sections(study, runs, values, baselines, costs, failed)
    sections += code_section([url for run in runs for url in (run.train.output, run.evaluate.output)])
    text = as_markdown(title, sections)
    store, name = open_store(study.output), f"report-{fingerprint(text)}"
    store.put_new(f"{name}.md", text.encode(), attempt="driver")
    store.put_new(f"{name}.html", as_page(title, sections).encode(), attempt="driver")
    return f"{text}\n{store.url}/{name}.html"


def code_section(outputs: Sequence[str]) -> list[Section]:
    """The code that made these outputs, as recorded in them; no section if none is recorded."""
    made = {str(code) for url in outputs for code, _ in read_codes(open_store(url))}
    note = "The code that worked on these runs; `code/` of each output lists the libraries."
    return [Section("Code", note, items=sorted(made))] if made else []


def _values_of_run(run: Run, study: StudyConfig) -> Values:
    """Raises InputError if a metric of the study is missing."""
    [values] = _values_of(run.evaluate).values()
    for metric in study.metrics:
        if metric not in values:
            raise InputError(f"metrics: `{metric}` was not measured; expected one of {', '.join(values)}")
    return values


def _values_of_baselines(study: StudyConfig) -> dict[str, Values]:
    """A metric that is undefined for all queries of a baseline has no values, which is not an error."""
    if not study.baselines:
        return {}
    return {
        name: {metric: values.get(metric, {}) for metric in study.metrics}
        for name, values in _values_of(scoring_of_baselines(study)).items()
    }


def _values_of(evaluated: EvaluateConfig) -> dict[str, Values]:
    """Encoder -> its values."""
    return {
        encoder: {
            f"{benchmark} {metric}": of_metric
            for benchmark, of_metrics in of_benchmarks.items()
            for metric, of_metric in of_metrics.items()
        }
        for encoder, of_benchmarks in values_of(read_scores(open_store(evaluated.output))).items()
    }


def _cost_of(run: Run) -> TrainingCost:
    result = json.loads(open_store(run.train.output).get(RESULT_KEY))
    generation = Spent()
    for part in result["mixture"]:
        if part["views"] in ("original", "plain"):
            continue  # needs no LLM
        generation += spent_on(open_run(part["data"])).share(part["seeds"], part["seeds_available"])
    return TrainingCost(
        instances=result["instances"],
        tokens=result["tokens"],
        operations=result["operations"],
        device_seconds=result["seconds"] * result["world_size"],
        generation=generation,
    )


def spent_on(run: GenerateRun) -> Spent:
    """The cost of a generate run's rows; if it judges the rows of another run, includes the cost of writing them."""
    source = run.plan.settings["source"]
    written = spent_on(open_run(source["run"])) if source["kind"] == "drafts" else Spent()
    return written + run.spent()
