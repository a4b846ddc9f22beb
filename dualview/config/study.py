"""Settings of jobs/study.py."""

from typing import Annotated, Any, Self

from pydantic import Field, Strict, model_validator

from dualview.config.base import Name, Positive, Settings, Several
from dualview.config.engines import Price
from dualview.config.evaluate import RankingModel


class StudyConfig(Settings):
    """A grid of trainings, each evaluated the same way: axes of settings over a base config."""

    output: str
    train: str  # a train config, which the axes change
    train_changes: dict[str, Any]  # of all runs, KEY: VALUE as for --set
    evaluate: str  # an evaluate config, whose encoders are the runs
    evaluate_changes: dict[str, Any]
    axes: dict[str, dict[str, dict[str, Any]]]  # axis -> name of a value -> KEY: VALUE as for --set
    seeds: str  # the axis of repeats: intervals are over its values too
    baselines: dict[Name, RankingModel]  # not trained here, and scored as the runs are
    compare: Several[
        Annotated[tuple[str, str], Strict(False)]
    ]  # values of the first axis: first minus second, at equal budget; or a value minus a baseline
    metrics: Annotated[Several[str], Field(min_length=1)]  # "BENCHMARK METRIC" of the evaluation
    trade_off: (
        Annotated[tuple[str, str], Strict(False)] | None
    )  # two of them, for a picture of one against the other
    price: Price | None  # with one, costs are in dollars too; per_gpu_hour is any device's
    bootstrap_samples: Positive
    max_tries: Positive  # of a run that fails, before it is reported as failed

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
