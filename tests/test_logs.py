"""Which log lines of dualview and of other libraries a job shows."""

import re
import subprocess
import sys

import pytest

from dualview import logs
from dualview.errors import InputError

JOB = """
import logging
from dualview.logs import show_logs
show_logs({rank})
logging.basicConfig(level=logging.INFO)  # as libraries do
logging.getLogger("dualview.pipelines.anything").info("3 shards planned")
logging.getLogger("library").info("noise")
"""
LIBRARY = """
import logging
from dualview.logs import show_logs_of_worker
show_logs_of_worker()
logging.getLogger("dualview.pipelines.anything").info("3 shards planned")
"""


def printed(code: str, monkeypatch: pytest.MonkeyPatch, style: str | None = None) -> str:
    monkeypatch.delenv(logs.VARIABLE, raising=False)
    if style is not None:
        monkeypatch.setenv(logs.VARIABLE, style)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout


@pytest.mark.parametrize(
    ("style", "rank", "line"),
    [
        ("plain", None, r"3 shards planned\n"),
        ("plain", 1, r"3 shards planned\n"),
        (None, None, r"[\d-]+ [\d:,]+ INFO 3 shards planned\n"),  # no terminal
        ("full", 1, r"[\d-]+ [\d:,]+ INFO rank 1: 3 shards planned\n"),
    ],
)
def test_a_job_shows_its_own_lines_once(
    monkeypatch: pytest.MonkeyPatch, style: str | None, rank: int | None, line: str
) -> None:
    assert re.fullmatch(line, printed(JOB.format(rank=rank), monkeypatch, style))


def test_a_library_and_its_workers_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed(LIBRARY, monkeypatch) == ""


def test_another_style_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(logs.VARIABLE, "loud")
    with pytest.raises(InputError, match="DUALVIEW_LOG=loud: expected plain or full"):
        logs.show_logs()
