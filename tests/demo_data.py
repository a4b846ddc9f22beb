"""SourceExamples and queries of the demo in files, made once by its own command; they live as long as this process."""

from functools import cache
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

ROOT = Path(__file__).parents[1]
_FILES = tempfile.TemporaryDirectory(prefix="dualview-tests-")


def demo_examples(num_seeds: int, seed: int = 1) -> dict[str, Any]:
    """The source of so many training seeds, with its vocabulary."""
    folder = _made("seeds", "train", num_seeds, seed)
    vocabulary = f"{folder}/vocabulary.yaml"
    return {"kind": "tuples", "paths": [folder], "max_bad_share": 0.0, "vocabulary": vocabulary}


def demo_flips(num_queries: int) -> dict[str, Any]:
    """The benchmark of so many development queries."""
    return {
        "kind": "flips",
        "name": "factbook-development",
        "path": _made("flips", "development", num_queries, 1),
        "original": "original",
        "changed": "changed",
    }


@cache
def _made(kind: str, split: str, num: int, seed: int) -> str:
    folder = f"{_FILES.name}/{kind}-{split}-{num}-{seed}"
    what = {"seeds": "--num-seeds", "flips": "--num-queries"}[kind]
    command = [sys.executable, ROOT / "jobs/demo/factbook.py", kind, "--split", split, what, str(num)]
    subprocess.run([*command, "--seed", str(seed), "--out", folder], check=True, stdout=subprocess.DEVNULL)
    return folder
