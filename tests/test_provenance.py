"""Which code it is, in a checkout, in an image, installed by pip and sent to a cluster without its history."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import pytest

from dualview.provenance import COMMIT_FILE, COMMIT_VARIABLE, PACKAGE, Code, code
from dualview.runs.manifest import pin_manifest, read_codes
from dualview.storage import open_store

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package alone, in a folder of its own; what is installed is another one then."""
    monkeypatch.delenv(COMMIT_VARIABLE, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "no-config"))
    shutil.copytree(PACKAGE, tmp_path / "tree/dualview", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "tree"


def code_of(tree: Path) -> Code:
    """As another process sees it, which imports the package from there."""
    program = "from dataclasses import asdict; import json; from dualview.provenance import code; print(json.dumps(asdict(code())))"
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=True,
    )
    return Code(**json.loads(process.stdout))


def git(tree: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    return subprocess.run(
        ["git", *who, *arguments], cwd=tree, capture_output=True, text=True, check=True
    ).stdout.strip()


def commit_all(tree: Path) -> str:
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "all")
    return git(tree, "rev-parse", "HEAD")


CHANGES = {
    "a module": lambda tree: (tree / "dualview/synthesis/rules.py").open("a").write("\n"),
    "a prompt": lambda tree: next((tree / "dualview/synthesis/prompts").glob("*.txt")).write_text("[user]\n"),
    "a new module": lambda tree: (tree / "dualview/new.py").write_text(""),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_packages_files_shows_in_a_checkout(tree: Path, change) -> None:
    commit = commit_all(tree)
    before = code_of(tree)
    assert (before.commit, before.dirty) == (commit, False)
    change(tree)
    after = code_of(tree)
    assert (after.commit, after.dirty) == (commit, True)
    assert after.files != before.files
    assert str(after) == f"{after.version} files {after.files} commit {commit[:12]} dirty"


def test_equal_files_are_equal_wherever_they_lie_and_whatever_lies_beside_them(tree: Path) -> None:
    alone = code_of(tree)
    assert (alone.commit, alone.dirty) == (None, None)
    assert str(alone) == f"{alone.version} files {alone.files}"
    (tree / "configs").mkdir()
    (tree / "configs/mine.yaml").write_text("seed: 1\n")
    commit_all(tree)
    (tree / "configs/mine.yaml").write_text("seed: 2\n")  # settings are recorded as such
    found = code_of(tree)
    assert (found.files, found.dirty) == (alone.files, False)
    assert alone.files == code().files


def test_the_commit_of_another_project_is_not_ours(tree: Path) -> None:
    """As where the package lies in a virtual environment within a checkout."""
    (tree / ".gitignore").write_text("dualview/\n")
    commit_all(tree)
    assert code_of(tree).commit is None


def test_an_image_knows_the_commit_that_it_was_built_from(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = code_of(tree)
    (tree / "dualview" / COMMIT_FILE).write_text(f"{COMMIT}-dirty\n")
    monkeypatch.setenv(COMMIT_VARIABLE, "of-something-else")
    found = code_of(tree)
    assert (found.files, found.commit, found.dirty) == (before.files, COMMIT, True)


def test_a_job_that_is_sent_without_its_history_can_be_told_the_commit(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COMMIT_VARIABLE, COMMIT)
    found = code_of(tree)
    assert (found.commit, found.dirty) == (COMMIT, None)


@pytest.mark.parametrize("of_this_package", [True, False])
def test_what_pip_notes_counts_where_it_installed_this_package(tree: Path, of_this_package: bool) -> None:
    metadata = (tree if of_this_package else tree / "elsewhere") / "dualview-9.9.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: dualview\nVersion: 9.9\n")
    origin = {"url": "https://localhost/dualview.git", "vcs_info": {"vcs": "git", "commit_id": COMMIT}}
    (metadata / "direct_url.json").write_text(json.dumps(origin))
    found = code_of(tree)
    assert found.commit == (COMMIT if of_this_package else None)
    assert (found.version == "9.9") == of_this_package


def test_an_output_shows_every_code_that_worked_on_it_and_refuses_none(tmp_path: Path, tree: Path) -> None:
    store = open_store(str(tmp_path / "run"))
    pin_manifest(store, "config.json", {"seed": 1}, metadata={})
    pin_manifest(store, "config.json", {"seed": 1}, metadata={})
    assert [noted for noted, _ in read_codes(store)] == [code()]

    CHANGES["a module"](tree)
    program = (
        "import sys; from dualview.runs.manifest import pin_manifest; from dualview.storage import open_store;"
        " pin_manifest(open_store(sys.argv[1]), 'config.json', {'seed': 1}, metadata={})"
    )
    subprocess.run(
        [sys.executable, "-c", program, store.url],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        check=True,
    )
    noted = read_codes(store)
    assert len({code.files for code, _ in noted}) == len(noted) == 2
    assert all("ray" in libraries for _, libraries in noted)
