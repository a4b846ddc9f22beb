"""Progress under a clock that the test controls."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dualview.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def plain_console() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


@pytest.fixture(autouse=True)
def shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dualview")


def test_a_line_every_ten_seconds_and_none_twice(caplog: pytest.LogCaptureFixture) -> None:
    clock, console = Clock(), plain_console()
    with Progress("generate", 40, "shards", None, console, clock) as progress:
        for _ in range(6):
            clock.seconds += 4
            progress.advance(2, accepted_share=0.875, tokens_per_second=12345.6)
    assert caplog.messages == [
        "generate: 6/40 shards, 0.5 a second, 0:01:08 left, accepted share 0.875, tokens per second 12,346,"
        " 0:00:12 elapsed",
        "generate: 12/40 shards, 0.5 a second, 0:00:56 left, accepted share 0.875, tokens per second 12,346,"
        " 0:00:24 elapsed",
    ]


def test_before_the_first_advance_there_is_no_rate(caplog: pytest.LogCaptureFixture) -> None:
    console = plain_console()
    with Progress("train", 1500, "steps", None, console, Clock()) as progress:
        progress.advance(0)
    assert caplog.messages == ["train: 0/1,500 steps, 0:00:00 elapsed"]


def test_what_takes_minutes_is_counted_by_the_hour(caplog: pytest.LogCaptureFixture) -> None:
    clock, console = Clock(), plain_console()
    with Progress("study", 36, "runs", None, console, clock) as progress:
        clock.seconds += 300
        progress.advance(3)
    assert caplog.messages[-1] == "study: 3/36 runs, 36 an hour, 0:55:00 left, 0:05:00 elapsed"


def test_figures_stay_on_show_until_they_change(caplog: pytest.LogCaptureFixture) -> None:
    clock, console = Clock(), plain_console()
    with Progress("train", 2, "steps", None, console, clock) as progress:
        clock.seconds += 1
        progress.advance(1, loss=0.5, rate=2e-5)
        progress.advance(1, loss=0.25)
    assert "loss 0.25, rate 2e-05" in caplog.messages[-1]


def test_the_trail_has_a_line_for_each_advance_and_is_continued(tmp_path: Path) -> None:
    trail = tmp_path / "logs" / "trail.jsonl"
    clock = Clock()
    for _ in range(2):
        with Progress("generate", 3, "shards", trail, plain_console(), clock, clock) as progress:
            clock.seconds += 1.5
            progress.advance(1, accepted_share=0.5)
            progress.advance(2)
    lines = [json.loads(line) for line in trail.read_text().splitlines()]
    assert lines == [
        {"time": 1001.5, "done": 1, "total": 3, "accepted_share": 0.5},
        {"time": 1001.5, "done": 3, "total": 3},
        {"time": 1003.0, "done": 1, "total": 3, "accepted_share": 0.5},
        {"time": 1003.0, "done": 3, "total": 3},
    ]


def test_a_figure_that_is_no_number_is_null_in_the_trail(tmp_path: Path) -> None:
    with Progress("train", 2, "steps", tmp_path / "trail", plain_console(), Clock(), Clock()) as progress:
        progress.advance(1, loss=float("nan"), gradient_norm=float("inf"))
    line = json.loads((tmp_path / "trail").read_text(), parse_constant=pytest.fail)  # of NaN, Infinity
    assert (line["loss"], line["gradient_norm"]) == (None, None)


@pytest.mark.parametrize("jump_seconds", [-1e6, 1e6])
def test_a_jump_of_the_machines_clock_changes_no_rate(
    tmp_path: Path, jump_seconds: float, caplog: pytest.LogCaptureFixture
) -> None:
    clock, wall_clock, console = Clock(), Clock(), plain_console()
    with Progress("train", 40, "steps", tmp_path / "trail.jsonl", console, clock, wall_clock) as progress:
        clock.seconds += 24
        wall_clock.seconds += jump_seconds
        progress.advance(12)
    assert caplog.messages[-1] == "train: 12/40 steps, 0.5 a second, 0:00:56 left, 0:00:24 elapsed"


def test_a_full_disk_costs_the_trail_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    console = plain_console()
    with Progress("train", 2, "steps", Path("/dev/full"), console, Clock()) as progress:
        progress.advance(1)
        progress.advance(1)
    assert caplog.messages == [
        "/dev/full: cannot be written (No space left on device); the run continues without it",
        "train: 2/2 steps, 0:00:00 elapsed",
    ]


def test_the_last_line_says_how_far_a_broken_run_came(caplog: pytest.LogCaptureFixture) -> None:
    console = plain_console()

    def break_off() -> None:
        with Progress("generate", 3, "shards", None, console, Clock()) as progress:
            progress.advance(1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert caplog.messages == ["generate: 1/3 shards, 0:00:00 elapsed"]


def test_on_a_terminal_there_is_a_bar_and_no_line() -> None:
    clock = Clock()
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=120)
    with Progress("generate", 4, "shards", None, console, clock) as progress:
        clock.seconds += 20
        progress.advance(3, accepted_share=0.9)
    shown = file.getvalue()
    assert "━" in shown
    assert "3/4 shards, 0.15 a second, 0:00:07 left, accepted share 0.9" in shown
    assert "elapsed" not in shown
