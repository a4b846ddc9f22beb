"""A job's own lines are shown; library output goes to the log."""

import sys

from quiet import run_quietly

CHATTY = r"""
import sys
print("== train")
print("[2026-11-27 22:07:00,222] [WARNING] [real_accelerator.py:213:get_accelerator] Setting accelerator to CPU.")
print("\x1b[36m(RayTrainWorker pid=4711, ip=10.0.0.1)\x1b[0m step 5/120  loss 4.582\x1b[32m [repeated 2x across cluster]\x1b[0m")
print("\x1b[36m(TrainController pid=2197)\x1b[0m Started training worker group of size 2")
print("(autoscaler +5s) Tip: use `ray status`")
print("Loading weights: 100%", file=sys.stderr)
print("accuracy (of pairs) 0.5")
"""


def test_own_lines_are_shown_and_library_output_is_logged(tmp_path, capfd):
    log = tmp_path / "out" / "log.txt"
    assert run_quietly([sys.executable, "-c", CHATTY], log) == 0
    assert capfd.readouterr().out.splitlines() == [
        "== train",
        "step 5/120  loss 4.582",
        "accuracy (of pairs) 0.5",
    ]
    text = log.read_text()
    for kept in ("Setting accelerator", "Started training", "autoscaler", "Loading weights"):
        assert kept in text


def test_a_failure_shows_the_end_of_its_log_and_its_exit_code(tmp_path, capfd):
    log = tmp_path / "log.txt"
    code = "import sys; [print('line', n, file=sys.stderr) for n in range(99)]; sys.exit(3)"
    assert run_quietly([sys.executable, "-c", code], log) == 3
    shown = capfd.readouterr().out
    assert "line 98" in shown
    assert "line 50" not in shown
    assert f"exit code 3; full output: {log}" in shown
