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
    """Measures an LLM judge against gold labels."""

    renamed: ClassVar[Mapping[str, str]] = {"judge.exam": "judge.validation"}

    output: str
    """Location of the output: s3://bucket/prefix, file:///folder or a plain path."""
    engine: Annotated[VllmEngine | HttpEngine | ScriptedEngine, Field(discriminator="kind")]
    """The LLM that answers the judge's prompts."""
    judge: LlmJudge
    """The judge, as in a generate config; it judges `validation.num_pairs` pairs of each gold source."""
    gold: Annotated[
        Several[Annotated[TuplesSource | Flips, Field(discriminator="kind")]],
        Field(min_length=1),
    ]
    """Sources of gold labels."""
    wanted_precision: Annotated[float, Field(gt=0, le=1)]
    """Precision to reach: the report gives the margin for it."""
    bootstrap_samples: Positive
    """Number of bootstrap samples of each interval."""
    actors: Actors
    """Actors that hold the engine."""
