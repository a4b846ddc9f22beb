from pathlib import Path
import subprocess
import sys

from finished_run import finish_run, row

from dualview.storage import open_store

ROOT = Path(__file__).parents[2]


def stats(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "jobs/stats.py", *arguments], cwd=ROOT, capture_output=True, text=True
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_reads_only_unless_the_card_is_asked_for(tmp_path: Path) -> None:
    finish_run(open_store(str(tmp_path)), [[row("a")], [row("b")]], {})
    before = files(tmp_path)
    process = stats("--data", str(tmp_path))
    assert process.returncode == 0, process.stderr
    assert "finished: 2 rows in 2 shards" in process.stdout
    assert files(tmp_path) == before
    assert "README.md: card written" in stats("--data", str(tmp_path), "--card").stdout
    assert files(tmp_path) == {*before, "README.md"}


def test_no_run_is_one_sentence(tmp_path: Path) -> None:
    process = stats("--data", str(tmp_path / "nowhere"))
    assert process.returncode == 2
    assert process.stderr.startswith("error: no generate run at")
    assert process.stderr.count("\n") == 1
