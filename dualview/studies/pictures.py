"""A study's figures: scores by budget with fitted curves, and one metric against another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
import numpy as np

from dualview.evaluation.html import GREY, PALETTE, STYLE, svg_of
from dualview.evaluation.significance import Interval
from dualview.studies.fits import PowerLaw

# A point of the grid without its seed -> metric -> mean and interval.
IntervalsByPoint = Mapping[tuple[str, ...], Mapping[str, Interval]]


@dataclass(frozen=True)
class Line:
    recipe: str
    metric: str
    budgets: Sequence[float]
    scores: Sequence[Interval]
    fit: PowerLaw


def curves_picture(unit: str, lines: Sequence[Line]) -> str:
    """One panel per metric, one colour per recipe: means with intervals at each budget, and the fitted curve."""
    metrics = list(dict.fromkeys(line.metric for line in lines))
    recipes = list(dict.fromkeys(line.recipe for line in lines))
    num_columns = min(2, len(metrics))
    num_rows = -(-len(metrics) // num_columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 0.5 + 2.7 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, metric in zip(panels, metrics, strict=False):
            for line in (line for line in lines if line.metric == metric):
                number = recipes.index(line.recipe)
                color = PALETTE[number % len(PALETTE)]
                along = np.geomspace(line.budgets[0], line.budgets[-1], 60)
                axes.plot(along, 100 * line.fit.at(along), color=color, linewidth=1.4, alpha=0.6)
                # Spread the recipes horizontally so that their intervals do not overlap.
                places = np.array(line.budgets) * 1.03 ** (number - (len(recipes) - 1) / 2)
                means, lows, highs = 100 * np.array(line.scores).T
                axes.errorbar(
                    places,
                    means,
                    [means - lows, highs - means],
                    fmt="o",
                    color=color,
                    markersize=5,
                    linewidth=1.4,
                    label=line.recipe,
                )
                axes.set_xscale("log")
                axes.set_xticks(line.budgets, [f"{budget:,.0f}" for budget in line.budgets])
            axes.minorticks_off()
            axes.grid(axis="y")
            axes.set_title(metric, loc="left")
            axes.set_xlabel(unit)
        for axes in panels[len(metrics) :]:
            axes.set_visible(False)
        _legend(figure, panels[0])
        return svg_of(figure, "Scores by budget")


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)


def trade_off_picture(metrics: tuple[str, str], intervals: IntervalsByPoint) -> str:
    """First metric on y, second on x; one colour per recipe, larger points for later values of other axes."""
    upwards, rightwards = metrics
    recipes = list(dict.fromkeys(point[0] for point in intervals))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.2, 4.6), layout="constrained")
        axes = figure.subplots()
        for number, recipe in enumerate(recipes):
            color = PALETTE[number % len(PALETTE)]
            points = [of_point for point, of_point in intervals.items() if point[0] == recipe]
            xs, ys = (
                100 * np.array([of_point[name] for of_point in points]) for name in (rightwards, upwards)
            )
            axes.plot(xs[:, 0], ys[:, 0], color=color, linewidth=1, alpha=0.4)
            for place, (x, y) in enumerate(zip(xs, ys, strict=True)):
                axes.errorbar(
                    x[0],
                    y[0],
                    [[y[0] - y[1]], [y[2] - y[0]]],
                    [[x[0] - x[1]], [x[2] - x[0]]],
                    fmt="o",
                    color=color,
                    markersize=4 + 2.5 * place,
                    linewidth=0.8,
                    alpha=0.85,
                    label=recipe if place + 1 == len(points) else None,
                )
        axes.grid()
        axes.set_xlabel(rightwards, color=GREY)
        axes.set_ylabel(upwards)
        _legend(figure, axes)
        return svg_of(figure, f"{upwards} against {rightwards}")
