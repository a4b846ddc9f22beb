"""Loading settings from YAML, and the one-sentence error for each kind of mistake."""

from pathlib import Path
import re
from typing import ClassVar

import pytest
import yaml

from dualview.config.adapt import AdaptConfig
from dualview.config.base import Settings, canonical_json, fingerprint
from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.judge import JudgeConfig
from dualview.config.loading import load, settings_of
from dualview.config.reference import SCHEMAS as REFERENCE
from dualview.config.reference import describe, keys_of, reference
from dualview.config.renames import with_new_names
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig
from dualview.errors import InputError

CONFIGS = Path(__file__).parents[1] / "configs"
SCHEMAS = {
    "adapt": AdaptConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "judge": JudgeConfig,
    "study": StudyConfig,
}
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
        ("output.bucket=x", "--set output.bucket=x: `output` has a single value"),
        ("judges.7.kind=llm", "--set judges.7.kind=llm: no item `7` in a list"),
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


# --- extends --------------------------------------------------------------------------------------


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_a_file_extends_another_and_that_one_a_third(tmp_path: Path) -> None:
    """Paths are relative to the extending file. Mappings merge, lists and values replace, dotted keys set nested values."""
    base = write(tmp_path / "base.yaml", f"extends: {TRAIN}\nseed: 7\noptimizer: {{warmup_share: 0.5}}\n")
    write(
        tmp_path / "runs/middle.yaml",
        "extends: ../base.yaml\nloss: {temperature: {value: 0.5}, dimensions: [8, 16]}\nseed: 8\n",
    )
    top = write(tmp_path / "runs/top.yaml", "extends: middle.yaml\nmixture.parts.0.views: plain\n")
    original = load(TrainConfig, TRAIN)
    assert load(TrainConfig, base).optimizer.learning_rate == original.optimizer.learning_rate
    assert load(TrainConfig, top) == load(
        TrainConfig,
        TRAIN,
        [
            "optimizer.warmup_share=0.5",
            "loss.temperature.value=0.5",
            "loss.dimensions=[8, 16]",
            "seed=8",
            "mixture.parts.0.views=plain",
        ],
    )


def test_a_mapping_of_another_kind_replaces_and_one_of_the_same_kind_merges(tmp_path: Path) -> None:
    same = write(tmp_path / "same.yaml", f"extends: {FACETS}\nwriter: {{kind: facets, seed: 9}}\n")
    assert load(GenerateConfig, same) == load(GenerateConfig, FACETS, ["writer.seed=9"])
    other = write(tmp_path / "other.yaml", f"extends: {FACETS}\nwriter: {{kind: given}}\n")
    assert load(GenerateConfig, other).writer.model_dump() == {"kind": "precomputed"}


@pytest.mark.parametrize(
    "text",
    ["budget: {steps: 40}", "budget.steps: 40", "budget: {instances: null, steps: 40}"],
)
def test_of_keys_that_exclude_each_other_the_last_one_set_counts(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "run.yaml", f"extends: {TRAIN}\n{text}\n")
    assert load(TrainConfig, path) == load(TrainConfig, TRAIN, ["budget.steps=40"])
    assert load(TrainConfig, path).budget.model_dump(exclude_none=True) == {"steps": 40}


def test_keys_that_are_left_out_are_stored_as_when_they_were_null() -> None:
    nulls = "budget={instances: null, tokens: null, steps: 40, petaflop: null}"
    assert (
        load(TrainConfig, TRAIN, [nulls]).deciding()
        == load(TrainConfig, TRAIN, ["budget={steps: 40}"]).deciding()
    )
    assert set(load(TrainConfig, TRAIN).model_dump()["budget"]) == {
        "instances",
        "tokens",
        "steps",
        "petaflop",
    }


def test_more_or_less_than_one_of_exclusive_keys_is_refused() -> None:
    for value, found in (("{instances: 16, steps: 1}", "instances and steps"), ("{}", "none")):
        with pytest.raises(
            InputError, match=f"`budget`: expected exactly one of instances, .*but found {found}"
        ):
            load(TrainConfig, TRAIN, [f"budget={value}"])


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (
            {"top.yaml": "extends: gone.yaml"},
            "gone.yaml: cannot be read (No such file or directory); {}/top.yaml extends it",
        ),
        ({"top.yaml": "extends: top.yaml"}, "top.yaml: `extends`: the files extend each other: "),
        (
            {"top.yaml": "extends: base.yaml", "base.yaml": "extends: ./top.yaml"},
            "base.yaml: `extends`: the files extend each other: {0}/top.yaml -> {0}/base.yaml -> {0}/top.yaml",
        ),
        (
            {"top.yaml": "extends: [a.yaml]"},
            "top.yaml: `extends`: expected the path of a file, for example `extends: base.yaml`",
        ),
        ({"top.yaml": f"extends: {FACETS}\ncolour: red"}, "top.yaml: unknown key `colour`"),
        (
            {"top.yaml": f"extends: {FACETS}\njudges.7.kind: llm"},
            "top.yaml: `judges.7.kind`: no item `7` in a list",
        ),
        (
            {"top.yaml": f"extends: {FACETS}\noutput.bucket: x"},
            "top.yaml: `output.bucket`: `output` has a single value",
        ),
    ],
)
def test_a_wrong_extends_is_one_sentence(tmp_path: Path, files: dict[str, str], sentence: str) -> None:
    for name, text in files.items():
        write(tmp_path / name, text)
    with pytest.raises(InputError, match=re.escape(sentence.format(tmp_path))) as caught:
        load(GenerateConfig, f"{tmp_path}/top.yaml")
    assert "\n" not in str(caught.value)


def test_settings_come_from_a_file_a_mapping_or_a_config() -> None:
    config = load(TrainConfig, TRAIN, ["seed=5", "optimizer.warmup_share=0.5"])
    changes = {"seed": 5, "optimizer": {"warmup_share": 0.5}}
    original = load(TrainConfig, TRAIN)
    for given in (TRAIN, Path(TRAIN), original, original.model_dump(mode="json")):
        assert settings_of(TrainConfig, given, changes) == config
    with pytest.raises(InputError, match=r"^TrainConfig: unknown key `colour`"):
        settings_of(TrainConfig, original, {"colour": "red"})


# --- renamed keys ---------------------------------------------------------------------------------


class Toy(Settings):
    renamed: ClassVar = {
        "move_back": "interpolate",
        "watching": "logging",
        "logging.logs": "logging.folder",
        "parts.*.part": "parts.*.data",
        "loss.scale": "temperature",
        "kind=drafts": "kind=candidates",
    }

    kind: str
    interpolate: float
    logging: dict[str, str]
    parts: list[dict[str, str]]
    temperature: float


OLD = {
    "kind": "drafts",
    "move_back": 0.5,
    "watching": {"logs": "out", "hook": "a:b"},
    "parts": [{"part": "first"}, {"data": "second"}],
    "loss": {"scale": 2.0},
}
NEW = {
    "kind": "candidates",
    "interpolate": 0.5,
    "logging": {"folder": "out", "hook": "a:b"},
    "parts": [{"data": "first"}, {"data": "second"}],
    "temperature": 2.0,
}


def test_old_names_are_read_with_a_line_for_each(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "old.yaml", yaml.safe_dump(OLD))
    assert load(Toy, path).model_dump() == NEW
    warnings = "\n".join(caplog.messages)
    assert f"{path}: `move_back` was renamed to `interpolate` in 0.2; 0.3 will refuse" in warnings
    assert "`parts.0.part` was renamed to `parts.0.data`" in warnings
    assert "`kind: drafts` was renamed to `kind: candidates`" in warnings
    caplog.clear()
    load(Toy, path)
    assert not caplog.messages  # only one warning per file
    assert load(Toy, write(tmp_path / "new.yaml", yaml.safe_dump(NEW))).model_dump() == NEW
    assert not caplog.messages


def test_old_names_work_in_what_changes_a_file(tmp_path: Path) -> None:
    base = write(tmp_path / "base.yaml", yaml.safe_dump(NEW))
    child = write(tmp_path / "child.yaml", "extends: base.yaml\nwatching.logs: there\nparts.1.part: third\n")
    assert load(Toy, child).logging == {"folder": "there", "hook": "a:b"}
    assert load(Toy, child).parts == [{"data": "first"}, {"data": "third"}]
    assert load(Toy, base, ["watching.logs=there"]).logging == {"folder": "there", "hook": "a:b"}
    assert load(Toy, base, ["loss.scale=3.0"]).temperature == 3.0
    assert load(Toy, base, ["parts=[{part: only}]"]).parts == [{"data": "only"}]


def test_a_key_under_both_names_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "both.yaml", "move_back: 0.5\ninterpolate: 0.5\n")
    with pytest.raises(InputError, match=f"^{path}: `move_back` and `interpolate` .* same key"):
        load(Toy, path)


def test_settings_that_an_earlier_version_stored_equal_todays() -> None:
    assert with_new_names(Toy, OLD) == with_new_names(Toy, NEW) == NEW
    assert OLD["move_back"] == 0.5  # the argument is not changed


# --- reference ------------------------------------------------------------------------------------


def test_the_reference_of_all_keys_is_current() -> None:
    """`python -m dualview.config.reference > configs/reference.md`"""
    assert (CONFIGS / "reference.md").read_text() == f"{reference()}\n"


@pytest.mark.parametrize("verb", REFERENCE)
def test_every_key_is_described_in_a_hundred_columns(verb: str) -> None:
    assert [key.path for key in keys_of(REFERENCE[verb]) if not key.meaning] == []
    assert max(map(len, describe(REFERENCE[verb]).splitlines())) <= 100


@pytest.mark.parametrize("text", ["1e-5", "1.0e-5", "1E-5", "0.00001"])
def test_a_number_may_be_written_as_people_write_it(text: str) -> None:
    path = str(CONFIGS / "demo" / "train-dual.yaml")
    assert load(TrainConfig, path, [f"optimizer.learning_rate={text}"]).optimizer.learning_rate == 1e-5
