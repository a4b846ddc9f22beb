"""Vocabulary files, and generate runs on any source with one."""

from pathlib import Path
import random
import re
from typing import Any

from generate_runs import FACETS, config_of, finish_without_ray, rows_of
import pyarrow.parquet as pq
import pytest
import yaml

from dualview.arrow import examples_to_table
from dualview.errors import InputError
from dualview.records import ACCEPTED, Passage, Requirement, SourceExample
from dualview.sources import vocabulary_of
from dualview.storage import open_store
from dualview.vocabulary import Vocabulary, read_vocabulary

SHOES = """
inclusions: ["Only shoes {phrase}.", "Show me shoes {phrase}."]
exclusions: ["No shoes {phrase}.", "Leave out shoes {phrase}."]
facets:
  colour:
    red: {phrases: [in red], names: [red, crimson]}
    black: {phrases: [in black, of black leather], names: [black]}
  sole:
    flat: {phrases: [with a flat sole], names: [flat]}
    heel: {phrases: [], names: [heel, heels]}
"""


@pytest.fixture
def shoes(tmp_path: Path) -> Path:
    path = tmp_path / "shoes.yaml"
    path.write_text(SHOES)
    return path


def test_a_file_gives_phrases_and_recognised_names(shoes: Path) -> None:
    found = read_vocabulary(str(shoes))
    assert found == Vocabulary(
        phrases={
            ("colour", "red"): ("in red",),
            ("colour", "black"): ("in black", "of black leather"),
            ("sole", "flat"): ("with a flat sole",),  # a heel is recognised, but never phrased
        },
        names={
            ("colour", "red"): ("red", "crimson"),
            ("colour", "black"): ("black",),
            ("sole", "flat"): ("flat",),
            ("sole", "heel"): ("heel", "heels"),
        },
        inclusions=("Only shoes {phrase}.", "Show me shoes {phrase}."),
        exclusions=("No shoes {phrase}.", "Leave out shoes {phrase}."),
    )
    assert list(found.names) == [("colour", "red"), ("colour", "black"), ("sole", "flat"), ("sole", "heel")]
    for requirement in (Requirement(True, "colour", "black"), Requirement(False, "sole", "flat")):
        assert found.read(found.say(requirement, random.Random(0))) == (requirement,)
    assert found.read("Crimson ones, please. No heels!") == (
        Requirement(True, "colour", "red"),
        Requirement(False, "sole", "heel"),
    )


def test_a_file_may_lie_on_s3_or_in_the_working_folder(
    shoes: Path, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(f"{s3}/words").put_new("shoes.yaml", SHOES.encode(), "1")
    monkeypatch.chdir(shoes.parent)
    for path in ("shoes.yaml", f"{s3}/words/shoes.yaml", f"file://{shoes}"):
        assert read_vocabulary(path) == read_vocabulary(str(shoes))


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        ("facets:", "facet:", "missing key `facets`; expected inclusions, exclusions and facets"),
        (SHOES, "", "expected the keys inclusions, exclusions and facets, but found None"),
        (SHOES, "[red]", "expected the keys inclusions, exclusions and facets, but found ['red']"),
        ("inclusions: [", "inclusions: [[", "is not valid YAML ("),
        (
            '"Only shoes {phrase}."',
            '"Only shoes."',
            '`inclusions.0`: must contain {phrase} once and no other {} field, for example "Only shoes {phrase}.",'
            " but found 'Only shoes.'",
        ),
        ("No shoes {phrase}", "No {colour} shoes {phrase}", "`exclusions.0`: must contain {phrase} once"),
        ("No shoes {phrase}", "No shoes {phrase", "`exclusions.0`: "),
        ('["Only shoes {phrase}.", "Show me shoes {phrase}."]', "[]", "`inclusions`: "),
        ("phrases: [in red], ", "", "missing key `facets.colour.red.phrases`"),
        ("names: [red, crimson]", "names: []", "`facets.colour.red.names`: "),
        ("names: [red, crimson]", 'names: [""]', "`facets.colour.red.names.0`: "),
        ("names: [red, crimson]", "names: red", "`facets.colour.red.names`: "),
        ("names: [flat]", "names: [flat], says: [flat]", "unknown key `facets.sole.flat.says`"),
        ("    flat:", "    no:", "`facets.sole`: the name False is not a string"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(shoes: Path, before: str, after: str, sentence: str) -> None:
    assert before in SHOES
    shoes.write_text(SHOES.replace(before, after, 1))
    with pytest.raises(InputError, match=f"^{re.escape(f'{shoes}: {sentence}')}") as caught:
        read_vocabulary(str(shoes))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, s3: str) -> None:
    for path in (f"{tmp_path}/none.yaml", f"{s3}/none.yaml"):
        with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read (No such file); expected a")):
            read_vocabulary(path)
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\)"):
        read_vocabulary(str(tmp_path))


# --- any source -----------------------------------------------------------------------------------


def source_of(folder: Path, vocabulary: Path | None) -> dict[str, Any]:
    """Ten examples that ask for black shoes, each with a red one that breaks that. Soles differ in every other one."""
    examples = [
        SourceExample(
            id=f"s{number}",
            query_id="shoes",
            query="shoes for the office",
            instruction="Only shoes in black.",
            positive=Passage(
                f"black-{number}",
                f"Item {number}, a black shoe with a flat sole",
                attributes={"colour": "black", "sole": "flat"},
            ),
            instruction_negatives=(
                Passage(
                    f"red-{number}",
                    f"Item {number}, a red shoe with a {('flat sole', 'heel')[number % 2]}",
                    attributes={"colour": "red", "sole": ("flat", "heel")[number % 2]},
                ),
            ),
            requirements=(Requirement(True, "colour", "black"),),
        )
        for number in range(10)
    ]
    folder.mkdir()
    pq.write_table(examples_to_table(examples), folder / "examples.parquet")
    return {
        "kind": "tuples",
        "paths": [str(folder)],
        "max_bad_share": 0.0,
        "vocabulary": str(vocabulary) if vocabulary else None,
    }


def test_complements_are_composed_judged_and_reworded_with_any_vocabulary(
    shoes: Path, tmp_path: Path
) -> None:
    config = config_of(
        FACETS,
        tmp_path / "run",
        source=source_of(tmp_path / "examples", shoes),
        rewording={"kind": "vocabulary", "num": 1, "seed": 1},
    )
    finish_without_ray(config, open_store(config.output))
    rows = rows_of(open_store(config.output))
    assert [row.status for row in rows] == [ACCEPTED] * 10
    words = read_vocabulary(str(shoes))
    for row in rows:
        assert row.new_requirements == words.read(row.new_instruction)
        assert all(
            need.holds(row.example.instruction_negatives[0].attributes) for need in row.new_requirements
        )
        assert not any(need.holds(row.example.positive.attributes) for need in row.new_requirements)
        wordings = {wording.condition: wording.instruction for wording in row.rewordings}
        assert words.read(wordings["new"]) == row.new_requirements
        assert wordings["new"] != row.new_instruction
    assert len({row.new_instruction for row in rows}) > 3


def test_a_run_that_judges_drafts_uses_the_vocabulary_of_the_run_that_wrote_them(
    shoes: Path, tmp_path: Path
) -> None:
    writes = config_of(
        {**FACETS, "judges": [], "accept": None},
        tmp_path / "written",
        source=source_of(tmp_path / "examples", shoes),
    )
    finish_without_ray(writes, open_store(writes.output))
    judges = config_of(
        FACETS,
        tmp_path / "judged",
        source={"kind": "drafts", "run": writes.output},
        writer={"kind": "precomputed"},
    )
    assert vocabulary_of(judges.source) == read_vocabulary(str(shoes))
    finish_without_ray(judges, open_store(judges.output))
    assert [row.status for row in rows_of(open_store(judges.output))] == [ACCEPTED] * 10


def test_a_vocabulary_that_has_changed_is_another_run(shoes: Path, tmp_path: Path) -> None:
    config = config_of(FACETS, tmp_path / "run", source=source_of(tmp_path / "examples", shoes))
    finish_without_ray(config, open_store(config.output))
    changed = yaml.safe_load(SHOES)
    changed["facets"]["colour"]["red"]["phrases"] = ["of a red colour"]
    shoes.write_text(yaml.safe_dump(changed, sort_keys=False))
    with pytest.raises(InputError, match=r"settings\.vocabulary: stored \"vocabulary@"):
        finish_without_ray(config, open_store(config.output))
