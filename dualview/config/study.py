"""Settings of `dualview study`."""

from typing import Annotated, Any, Self

from pydantic import Field, Strict, model_validator

from dualview.config.base import Name, Positive, Settings, Several
from dualview.config.engines import Price
from dualview.config.evaluate import RankingModel


class StudyConfig(Settings):
    """A grid of trainings, each evaluated the same way: axes of settings over a base config."""

    output: str
    """Location of the output: s3://bucket/prefix, file:///folder or a plain path."""
    train: str
    """The train config that the axes change."""
    train_changes: dict[str, Any]
    """Changes to every training, as in a file that extends another: dotted keys, or mappings to merge."""
    evaluate: str
    """The evaluate config; the trained encoders replace its own."""
    evaluate_changes: dict[str, Any]
    """Changes to every evaluation, in the same form."""
    axes: dict[str, dict[str, dict[str, Any]]]
    """For each axis, its values by name, each with its changes to `train`."""
    seeds: str
    """The axis of repetitions: intervals also cover its values."""
    baselines: dict[Name, RankingModel]
    """Models to evaluate like the runs, without training."""
    compare: Several[Annotated[tuple[str, str], Strict(False)]]
    """Pairs whose difference is reported: two values of the first axis at equal budget, or a value and a baseline."""
    metrics: Annotated[Several[str], Field(min_length=1)]
    """Metrics to report, each as "BENCHMARK METRIC", for example "Core17 p-MRR"."""
    trade_off: Annotated[tuple[str, str], Strict(False)] | None
    """Two of the metrics, to plot against each other; null for no plot."""
    price: Price | None
    """Prices, to report costs in dollars; null reports none."""
    bootstrap_samples: Positive
    """Number of bootstrap samples of each interval."""
    max_tries: Positive
    """Attempts at a run before it is reported as failed."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        if not self.axes or not all(self.axes.values()):
            raise ValueError("axes: expected at least one axis, and at least one value for each")
        if self.seeds not in self.axes:
            raise ValueError(f"seeds: `{self.seeds}` is not an axis; expected one of {', '.join(self.axes)}")
        for name in self.trade_off or ():
            if name not in self.metrics:
                raise ValueError(
                    f"trade_off: `{name}` is not in metrics; expected one of {', '.join(self.metrics)}"
                )
        recipes = list(next(iter(self.axes.values())))
        for name in self.baselines:
            if name in recipes:
                raise ValueError(
                    f"baselines: `{name}` is also a value of the first axis; choose another name"
                )
        for first, second in self.compare:
            for name, known in ((first, recipes), (second, [*recipes, *self.baselines])):
                if name not in known:
                    raise ValueError(
                        f"compare: `{name}` is not a value of the first axis; expected one of {', '.join(known)}"
                    )
        return self
