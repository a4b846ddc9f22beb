"""Monitors a training run: figures of each step, and scores of the encoder during training."""

from collections.abc import Callable, Sequence
import importlib
import logging
from pathlib import Path
import time
from typing import Any

import numpy as np
import ray
import ray.util.metrics
from sentence_transformers import SentenceTransformer
from tensorboardX import SummaryWriter
import torch

from dualview.config.base import plain_json
from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.evaluation.scores import score
from dualview.models import QUERY_SIDES, Side
from dualview.pipelines.evaluate import (
    candidates_of,
    hits_of,
    open_benchmark,
    search_among,
    texts_of_passages,
)
from dualview.retrieval.embeddings import EmbeddingSpec
from dualview.retrieval.encoder import encode, encode_queries
from dualview.retrieval.ranking import inner_products, rankings_of
from dualview.retrieval.search import Block
from dualview.training.export import finished_encoders
from dualview.training.plan import Work
from dualview.training.prepared import view_text
from dualview.training.schedule import operations

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10
Figures = dict[str, float]


class Monitor:
    """Monitors the run on rank 0. Rates are since the previous step; evaluation runs in parallel to training."""

    def __init__(self, config: TrainConfig, num_steps: int, *, num_parameters: int) -> None:
        self._config, self._num_steps, self._num_parameters = config, num_steps, num_parameters
        self._hook = hook_of(config.monitor.hook)
        # The latest value of each figure, for Prometheus, through Ray's own exporter.
        self._gauge = ray.util.metrics.Gauge(
            "dualview_training",
            "Figures of the last step and of evaluations during training",
            tag_keys=("figure",),
        )
        self._writer, self._trail = None, None
        if config.monitor.logs is not None:
            folder = Path(config.monitor.logs)
            self._writer = SummaryWriter(str(folder))
            self._trail = (folder / "trail.jsonl").open("a")
        self._started = self._last_step = self._last_line = time.monotonic()
        self._num_steps_seen = 0
        self._recent: list[float] = []
        self._pending: list[tuple[int, Any]] = []
        self._evaluations: list[dict[str, Any]] = []

    def step(
        self, step: int, loss: float, learning_rate: float, gradient_norm: float | None, work: Work
    ) -> None:
        now = time.monotonic()
        seconds, self._last_step = max(now - self._last_step, 1e-9), now
        figures: Figures = {
            "loss": loss,
            "learning_rate": learning_rate,
            "groups_per_second": len(work.batch.group_ids) / seconds,
            "tokens_per_second": work.num_tokens / seconds,
            "padding_share": work.padding_share,
        }
        if gradient_norm is not None:
            figures["gradient_norm"] = float(gradient_norm)
        if (peak := self._config.monitor.peak_tflops) is not None:
            done = operations(self._config, self._num_parameters, work.num_tokens)
            figures["mfu"] = done / seconds / (peak * 1e12 * self._config.workers.num)
        self._note(step, figures)
        self._num_steps_seen += 1
        self._recent = [*self._recent[-9:], loss]
        if now - self._last_line > SECONDS_BETWEEN_LINES or step + 1 == self._num_steps:
            self._last_line = now
            logger.info(self._line(step + 1, now - self._started))
        self._collect(wait=False)

    def evaluate(self, step: int, weights: dict[str, torch.Tensor]) -> None:
        """Scores an encoder with these weights while training continues."""
        # No CPUs requested, because the ranks may hold all of them.
        task = ray.remote(num_cpus=0)(_score_weights).remote(self._config.model_dump(mode="json"), weights)
        self._pending.append((step + 1, task))

    def close(self) -> list[dict[str, Any]]:
        """Waits for running evaluations, and returns all of them."""
        self._collect(wait=True)
        if self._writer is not None and self._trail is not None:
            self._writer.close()
            self._trail.close()
        return self._evaluations

    def _collect(self, *, wait: bool) -> None:
        unfinished = []
        for step, task in self._pending:
            done, _ = ray.wait([task], timeout=None if wait else 0)
            if not done:
                unfinished.append((step, task))
                continue
            scores: Figures = ray.get(task)
            self._evaluations.append({"step": step, "scores": scores})
            self._note(step - 1, {f"evaluation/{name}": value for name, value in scores.items()})
            shown = ", ".join(f"{name} {100 * value:.1f}" for name, value in scores.items())
            logger.info(f"step {step}: {shown}")
        self._pending = unfinished

    def _note(self, step: int, figures: Figures) -> None:
        for name, value in figures.items():
            self._gauge.set(float(value), tags={"figure": name})
        if self._hook is not None:
            self._hook({"step": step, **figures})
        if self._writer is not None and self._trail is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._trail.write(plain_json({"step": step, "time": time.time(), **figures}) + "\n")
            self._trail.flush()

    def _line(self, step: int, seconds: float) -> str:
        rate = self._num_steps_seen / seconds
        return (
            f"step {step}/{self._num_steps}  loss {sum(self._recent) / len(self._recent):.3f}"
            f"  {rate:.2f} steps/s  {(self._num_steps - step) / rate:.0f} s to go"
        )


def hook_of(name: str | None) -> Callable[[dict[str, float]], object] | None:
    """The function that `package.module:function` names. Raises InputError if there is none."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"monitor.hook: {name} cannot be imported ({error}); expected package.module:function"
        ) from None
    if not callable(found):
        raise InputError(f"monitor.hook: {name} is not a function")
    hook: Callable[[dict[str, float]], object] = found
    return hook


def _score_weights(settings: dict[str, Any], weights: dict[str, torch.Tensor]) -> Figures:
    config = TrainConfig.model_validate(settings, strict=False)
    return score_encoder(finished_encoders(config, weights)["encoder"], config)


def score_encoder(encoder: SentenceTransformer, config: TrainConfig) -> Figures:
    """An encoder's mean metrics on the config's benchmark."""
    assert config.monitor.benchmark is not None
    benchmark = open_benchmark(config.monitor.benchmark)
    [collection] = benchmark.collections
    settings = config.encoder
    spec = EmbeddingSpec(
        "", "document", None, settings.prompts.document, settings.max_passage_tokens, config.precision
    )
    passages_DE = encode(encoder, spec, texts_of_passages(collection)).vectors_NE
    sides: Sequence[Side] = ("query",) if config.train == "both_encoders" else QUERY_SIDES
    specs = {
        side: EmbeddingSpec(
            "", side, None, settings.prompts.query, settings.max_query_tokens, config.precision
        )
        for side in sides
    }
    instructions = [view.instruction for view in collection.views]
    texts = [view_text(settings.query_template, view.query, view.instruction) for view in collection.views]
    queries_VE = encode_queries(encoder, specs, texts, instructions)
    numbers_D = np.arange(len(passages_DE), dtype=np.int32)
    shard = Block(numbers_D, lambda block: inner_products(queries_VE[block], passages_DE))
    found = search_among([shard], len(texts), candidates_of(collection, collection.views))
    hits = hits_of(found, collection.views[0])
    rankings = rankings_of(hits, len(texts), sorted(collection.passages))
    of_views = {view.id: ranking for view, ranking in zip(collection.views, rankings, strict=True)}
    values: dict[str, list[float]] = {}
    for query_score in score(benchmark.kind, benchmark.collections, [of_views]):
        values.setdefault(query_score.metric, []).append(query_score.value)
    return {metric: float(np.mean(of_metric)) for metric, of_metric in values.items()}
