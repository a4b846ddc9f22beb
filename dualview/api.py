"""The verbs as functions, for a program or a notebook.

Each takes the path of a YAML file, the same as a dict, or the config itself, and changes by keyword: mappings merge,
everything else replaces, as in a file that extends another. A mistake is an InputError of one sentence.

    dualview.train("configs/demo/train-dual.yaml", output="out/run", budget={"steps": 40})
"""

# Pipelines are imported where they are called: Ray and torch take seconds, and may not be installed.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.loading import settings_of
from dualview.config.train import TrainConfig
from dualview.extras import needs

if TYPE_CHECKING:
    from dualview.evaluation.report import Summary
    from dualview.evaluation.side_by_side import Found


def generate(config: str | Path | Mapping[str, Any] | GenerateConfig, **changes: Any) -> dict[str, Any]:
    """Writes and verifies complementary instructions; a run that was interrupted goes on.

    Returns the run's summary: rows by status, tokens, and how the judges did on the gold pairs.
    """
    settings = settings_of(GenerateConfig, config, changes)
    with needs("generate", "generation"):
        from dualview.pipelines.generate.run import generate
    return generate(settings)


def train(config: str | Path | Mapping[str, Any] | TrainConfig, **changes: Any) -> dict[str, Any]:
    """Trains an encoder, whose folder is `encoder/` under the output; a run that was interrupted goes on.

    Returns the run's result: steps, instances, losses and throughput.
    """
    settings = settings_of(TrainConfig, config, changes)
    with needs("train", "training"):
        from dualview.pipelines.train.run import train
    return train(settings)


def evaluate(config: str | Path | Mapping[str, Any] | EvaluateConfig, **changes: Any) -> Summary:
    """Scores every model on every benchmark; vectors that are kept already are not encoded again.

    Returns means with bootstrap intervals, and paired differences.
    """
    settings = settings_of(EvaluateConfig, config, changes)
    with needs("evaluate", "evaluation"):
        from dualview.pipelines.evaluate import evaluate
    return evaluate(settings)


def search(
    evaluation: str, query: str | None = None, instructions: Sequence[str] = (), num_hits: int = 5
) -> list[Found]:
    """What each encoder of an evaluation finds for a query under each instruction, best first.

    Without a query, one of the benchmark's with its own two instructions. `evaluation` is the output of `evaluate`.
    """
    with needs("evaluate", "search"):
        from dualview.pipelines.search import search
    return search(evaluation, query, instructions, num_hits)
