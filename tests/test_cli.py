"""`dualview VERB` and jobs/VERB.py, which are the same command."""

from pathlib import Path
import re
import subprocess
import sys

import pytest

from dualview import cli
from dualview.config.reference import SCHEMAS

ROOT = Path(__file__).parents[1]


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_help_has_a_line_for_each_verb(capsys: pytest.CaptureFixture[str]) -> None:
    text = output(capsys, "--help")
    for name, verb in cli.VERBS.items():
        assert re.search(rf"^    {name} +{re.escape(verb.summary)}$", text, re.MULTILINE)


def test_every_verb_with_a_config_describes_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert {name for name, verb in cli.VERBS.items() if verb.has_config} == SCHEMAS.keys()
    for verb in SCHEMAS:  # without a --config
        assert "\noutput: text\n" in output(capsys, verb, "--describe")


@pytest.mark.parametrize("verb", cli.VERBS)
def test_a_job_is_the_verb(verb: str) -> None:
    process = subprocess.run(
        [sys.executable, f"jobs/{verb}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith(f"usage: dualview {verb} ")


def test_a_mistake_is_a_sentence_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ("train", "--config", str(ROOT / "configs/demo/train-dual.yaml"), "--set", "colour=red"),
        ("search", "--evaluation", "nowhere", "--instruction", "Only islands."),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1


def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} jobs/train.py --describe | head -1"
    process = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert process.stdout.startswith("Trains an encoder")
    assert not process.stderr
