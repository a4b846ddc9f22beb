"""Training on Ray Train with DeepSpeed: a worker is a rank, checkpoints lie on the store."""

import json
from pathlib import Path
import tempfile
import time
from typing import Any

import deepspeed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.train
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from sentence_transformers import SentenceTransformer
import torch

from dualview.config import TrainConfig, fingerprint
from dualview.encoder import asymmetric, new_encoder
from dualview.models import check_model
from dualview.on_ray.cluster import errors_of_workers, join_cluster
from dualview.on_ray.encoding import Job, encode
from dualview.records import dual_views_from_table
from dualview.shards import claim, read_training_rows
from dualview.storage import arrow_filesystem, check_reachable, open_store, upload_tree
from dualview.training.batches import Sampler, candidates_of
from dualview.training.groups import Group, mix
from dualview.training.step import learning_rate_scale, move_back, retain, step_loss

CHECKPOINTS_KEPT = 2
SECONDS_BETWEEN_LINES = 10
CONFIG_KEY = "config.json"
RESULT_KEY = "result.json"
PASSAGES_KEY = "passages.parquet"
TEXTS_PER_UNIT = 256
CHECKPOINT_TAG = "state"


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains an encoder, or goes on where an interrupted run of the same config stopped.

    Leaves under the output `encoder/` (a sentence-transformers folder) and, last, `result.json`.
    Returns the latter's content: steps, instances, seconds, groups per second, the loss of each step.
    """
    store = open_store(config.output)
    check_reachable(store)
    check_model(config.encoder.model)
    claimed = config.model_dump(mode="json", exclude={"workers", "max_failures"})
    if store.list(RESULT_KEY):
        claim(store, CONFIG_KEY, claimed, notes={})
        print(f"{config.output} is finished; nothing to do")
    else:
        groups = load_groups(config)  # a mistake in the data shows here, before anything is written
        num_steps = sampler_of(config, groups).steps_for(config.mixture.num_instances)
        claim(store, CONFIG_KEY, claimed, notes={})
        print(f"training on {len(groups):,} groups: {num_steps} steps of {config.batch.instances} instances")
        join_cluster(config.workers)
        placed = _anywhere(config)
        if config.documents == "frozen":
            _encode_passages(placed, groups)
        with errors_of_workers():
            _trainer(placed).fit()
    result: dict[str, Any] = json.loads(store.get(RESULT_KEY))
    return result


def _anywhere(config: TrainConfig) -> TrainConfig:
    """The same with absolute paths: Ray Train's workers run in a folder of their own."""
    model = config.encoder.model
    if Path(model).is_dir():
        model = str(Path(model).absolute())
    return config.model_copy(
        update={
            "output": open_store(config.output).url,
            "mixture": config.mixture.model_copy(update={"data": open_store(config.mixture.data).url}),
            "encoder": config.encoder.model_copy(update={"model": model}),
        }
    )


def load_groups(config: TrainConfig) -> list[Group]:
    """The groups of the config's mixture, in the order of its seed.

    Raises InputError where the data is not a finished generate run.
    """
    tables = read_training_rows(open_store(config.mixture.data))
    rows = (row for table in tables for row in dual_views_from_table(table))
    return mix(rows, config.mixture, config.seed)


def _encode_passages(config: TrainConfig, groups: list[Group]) -> None:
    """Puts the untouched encoder's vectors of all passages beside the run, once."""
    store = open_store(config.output)
    if store.list(PASSAGES_KEY):
        return
    passages = {passage.id: passage.full_text for group in groups for passage in group.passages}
    texts = sorted(set(passages.values()))
    vectors = encode(
        {"passages": Job(config.encoder.model, "document", config.encoder.max_passage_tokens, texts)},
        config.workers,
        texts_per_unit=TEXTS_PER_UNIT,
        precision=config.precision,
        trust_remote_code=config.encoder.trust_remote_code,
    )["passages"]
    table = pa.table({"id": list(passages), "vector": [vectors[text] for text in passages.values()]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    store.put_new(PASSAGES_KEY, sink.getvalue().to_pybytes(), attempt="driver")


def _frozen_passages(config: TrainConfig) -> dict[str, torch.Tensor]:
    table = pq.read_table(pa.BufferReader(open_store(config.output).get(PASSAGES_KEY)))
    vectors_DH = np.stack(table["vector"].to_numpy())
    return dict(zip(table["id"].to_pylist(), torch.from_numpy(vectors_DH), strict=True))


def sampler_of(config: TrainConfig, groups: list[Group]) -> Sampler:
    return Sampler(groups, instances=config.batch.instances, queries=config.batch.queries, seed=config.seed)


def _trainer(config: TrainConfig) -> TorchTrainer:
    settings = config.model_dump(mode="json")
    filesystem, path = arrow_filesystem(config.output)
    workers = config.workers
    threads = str(max(1, int(workers.cpus)))
    environment = {
        "OMP_NUM_THREADS": threads,
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # else every line of ours comes twice
        "PYTHONWARNINGS": "ignore::FutureWarning",  # DeepSpeed's, of torch
    }
    if not workers.gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    return TorchTrainer(
        train_worker,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=workers.num,
            use_gpu=workers.gpus > 0,
            resources_per_worker={"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})},
        ),
        run_config=RunConfig(
            name=f"checkpoints-{fingerprint(settings)}",
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
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(config.seed)

    groups = load_groups(config)
    sampler = sampler_of(config, groups)
    num_steps = sampler.steps_for(config.mixture.num_instances)
    encoder = new_encoder(
        config.encoder.model,
        pooling=config.encoder.pooling,
        trust_remote_code=config.encoder.trust_remote_code,
    )
    retained = retain(encoder, groups, config)
    loss_of = step_loss(
        encoder,
        config,
        retained,
        candidates_of(groups) if config.batch.candidates == "queries" else {},
        _frozen_passages(config) if config.documents == "frozen" else None,
        rank=rank,
        world_size=world_size,
    )
    engine = _deepspeed_engine(encoder, config, num_steps)
    engine.module.train(config.encoder.dropout)

    losses = _resume(engine)
    started, first_step, last_line = time.monotonic(), len(losses), time.monotonic()
    for step in range(first_step, num_steps):
        loss = loss_of(engine, sampler.step(step), step)
        engine.backward(loss)
        engine.step()
        losses.append(_mean_over_ranks(loss))
        if rank == 0 and (time.monotonic() - last_line > SECONDS_BETWEEN_LINES or step + 1 == num_steps):
            last_line = time.monotonic()
            print(_progress_line(step + 1, num_steps, losses, first_step, last_line - started), flush=True)
        if (step + 1) % config.checkpoint_every_steps == 0 and step + 1 < num_steps:
            _save(engine, losses)

    seconds = time.monotonic() - started
    _export(encoder, config, context.get_experiment_name(), rank)
    if rank == 0:
        result = {
            "steps": num_steps,
            "instances": config.mixture.num_instances,
            "groups": len(groups),
            "world_size": world_size,
            "steps_since_resume": num_steps - first_step,
            "seconds_since_resume": seconds,
            "groups_per_second": len(groups) * (num_steps - first_step) / num_steps / seconds,
            "losses": losses,
        }
        open_store(config.output).put_new(RESULT_KEY, json.dumps(result).encode(), attempt="rank-0")
    ray.train.report({"loss": losses[-1]})


def _deepspeed_engine(
    encoder: SentenceTransformer, config: TrainConfig, num_steps: int
) -> deepspeed.DeepSpeedEngine:
    if not config.encoder.train_word_embeddings:
        encoder[0].auto_model.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [parameter for parameter in encoder.parameters() if parameter.requires_grad],
        lr=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_scale(step, num_steps, config.optimizer.warmup_share)
    )
    engine, *_ = deepspeed.initialize(
        model=encoder,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,  # Ray Train has made the process group
        config={
            "train_micro_batch_size_per_gpu": 1,  # required and unused: our batches are not its samples
            "gradient_clipping": config.optimizer.max_grad_norm,
            "zero_optimization": {"stage": config.deepspeed.stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        },
    )
    return engine


def _mean_over_ranks(loss: torch.Tensor) -> float:
    total = loss.detach().float().clone()
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()


def _progress_line(step: int, num_steps: int, losses: list[float], first_step: int, seconds: float) -> str:
    rate = (step - first_step) / seconds
    recent = losses[-10:]
    return (
        f"step {step}/{num_steps}  loss {sum(recent) / len(recent):.3f}"
        f"  {rate:.2f} steps/s  {(num_steps - step) / rate:.0f} s to go"
    )


def _save(engine: deepspeed.DeepSpeedEngine, losses: list[float]) -> None:
    """Every rank reports its own files; Ray Train merges them and registers the whole or nothing."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag=CHECKPOINT_TAG, client_state={"losses": losses}, save_latest=False)
        ray.train.report({"loss": losses[-1]}, checkpoint=Checkpoint.from_directory(folder))


def _resume(engine: deepspeed.DeepSpeedEngine) -> list[float]:
    """Loads the latest checkpoint, if there is one, and returns the losses of the steps behind it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        _, client_state = engine.load_checkpoint(folder, tag=CHECKPOINT_TAG)
    losses: list[float] = client_state["losses"]
    return losses


def _export(encoder: SentenceTransformer, config: TrainConfig, attempt: str, rank: int) -> None:
    """Rank 0 puts the encoder as a sentence-transformers folder; at stage 3 all ranks give their parts."""
    sharded = list(encoder.parameters()) if config.deepspeed.stage == 3 else []
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        if rank == 0:
            untouched = new_encoder(
                config.encoder.model,
                pooling=config.encoder.pooling,
                trust_remote_code=config.encoder.trust_remote_code,
            )
            move_back(encoder, untouched.state_dict(), config.move_back)
            exported = asymmetric(encoder, untouched) if config.documents == "frozen" else encoder
            with tempfile.TemporaryDirectory() as folder:
                exported.save(folder)
                upload_tree(Path(folder), open_store(config.output), "encoder", attempt)
