"""A folder and S3 (moto's server, which can be made to fail) as stores."""

from collections.abc import Iterator
import os
from pathlib import Path
from uuid import uuid4

import boto3
from faulty_s3 import SECRET, FaultyS3, serving
import pytest

from dualview.storage import Store, open_store


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyS3]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    s3 = FaultyS3()
    with serving(s3) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "not-a-real-key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-aws-config"))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "aws-credentials"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield s3


@pytest.fixture
def bucket(s3: FaultyS3) -> str:
    name = f"bucket-{uuid4().hex[:8]}"
    boto3.session.Session().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["folder", "prefix in a bucket", "whole bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    bucket = request.getfixturevalue("bucket")
    return open_store(
        f"s3://{bucket}/deep/run" if request.param == "prefix in a bucket" else f"s3://{bucket}"
    )


@pytest.fixture
def s3_store(bucket: str) -> Store:
    return open_store(f"s3://{bucket}/run")
