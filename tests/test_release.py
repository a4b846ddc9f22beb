"""Whatever names the last release names the same one; between releases git knows more (`tool.setuptools_scm`)."""

from pathlib import Path
import re
import tomllib

ROOT = Path(__file__).parents[1]


def test_all_files_that_name_the_last_release_agree() -> None:
    changes = (ROOT / ".github/CHANGELOG.md").read_text()
    unreleased, last, *_ = re.findall(r"^## (\S+)", changes, re.MULTILINE)
    assert unreleased == "Unreleased"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools_scm"]["fallback_version"] == last
    dockerfile = (ROOT / "cluster/Dockerfile").read_text()
    assert set(re.findall(r"^ARG VERSION=(\S+)", dockerfile, re.MULTILINE)) == {last}
    named = [
        ROOT / "k8s/README.md",
        ROOT / "cluster/Dockerfile",
        *ROOT.glob("k8s/overlays/*/kustomization.yaml"),
    ]
    for path in named:
        tags = set(re.findall(r"(\d[\w.]*)-[cg]pu\b", path.read_text()))
        assert tags == {last}, path
