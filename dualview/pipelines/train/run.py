"""Training on Ray Train with DeepSpeed: a worker is a rank, checkpoints lie on the store."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
import json
import logging
import math
from pathlib import Path
import tempfile
import time
from typing import Any
from uuid import uuid4

import deepspeed
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
import torch

from dualview.config.base import plain_json
from dualview.config.train import TrainConfig, deciding
from dualview.distributed.cluster import errors_of_workers, join_cluster
from dualview.errors import InputError, Interruption
from dualview.logs import show_logs_of_worker, worker_environment
from dualview.models import check_model
from dualview.pipelines.train.checkpoints import FOLDER, Checkpoints, Position, from_rank_0, latest_checkpoint
from dualview.pipelines.train.frozen import keep_vectors, look_up_vectors
from dualview.pipelines.train.monitor import Watch
from dualview.pipelines.train.prepare import (
    open_prepared,
    plan_mixture,
    prepare,
    read_counts,
    tokens_of,
    untouched_encoder,
)
from dualview.retrieval.encoder import encode_tokens, inputs_of, num_dense_parameters
from dualview.runs.manifest import claim
from dualview.runs.publishing import CHOSEN_KEY, LAST_KEY, offer, publish
from dualview.runs.shards import finished_plan
from dualview.storage import Store, arrow_filesystem, check_reachable, open_store
from dualview.training.batches import Sampler
from dualview.training.export import finished_encoder, learner_of, model_card
from dualview.training.prepared import Prepared
from dualview.training.step import (
    Backward,
    Learner,
    Retained,
    Work,
    check_precision,
    learn,
    learning_rate_scale,
    operations,
    plan_work,
)

logger = logging.getLogger(__name__)

CONFIG_KEY = "config.json"
RESULT_KEY = LAST_KEY
RAY_TRAIN = "ray-train"


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains an encoder, or goes on where an interrupted run of the same config stopped.

    Leaves under the output `encoder/` (a sentence-transformers folder), `prepared.json` with the counts of the
    mixture and, last, `result.json`. Returns the latter's content: steps, instances, tokens, floating-point
    operations, seconds, groups per second, the loss of each step.
    """
    store = open_store(config.output)
    check_reachable(store)
    if config.embeddings is not None:
        check_reachable(open_store(config.embeddings))
    check_model(config.encoder.model)
    if store.list(RESULT_KEY) or store.list(CHOSEN_KEY):
        _claim(store, config)
        publish(store)  # as far as a killed attempt left something to do
        logger.info(f"{config.output} is finished; nothing to do")
    else:
        _refuse_known_failure(store)
        for part in config.mixture.parts:
            finished_plan(open_store(part.data))  # at once, not after a cluster has been started
        join_cluster(config.workers, dashboard=True)  # Ray Train asks it for the state of its workers
        placed = _anywhere(config)
        sources, counts = plan_mixture(placed)  # a mistake in the data shows before anything is written
        _claim(store, config)
        prepare(placed, sources, counts)
        prepared = open_prepared(placed)
        _print_plan(config, prepared)
        if config.documents == "frozen":
            keep_vectors(placed, prepared)
        with errors_of_workers():
            _trainer(placed).fit()
        _remove_traces(store)
    result: dict[str, Any] = json.loads(store.get(RESULT_KEY))
    return result


def _claim(store: Store, config: TrainConfig) -> None:
    claim(store, CONFIG_KEY, config.model_dump(mode="json"), notes={}, deciding=deciding)


def _print_plan(config: TrainConfig, prepared: Prepared) -> None:
    sampler = sampler_of(config, prepared)
    num_steps = num_steps_of(config, sampler)
    logger.info(
        f"training on {prepared.num_groups:,} groups: {num_steps} steps of {config.batch.instances} instances"
    )
    for part, used in zip(
        config.mixture.parts, use_of_parts(config, prepared, sampler, num_steps), strict=True
    ):
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


def use_of_parts(
    config: TrainConfig, prepared: Prepared, sampler: Sampler, num_steps: int
) -> list[dict[str, int]]:
    """What the steps take of each part: its groups, those that are in no step, and the instances of all steps.

    Raises InputError where they take nothing of a part.
    """
    uses = sampler.uses(num_steps)
    found = []
    for number, part in enumerate(config.mixture.parts):
        own = prepared.part == number
        unused = int((uses[own] == 0).sum())
        if unused == own.sum():
            raise InputError(
                f"budget: {num_steps} steps take nothing of mixture.parts.{number} ({part.data}); expected more steps"
            )
        instances = int((uses[own] * prepared.num_views[own]).sum())
        found.append({"groups": int(own.sum()), "groups_unused": unused, "instances_used": instances})
    return found


def _remove_traces(store: Store) -> None:
    """Of a finished run: checkpoints, and what Ray Train keeps of its attempts."""
    try:
        for folder in (FOLDER, f"{RAY_TRAIN}/"):
            store.remove(folder)
    except Interruption as error:  # the run is none the worse for it
        logger.warning(f"the checkpoints stay: {error}")


def _anywhere(config: TrainConfig) -> TrainConfig:
    """The same with absolute paths: Ray Train's workers run in a folder of their own."""
    model = config.encoder.model
    if Path(model).is_dir():
        model = str(Path(model).absolute())
    parts = tuple(
        part.model_copy(update={"data": open_store(part.data).url}) for part in config.mixture.parts
    )
    logs = config.watching.logs
    return config.model_copy(
        update={
            "output": open_store(config.output).url,
            "embeddings": config.embeddings and open_store(config.embeddings).url,
            "mixture": config.mixture.model_copy(update={"parts": parts}),
            "encoder": config.encoder.model_copy(update={"model": model}),
            "watching": config.watching.model_copy(update={"logs": logs and str(Path(logs).absolute())}),
        }
    )


def sampler_of(config: TrainConfig, prepared: Prepared) -> Sampler:
    return Sampler(prepared, config.batch, homogeneous=config.mixture.homogeneous, seed=config.seed)


def num_steps_of(config: TrainConfig, sampler: Sampler) -> int:
    """How many steps the budget pays for."""
    budget = config.budget.model_dump(exclude={"petaflop"})
    if (petaflop := config.budget.petaflop) is not None:
        budget["tokens"] = tokens_of(petaflop, config)
    return sampler.num_steps(**budget)


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """What DeepSpeed is told. Weights are fp32 and so, with them, gradients and their reduction."""
    offload = {"offload_optimizer": {"device": "cpu"}} if config.deepspeed.offload_optimizer else {}
    return {
        "train_micro_batch_size_per_gpu": 1,  # required and unused: our batches are not its samples
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {"stage": config.deepspeed.stage, **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def _trainer(config: TrainConfig) -> TorchTrainer:
    filesystem, path = arrow_filesystem(config.output)
    workers = config.workers
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(workers.cpus))),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of ours comes twice
        "PYTHONWARNINGS": "ignore::FutureWarning",  # DeepSpeed's, of torch
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
            name=uuid4().hex,  # what Ray Train keeps may not be shared by drivers that overlap
            storage_path=f"{path}/{RAY_TRAIN}",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            worker_runtime_env={"env_vars": environment},
        ),
    )


def train_worker(settings: dict[str, Any]) -> None:
    """One rank, from the first step or the latest checkpoint to the exported encoder."""
    config = TrainConfig.model_validate(settings, strict=False)
    store = open_store(config.output)
    _refuse_known_failure(store)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    show_logs_of_worker(rank)
    torch.manual_seed(config.seed)
    if from_rank_0(publish(store) if rank == 0 else None):  # an attempt that overlaps has finished
        return
    attempt = from_rank_0(uuid4().hex)

    prepared = open_prepared(config)
    sampler = sampler_of(config, prepared)
    num_steps = num_steps_of(config, sampler)
    learner = learner_of(config)
    encoder = learner.encoder
    num_parameters = num_dense_parameters(encoder)
    frozen = look_up_vectors(config, prepared) if config.documents == "frozen" else None
    layout = config.deepspeed.model_dump()
    with latest_checkpoint(store, rank, context.get_local_rank()) as saved:
        fits = saved is not None and saved.fits(world_size, layout)
        if saved is not None and not fits:
            saved.load_weights(learner)
        engine = _deepspeed_engine(learner, config, num_steps)
        if saved is not None and fits:
            saved.load_state(engine)
        start = saved.position if saved is not None else Position(world_size, layout, [], 0, 0.0)
    if not fits:
        for _ in start.losses:
            engine.lr_scheduler.step()
        if start.losses and rank == 0:
            logger.info(
                f"going on with {world_size} ranks and deepspeed {layout} where there were {start.world_size} and"
                f" {start.deepspeed}: weights, learning rate and the order of the data are what they would have been,"
                " AdamW's moments start anew"
            )
    losses = list(start.losses)
    checkpoints = Checkpoints(store, attempt, rank, world_size)
    retained = _retain(config, prepared, engine.device)

    def work_of(step: int) -> Work:
        epoch, groups = sampler.step(step)
        return plan_work(
            config,
            prepared,
            groups,
            frozen,
            retained.tokens,
            step=step,
            epoch=epoch,
            rank=rank,
            world_size=world_size,
        )

    watch = Watch(config, num_steps, num_parameters=num_parameters) if rank == 0 else None
    first_step = len(losses)
    num_groups = num_tokens = 0
    started = time.monotonic()
    # The next step is made ready while this one computes.
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = ahead.submit(work_of, first_step) if first_step < num_steps else None
        for step in range(first_step, num_steps):
            assert coming is not None
            work = coming.result()
            coming = ahead.submit(work_of, step + 1) if step + 1 < num_steps else None
            with check_precision(encoder, config.precision) if step == first_step else nullcontext():
                share = learn(
                    engine,
                    learner.temperature,
                    _backward(engine),
                    _several(engine),
                    work,
                    config,
                    retained,
                    inputs=partial(inputs_of, encoder),
                    world_size=world_size,
                )
            loss = _mean_over_ranks(share)
            if not math.isfinite(loss):
                _stop_at(store, step, work, loss, rank)
            learning_rate = engine.get_lr()[0]
            engine.step()
            losses.append(loss)
            num_groups, num_tokens = num_groups + len(work.batch.group_ids), num_tokens + work.num_tokens
            if watch is not None:
                watch.step(step, loss, learning_rate, engine.get_global_grad_norm(), work)
            last = step + 1 == num_steps
            if (step + 1) % config.checkpoint_every_steps == 0 and not last:
                seconds = start.seconds + time.monotonic() - started
                position = Position(world_size, layout, list(losses), start.tokens + num_tokens, seconds)
                checkpoints.save(engine, position, _learned(learner, config))
            every = config.watching.evaluate_every_steps
            if every is not None and ((step + 1) % every == 0 or last):
                weights = _weights(learner, config)
                if watch is not None:
                    watch.evaluate(step, weights)

    seconds = time.monotonic() - started
    checkpoints.wait()
    weights = _weights(learner, config)
    temperature = float(learner.temperature())
    if watch is not None:
        result = {
            "steps": num_steps,
            "instances": num_steps * config.batch.instances,
            "groups": prepared.num_groups,
            "mixture": [
                counts | used
                for counts, used in zip(
                    read_counts(config), use_of_parts(config, prepared, sampler, num_steps), strict=True
                )
            ],
            "deepspeed": deepspeed_config(config),
            "world_size": world_size,
            "temperature": temperature,
            "tokens": start.tokens + num_tokens,
            "operations": operations(config, num_parameters, start.tokens + num_tokens),
            "seconds": start.seconds + seconds,  # of the steps that count, whatever was lost to kills
            "steps_since_resume": num_steps - first_step,
            "groups_per_second": num_groups / seconds if seconds else 0.0,
            "tokens_per_second": num_tokens / seconds if seconds else 0.0,
            "losses": losses,
            "evaluations": watch.close(),
        }
        _export(store, attempt, config, weights, result)
        publish(store)


def _retain(config: TrainConfig, prepared: Prepared, device: torch.device) -> Retained:
    if config.loss.retention == 0:
        return Retained([], torch.empty(0))
    tokens = prepared.retained()
    encoder = untouched_encoder(config).to(device)  # the one in training may have learned something already
    vectors_RH = encode_tokens(encoder, tokens, side="query", precision=config.precision)
    return Retained(tokens, vectors_RH.clone())


def _deepspeed_engine(learner: Learner, config: TrainConfig, num_steps: int) -> deepspeed.DeepSpeedEngine:
    optimizer = torch.optim.AdamW(
        [parameter for parameter in learner.parameters() if parameter.requires_grad],
        lr=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_scale(step, num_steps, config.optimizer.warmup_share)
    )
    # DeepSpeed would compile an operator for shared memory, which training does not use; and a worker that is
    # killed while it compiles leaves a lock behind, on which every later one waits for ever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=learner,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,  # Ray Train has made the process group
        config=deepspeed_config(config),
    )
    return engine


def _backward(engine: deepspeed.DeepSpeedEngine) -> Backward:
    return lambda loss: engine.backward(loss)


def _several(engine: deepspeed.DeepSpeedEngine) -> Callable[[], AbstractContextManager[object]]:
    """A context for several backward passes of one step.

    Without one, ZeRO 1 and 2 would reduce after the first, and gradients come out silently wrong.
    """
    if engine.zero_optimization_stage():
        return lambda: engine.coalesce_grad_reduction()

    @contextmanager
    def reduce_at_the_end() -> Iterator[None]:
        engine.set_gradient_accumulation_boundary(False)
        yield
        engine.set_gradient_accumulation_boundary(True)
        engine.allreduce_gradients()

    return reduce_at_the_end


def _mean_over_ranks(loss: torch.Tensor) -> float:
    total = loss.detach().float().clone()
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()


def _stop_at(store: Store, step: int, work: Work, loss: float, rank: int) -> None:
    """Leaves what the step saw, and ends the run."""
    dump = {"step": step, "loss": str(loss), "groups": work.batch.group_ids}
    if rank == 0:
        store.put_new(f"not-finite-{step:08d}.json", json.dumps(dump).encode(), attempt="rank-0")
    torch.distributed.barrier()  # no rank ends before the dump stands
    _refuse_known_failure(store)


def _refuse_known_failure(store: Store) -> None:
    """A step whose loss is not finite would be that again: the run is deterministic."""
    if dumps := store.list("not-finite-"):
        dump = json.loads(store.get(dumps[0].key))
        raise Interruption(
            f"{store.url}: the loss of step {dump['step']} was {dump['loss']} on groups"
            f" {', '.join(dump['groups'][:3])}, ... (all in {dumps[0].key}); lower optimizer.learning_rate or"
            " look at these groups, and choose another output"
        )


def _weights(learner: Learner, config: TrainConfig) -> dict[str, torch.Tensor]:
    """All of the encoder on the CPU, on rank 0; {} on the others. To be called by all: at stage 3 each has a part."""
    return _on_rank_0(learner.encoder, config)


def _learned(learner: Learner, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The same of what learns, the temperature included."""
    learned = {name for name, weight in learner.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in _on_rank_0(learner, config).items() if name in learned}


def _on_rank_0(module: torch.nn.Module, config: TrainConfig) -> dict[str, torch.Tensor]:
    sharded = list(module.parameters()) if config.deepspeed.stage == 3 else []
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        if ray.train.get_context().get_world_rank():
            return {}
        return {name: weight.detach().cpu().clone() for name, weight in module.state_dict().items()}


def _export(
    store: Store,
    attempt: str,
    config: TrainConfig,
    weights: dict[str, torch.Tensor],
    result: dict[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encoder = Path(folder) / "encoder"
        finished_encoder(config, weights).save(str(encoder))
        (encoder / "README.md").write_text(model_card(config, result))
        (Path(folder) / RESULT_KEY).write_text(plain_json(result))
        offer(store, attempt, Path(folder))
