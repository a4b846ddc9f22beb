"""Settings of jobs/judge.py."""

from typing import Annotated

from pydantic import Field

from dualview.config.base import Actors, Positive, Settings, Several
from dualview.config.engines import HttpEngine, ScriptedEngine, VllmEngine
from dualview.config.evaluate import Flips
from dualview.config.generate import LlmJudge
from dualview.config.sources import TuplesSource


class JudgeConfig(Settings):
    """An LLM judge against gold labels."""

    output: str
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")]
    judge: LlmJudge  # as in a generate config; of each gold it gets exam.num_pairs
    gold: Annotated[
        Several[Annotated[TuplesSource | Flips, Field(discriminator="kind")]],
        Field(min_length=1),
    ]
    wanted_precision: Annotated[float, Field(gt=0, le=1)]
    bootstrap_samples: Positive
    actors: Actors
