"""What happens to a run when the things around it fail: credentials, nodes."""

from collections.abc import Iterator
from pathlib import Path

from demo_data import demo_examples
from faulty_s3 import ALWAYS, FaultyS3, error
from generate_runs import LLM, Job, config_of, rows_of, undisturbed, wait_until
import pytest
from ray_processes import AnotherNode

from dualview.pipelines.generate.run import generate
from dualview.records import DualView
from dualview.runs.run import open_run
from dualview.storage import open_store


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> list[DualView]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return undisturbed(config_of(LLM, folder), folder)


@pytest.mark.usefixtures("cluster")
def test_credentials_that_expire_end_the_run_and_renewed_ones_finish_it(
    s3: str, faulty_s3: FaultyS3, expected: list[DualView], tmp_path: Path
) -> None:
    config = config_of(LLM, f"{s3}/faults/expired")
    faulty_s3.faults = [("faults/expired/data/shard-000007", error(400, "ExpiredToken"), ALWAYS)]
    job = Job(config, tmp_path)
    assert job.process.wait() == 3
    log = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == (
        f"stopped: {config.output}: the credentials are no longer accepted (ExpiredToken); renew them,"
        " then run the same command again; finished work is kept"
    )

    faulty_s3.faults = []
    generate(config)
    assert rows_of(open_store(config.output)) == expected


@pytest.mark.usefixtures("cluster")
def test_an_engine_that_answers_nonsense_ends_the_run_and_a_lower_bar_finishes_it(
    s3: str, faulty_s3: FaultyS3, tmp_path: Path
) -> None:
    changes = {"source": demo_examples(700), "rows_per_shard": 50}
    strict = config_of(LLM, f"{s3}/faults/nonsense", **changes, min_accepted_share=0.9)
    # One more than the rows that are judged, because Ray Data hands out a report when it has the next.
    with faulty_s3.hold_after(500 // strict.rows_per_shard + 1):
        job = Job(strict, tmp_path)
        sentence = job.interruption()
    assert sentence.startswith(f"stopped: {strict.output}: ")
    assert "of the last 500 rows" in sentence
    assert not open_run(strict.output).is_complete

    generate(config_of(LLM, strict.output, **changes))
    assert open_run(strict.output).is_complete


@pytest.fixture
def second_node(cluster: str) -> Iterator[AnotherNode]:
    node = AnotherNode(cluster, num_cpus=2)
    yield node
    node.close()


def test_a_run_survives_the_death_of_a_node(
    s3: str, faulty_s3: FaultyS3, second_node: AnotherNode, expected: list[DualView], tmp_path: Path
) -> None:
    """Each node has room for one of the two actors, and the dead one is not replaced."""
    config = config_of(LLM, f"{s3}/faults/node", actors={**LLM["actors"], "num": 2, "cpus": 1.5})
    store = open_store(config.output)
    with faulty_s3.hold_after(3):
        job = Job(config, tmp_path)
        wait_until(lambda: len(store.list("attempts/")) >= 3 + 2 * config.shards_in_flight)
        second_node.die()

    job.must_succeed()
    assert rows_of(store) == expected
    assert len(store.list("attempts/")) > len(store.list("data/"))
