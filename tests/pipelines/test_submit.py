"""All jobs through `ray job submit`, as a user would send them, with token authentication on."""

from dataclasses import replace
import json
import os
from pathlib import Path
import re
import shlex
import subprocess
from subprocess import CompletedProcess
import sys

from demo_data import demo_examples, demo_flips
import psutil
import pytest
import ray
from tiny import save_small_encoder

from dualview.provenance import code
from dualview.runs.manifest import read_codes
from dualview.runs.run import open_run
from dualview.storage import open_store
from dualview.synthesis.stats import run_stats

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")


@pytest.fixture(scope="module")
def job_server(cluster: str) -> str:
    # Ray's job server looks for "the" cluster of its machine, and gives a job whichever it finds.
    if sum(process.info["name"] == "gcs_server" for process in psutil.process_iter(["name"])) > 1:
        pytest.skip("another Ray cluster runs on this machine")
    return f"http://{ray.worker.get_dashboard_url()}"


def told_to_export(readme: str) -> dict[str, str]:
    """What a README has its reader export before `ray job submit`."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)
    [block] = [block for block in blocks if "ray job submit" in block]
    exported = " ".join(re.findall(r"^export ([^#\n]*)", block, re.MULTILINE))
    return dict(re.findall(r"(\w+)=(\$\(.*\)|\S+)", exported))


def submit(job_server: str, *entrypoint: str, **environment: str) -> CompletedProcess[str]:
    """From a clean shell: whoever starts a cluster has settings in its own that a user's shell does not have."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME")}
    return subprocess.run(
        [RAY, "job", "submit", "--address", job_server, "--working-dir", ROOT, "--", *entrypoint],
        cwd=ROOT,
        env={**clean, **told_to_export("README.md"), **environment},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("readme", ["README.md", "k8s/README.md", "cluster/README.md"])
def test_every_readme_has_the_client_send_its_token(readme):
    assert told_to_export(readme)["RAY_AUTH_MODE"] == "token"


@pytest.fixture(scope="module")
def base(s3: str) -> str:
    return f"{s3}/submit"


@pytest.fixture(scope="module")
def sent(job_server: str, base: str, tmp_path_factory: pytest.TempPathFactory) -> CompletedProcess[str]:
    """One submission that generates, trains, evaluates and then makes a mistake: to submit takes as long as to run."""
    model = str(save_small_encoder(tmp_path_factory.mktemp("model")))
    facets, train_dual, evaluate = (
        f"configs/demo/{name}.yaml" for name in ("facets", "train-dual", "evaluate")
    )
    jobs: list[tuple[str, str, dict[str, object]]] = [
        ("generate", facets, {"output": f"{base}/data", "source": demo_examples(200)}),
        (
            "train",
            train_dual,
            {
                "output": f"{base}/encoder",
                "encoder.model": model,
                "mixture.parts.0.data": f"{base}/data",
                "mixture.parts.0.num_instances": 16,
                "budget.instances": 16,
                "batch.instances": 8,
                "batch.queries": 4,
                "workers.num": 1,
            },
        ),
        (
            "evaluate",
            evaluate,
            {
                "output": f"{base}/scores",
                "encoders": {"trained": f"{base}/encoder/encoder"},
                "compare": [],
                "benchmarks": [demo_flips(8)],
                "actors.num": 1,
            },
        ),
        ("generate", facets, {"colour": "red"}),
    ]
    commands = []
    for name, config, assignments in jobs:
        sets = [f"{key}={json.dumps(value)}" for key, value in assignments.items()]
        arguments = [
            f"jobs/{name}.py",
            "--config",
            config,
            *(part for each in sets for part in ("--set", each)),
        ]
        # As cluster/README has it: the history stays here.
        commands.append(shlex.join(["env", "DUALVIEW_COMMIT=c0ffee-dirty", sys.executable, *arguments]))
    return submit(job_server, "sh", "-c", " && ".join(commands))


@pytest.mark.timeout(1800)  # a training job imports torch in four processes: minutes on a busy machine
def test_generate_train_and_evaluate_go_through_the_job_server(sent, base):
    keys = {entry.key for entry in open_store(base).list()}
    assert {"data/plan.json", "encoder/result.json", "scores/scores.parquet"} <= keys, (
        sent.stdout + sent.stderr
    )
    sent_code = replace(code(), commit="c0ffee", dirty=True)
    for output in ("data", "encoder", "scores"):
        assert [noted for noted, _ in read_codes(open_store(f"{base}/{output}"))] == [sent_code]
    [made_by] = run_stats(open_run(f"{base}/data")).origins
    assert dict(made_by)["code_version"] == str(replace(code(), commit=None, dirty=None))


def test_a_users_mistake_reaches_the_user_as_its_sentence(sent):
    assert sent.returncode != 0
    assert "unknown key `colour`" in sent.stdout + sent.stderr


def test_without_the_token_nothing_runs(job_server):
    for environment in ({"RAY_AUTH_TOKEN": "not-the-token"}, {"RAY_AUTH_MODE": "disabled"}):
        sent = submit(job_server, sys.executable, "--version", **environment)
        assert sent.returncode != 0
        assert "uthentication" in sent.stdout + sent.stderr
