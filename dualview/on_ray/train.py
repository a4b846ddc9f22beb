"""Training on Ray Train with DeepSpeed: a worker is a rank, checkpoints lie on the store."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
import json
import math
from pathlib import Path
import tempfile
import time
from typing import Any

import deepspeed
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sentence_transformers import SentenceTransformer
import torch

from dualview.commit.claims import claim
from dualview.commit.shards import finished_plan
from dualview.config.base import fingerprint
from dualview.config.train import TrainConfig
from dualview.encoder import encode_tokens, inputs_of, num_dense_parameters
from dualview.errors import Interruption
from dualview.models import check_model
from dualview.on_ray.checkpoints import latest_checkpoint, save_checkpoint
from dualview.on_ray.cluster import errors_of_workers, join_cluster
from dualview.on_ray.frozen import keep_vectors, look_up_vectors
from dualview.on_ray.prepare import (
    open_prepared,
    plan_mixture,
    prepare,
    read_counts,
    tokens_of,
)
from dualview.on_ray.watch import Watch
from dualview.storage import Store, arrow_filesystem, check_reachable, open_store, upload_tree
from dualview.training.batches import Sampler
from dualview.training.export import encoder_to_train, finished_encoder, model_card
from dualview.training.prepared import Prepared
from dualview.training.step import (
    Backward,
    Learner,
    Retained,
    Work,
    learn,
    learning_rate_scale,
    operations,
    plan_work,
)

CHECKPOINTS_KEPT = 2
CONFIG_KEY = "config.json"
RESULT_KEY = "result.json"


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
    claimed = config.deciding()
    if store.list(RESULT_KEY):
        claim(store, CONFIG_KEY, claimed, notes={})
        print(f"{config.output} is finished; nothing to do")
    else:
        _refuse_known_failure(store)
        for part in config.mixture.parts:
            finished_plan(open_store(part.data))  # at once, not after a cluster has been started
        join_cluster(config.workers, dashboard=True)  # Ray Train asks it for the state of its workers
        placed = _anywhere(config)
        sources, counts = plan_mixture(placed)  # a mistake in the data shows before anything is written
        claim(store, CONFIG_KEY, claimed, notes={})
        prepare(placed, sources, counts)
        prepared = open_prepared(placed)
        sampler = sampler_of(config, prepared)
        num_steps = num_steps_of(config, sampler)
        print(
            f"training on {prepared.num_groups:,} groups: {num_steps} steps of {config.batch.instances} instances"
        )
        queries_cut, passages_cut = prepared.num_cut(config.encoder)
        print(
            f"cut at the limits: {queries_cut:,} queries at {config.encoder.max_query_tokens} tokens,"
            f" {passages_cut:,} passages at {config.encoder.max_passage_tokens}"
        )
        print(f"DeepSpeed: {json.dumps(deepspeed_config(config))}")
        if config.documents == "frozen":
            keep_vectors(placed, prepared)
        with errors_of_workers():
            _trainer(placed, fingerprint(claimed)).fit()
    result: dict[str, Any] = json.loads(store.get(RESULT_KEY))
    return result


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


def _trainer(config: TrainConfig, name: str) -> TorchTrainer:
    filesystem, path = arrow_filesystem(config.output)
    workers = config.workers
    environment = {
        "OMP_NUM_THREADS": str(max(1, int(workers.cpus))),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of ours comes twice
        "PYTHONWARNINGS": "ignore::FutureWarning",  # DeepSpeed's, of torch
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
            # Without the workers: a run may go on with another number of them.
            name=f"checkpoints-{name}",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
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
    torch.manual_seed(config.seed)

    prepared = open_prepared(config)
    sampler = sampler_of(config, prepared)
    num_steps = num_steps_of(config, sampler)
    encoder = encoder_to_train(config)
    num_parameters = num_dense_parameters(encoder)
    retained = _retain(encoder, prepared, config)
    frozen = look_up_vectors(config, prepared) if config.documents == "frozen" else None
    learner = Learner(encoder, config.loss.temperature.value, learned=config.loss.temperature.learned)

    with latest_checkpoint() as checkpoint:
        if checkpoint is not None and checkpoint.world_size != world_size:
            checkpoint.load_weights(learner, config.deepspeed.stage)
        engine = _deepspeed_engine(learner, config, num_steps)
        if checkpoint is not None:
            checkpoint.load_rest(engine, world_size)
        losses = checkpoint.losses if checkpoint is not None else []
        tokens_before = checkpoint.tokens if checkpoint is not None else 0
        seconds_before = checkpoint.seconds if checkpoint is not None else 0.0
    learner.train(config.encoder.dropout)

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
                position = {
                    "world_size": world_size,
                    "losses": losses,
                    "tokens": tokens_before + num_tokens,
                    "seconds": seconds_before + time.monotonic() - started,
                }
                save_checkpoint(engine, position, rank)
            every = config.watching.evaluate_every_steps
            if every is not None and ((step + 1) % every == 0 or last):
                weights = _weights(learner, config)
                if watch is not None:
                    watch.evaluate(step, weights)

    seconds = time.monotonic() - started
    weights = _weights(learner, config)
    temperature = float(learner.temperature())
    if watch is not None:
        result = {
            "steps": num_steps,
            "instances": num_steps * config.batch.instances,
            "groups": prepared.num_groups,
            "mixture": read_counts(config),
            "deepspeed": deepspeed_config(config),
            "world_size": world_size,
            "temperature": temperature,
            "tokens": tokens_before + num_tokens,
            "operations": operations(config, num_parameters, tokens_before + num_tokens),
            "seconds": seconds_before + seconds,  # of the steps that count, whatever was lost to kills
            "steps_since_resume": num_steps - first_step,
            "groups_per_second": num_groups / seconds if seconds else 0.0,
            "tokens_per_second": num_tokens / seconds if seconds else 0.0,
            "losses": losses,
            "evaluations": watch.close(),
        }
        _export(finished_encoder(config, weights), config, result, context.get_experiment_name())
        store.put_new(RESULT_KEY, json.dumps(result).encode(), attempt="rank-0")
    ray.train.report({"loss": losses[-1]})


def _retain(encoder: SentenceTransformer, prepared: Prepared, config: TrainConfig) -> Retained:
    if config.loss.retention == 0:
        return Retained([], torch.empty(0))
    tokens = prepared.retained()
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
    """The encoder's weights on the CPU; at stage 3 all ranks give their parts. Empty on ranks other than 0."""
    sharded = list(learner.parameters()) if config.deepspeed.stage == 3 else []
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        if ray.train.get_context().get_world_rank():
            return {}
        return {name: weight.detach().cpu().clone() for name, weight in learner.encoder.state_dict().items()}


def _export(encoder: SentenceTransformer, config: TrainConfig, result: dict[str, Any], attempt: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        encoder.save(folder)
        (Path(folder) / "README.md").write_text(model_card(config, result))
        upload_tree(Path(folder), open_store(config.output), "encoder", attempt)
