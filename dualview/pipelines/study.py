"""A study on Ray: what is missing of its grid is run, several at once where they fit, and all of it is reported."""

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
    """Trains and evaluates what is missing. Returns all runs, and for those that failed the reason, by folder.

    A run that fails is tried again, and then does not stop the others. The same command goes on where a
    killed driver stopped, as every run does.
    """
    runs = plan_study(study)
    check_reachable(open_store(study.output))
    names = [open_benchmark(benchmark).name for benchmark in runs[0].evaluate.benchmarks]
    for metric in study.metrics:
        if metric.partition(" ")[0] not in names:
            raise InputError(
                f"metrics: `{metric}` is of none of the benchmarks of {study.evaluate}, {', '.join(names)};"
                f" expected for example `{names[0]} nDCG@10`"
            )
    largest = max((run.train.workers for run in runs), key=lambda workers: workers.num * workers.cpus)
    join_cluster(largest, dashboard=True)  # as in a training
    for run in runs:
        plan_mixture(run.train)  # a recipe that asks for more than there is, before any is run
    record_code(open_store(study.output))
    # One repeat of all after the other: a study that is cut short has fewer of them, and not fewer recipes.
    repeats = list(study.axes[study.seeds])
    missing = [run for run in runs if not _is_finished(run)]
    logger.info(f"{len(runs) - len(missing)} of {len(runs)} runs are finished, {len(missing)} to do")
    if study.baselines:
        evaluate(scoring_of_baselines(study))
    if not missing:
        return runs, {}
    return runs, _run_all(study, sorted(missing, key=lambda run: repeats.index(run.point[study.seeds])))


def _run_all(study: StudyConfig, missing: Sequence[Run]) -> dict[str, str]:
    """As many at once as fit. Returns of those that failed the reason, by folder."""
    to_do = deque(missing)
    failed: dict[str, str] = {}
    tries: dict[str, int] = {}
    under_way: dict[Any, Run] = {}
    # Training and evaluation ask for their own resources; the task that waits for them needs none.
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
            except Exception as error:  # whatever it is, the other runs go on
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                if tries[run.folder] < study.max_tries and not isinstance(error, InputError | Interruption):
                    logger.warning(f"tried again: {run.name}: {reason}")
                    to_do.append(run)
                    continue
                logger.warning(f"failed: {run.name}: {reason}")
                failed[run.folder] = reason
            else:
                logger.info(f"finished: {run.name}")
                _values_of_run(run, study)  # a metric that was not measured ends the study here
            progress.advance(1)
    return failed


def _train_and_evaluate(run: Run) -> None:
    show_logs_of_worker()
    train(run.train)
    evaluate(run.evaluate)


def _is_finished(run: Run) -> bool:
    return bool(open_store(run.evaluate.output).list(SCORES_KEY))


def _concurrent_runs(config: TrainConfig) -> int:
    """How many such runs the cluster holds at once."""
    resources = ray.cluster_resources()
    workers = config.workers
    rooms = [int(resources.get("CPU", 0) / (workers.num * workers.cpus))]
    if workers.gpus:
        rooms.append(int(resources.get("GPU", 0) / (workers.num * workers.gpus)))
    return min(rooms)


def estimate_study(study: StudyConfig, runs: Sequence[Run]) -> str:
    """What the missing runs will take, in a sentence: tokens from the data, time and money as the finished ones took.

    Where the data is not there yet, the sentence says so: a study may be planned before it is made.
    """
    try:
        for url in {study.output, *(part.data for run in runs for part in run.train.mixture.parts)}:
            check_reachable(open_store(url))
        to_do = [run for run in runs if not _is_finished(run)]
        tokens = sum(expected_tokens(run.train) for run in to_do)
    except InputError as error:
        return f"{len(runs)} runs; what they will read cannot be told yet: {error}"
    finished = [_cost_of(run) for run in runs if run not in to_do]
    sentence = f"{len(to_do)} of {len(runs)} runs to do, about {tokens:,} tokens to train on"
    if not finished:
        return sentence
    seconds = tokens * sum(cost.device_seconds for cost in finished) / sum(cost.tokens for cost in finished)
    price = f" and ${Spent(gpu_seconds=seconds).dollars(study.price):,.2f}" if study.price else ""
    return f"{sentence}; as the finished ones went, {seconds:,.0f} device seconds{price}, evaluation left out"


def report_study(study: StudyConfig, runs: Sequence[Run], failed: Mapping[str, str]) -> str:
    """The report of what is finished, as Markdown; also put beside the runs, and as a page, named by its content."""
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
    """Which code made these outputs, as they note it themselves; nothing where none does."""
    made = {str(code) for url in outputs for code, _ in read_codes(open_store(url))}
    note = "What worked on these runs; the libraries of each are in `code/` of its output."
    return [Section("Code", note, items=sorted(made))] if made else []


def _values_of_run(run: Run, study: StudyConfig) -> Values:
    """Raises InputError where a metric of the study's is not among them."""
    [values] = _values_of(run.evaluate).values()
    for metric in study.metrics:
        if metric not in values:
            raise InputError(f"metrics: `{metric}` was not measured; expected some of {', '.join(values)}")
    return values


def _values_of_baselines(study: StudyConfig) -> dict[str, Values]:
    """A metric that is undefined for all queries of a baseline has no value there, and is no mistake."""
    if not study.baselines:
        return {}
    return {
        name: {metric: values.get(metric, {}) for metric in study.metrics}
        for name, values in _values_of(scoring_of_baselines(study)).items()
    }


def _values_of(evaluated: EvaluateConfig) -> dict[str, Values]:
    """Of each of its encoders."""
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
            continue  # no LLM had to write for it
        generation += spent_on(open_run(part["data"])).share(part["seeds"], part["seeds_available"])
    return TrainingCost(
        instances=result["instances"],
        tokens=result["tokens"],
        operations=result["operations"],
        device_seconds=result["seconds"] * result["world_size"],
        generation=generation,
    )


def spent_on(run: GenerateRun) -> Spent:
    """On the rows of a generate run; where it judges what another one wrote, on the writing too."""
    source = run.plan.settings["source"]
    written = spent_on(open_run(source["run"])) if source["kind"] == "drafts" else Spent()
    return written + run.spent()
