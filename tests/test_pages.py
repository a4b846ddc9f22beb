"""What the pages for people name is there."""

from pathlib import Path
import re

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "cluster/README.md", "k8s/README.md")
MADE = {"configs/my.yaml", "jobs/my.py"}  # by the reader


@pytest.mark.parametrize("page", PAGES)
def test_every_path_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text()
    paths = set(re.findall(r"(?<![\w/.:-])(?:jobs|configs|cluster|k8s|tests)/[\w./-]*[\w]", text)) - MADE
    assert paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_part_that_the_kubernetes_page_starts_is_a_component() -> None:
    text = (ROOT / "k8s/README.md").read_text()
    started = set(re.findall(r"\bstart (\w+)", text)) - {"workers"}
    components = {
        document["metadata"]["labels"]["app.kubernetes.io/component"]
        for path in (ROOT / "k8s/base").glob("*.yaml")
        for document in yaml.safe_load_all(path.read_text())
        if path.name != "kustomization.yaml"
    }
    assert started >= {"platform", "generate", "train", "evaluate", "study", "interactive"}
    assert started <= components
