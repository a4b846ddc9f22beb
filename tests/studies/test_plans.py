from pathlib import Path

import pytest
import yaml

from dualview.config.loading import load
from dualview.config.study import StudyConfig
from dualview.errors import InputError
from dualview.studies.plans import budget_of, plan_study

SMOKE = Path("configs/studies/study.yaml").absolute()


def study(tmp_path, **changes):
    content = {**yaml.safe_load(SMOKE.read_text()), **changes}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return load(StudyConfig, str(path))


def test_the_grid_is_every_combination_and_each_a_run_of_its_own(tmp_path):
    runs = plan_study(study(tmp_path))
    assert len(runs) == 4 * 3 * 3
    assert len({run.folder for run in runs}) == len(runs)
    first = runs[0]
    assert first.point == {"recipe": "plain", "budget": "240", "seed": "0"}
    assert first.train.mixture.parts[0].views == "plain"
    assert budget_of(first) == {"instances": 240}
    assert first.evaluate.encoders["run"].model == f"{first.folder}/train/encoder"


@pytest.mark.parametrize(
    "path", sorted(Path("configs").absolute().rglob("study*.yaml")), ids=lambda p: p.stem
)
def test_every_study_that_we_ship_can_be_planned(path):
    assert plan_study(load(StudyConfig, str(path)))


def test_a_run_is_named_by_what_decides_it(tmp_path):
    """Neither by the study that asks for it nor by the machines it runs on."""
    names = [run.folder for run in plan_study(study(tmp_path))]
    axes = yaml.safe_load(SMOKE.read_text())["axes"]
    fewer = {**axes, "recipe": {"both views": axes["recipe"]["dual"]}}
    assert {run.folder for run in plan_study(study(tmp_path, axes=fewer, compare=[]))} < set(names)
    other = {**axes, "recipe": {"dual": {**axes["recipe"]["dual"], "workers.num": 1}}}
    assert {run.folder for run in plan_study(study(tmp_path, axes=other, compare=[]))} < set(names)


def test_another_way_of_scoring_shares_the_trainings(tmp_path):
    runs = plan_study(study(tmp_path))
    others = plan_study(study(tmp_path, evaluate=str(Path("configs/studies/evaluate.yaml").absolute())))
    assert [run.train.output for run in others] == [run.train.output for run in runs]
    assert {run.evaluate.output for run in others}.isdisjoint(run.evaluate.output for run in runs)


def test_unequal_budgets_are_refused_with_the_difference(tmp_path):
    axes = yaml.safe_load(SMOKE.read_text())["axes"]
    axes["recipe"]["dual"]["budget.instances"] = 640
    del axes["budget"]
    with pytest.raises(
        InputError, match=r"\(recipe dual, seed 0\) and \(recipe single, seed 0\) are not equal: .*640.*1200"
    ):
        plan_study(study(tmp_path, axes=axes))
    plan_study(study(tmp_path, axes=axes, compare=[["single", "plain"]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "repeat"}, "seeds: `repeat` .* recipe, budget, seed"),
        ({"compare": [["dual", "triple"]]}, "compare: `triple` .* first axis"),
        ({"compare": [["untouched", "dual"]]}, "compare: `untouched` .* first axis"),
        ({"baselines": {"dual": "some/model"}}, "baselines: `dual` .* first axis"),
        ({"axes": {}}, "at least one axis"),
        ({"trade_off": ["factbook-test p-MRR", "nDCG"]}, "trade_off: `nDCG` .* metrics"),
    ],
)
def test_a_mistake_in_the_study_is_one_sentence(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        study(tmp_path, **changes)


def test_a_value_that_is_no_setting_is_named(tmp_path):
    axes = {"recipe": {"dual": {"mixture.parts.0.view": "both"}}, "seed": {"0": {}}}
    with pytest.raises(InputError, match=r"unknown key `mixture.parts.0.view`"):
        plan_study(study(tmp_path, axes=axes, compare=[]))


def test_two_points_that_are_one_run_are_told(tmp_path):
    axes = {"recipe": {"dual": {}, "other": {}}, "seed": {"0": {}}}
    with pytest.raises(
        InputError, match=r"\(recipe dual, seed 0\) and \(recipe other, seed 0\) are the same run"
    ):
        plan_study(study(tmp_path, axes=axes, compare=[]))


def test_a_small_number_reaches_the_run_as_a_number(tmp_path):
    """1e-05, as JSON writes it, is a text in YAML 1.1."""
    axes = yaml.safe_load(SMOKE.read_text())["axes"]
    changes = {**yaml.safe_load(SMOKE.read_text())["train_changes"], "optimizer.learning_rate": 0.00001}
    [run, *_] = plan_study(study(tmp_path, axes=axes, train_changes=changes))
    assert run.train.optimizer.learning_rate == 0.00001
