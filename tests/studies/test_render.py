from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
import re
import shutil
import subprocess
from xml.etree import ElementTree

from matplotlib.image import imread
import numpy as np
import pytest

from dualview.config.engines import Price
from dualview.config.loading import load
from dualview.config.study import StudyConfig
from dualview.config.train import TrainBudget
from dualview.costs import Spent, TrainingCost
from dualview.studies.fits import PowerLaw
from dualview.studies.plans import plan_study
from dualview.studies.render import as_markdown, as_page, grid_table, study_sections

SMOKE = Path("configs/studies/study.yaml").absolute()
CHROMIUM = shutil.which("chromium")
P_MRR = "factbook-test p-MRR"
LAWS = {
    "plain": PowerLaw(0.10, 0.05, 0.5, 240.0),
    "single": PowerLaw(0.30, 0.20, 0.5, 240.0),
    "unpaired": PowerLaw(0.35, 0.20, 0.5, 240.0),
    "dual": PowerLaw(0.40, 0.20, 0.5, 240.0),
}


@pytest.fixture
def study():
    changes = ["bootstrap_samples=200", f"metrics=[{P_MRR}]", f"trade_off=[{P_MRR}, {P_MRR}]"]
    return load(StudyConfig, str(SMOKE), changes)


def made_up(study, runs):
    """Scores that follow the laws, queries and seeds apart by a little; dual views cost the LLM's tokens."""
    values, costs = {}, {}
    for run in runs:
        law, seed, budget = LAWS[run.point["recipe"]], int(run.point["seed"]), int(run.point["budget"])
        rng = np.random.default_rng([seed, budget])
        mean = float(law.at(budget)) + rng.normal(0, 0.002)
        values[run.folder] = {
            metric: {(f"q{n}", f"q{n}"): mean + 0.2 * np.sin(n) for n in range(40)}
            for metric in study.metrics
        }
        generation = Spent(100 * budget, 10 * budget) if run.point["recipe"] == "dual" else Spent()
        tokens = budget * (50 if run.point["recipe"] == "dual" else 100)
        costs[run.folder] = TrainingCost(budget, tokens, 6e7 * tokens, 60.0, generation)
    untouched = {
        metric: {(f"q{n}", f"q{n}"): 0.05 + 0.2 * np.sin(n) for n in range(40)} for metric in study.metrics
    }
    return values, {"untouched": untouched}, costs


def markdown(study, runs, values, baselines, costs, failed):
    return as_markdown("Study", study_sections(study, runs, values, baselines, costs, failed))


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def line_of(text, start):
    [line] = [line for line in text.splitlines() if line.startswith(start)]
    return line


def test_figures_differences_and_curves_are_those_of_the_scores(study):
    runs = plan_study(study)
    text = markdown(study, runs, *made_up(study, runs), failed={})
    assert text.count("| dual minus single |") == 3
    assert cells(line_of(text, "| untouched |"))[:4] == ["untouched", "", "", "5.6 [1.4, 9.7]"]
    assert text.count("| dual minus untouched |") == 3  # one baseline for all budgets and seeds
    own, difference = (
        float(re.search(r"[+]?(\d+\.\d) \[", line_of(text, start))[1])
        for start in ("| dual | 960 | 3 |", "| dual minus untouched | 960 |")
    )
    assert difference == pytest.approx(own - 5.6, abs=0.11)
    largest = line_of(text, "| dual minus single | 960 |")
    assert "**+10.0 [" in largest or "**+9.9 [" in largest or "**+10.1 [" in largest
    assert "## Curves" in text
    assert "## Failed" not in text
    assert markdown(study, runs, *made_up(study, runs), failed={}) == text


def test_what_an_instance_is_worth_is_told_in_each_unit_of_cost(study):
    """Dual views take half the tokens in training, so in tokens one is worth twice as much of the others' instances."""
    runs = plan_study(study)
    text = markdown(study, runs, *made_up(study, runs), failed={})
    head, row = (cells(line_of(text, start)) for start in ("| one of | in | metric |", "| dual | single |"))
    assert head[-1] == "worth in LLM tokens"
    assert row[-1] == ""  # single views cost none
    worth = {unit: float(cell.split(" ")[0]) for unit, cell in zip(head[3:-1], row[3:-1], strict=True)}
    assert worth["worth in tokens"] == pytest.approx(2 * worth["worth in instances"], rel=0.02)
    assert worth["worth in device seconds"] == pytest.approx(worth["worth in instances"], rel=0.02)


def test_with_a_price_costs_are_in_dollars_too(study):
    runs = plan_study(study)
    price = Price(per_million_prompt_tokens=1.0, per_million_completion_tokens=10.0, per_gpu_hour=3.0)
    text = markdown(study.model_copy(update={"price": price}), runs, *made_up(study, runs), failed={})
    head = cells(line_of(text, "| recipe | budget | seed | p-MRR | instances |"))
    row = dict(zip(head, cells(line_of(text, "| dual | 960 | 0 |")), strict=True))
    assert float(row["dollars"]) == pytest.approx(0.096 + 0.096 + 60 / 3600 * 3, rel=1e-4)
    assert row["LLM tokens"] == "105,600"


def test_every_run_has_its_own_scores(study):
    runs = plan_study(study)
    values, baselines, costs = made_up(study, runs)
    text = markdown(study, runs, values, baselines, costs, failed={})
    for run in runs:
        mean = 100 * np.mean(list(values[run.folder][P_MRR].values()))
        assert cells(line_of(text, f"| {' | '.join(run.point.values())} | "))[3] == f"{mean:.1f}"


def test_what_failed_is_said_and_the_rest_reported(study):
    runs = plan_study(study)
    values, baselines, costs = made_up(study, runs)
    lost = runs[-1]
    del values[lost.folder], costs[lost.folder]
    text = markdown(study, runs, values, baselines, costs, failed={lost.folder: "out of memory"})
    assert f"- {lost.name}: out of memory" in text
    assert "| dual | 960 | 2 |" in text  # seeds
    seeds = [cells(line)[2] for line in text.splitlines() if line.startswith("| dual minus single |")]
    assert seeds == ["3", "3", "2"]  # those that both have


def without(baselines, metric, lacking):
    return {
        name: {
            each: {key: value for key, value in own.items() if each != metric or key[1] not in lacking}
            for each, own in values.items()
        }
        for name, values in baselines.items()
    }


@pytest.mark.parametrize("num_lacking", [1, 39])
def test_a_baseline_without_a_value_for_some_topics_is_compared_on_the_others(study, num_lacking):
    """A run file without a query. One topic that is left must not be compared with all."""
    runs = plan_study(study)
    values, baselines, costs = made_up(study, runs)
    lacking = {f"q{n}" for n in range(num_lacking)}
    text = markdown(study, runs, values, without(baselines, P_MRR, lacking), costs, failed={})
    had = [key for key in baselines["untouched"][P_MRR] if key[1] not in lacking]
    own = 100 * np.mean([baselines["untouched"][P_MRR][key] for key in had])
    assert cells(line_of(text, "| untouched |"))[3].startswith(f"{own:.1f} [")
    for budget in ("240", "480", "960"):
        of_seeds = [
            100 * np.mean([values[run.folder][P_MRR][key] for key in had])
            for run in runs
            if (run.point["recipe"], run.point["budget"]) == ("dual", budget)
        ]
        difference = cells(line_of(text, f"| dual minus untouched | {budget} |"))[3].strip("*")
        assert difference.startswith(f"{np.mean(of_seeds) - own:+.1f} [")
    assert f"- untouched has no p-MRR for {num_lacking} of 40 queries" in text
    assert "of 40 queries" not in markdown(study, runs, values, baselines, costs, failed={})


def test_a_baseline_without_any_value_of_a_metric_has_none_in_the_report(study):
    runs = plan_study(study)
    values, baselines, costs = made_up(study, runs)
    nothing = without(baselines, P_MRR, {f"q{n}" for n in range(40)})
    sections = study_sections(study, runs, values, nothing, costs, failed={})
    text = as_markdown("Study", sections)
    assert cells(line_of(text, "| untouched |")) == ["untouched", "", "", ""]
    assert cells(line_of(text, "| dual minus untouched | 240 |"))[3] == ""
    assert "- untouched has no p-MRR for 40 of 40 queries" in text
    [picture] = [section.pictures[0] for section in sections if section.heading == "Trade-off"]
    assert "untouched" not in picture
    alone_there = study_sections(study, runs, {}, nothing, {}, failed={})
    assert [section.heading for section in alone_there][:2] == ["Scores", "How to reproduce"]


def test_instructions_of_a_query_are_one_topic_in_a_study(study):
    """Ten queries of each topic that say the same: the same figures as with one."""
    runs = plan_study(study)
    values, baselines, costs = made_up(study, runs)

    def often(of_runs):
        return {
            name: {
                metric: {
                    (topic, f"{query}_{n}"): value for (topic, query), value in own.items() for n in range(10)
                }
                for metric, own in of_metrics.items()
            }
            for name, of_metrics in of_runs.items()
        }

    text = markdown(study, runs, values, baselines, costs, failed={})
    assert markdown(study, runs, often(values), often(baselines), costs, failed={}) == text


def test_the_page_has_the_pictures_and_fetches_nothing(study):
    runs = plan_study(study)
    html = as_page("Study <of> dual views", study_sections(study, runs, *made_up(study, runs), failed={}))
    HTMLParser().feed(html)
    assert "Study &lt;of&gt; dual views" in html
    assert not re.findall(r"<(?:script|link|img|iframe)", html)
    assert re.findall(r"url\((?!#)", html) == []
    pictures = dict(re.findall(r'aria-label="([^"]*)">(<svg.*?</svg>)', html, re.DOTALL))
    assert set(pictures) == {"Scores by budget", f"{P_MRR} against {P_MRR}"}
    for svg in pictures.values():
        text = " ".join(ElementTree.fromstring(svg).itertext())
        assert all(recipe in text for recipe in LAWS)
        assert re.search("plain.*single.*unpaired.*dual", text, re.DOTALL)  # so in the same colours


def test_budgets_of_two_units_make_no_curve(study):
    runs = plan_study(study)
    values, baselines, costs = made_up(study, runs)
    steps = TrainBudget(instances=None, tokens=None, steps=15, petaflop=None)
    runs = [
        replace(run, train=run.train.model_copy(update={"budget": steps}))
        if run.point["recipe"] == "plain"
        else run
        for run in runs
    ]
    assert "## Curves" not in markdown(study, runs, values, baselines, costs, failed={})


def test_nothing_finished_is_a_report_too(study):
    runs = plan_study(study)
    text = markdown(study, runs, {}, {}, {}, failed={runs[0].folder: "out of memory"})
    assert "out of memory" in text


def test_the_grid_shows_its_counts(study):
    text = grid_table(plan_study(study))
    assert text.count("\n") == 36 + 2
    assert "| dual | 960 | 2 | 960 instances | both 960 |" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_draws_the_page(study, tmp_path):
    """At the width of a desk and of a telephone: text and lines of every colour, and nothing wider than the page."""
    runs = plan_study(study)
    html = as_page("Study", study_sections(study, runs, *made_up(study, runs), failed={}))
    probe = "<script>document.title = document.documentElement.scrollWidth - window.innerWidth</script>"
    page = tmp_path / "report.html"
    page.write_text(html.replace("</body>", f"{probe}</body>"))
    for width in (1200, 500):
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},3000"]
        subprocess.run(
            [*command, f"--screenshot={tmp_path}/{width}.png", page.as_uri()], check=True, capture_output=True
        )
        colours = {
            tuple(colour)
            for colour in np.round(255 * imread(tmp_path / f"{width}.png")[..., :3]).reshape(-1, 3)
        }
        assert {(0, 114, 178), (213, 94, 0), (0, 158, 115)} <= colours
        dom = subprocess.run(
            [*command, "--dump-dom", page.as_uri()], check=True, capture_output=True, text=True
        )
        assert int(re.findall(r"<title>(-?\d+)</title>", dom.stdout)[0]) <= 0
