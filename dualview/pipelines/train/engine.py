"""DeepSpeed around the trained model: its config, its passes over a step, and its sharded weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import deepspeed
import torch

from dualview.config.train import TrainConfig
from dualview.training.model import Learner
from dualview.training.schedule import learning_rate_scale
from dualview.training.step import Retained, Step


def deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's config. Weights are fp32, hence also gradients and their reduction."""
    offload = {"offload_optimizer": {"device": "cpu"}} if config.deepspeed.offload_optimizer else {}
    return {
        "train_micro_batch_size_per_gpu": 1,  # required but unused: it does not see our batches
        "gradient_clipping": config.optimizer.max_grad_norm,
        "zero_optimization": {"stage": config.deepspeed.stage, **offload},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }


def deepspeed_engine(learner: Learner, config: TrainConfig, num_steps: int) -> deepspeed.DeepSpeedEngine:
    optimizer = torch.optim.AdamW(
        [parameter for parameter in learner.parameters() if parameter.requires_grad],
        lr=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        fused=torch.cuda.is_available() and not config.deepspeed.offload_optimizer,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_scale(step, num_steps, config.optimizer.warmup_share)
    )
    # DeepSpeed would compile an operator for shared memory, which training does not use. A worker killed during
    # that compilation leaves a lock behind, on which every later worker waits forever.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    engine, *_ = deepspeed.initialize(
        model=learner,
        optimizer=optimizer,
        lr_scheduler=schedule,
        dist_init_required=False,  # Ray Train has made the process group
        config=deepspeed_config(config),
    )
    return engine


def step_of(
    engine: deepspeed.DeepSpeedEngine, config: TrainConfig, retained: Retained, world_size: int
) -> Step:
    """A Step whose forward and backward passes are the engine's."""
    return Step(
        engine.module,
        config,
        retained,
        world_size,
        forward=engine,
        backward=engine.backward,
        accumulation=_accumulation(engine),
    )


def _accumulation(engine: deepspeed.DeepSpeedEngine) -> Callable[[], AbstractContextManager[object]]:
    """A context for several backward passes in one step.

    Without it, ZeRO 1 and 2 would reduce after the first pass, and gradients would be silently wrong.
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


def mean_over_ranks(loss: torch.Tensor) -> float:
    total = loss.detach().float().clone()
    if torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(total)
    return float(total) / torch.distributed.get_world_size()


def all_weights(learner: Learner, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The encoder's weights on rank 0, in CPU memory; {} elsewhere. Call on all ranks: at stage 3 each has a shard."""
    return _on_rank_0(learner.encoder, config)


def learned_weights(learner: Learner, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The same for the trained weights only, temperature included."""
    learned = {name for name, weight in learner.named_parameters() if weight.requires_grad}
    return {name: weight for name, weight in _on_rank_0(learner, config).items() if name in learned}


def _on_rank_0(module: torch.nn.Module, config: TrainConfig) -> dict[str, torch.Tensor]:
    sharded = list(module.parameters()) if config.deepspeed.stage == 3 else []
    with deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded)):
        if torch.distributed.get_rank():
            return {}
        return {name: weight.detach().cpu().clone() for name, weight in module.state_dict().items()}
