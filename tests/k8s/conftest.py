import shutil

import manifests
import pytest


@pytest.fixture(scope="session", params=manifests.BUILDS, ids=lambda build: "-".join(filter(None, build)))
def build(request: pytest.FixtureRequest) -> manifests.Build:
    """Every overlay, and every option on top of each."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    return manifests.build(*request.param)
