"""One Ray cluster of this machine and one S3 server for all tests of this folder."""

from collections.abc import Iterator
import os
from pathlib import Path

from faulty_s3 import FaultyS3, bucket
import pytest
import ray

from dualview.config.generate import GenerateConfig
from dualview.config.loading import load
from dualview.on_ray.generate import generate


@pytest.fixture(scope="session")
def faulty_s3() -> FaultyS3:
    return FaultyS3()


@pytest.fixture(scope="session")
def s3(faulty_s3: FaultyS3) -> Iterator[str]:
    """URL of a bucket on a real S3 server; set up before the cluster, whose workers inherit the endpoint."""
    with bucket(faulty_s3, "tests") as url:
        yield url


@pytest.fixture(scope="session")
def cluster(s3: str) -> Iterator[str]:
    """Address of a cluster with two CPUs, for drivers in other processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        # Workers import hooks from tests/.
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=300 * 2**20,
            include_dashboard=True,  # the job server
            dashboard_port=0,
            logging_level="WARNING",
        )
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        yield ray.get_runtime_context().gcs_address
    ray.shutdown()


@pytest.fixture(scope="session")
def facets_data(cluster: str, s3: str) -> str:
    """Output of a finished generate run over 400 seeds of the demo."""
    url = f"{s3}/facets"
    config = Path("configs/demo/facets.yaml").absolute()
    generate(load(GenerateConfig, str(config), [f"output={url}", "source.num_seeds=400"]))
    return url
