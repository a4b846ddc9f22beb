"""One rank of a training run, from the first step or the latest checkpoint to the exported encoder."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
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
import torch

from dualview.config.base import plain_json
from dualview.config.train import TrainConfig
from dualview.errors import Interruption
from dualview.logs import show_logs_of_worker
from dualview.pipelines.train.checkpoints import Checkpoints, Position, from_rank_0, latest_checkpoint
from dualview.pipelines.train.engine import (
    all_weights,
    deepspeed_config,
    deepspeed_engine,
    learned_weights,
    mean_over_ranks,
    step_of,
)
from dualview.pipelines.train.frozen import look_up_vectors
from dualview.pipelines.train.monitor import Monitor
from dualview.pipelines.train.prepare import open_prepared, read_counts
from dualview.retrieval.encoder import (
    comparable,
    encode_tokens,
    num_dense_parameters,
    skip_padding_on_gpu,
    skips_padding,
)
from dualview.runs.publishing import LAST_KEY, offer, publish
from dualview.storage import Store, open_store
from dualview.training.export import finished_encoders, model_card
from dualview.training.model import Learner, check_precision, learner_of, untouched_encoder
from dualview.training.plan import Work, plan_work
from dualview.training.prepared import Prepared
from dualview.training.schedule import num_steps_of, operations, sampler_of, use_of_parts
from dualview.training.step import Retained

logger = logging.getLogger(__name__)


def train_worker(settings: dict[str, Any]) -> None:
    """Runs one rank. settings: a TrainConfig as JSON."""
    config = TrainConfig.model_validate(settings, strict=False)
    store = open_store(config.output)
    refuse_known_failure(store)
    torch.manual_seed(config.seed)
    rank = ray.train.get_context().get_world_rank()
    show_logs_of_worker(rank)
    if from_rank_0(publish(store) if rank == 0 else None):  # an overlapping attempt has finished
        return
    worker = Worker(config, store)
    worker.take_steps()
    worker.finish()


class Worker:
    """A rank's part of the run: the data, the model in DeepSpeed's engine, and the progress so far."""

    def __init__(self, config: TrainConfig, store: Store) -> None:
        """Resumes from the latest checkpoint, if there is one. Call on all ranks."""
        context = ray.train.get_context()
        self.config, self.store = config, store
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.attempt = from_rank_0(uuid4().hex)
        self.prepared = open_prepared(config)
        self.sampler = sampler_of(config, self.prepared)
        self.num_steps = num_steps_of(config, self.sampler)
        self.learner = learner_of(config)
        self.num_parameters = num_dense_parameters(self.learner.encoder)
        self.frozen = look_up_vectors(config, self.prepared) if config.train == "query_encoder" else None
        self.engine, self.start = _resume(config, store, self.learner, self.num_steps)
        skip_padding_on_gpu(self.learner.encoder, config.precision)
        self.retained = _retain(config, self.prepared, self.engine.device)
        self.step = step_of(self.engine, config, self.retained, self.world_size)
        self.checkpoints = Checkpoints(store, self.attempt, self.rank, self.world_size)
        self.monitor = (
            Monitor(config, self.num_steps, num_parameters=self.num_parameters) if self.rank == 0 else None
        )
        self.first_step = len(self.start.losses)
        self.losses = list(self.start.losses)
        self.num_groups = self.num_tokens = 0  # since first_step
        self.began, self.seconds = time.monotonic(), 0.0

    def take_steps(self) -> None:
        """Takes all remaining steps, with checkpoints and evaluations in between."""
        self.began = time.monotonic()
        steps = range(self.first_step, self.num_steps)
        for step, work in zip(steps, _planned_ahead(self._plan, steps), strict=True):
            self._take_step(step, work)
            is_last = step + 1 == self.num_steps
            if (step + 1) % self.config.checkpoint_every_steps == 0 and not is_last:
                self._save_checkpoint()
            every = self.config.monitor.evaluate_every_steps
            if every is not None and ((step + 1) % every == 0 or is_last):
                self._evaluate(step)
        self.seconds = time.monotonic() - self.began

    def finish(self) -> None:
        """Exports the encoder and publishes it with the result."""
        self.checkpoints.wait()
        weights = all_weights(self.learner, self.config)
        temperature = float(self.learner.temperature())
        if self.monitor is not None:
            result = self._result(temperature, self.monitor.close())
            _export(self.store, self.attempt, self.config, weights, result)
            publish(self.store)

    def _plan(self, step: int) -> Work:
        epoch, groups = self.sampler.step(step)
        return plan_work(
            self.config,
            self.prepared,
            groups,
            self.frozen,
            self.retained.tokens,
            step=step,
            epoch=epoch,
            rank=self.rank,
            world_size=self.world_size,
            padded=not skips_padding(self.learner.encoder),
        )

    def _take_step(self, step: int, work: Work) -> None:
        is_first = step == self.first_step
        with check_precision(self.learner.encoder, self.config.precision) if is_first else nullcontext():
            share = self.step.forward_backward(work)
        learning_rate = self.engine.get_lr()[0]
        self.engine.step()
        loss = mean_over_ranks(share)  # only now, because the CPU waits for the device here
        if not math.isfinite(loss):
            _stop_at(self.store, step, work, loss, self.rank)
        self.losses.append(loss)
        self.num_groups += len(work.batch.group_ids)
        self.num_tokens += work.num_tokens
        if self.monitor is not None:
            self.monitor.step(step, loss, learning_rate, self.engine.get_global_grad_norm(), work)

    def _save_checkpoint(self) -> None:
        position = Position(
            self.world_size,
            self.config.deepspeed.model_dump(),
            list(self.losses),
            self.start.tokens + self.num_tokens,
            self.start.seconds + time.monotonic() - self.began,
        )
        self.checkpoints.save(self.engine, position, learned_weights(self.learner, self.config))

    def _evaluate(self, step: int) -> None:
        weights = all_weights(self.learner, self.config)
        if self.monitor is not None:
            self.monitor.evaluate(step, weights)

    def _result(self, temperature: float, evaluations: list[dict[str, Any]]) -> dict[str, Any]:
        """The content of result.json."""
        counts = read_counts(self.config)
        use = use_of_parts(self.config, self.prepared, self.sampler, self.num_steps)
        tokens = self.start.tokens + self.num_tokens
        return {
            "steps": self.num_steps,
            "instances": self.num_steps * self.config.batch.instances,
            "groups": self.prepared.num_groups,
            "mixture": [of_part | used for of_part, used in zip(counts, use, strict=True)],
            "deepspeed": deepspeed_config(self.config),
            "world_size": self.world_size,
            "temperature": temperature,
            "tokens": tokens,
            "operations": operations(self.config, self.num_parameters, tokens),
            # Of the steps that count, without time lost to kills.
            "seconds": self.start.seconds + self.seconds,
            "steps_since_resume": self.num_steps - self.first_step,
            "groups_per_second": self.num_groups / self.seconds if self.seconds else 0.0,
            "tokens_per_second": self.num_tokens / self.seconds if self.seconds else 0.0,
            "losses": self.losses,
            "evaluations": evaluations,
        }


def _resume(
    config: TrainConfig, store: Store, learner: Learner, num_steps: int
) -> tuple[deepspeed.DeepSpeedEngine, Position]:
    """The engine and the position of the latest checkpoint; new ones if there is none."""
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    layout = config.deepspeed.model_dump()
    with latest_checkpoint(store, rank, context.get_local_rank()) as saved:
        if saved is None:
            engine = deepspeed_engine(learner, config, num_steps)
            return engine, Position(world_size, layout, [], 0, 0.0)
        if saved.fits(world_size, layout):
            engine = deepspeed_engine(learner, config, num_steps)
            saved.load_state(engine)
            return engine, saved.position
        saved.load_weights(learner)
        engine = deepspeed_engine(learner, config, num_steps)
        start = saved.position
    for _ in start.losses:
        engine.lr_scheduler.step()
    if rank == 0:
        logger.info(
            f"resuming with {world_size} ranks and deepspeed {layout} instead of {start.world_size} and"
            f" {start.deepspeed}: weights, learning rate and data order are unchanged, AdamW's moments are reset"
        )
    return engine, start


def _retain(config: TrainConfig, prepared: Prepared, device: torch.device) -> Retained:
    if config.loss.base_distillation == 0:
        return Retained([], torch.empty(0))
    tokens = prepared.retained()
    encoder = untouched_encoder(config).to(device)  # the one in training may have changed already
    prompt = config.encoder.prompts.query
    vectors_RH = encode_tokens(encoder, tokens, side="query", precision=config.precision, prompt=prompt)
    return Retained(tokens, comparable(encoder, vectors_RH).clone())


def _planned_ahead(plan: Callable[[int], Work], steps: range) -> Iterator[Work]:
    """The work of each step; a thread plans the next step while the current one computes."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        planned = thread.submit(plan, steps[0]) if steps else None
        for step in steps:
            assert planned is not None
            work = planned.result()
            planned = thread.submit(plan, step + 1) if step + 1 in steps else None
            yield work


def _stop_at(store: Store, step: int, work: Work, loss: float, rank: int) -> None:
    """Puts a dump of the step's groups, and ends the run."""
    dump = {"step": step, "loss": str(loss), "groups": work.batch.group_ids}
    if rank == 0:
        store.put_new(f"not-finite-{step:08d}.json", json.dumps(dump).encode(), attempt="rank-0")
    torch.distributed.barrier()  # no rank ends before the dump exists
    refuse_known_failure(store)


def refuse_known_failure(store: Store) -> None:
    """Raises Interruption if a step's loss was not finite: the run is deterministic, so it would be so again."""
    if dumps := store.list("not-finite-"):
        dump = json.loads(store.get(dumps[0].key))
        raise Interruption(
            f"{store.url}: the loss of step {dump['step']} was {dump['loss']} on groups"
            f" {', '.join(dump['groups'][:3])}, ... (all in {dumps[0].key}); lower optimizer.learning_rate or"
            " look at these groups, and choose another output"
        )


def _export(
    store: Store,
    attempt: str,
    config: TrainConfig,
    weights: dict[str, torch.Tensor],
    result: dict[str, Any],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name, encoder in finished_encoders(config, weights).items():
            encoder.save(str(Path(folder) / name))
            (Path(folder) / name / "README.md").write_text(model_card(config, result))
        (Path(folder) / LAST_KEY).write_text(plain_json(result))
        offer(store, attempt, Path(folder))
