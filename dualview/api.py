"""The verbs as functions, for programs and notebooks.

Each takes a YAML file, a dict or a config object, and changes as keyword arguments. These are merged as in a file that
extends another: mappings merge, everything else replaces. A user error is an InputError of one sentence.

    dualview.train("configs/demo/train-dual.yaml", output="out/run", budget={"steps": 40})
"""

# Each function imports its pipeline: Ray and torch take seconds to import, and may not be installed.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualview.config.adapt import AdaptConfig
from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.loading import settings_of
from dualview.config.train import TrainConfig
from dualview.extras import needs

if TYPE_CHECKING:
    from dualview.evaluation.report import Summary
    from dualview.evaluation.side_by_side import Found


def generate(config: str | Path | Mapping[str, Any] | GenerateConfig, **changes: Any) -> dict[str, Any]:
    """Writes and verifies complementary instructions; resumes an interrupted run.

    Returns the summary of the run: rows by status, tokens, and the results of judge validation.
    """
    settings = settings_of(GenerateConfig, config, changes)
    with needs("generate", "generation"):
        from dualview.pipelines.generate.run import generate
    return generate(settings)


def train(config: str | Path | Mapping[str, Any] | TrainConfig, **changes: Any) -> dict[str, Any]:
    """Trains an encoder and saves it in `encoder/` under the output; resumes an interrupted run.

    Returns the result of the run: steps, instances, losses and throughput.
    """
    settings = settings_of(TrainConfig, config, changes)
    with needs("train", "training"):
        from dualview.pipelines.train.run import train
    return train(settings)


def evaluate(config: str | Path | Mapping[str, Any] | EvaluateConfig, **changes: Any) -> Summary:
    """Scores every model on every benchmark; reuses cached embeddings.

    Returns means with bootstrap intervals, and paired differences.
    """
    settings = settings_of(EvaluateConfig, config, changes)
    with needs("evaluate", "evaluation"):
        from dualview.pipelines.evaluate import evaluate
    return evaluate(settings)


def adapt(config: str | Path | Mapping[str, Any] | AdaptConfig, **changes: Any) -> dict[str, Any]:
    """Teaches an index to follow instructions from the metadata of its documents; resumes an interrupted run.

    Returns what each stage found: the probe, the cases, the training and the test.
    """
    settings = settings_of(AdaptConfig, config, changes)
    with needs("adapt", "adapting an index"):
        from dualview.pipelines.adapt.run import adapt
    return adapt(settings)


def search(
    evaluation: str, query: str | None = None, instructions: Sequence[str] = (), num_hits: int = 5
) -> list[Found]:
    """The passages that each encoder of an evaluation finds for a query under each instruction, best first.

    `evaluation` is the output of `evaluate`. Without a query, uses one from the benchmark with its two instructions.
    """
    with needs("evaluate", "search"):
        from dualview.pipelines.search import search
    return search(evaluation, query, instructions, num_hits)
