"""Training on Ray Train with DeepSpeed: a worker is a rank, checkpoints are in the store."""

import json
import logging
from pathlib import Path
from typing import Any
from uuid import uuid4

from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from dualview.config.train import IndexConfig, TrainConfig, deciding
from dualview.distributed.cluster import errors_of_workers, join_cluster
from dualview.errors import Interruption
from dualview.logs import worker_environment
from dualview.models import SIDES, check_model, pooling_of, saved_settings
from dualview.pipelines.train.checkpoints import FOLDER
from dualview.pipelines.train.engine import deepspeed_config
from dualview.pipelines.train.frozen import keep_vectors
from dualview.pipelines.train.prepare import open_prepared, plan_mixture, prepare
from dualview.pipelines.train.worker import refuse_known_failure, train_worker
from dualview.retrieval.encoder import as_read_with, load_tokenizer
from dualview.runs.manifest import pin_manifest
from dualview.runs.publishing import CHOSEN_KEY, LAST_KEY, publish
from dualview.runs.run import open_run
from dualview.storage import Store, arrow_filesystem, check_reachable, open_store
from dualview.training.prepared import Prepared
from dualview.training.schedule import num_steps_of, sampler_of, use_of_parts

logger = logging.getLogger(__name__)

CONFIG_KEY = "config.json"
RESULT_KEY = LAST_KEY
RAY_TRAIN = "ray-train"


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains an encoder, or resumes an interrupted run of the same config.

    Puts `encoder/` (a sentence-transformers folder), `prepared.json` with the counts of the mixture and, last,
    `result.json` under the output. Returns the content of `result.json`: steps, instances, tokens, floating-point
    operations, seconds, groups per second, the loss of each step.
    """
    store = open_store(config.output)
    check_reachable(store)
    if config.embeddings is not None:
        check_reachable(open_store(config.embeddings))
    check_model(config.encoder.model)
    pooling_of(config.encoder.model, config.encoder.pooling)
    _compare_prompts(config)
    if store.list(RESULT_KEY) or store.list(CHOSEN_KEY):
        _pin(store, config)
        publish(store)  # finishes what a killed attempt left to do
        logger.info(f"{config.output} is finished; nothing to do")
    else:
        refuse_known_failure(store)
        for part in config.mixture.parts:
            open_run(part.data).check_complete()  # fails before a cluster is started
        join_cluster(config.workers, dashboard=True)  # Ray Train queries it for the state of its workers
        placed = _anywhere(config)
        sources, counts = plan_mixture(placed)  # finds mistakes in the data before anything is written
        _pin(store, config)
        prepare(placed, sources, counts)
        prepared = open_prepared(placed)
        _print_plan(config, prepared)
        _print_first_texts(placed, prepared)
        if config.train == "query_encoder":
            keep_vectors(placed, prepared)
        with errors_of_workers():
            _trainer(placed).fit()
        _remove_traces(store)
    result: dict[str, Any] = json.loads(store.get(RESULT_KEY))
    return result


def _compare_prompts(config: TrainConfig) -> None:
    """Warns if the prompts are not the model's own, with which an existing index was probably made."""
    own, given = saved_settings(config.encoder.model).prompts, config.encoder.prompts.model_dump()
    for side in SIDES:
        if own[side] != given[side]:
            logger.warning(
                f"encoder.prompts.{side}: {given[side]!r}, but {config.encoder.model} was made with {own[side]!r}"
            )


def _print_first_texts(config: TrainConfig, prepared: Prepared) -> None:
    """Shows a query and a passage exactly as the model reads them, special tokens included."""
    settings = config.encoder
    tokenizer = load_tokenizer(settings.model, trust_remote_code=settings.trust_remote_code)
    modes = {settings.pooling} | saved_settings(settings.model).pooling_modes
    first = {"query": prepared.group(0).views[0].wordings[0], "passage": prepared.tokens(0)}
    for side, tokens in first.items():
        text = as_read_with(tokenizer, tokens, reads_last="lasttoken" in modes)
        logger.info(f"the first {side} as {settings.model} reads it: {text}")


def _pin(store: Store, config: TrainConfig) -> None:
    pin_manifest(store, CONFIG_KEY, config.model_dump(mode="json"), metadata={}, deciding=deciding)


def _print_plan(config: TrainConfig, prepared: Prepared) -> None:
    sampler = sampler_of(config, prepared)
    num_steps = num_steps_of(config, sampler)
    logger.info(
        f"training on {prepared.num_groups:,} groups: {num_steps} steps of {config.batch.instances} instances"
    )
    use = use_of_parts(config, prepared, sampler, num_steps)
    for part, used in zip(config.mixture.parts, use, strict=True):
        if used["groups_unused"]:
            logger.info(
                f"{part.data}, views {part.views}: {used['groups_unused']:,} of {used['groups']:,} groups are in no step"
            )
    queries_cut, passages_cut = prepared.num_cut(config.encoder)
    logger.info(
        f"cut at the limits: {queries_cut:,} queries at {config.encoder.max_query_tokens} tokens,"
        f" {passages_cut:,} passages at {config.encoder.max_passage_tokens}"
    )
    logger.info(f"DeepSpeed: {json.dumps(deepspeed_config(config))}")


def _remove_traces(store: Store) -> None:
    """Removes what a finished run no longer needs: checkpoints, and Ray Train's records of its attempts."""
    try:
        for folder in (FOLDER, f"{RAY_TRAIN}/"):
            store.remove(folder)
    except Interruption as error:  # harmless for the run
        logger.warning(f"the checkpoints were not removed: {error}")


def _anywhere(config: TrainConfig) -> TrainConfig:
    """The same config with absolute paths: Ray Train's workers run in folders of their own."""
    model = config.encoder.model
    if Path(model).is_dir():
        model = str(Path(model).absolute())
    parts = tuple(
        part.model_copy(update={"data": open_store(part.data).url}) for part in config.mixture.parts
    )
    logs = config.monitor.logs
    return config.model_copy(
        update={
            "output": open_store(config.output).url,
            "embeddings": config.embeddings and open_store(config.embeddings).url,
            "index": config.index and config.index.model_copy(update=_absolute(config.index)),
            "mixture": config.mixture.model_copy(update={"parts": parts}),
            "encoder": config.encoder.model_copy(update={"model": model}),
            "monitor": config.monitor.model_copy(update={"logs": logs and str(Path(logs).absolute())}),
        }
    )


def _absolute(index: IndexConfig) -> dict[str, str]:
    files = {name: path for name, path in index.model_dump().items() if path is not None}
    return {name: path if "://" in path else str(Path(path).absolute()) for name, path in files.items()}


def _trainer(config: TrainConfig) -> TorchTrainer:
    filesystem, path = arrow_filesystem(config.output)
    workers = config.workers
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(workers.cpus))),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise every line of ours is printed twice
        "PYTHONWARNINGS": "ignore::FutureWarning",  # from torch, caused by DeepSpeed
        **worker_environment(),
    }
    if not workers.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    return TorchTrainer(
        train_worker,
        train_loop_config=config.model_dump(mode="json"),
        scaling_config=ScalingConfig(
            num_workers=workers.num,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=RunConfig(
            name=uuid4().hex,  # overlapping drivers must not share Ray Train's records
            storage_path=f"{path}/{RAY_TRAIN}",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
    )
