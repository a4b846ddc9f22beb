"""A study's YAML to its grid of runs, each a whole config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from dualview.config import (
    EvaluateConfig,
    StudyConfig,
    TrainConfig,
    canonical_json,
    fingerprint,
    load,
    named_encoder,
)
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
        return self.train.output.removesuffix("/train")


def plan_study(study: StudyConfig) -> list[Run]:
    """Every combination of the axes' values, in the order of the file.

    A run's output is named by the fingerprint of its configs, so that two studies under one output share
    the runs that they have in common. Raises InputError where a value is no valid setting, where two points
    are the same run, or where budgets that should be equal are not.
    """
    runs = [
        _run(study, dict(zip(study.axes, values, strict=True))) for values in product(*study.axes.values())
    ]
    by_folder: dict[str, Run] = {}
    for run in runs:
        if run.folder in by_folder:
            raise InputError(
                f"axes: the points ({by_folder[run.folder].name}) and ({run.name}) are the same run; give each"
                " value of an axis settings of its own"
            )
        by_folder[run.folder] = run
    _check_equal_budgets(study, runs)
    return runs


def _run(study: StudyConfig, point: Mapping[str, str]) -> Run:
    settings: dict[str, Any] = {}
    for axis, value in point.items():
        settings |= study.axes[axis][value]
    train = load(
        TrainConfig, study.train, [f"{key}={canonical_json(value)}" for key, value in settings.items()]
    )
    evaluate = load(EvaluateConfig, study.evaluate)
    decided = [
        train.model_dump(mode="json", exclude={"output", "workers", "max_failures", "watching"}),
        evaluate.model_dump(mode="json", exclude={"output", "encoders", "compare", "actors"}),
    ]
    folder = f"{study.output}/runs/{fingerprint(decided)}"
    return Run(
        point,
        train.model_copy(update={"output": f"{folder}/train"}),
        evaluate.model_copy(
            update={
                "output": f"{folder}/scores",
                "encoders": {"run": named_encoder(f"{folder}/train/encoder")},
                "compare": (),
            }
        ),
    )


def budget_of(run: Run) -> dict[str, int | None]:
    """What a run may spend, in the unit of its config."""
    return {unit: amount for unit, amount in run.train.budget.model_dump().items() if amount is not None}


def _check_equal_budgets(study: StudyConfig, runs: Sequence[Run]) -> None:
    """Runs that agree on `study.equal_budget_within` must have the same budget."""
    of_cell: dict[tuple[str, ...], Run] = {}
    for run in runs:
        cell = tuple(run.point[axis] for axis in study.equal_budget_within)
        first = of_cell.setdefault(cell, run)
        if budget_of(first) != budget_of(run):
            raise InputError(
                f"axes: the budgets of ({first.name}) and ({run.name}) are not equal: {budget_of(first)} and"
                f" {budget_of(run)}; a comparison at equal budget needs them equal, or take the axis that sets"
                " them into equal_budget_within"
            )


def table_of(runs: Sequence[Run]) -> list[dict[str, str]]:
    """The grid for people: a row a run, with its counts."""
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
