"""What the checks of manifests share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Object = dict[str, Any]
Problems = Iterator[str]

# Labels of the S3 server of the overlay `kind`.
S3 = {"app.kubernetes.io/component": "s3"}
