"""Settings of `dualview study`."""

from typing import Annotated, Any, Self

from pydantic import Field, Strict, model_validator

from dualview.config.base import Name, Positive, Settings, Several
from dualview.config.engines import Price
from dualview.config.evaluate import RankingModel


class StudyConfig(Settings):
    """A grid of trainings, each evaluated the same way: axes of settings over a base config."""

    output: str
    """Where the study goes: s3://bucket/prefix, file:///folder or a plain path."""
    train: str
    """A train config, which the axes change."""
    train_changes: dict[str, Any]
    """Changes for all trainings, as in a file that extends another: dotted keys, or mappings that are
    merged."""
    evaluate: str
    """An evaluate config; its encoders are replaced by the runs."""
    evaluate_changes: dict[str, Any]
    """Changes for all evaluations, in the same form."""
    axes: dict[str, dict[str, dict[str, Any]]]
    """For each axis, the names of its values and the changes of `train` that each one makes."""
    seeds: str
    """The axis of repeats: intervals also cover its values."""
    baselines: dict[Name, RankingModel]
    """Models that are not trained here and scored as the runs are."""
    compare: Several[Annotated[tuple[str, str], Strict(False)]]
    """Pairs whose difference is reported: two values of the first axis at equal budget, or a value and a
    baseline."""
    metrics: Annotated[Several[str], Field(min_length=1)]
    """Metrics of the evaluation to report, each as "BENCHMARK METRIC", for example "Core17 p-MRR"."""
    trade_off: Annotated[tuple[str, str], Strict(False)] | None
    """Two of the metrics, for a picture of one against the other; null draws none."""
    price: Price | None
    """Prices for costs in dollars; null reports none."""
    bootstrap_samples: Positive
    """Bootstrap samples of each interval."""
    max_tries: Positive
    """Tries of a run before it is reported as failed."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if not self.axes or not all(self.axes.values()):
            raise ValueError("axes needs at least one axis with at least one value")
        if self.seeds not in self.axes:
            raise ValueError(f"seeds: `{self.seeds}` is none of the axes: {', '.join(self.axes)}")
        for name in self.trade_off or ():
            if name not in self.metrics:
                raise ValueError(f"trade_off: `{name}` is none of the metrics: {', '.join(self.metrics)}")
        recipes = list(next(iter(self.axes.values())))
        for name in self.baselines:
            if name in recipes:
                raise ValueError(f"baselines: `{name}` is a value of the first axis too; choose another name")
        for first, second in self.compare:
            for name, known in ((first, recipes), (second, [*recipes, *self.baselines])):
                if name not in known:
                    raise ValueError(
                        f"compare: `{name}` is none of the values of the first axis: {', '.join(known)}"
                    )
        return self
