"""Generation on Ray: Ray Data distributes shard numbers over actors, each with an engine."""

from collections import deque
from collections.abc import Iterable, Mapping
from functools import partial
import logging
from pathlib import Path
import time
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy

from dualview.config.engines import Price, VllmEngine
from dualview.config.generate import Budget, GenerateConfig, PrecomputedWriter
from dualview.config.sources import BeirSource, DraftsSource, PromptrieverSource, TuplesSource
from dualview.costs import Spent, used_up
from dualview.distributed.cluster import errors_of_workers, join_cluster, map_on_cluster
from dualview.engines import check_engine
from dualview.errors import InputError, Interruption
from dualview.pipelines.generate.actor import ShardActor
from dualview.pipelines.generate.judge_gate import GoldPairs, gold_pairs_of
from dualview.pipelines.generate.mine import mine
from dualview.progress import Progress
from dualview.runs.plan import Shard, known_inputs, plan_run
from dualview.runs.run import GenerateRun
from dualview.sources import open_source, vocabulary_of
from dualview.sources.promptriever import keep_plain
from dualview.storage import Store, check_reachable, open_store
from dualview.synthesis.contamination import load_benchmarks
from dualview.synthesis.duplicates import mark_near_duplicates
from dualview.synthesis.language import model_version
from dualview.synthesis.preview import fill_prompts
from dualview.synthesis.recipe import check_parts, prompt_versions, vocabulary_version

logger = logging.getLogger(__name__)

# Enough rows to see whether an engine gives sensible answers: at a share of 5%, 25 of them are accepted.
WATCHED_ROWS = 500


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Finishes the run, new or interrupted, or goes as far as its budget allows.

    Every planned request becomes one row in one of the `data/shard-*.parquet` under the output.
    Returns GenerateRun.summary: counts by status, the cost, and the validation of each judge.
    """
    store = open_store(config.output)
    check_reachable(store)
    check(config)
    config = _with_mined_examples(config)
    run, pairs = _plan(config, store)
    to_do = run.missing()
    logger.info(f"{config.output}: {len(run.plan.shards)} shards planned, {len(to_do)} to do")
    if to_do:
        join_cluster(config.actors)
        with errors_of_workers():
            _finish_all(config, run, pairs, to_do)
    if config.near_duplicates and run.lacks_near_duplicates and not run.missing():
        mark_near_duplicates(run, config.near_duplicates, partial(map_on_cluster, config.actors))
    return run.summary(config.price)


def _with_mined_examples(config: GenerateConfig) -> GenerateConfig:
    """Replaces a source without negatives, a BEIR collection, with the files mined from it."""
    if not isinstance(config.source, BeirSource):
        return config
    mined = mine(config.source, config.output)
    examples = TuplesSource(kind="tuples", paths=mined.files, max_bad_share=0.0, vocabulary=None)
    return config.model_copy(update={"source": examples})


def _plan(config: GenerateConfig, store: Store) -> tuple[GenerateRun, GoldPairs]:
    """Plans the run, or continues its plan. Finds mistakes in prompts or gold pairs before anything is written."""
    source, settings = open_source(config.source), run_settings(config)
    map_all = partial(map_on_cluster, config.actors)
    inputs = source.inputs(known_inputs(store, settings), map_all)
    first = next(source_input for source_input in inputs if source_input.num_rows)
    fill_prompts(config, *source.read(first, 0, 1))
    pairs = gold_pairs_of(config, inputs)
    run = GenerateRun(store, plan_run(store, settings, inputs, config.rows_per_shard))
    if isinstance(config.source, PromptrieverSource):
        keep_plain(store, run.plan.all_inputs, map_all)
    return run, pairs


def check(config: GenerateConfig) -> None:
    """Raises InputError if the config alone shows that the run is impossible; reads and starts nothing."""
    engine, actors = config.engine, config.actors
    check_parts(
        config,
        has_vocabulary=vocabulary_of(config.source) is not None,
        has_engine=engine is not None,
    )
    if isinstance(config.source, DraftsSource) != isinstance(config.writer, PrecomputedWriter):
        raise InputError(
            "writer: kind precomputed and a source of kind drafts require each other; found only one of them"
        )
    if isinstance(engine, VllmEngine) and actors.gpus and engine.tensor_parallel != actors.gpus:
        raise InputError(
            f"engine.tensor_parallel: {engine.tensor_parallel} GPUs share the model, but an actor requests"
            f" {actors.gpus:g}; set actors.gpus to {engine.tensor_parallel}"
        )
    if engine is not None:
        check_engine(engine)


def run_settings(config: GenerateConfig) -> dict[str, Any]:
    """What determines the rows of a run, and so whether it may continue: settings and all text used as data.

    The text is the prompts with everything filled into them, the vocabulary, the benchmarks and the language
    model. Code is not included: a row's lineage names its code, and the run lists every version that worked on it.
    """
    benchmarks, vocabulary = config.rules.benchmarks, vocabulary_of(config.source)
    return {
        **config.deciding(),
        "benchmark_texts": load_benchmarks(benchmarks).checksum if benchmarks else None,
        "vocabulary": vocabulary_version(vocabulary) if vocabulary else None,
        "language_model": model_version() if config.rules.other_language is not None else None,
        "prompt_versions": prompt_versions(config),
    }


def _finish_all(config: GenerateConfig, run: GenerateRun, pairs: GoldPairs, to_do: list[Shard]) -> None:
    """INPUT shard numbers -> FAN-OUT actors with an engine -> OUTPUT one put and one small report per shard."""
    actors = config.actors
    account = _account(config, run)
    reports = ray.data.from_items(
        [{"shard": shard.index} for shard in to_do], override_num_blocks=len(to_do)
    ).map_batches(
        ShardActor,
        fn_constructor_args=(config, run, pairs, vocabulary_of(config.source), account),
        batch_size=1,
        compute=ActorPoolStrategy(
            **actors.size(len(to_do)),
            max_tasks_in_flight_per_actor=config.shards_in_flight,
            max_concurrent_calls_per_actor=config.shards_in_flight,
        ),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    _watch(config, reports.iter_rows(), sum(shard.num_rows for shard in to_do))
    if account is not None and (limit := ray.get(account.used_up.remote())):
        logger.warning(
            f"{config.output}: the budget is used up ({limit}) and {len(run.missing())} shards are left;"
            " raise the budget and run the same command to continue"
        )


def _watch(config: GenerateConfig, reports: Iterable[Mapping[str, Any]], num_examples: int) -> None:
    """Shows the run's progress in a live bar and writes it to the trail."""
    spent, rows, accepted = Spent(), 0, 0
    began: float | None = None
    recent: deque[tuple[int, int]] = deque()
    trail = Path(config.trail) if config.trail else None
    with Progress("generating", num_examples, unit="examples", trail=trail) as progress:
        for report in reports:
            rows += report["rows"]
            accepted += report["accepted"]
            spent += Spent(*(report[name] for name in ("prompt_tokens", "completion_tokens", "gpu_seconds")))
            # Durations are measured by the actors, times by the driver: clocks of nodes may disagree and jump.
            began = began or time.monotonic() - report["seconds"]
            progress.advance(
                report["examples"],
                accepted_share=accepted / max(rows, 1),
                # Prompt and completion tokens while engines ran: excludes their start and the judges' validation.
                tokens_per_second=spent.tokens / max(time.monotonic() - began, 1e-3),
                **({"dollars": spent.dollars(config.price)} if config.price else {}),
            )
            recent.append((report["rows"], report["accepted"]))
            check_accepted_share(config, recent)


def check_accepted_share(config: GenerateConfig, recent: deque[tuple[int, int]]) -> None:
    """Raises Interruption if too few of the last WATCHED_ROWS rows were accepted.

    `recent` has (rows, accepted rows) of each shard; drops those that are too old to count.
    """
    while sum(rows for rows, _ in recent) - recent[0][0] >= WATCHED_ROWS:
        recent.popleft()
    rows, accepted = (sum(counts) for counts in zip(*recent, strict=True))
    if rows >= WATCHED_ROWS and accepted < config.min_accepted_share * rows:
        raise Interruption(
            f"{config.output}: {accepted:,} of the last {rows:,} rows were accepted, less than"
            f" min_accepted_share {config.min_accepted_share:g}; look at the status and drafts of rows in data/"
            " and fix the engine, or choose a smaller share"
        )


class Account:
    """Compares the cost of a run, over all its attempts, with its budget. One actor for the whole run."""

    def __init__(self, spent: Spent, budget: Budget, price: Price | None) -> None:
        self._spent, self._budget, self._price = spent, budget, price

    def add(self, spent: Spent) -> None:
        self._spent += spent

    def used_up(self) -> str | None:
        return used_up(self._spent, self._budget, self._price)


def _account(config: GenerateConfig, run: GenerateRun) -> ActorHandle | None:
    if config.budget is None:
        return None
    actor = ray.remote(num_cpus=0)(Account)
    return actor.remote(run.spent(), config.budget, config.price)
