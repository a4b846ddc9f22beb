"""Settings from YAML: what is read, and the one sentence for each kind of mistake."""

from pathlib import Path
import re
import sys

import pytest

from dualview.config.base import Settings, canonical_json, fingerprint
from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.judge import JudgeConfig
from dualview.config.loading import from_command_line, load
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig
from dualview.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig, "judge": JudgeConfig, "study": StudyConfig}
FACETS, TRAIN, EVALUATE = (
    str(CONFIGS / "demo" / name) for name in ("facets.yaml", "train-dual.yaml", "evaluate.yaml")
)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_that_we_ship_is_valid(path: Path) -> None:
    verb = path.stem.partition("-")[0]
    load(SCHEMAS.get(verb, GenerateConfig), str(path))


def test_an_assignment_changes_one_key() -> None:
    as_written = load(GenerateConfig, FACETS).model_dump()
    changed = load(
        GenerateConfig, FACETS, ["source.max_bad_share=0.3", "output=a=b", "trail=null"]
    ).model_dump()
    assert changed == {
        **as_written,
        "output": "a=b",
        "source": {**as_written["source"], "max_bad_share": 0.3},
        "trail": None,
    }


def test_later_assignments_win_and_may_replace_a_whole_block() -> None:
    config = load(
        GenerateConfig,
        FACETS,
        [
            "engine={kind: scripted, seed: 1}",
            "engine.seed=2",
            "actors={num: 3, cpus: 2, gpus: 0, max_num: null}",
        ],
    )
    assert config.engine is not None
    assert config.engine.model_dump() == {"kind": "scripted", "seed": 2}
    assert (config.actors.num, config.actors.cpus) == (3, 2.0)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(GenerateConfig, FACETS).rows_per_shard = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("schema", "path", "assignment", "sentence"),
    [
        (GenerateConfig, FACETS, "outptu=x", "unknown key `outptu`; remove it or look for a misspelling"),
        (GenerateConfig, FACETS, "source.nope=1", "unknown key `source.nope`"),
        (GenerateConfig, FACETS, "judges=[{kind: attributes, x: 1}]", "unknown key `judges.0.x`"),
        (
            GenerateConfig,
            FACETS,
            "actors={num: 1, gpus: 0}",
            "missing key `actors.cpus`; it has no default (1 more)",
        ),
        (GenerateConfig, FACETS, "source={kind: tuples}", "missing key `source.paths`"),
        (
            GenerateConfig,
            FACETS,
            "engine={kind: vllm}",
            "missing key `engine.model`; it has no default (9 more)",
        ),
        (GenerateConfig, FACETS, "source.kind=csv", "`source`: Input tag 'csv' found using 'kind' does not"),
        (GenerateConfig, FACETS, "source.max_bad_share=2", "`source.max_bad_share`: Input should be less"),
        (
            GenerateConfig,
            FACETS,
            "actors.num=two",
            "`actors.num`: Input should be a valid integer, but found 'two'",
        ),
        (GenerateConfig, FACETS, "actors.num=0", "`actors.num`: Input should be greater than 0, but found 0"),
        (GenerateConfig, FACETS, "actors.max_num=0", "`actors.max_num`: Input should be greater than 0"),
        (GenerateConfig, FACETS, "budget={tokens: null, dollars: 5.0, gpu_hours: null}", "needs `price`"),
        (GenerateConfig, FACETS, "actors.num=1.5", "valid integer, but found 1.5"),
        (GenerateConfig, FACETS, "actors.cpus=.nan", "but found nan"),
        (GenerateConfig, FACETS, "rows_per_shard=true", "valid integer, but found True"),
        (
            GenerateConfig,
            FACETS,
            "writer.negation_share=1.2",
            "`writer.negation_share`: Input should be less",
        ),
        (GenerateConfig, FACETS, "output=", "`output`: Input should be a valid string, but found None"),
        (
            TrainConfig,
            TRAIN,
            "deepspeed.stage=4",
            "`deepspeed.stage`: Input should be 0, 1, 2 or 3, but found 4",
        ),
        (
            TrainConfig,
            TRAIN,
            "loss.temperature.value=0",
            "`loss.temperature.value`: Input should be greater than 0",
        ),
        (
            TrainConfig,
            TRAIN,
            "optimizer.learning_rate=.inf",
            "Input should be a finite number, but found inf",
        ),
        (TrainConfig, TRAIN, "loss.false_negative_margin=.nan", "Input should be a finite number, but found"),
        (EvaluateConfig, EVALUATE, "compare=[[a]]", "missing key `compare.0.1`"),
        (
            EvaluateConfig,
            EVALUATE,
            "encoders={a: 1}",
            "`encoders.a`: Input should be a valid dictionary or object to extract fields from, but found 1",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_file_and_key(
    schema: type[Settings], path: str, assignment: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=rf"^{re.escape(path)}: .*{re.escape(sentence)}") as caught:
        load(schema, path, [assignment])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("actors.num", "--set actors.num: expected KEY=VALUE, for example --set actors.num=2"),
        ("=2", "--set =2: expected KEY=VALUE"),
        ("output.bucket=x", "--set output.bucket=x: `output` holds a value, not further keys"),
        ("judges.7.kind=llm", "--set judges.7.kind=llm: there is no item `7` in this list"),
        ("output=[", "--set output=[: `[` is not a YAML value"),
        ("output=2026-13-01", "--set output=2026-13-01: `2026-13-01` is not a YAML value"),
    ],
)
def test_a_wrong_assignment_is_quoted(assignment: str, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}"):
        load(GenerateConfig, FACETS, [assignment])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", ": expected keys and values, for example `output: s3://bucket/run`"),
        (b"- output", ": expected keys and values"),
        (b"output: a\nactors: [1", " line 2: is not valid YAML (expected ',' or ']'"),
        (b"output:\n\t- a", " line 2: is not valid YAML (found character '\\t'"),
        (b"output: a: b", " line 1: is not valid YAML (mapping values are not allowed here)"),
        (b"output: !!python/object:os.system x", " line 1: is not valid YAML (could not determine"),
        (b"output: \xff", ": is not valid YAML ('utf-8' codec can't decode"),
        (
            b"output: \0",
            ": is not valid YAML (unacceptable character #x0000: special characters are not allowed)",
        ),
        (b"output: 2026-13-01", ": is not valid YAML (month must be in 1..12)"),
        (b"1: 2", ": missing key `bootstrap`; it has no default (19 more)"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{re.escape(str(path) + sentence)}") as caught:
        load(GenerateConfig, str(path))
    assert "\n" not in str(caught.value)


def test_a_path_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent.yaml: cannot be read \(No such file or directory\)"):
        load(GenerateConfig, str(tmp_path / "absent.yaml"))
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\); expected a YAML file"):
        load(GenerateConfig, str(tmp_path))


def test_the_command_line_names_the_file_and_the_assignments(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--config", FACETS, "--set", "actors.num=2", "--set", "output=out/run"]
    monkeypatch.setattr(sys, "argv", ["generate.py", *arguments, "--dry-run"])
    config, flags = from_command_line(GenerateConfig, "", dry_run="only look")
    assert config == load(GenerateConfig, FACETS, ["actors.num=2", "output=out/run"])
    assert flags.dry_run


def test_equal_values_have_one_text_and_one_fingerprint() -> None:
    assert canonical_json({"b": [1, None], "a": "é"}) == '{"a":"é","b":[1,null]}'
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    assert re.fullmatch("[0-9a-f]{16}", fingerprint({}))


@pytest.mark.parametrize(
    ("benchmarks", "name"),
    [
        (
            "[{kind: beir, name: cranfield, path: a}, {kind: flips, name: cranfield, path: b, original: o, changed: c}]",
            "cranfield",
        ),
        (
            "[{kind: flips, name: mine, path: a, original: o, changed: c}, {kind: flips, name: mine, path: b, original: o, changed: c}]",
            "mine",
        ),
    ],
)
def test_two_benchmarks_of_one_name_would_mix(benchmarks: str, name: str) -> None:
    with pytest.raises(InputError, match=f"two benchmarks have the same name among {name}"):
        load(EvaluateConfig, EVALUATE, [f"benchmarks={benchmarks}"])
