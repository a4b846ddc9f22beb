"""Expand a study's config into its grid of runs, each with complete configs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dualview.config.base import fingerprint
from dualview.config.evaluate import EvaluateConfig, named_encoder
from dualview.config.loading import load
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig
from dualview.errors import InputError


@dataclass(frozen=True)
class Run:
    """One point of the grid."""

    point: Mapping[str, str]  # axis -> value
    train: TrainConfig
    evaluate: EvaluateConfig

    @property
    def name(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.point.items())

    @property
    def folder(self) -> str:
        """Folder of the training. Holds its scores too, in one folder per evaluation config."""
        return self.train.output.removesuffix("/train")


def plan_study(study: StudyConfig) -> list[Run]:
    """Every combination of the axes' values, in the order of the file.

    A run's output is named by the fingerprint of its configs, so studies under one output share identical
    trainings and identical evaluations.
    Raises InputError if a setting is invalid, if two points are the same run, or if compared runs have
    different budgets.
    """
    runs = [
        _run(study, dict(zip(study.axes, values, strict=True))) for values in product(*study.axes.values())
    ]
    by_folder: dict[str, Run] = {}
    for run in runs:
        if run.folder in by_folder:
            raise InputError(
                f"axes: the points ({by_folder[run.folder].name}) and ({run.name}) are the same run; give each"
                " value of an axis different settings"
            )
        by_folder[run.folder] = run
    _check_equal_budgets(study, runs)
    return runs


def _run(study: StudyConfig, point: Mapping[str, str]) -> Run:
    changes = [study.train_changes, *(study.axes[axis][value] for axis, value in point.items())]
    train = load(TrainConfig, study.train, changes=changes)
    evaluate = load(EvaluateConfig, study.evaluate, changes=[study.evaluate_changes])
    trained = _named(train.deciding(), but=("output",))
    scored = _named(evaluate.deciding(), but=("output", "encoders", "compare"))
    folder = f"{study.output}/runs/{trained}"
    return Run(
        point,
        train.model_copy(update={"output": f"{folder}/train"}),
        evaluate.model_copy(
            update={
                "output": f"{folder}/scores-{scored}",
                "encoders": {"run": named_encoder(f"{folder}/train/encoder")},
                "compare": (),
            }
        ),
    )


def scoring_of_baselines(study: StudyConfig) -> EvaluateConfig:
    """The evaluation config of the baselines, with the same settings as that of the runs."""
    evaluate = load(EvaluateConfig, study.evaluate, changes=[study.evaluate_changes])
    settings = {"encoders": study.baselines, "compare": ()}
    named = _named(evaluate.model_copy(update=settings).deciding(), but=("output",))
    return evaluate.model_copy(update={**settings, "output": f"{study.output}/baselines/{named}"})


def _named(settings: Mapping[str, Any], but: Sequence[str]) -> str:
    return fingerprint({key: value for key, value in settings.items() if key not in but})


def budget_of(run: Run) -> dict[str, int | None]:
    """Unit -> amount that a run may spend, as set in its config."""
    return {unit: amount for unit, amount in run.train.budget.model_dump().items() if amount is not None}


def _check_equal_budgets(study: StudyConfig, runs: Sequence[Run]) -> None:
    """Raises InputError if compared runs have different budgets."""
    by_point = {tuple(run.point.values()): run for run in runs}
    for first, second in study.compare:
        for (recipe, *rest), run in by_point.items():
            other = by_point.get((second, *rest))  # None for a baseline
            if recipe == first and other is not None and budget_of(run) != budget_of(other):
                raise InputError(
                    f"compare: the budgets of ({run.name}) and ({other.name}) are not equal: {budget_of(run)} and"
                    f" {budget_of(other)}; make them equal, or remove the pair from compare"
                )


def table_of(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The grid for people to read: one row per run, with its counts."""
    return [
        {
            **run.point,
            "spends": ", ".join(f"{amount:,} {unit}" for unit, amount in budget_of(run).items()),
            "parts": "; ".join(
                f"{part.views} {part.num_instances:,}"
                if part.num_instances
                else f"{part.views} x{part.weight:g}"
                for part in run.train.mixture.parts
            ),
            "folder": run.folder.rpartition("/")[2],
        }
        for run in runs
    ]
