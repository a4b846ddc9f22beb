"""A small grid with the real parts: trained, evaluated, reported; what is finished is not run again."""

from pathlib import Path
import re
import subprocess
import sys
import time

from demo_data import demo_flips
import factbook
import pytest
from tiny import save_small_encoder
import yaml

from dualview.config.evaluate import RunFiles
from dualview.config.loading import load
from dualview.config.study import StudyConfig
from dualview.errors import InputError
from dualview.pipelines.evaluate import evaluate
from dualview.pipelines.study import code_section, estimate_study, report_study, run_study
from dualview.provenance import code
from dualview.runs.manifest import record_code
from dualview.storage import open_store
from dualview.studies.plans import plan_study, scoring_of_baselines

DEMO = Path("configs/demo").absolute()


@pytest.fixture(scope="module")
def study_at(facets_data, s3, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    model = str(save_small_encoder(folder / "model"))
    train = yaml.safe_load((DEMO / "train-dual.yaml").read_text())
    train["encoder"]["model"] = model
    train["mixture"]["parts"][0] |= {"data": facets_data, "num_instances": 32}
    train["budget"]["instances"] = 32
    train["batch"]["queries"] = None  # too few groups of a query for blocks of it
    evaluate = yaml.safe_load((DEMO / "evaluate.yaml").read_text())
    evaluate["benchmarks"] = [demo_flips(8)]
    for name, content in (("train", train), ("evaluate", evaluate)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))

    def make(name, **recipes):
        content = {
            "output": f"{s3}/{name}",
            "train": str(folder / "train.yaml"),
            "train_changes": {},
            "evaluate": str(folder / "evaluate.yaml"),
            "evaluate_changes": {},
            "axes": {
                "recipe": recipes
                or {
                    "single": {"mixture.parts.0.views": "original"},
                    "dual": {"mixture.parts.0.views": "both"},
                },
                "seed": {"0": {"seed": 0}},
            },
            "seeds": "seed",
            "baselines": {"untouched": model},
            "compare": [["dual", "single"]],
            "metrics": ["factbook-development p-MRR", "factbook-development nDCG@10"],
            "trade_off": None,
            "price": None,
            "bootstrap_samples": 50,
            "max_tries": 1,
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return make


def test_a_report_names_each_code_once(tmp_path):
    urls = [str(tmp_path / name) for name in ("train", "evaluate", "not there")]
    for url in urls[:2]:
        record_code(open_store(url))
    [section] = code_section(urls)
    assert section.items == [str(code())]
    assert code_section(urls[2:]) == []


@pytest.mark.slow
def test_a_killed_study_goes_on_and_reports_as_if_it_had_not_been(study_at, caplog):
    caplog.set_level("INFO", "dualview")
    path = study_at("study")
    study = load(StudyConfig, str(path))
    command = [sys.executable, "jobs/study.py", "--config", str(path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while not any(entry.key.endswith("result.json") for entry in open_store(study.output).list()):
            assert driver.poll() is None
            time.sleep(0.2)
        driver.kill()
    runs, failed = run_study(study)
    assert not failed
    text = report_study(study, runs, failed)
    assert "| dual minus single |" in text
    assert "## Code\n\nThe code that worked on these runs" in text
    assert f"- {code()}\n" in text
    wrong = study.model_copy(update={"metrics": ("factbook-development nDCG@5",)})
    with pytest.raises(InputError, match="`factbook-development nDCG@5` was not measured"):
        report_study(wrong, runs, failed)
    before = open_store(study.output).list()
    again, failed = run_study(study)
    assert "2 of 2 runs are finished, 0 to do" in caplog.text
    assert report_study(study, again, failed) == text
    assert open_store(study.output).list() == before


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other_and_is_reported(study_at, caplog):
    caplog.set_level("INFO", "dualview")
    recipes = {"single": {"encoder.model": "/nowhere"}, "dual": {}}
    study = load(StudyConfig, str(study_at("failing", **recipes)))
    runs, failed = run_study(study)
    assert "study: 2/2 runs, " in caplog.text
    assert failed == {
        runs[0].folder: "model /nowhere: no such folder; expected a folder, a hub name or s3://bucket/prefix"
    }
    text = report_study(study, runs, failed)
    assert "- recipe single, seed 0: model /nowhere: no such folder" in text
    assert "| dual | 1 |" in text


def test_a_recipe_that_asks_for_more_than_there_is_is_told_before_any_run(study_at):
    asked = {"mixture.parts.0.num_instances": 32000, "budget.instances": 32000}
    study = load(StudyConfig, str(study_at("too-much", single={}, dual=asked)))
    study = study.model_copy(update={"compare": ()})
    with pytest.raises(InputError, match="mixture: 32000 instances"):
        run_study(study)
    assert open_store(study.output).list() == []


def test_a_benchmark_that_is_missing_is_told_before_any_run(study_at):
    study = load(StudyConfig, str(study_at("no-benchmark"))).model_copy(
        update={"metrics": ("robust04 p-MRR",)}
    )
    with pytest.raises(InputError, match=r"`robust04 p-MRR` .* benchmarks"):
        run_study(study)


def test_a_study_may_be_planned_before_its_data_is_made(study_at):
    study = load(StudyConfig, str(study_at("early")))
    told = estimate_study(study, plan_study(study))
    assert re.match(r"2 of 2 runs to do, about [\d,]+ training tokens$", told)
    nowhere = study.model_copy(update={"train_changes": {"mixture.parts.0.data": f"{study.output}/nowhere"}})
    told = estimate_study(nowhere, plan_study(nowhere))
    assert told.startswith("2 runs; their tokens cannot be estimated yet: no generate run at ")


def test_run_files_without_some_queries_are_baselines_of_a_report(tmp_path):
    """Of one a query is ranked under one instruction only, of the other all are: p-MRR has no value there."""
    collection = factbook.collection("development", 8, 1)
    for name, num_whole in (("some", 3), ("none", 0)):
        (tmp_path / name).mkdir()
        lines = [
            f"{query.id}-{view} Q0 {passage} 1 {-place} theirs\n"
            for number, query in enumerate(collection.queries)
            for view in ("original", "changed")[: 1 + (number < num_whole)]
            for place, passage in enumerate(query.candidates)
        ]
        (tmp_path / name / "factbook-development.trec").write_text("".join(lines))
    study = load(StudyConfig, "configs/studies/study.yaml").model_copy(
        update={
            "output": str(tmp_path / "study"),
            "evaluate_changes": {"benchmarks": [demo_flips(8)]},
            "baselines": {
                name: RunFiles(kind="runs", path=str(tmp_path / name)) for name in ("some", "none")
            },
            "compare": (),
            "metrics": ("factbook-development p-MRR", "factbook-development nDCG@10"),
            "trade_off": ("factbook-development p-MRR", "factbook-development nDCG@10"),
            "bootstrap_samples": 20,
        }
    )
    evaluate(scoring_of_baselines(study))
    text = report_study(study, plan_study(study), failed={})
    rows = [line for line in text.splitlines() if line.startswith(("| some |", "| none |"))]
    assert re.match(r"\| some \|  \|  \| 0.0 \[0.0, 0.0\] \| [\d.]+ \[", rows[0])  # the same ranking twice
    assert re.match(r"\| none \|  \|  \|  \| [\d.]+ \[", rows[1])
    assert "- none has no p-MRR for 3 of 3 queries" in text
    assert "some has no" not in text  # nobody has more
