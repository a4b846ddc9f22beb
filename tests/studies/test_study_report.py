from pathlib import Path

import numpy as np
import pytest

from dualview.config import StudyConfig, load
from dualview.studies.fits import PowerLaw
from dualview.studies.plans import plan_study
from dualview.studies.report import grid_table, report, seed_and_query_interval

SMOKE = Path("configs/smoke/study.yaml").absolute()
LAWS = {
    "plain": PowerLaw(0.10, 0.05, 0.5, 400.0),
    "single": PowerLaw(0.30, 0.20, 0.5, 400.0),
    "unpaired": PowerLaw(0.35, 0.20, 0.5, 400.0),
    "dual": PowerLaw(0.40, 0.20, 0.5, 400.0),
}


@pytest.fixture
def study():
    return load(StudyConfig, str(SMOKE), ["bootstrap_samples=200", "metrics=[p-MRR]"])


def made_up(study, runs):
    """Scores that follow the laws, queries and seeds apart by a little."""
    values, costs = {}, {}
    for run in runs:
        law, seed = LAWS[run.point["recipe"]], int(run.point["seed"])
        rng = np.random.default_rng([seed, int(run.point["budget"])])
        mean = float(law.at(int(run.point["budget"]))) + rng.normal(0, 0.002)
        values[run.folder] = {
            metric: {f"q{n}": mean + 0.2 * np.sin(n) for n in range(40)} for metric in study.metrics
        }
        costs[run.folder] = {"steps": 25, "seconds_since_resume": 60.0}
    return values, costs


def test_figures_differences_and_curves_are_those_of_the_scores(study):
    runs = plan_study(study)
    text = report(study, runs, *made_up(study, runs), failed={})
    assert text.count("| dual minus single |") == 3
    [largest] = [line for line in text.splitlines() if line.startswith("| dual minus single | 1600 |")]
    assert "+10.0 [" in largest or "+9.9 [" in largest or "+10.1 [" in largest
    assert "## Curves" in text
    assert "| dual, single | p-MRR |" in text
    assert "## Failed" not in text
    assert report(study, runs, *made_up(study, runs), failed={}) == text


def test_what_failed_is_said_and_the_rest_reported(study):
    runs = plan_study(study)
    values, costs = made_up(study, runs)
    lost = runs[-1]
    del values[lost.folder], costs[lost.folder]
    text = report(study, runs, values, costs, failed={lost.folder: "out of memory"})
    assert f"- {lost.name}: out of memory" in text
    assert "| dual | 1600 | 2 |" in text  # seeds
    assert text.count("| dual minus single |") == 2  # unequal seeds are no pairs


def test_seeds_widen_the_interval():
    alike = np.tile(np.linspace(0, 1, 50), (3, 1))
    apart = alike + np.array([[-0.2], [0.0], [0.2]])
    narrow, wide = (seed_and_query_interval(matrix, 500, seed=0) for matrix in (alike, apart))
    assert narrow.mean == pytest.approx(wide.mean)
    assert wide.high - wide.low > 1.3 * (narrow.high - narrow.low)


def test_the_grid_shows_its_counts(study):
    text = grid_table(plan_study(study))
    assert text.count("\n") == 36 + 2
    assert "| dual | 1600 | 2 | 1,600 instances | both 1,600 |" in text
