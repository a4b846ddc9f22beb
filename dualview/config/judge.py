"""Settings of `dualview judge`."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from dualview.config.base import Actors, Positive, Settings, Several
from dualview.config.engines import HttpEngine, ScriptedEngine, VllmEngine
from dualview.config.evaluate import Flips
from dualview.config.generate import LlmJudge
from dualview.config.sources import TuplesSource


class JudgeConfig(Settings):
    """An LLM judge against gold labels."""

    renamed: ClassVar[Mapping[str, str]] = {"judge.exam": "judge.validation"}

    output: str
    """Where the result goes: s3://bucket/prefix, file:///folder or a plain path."""
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")]
    """The LLM that judges."""
    judge: LlmJudge
    """The judge, as in a generate config; it answers `validation.num_pairs` pairs of each gold source."""
    gold: Annotated[
        Several[Annotated[TuplesSource | Flips, Field(discriminator="kind")]],
        Field(min_length=1),
    ]
    """Sources of gold labels."""
    wanted_precision: Annotated[float, Field(gt=0, le=1)]
    """Precision for which the report names the margin that reaches it."""
    bootstrap_samples: Positive
    """Bootstrap samples of each interval."""
    actors: Actors
    """Actors that hold the engine."""
