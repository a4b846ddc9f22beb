"""Runs a job, shows the lines that it wrote itself, and sends library output to a file."""

from collections.abc import Sequence
from contextlib import suppress
import os
from pathlib import Path
import re
import shutil
import subprocess

from dualview import logs

NUM_LINES_OF_A_FAILURE = 20


def run_quietly(command: Sequence[str], log: Path) -> int:
    """Runs the command and returns its exit code. Shows the job's own lines; library output goes to `log`.

    If the command fails, also prints the end of the log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    columns = shutil.get_terminal_size().columns
    environment = {
        **os.environ,
        "COLUMNS": str(columns),
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        logs.VARIABLE: "plain",
    }
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=file, env=environment, text=True, encoding="utf-8"
        )
        assert process.stdout is not None
        # The command receives the interrupt too, and stops.
        with suppress(KeyboardInterrupt):
            for line in process.stdout:
                shown = _shown(line)
                if shown is None:
                    file.write(line)
                    file.flush()
                else:
                    print(shown, end="", flush=True)
        code = process.wait()
    if code:
        tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-NUM_LINES_OF_A_FAILURE:]
        print(*tail, sep="\n")
        print(f"exit code {code}; full output: {log}")
    return code


# Ray puts (RayTrainWorker pid=4711, ip=10.0.0.1) before a worker's line and [repeated 2x across cluster] after it.
_FROM_WORKER = re.compile(
    r"^(?:\x1b\[\d+m)*\([^()]*\)(?:\x1b\[\d+m)* ?(?P<text>.*?)(?:\x1b\[\d+m)* ?(?:\[repeated .*)?$"
)


# DeepSpeed's logger: [2026-11-27 22:07:00,222] [WARNING] [real_accelerator.py:213:get_accelerator] ...
_FROM_LOGGER = re.compile(r"^\[\d{4}-\d\d-\d\d [^\]]*\] \[[A-Z]+\] ")


def _shown(line: str) -> str | None:
    """The line as the driver or a training worker of ours wrote it; None if a library wrote it."""
    if _FROM_LOGGER.match(line):
        return None
    if not (from_worker := _FROM_WORKER.match(line.rstrip("\n"))):
        return line
    text = from_worker["text"]
    return f"{text}\n" if text.startswith("step ") else None
