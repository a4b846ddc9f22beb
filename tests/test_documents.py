"""Links and files in the documents exist."""

from pathlib import Path
import re

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path
    for path in [
        ROOT / "README.md",
        *ROOT.glob("*/README.md"),
        *ROOT.glob("*/*/README.md"),
        *ROOT.glob(".github/*.md"),
    ]
    if not {".venv", "out"} & set(path.relative_to(ROOT).parts)
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_files_that_a_document_names_exist(path):
    text = path.read_text()
    links = {
        target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target
    }
    files = set(re.findall(r"\b(?:jobs|configs|tests|cluster|k8s)/[\w./-]+\.(?:py|yaml|md)\b", text))
    files -= {"configs/my.yaml"}  # the reader's own
    missing = {link for link in links if link and not (path.parent / link).exists()}
    missing |= {file for file in files if not (ROOT / file).exists()}
    assert not missing
