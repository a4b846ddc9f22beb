"""k8s/ as kustomize builds it: objects, and the clusters and pods in them."""

from collections.abc import Iterator
from pathlib import Path
import shutil
import subprocess
import tempfile
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
OPTIONS = ("kueue", "volcano", "nightly")  # components that a user adds to an overlay
BUILDS = [(overlay, option) for overlay in ("kind", "aws", "onprem") for option in (None, *OPTIONS)]

Object = dict[str, Any]


class Build(NamedTuple):
    overlay: str
    option: str | None
    objects: list[Object]

    def of(self, kind: str) -> dict[str, Object]:
        """By name."""
        return {one["metadata"]["name"]: one for one in self.objects if one["kind"] == kind}


class Pod(NamedTuple):
    group: str  # of workers; `head`, or `s3`
    metadata: Object
    spec: Object

    @property
    def container(self) -> Object:
        [only] = self.spec["containers"]
        return only

    @property
    def volumes(self) -> dict[str, Object]:
        return {volume["name"]: volume for volume in self.spec["volumes"]}

    @property
    def requests(self) -> Object:
        return self.container["resources"]["requests"]


def build(overlay: str, option: str | None, k8s: Path = ROOT / "k8s") -> Build:
    """With the option as a user adds it: one more component, last. Raises CalledProcessError where kustomize refuses."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(k8s, Path(folder, "k8s")), "overlays", overlay)
        if option:
            kustomization = yaml.safe_load((copy / "kustomization.yaml").read_text())
            kustomization["components"].append(f"../../components/{option}")
            (copy / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        built = subprocess.run(["kubectl", "kustomize", copy], capture_output=True, text=True, check=True)
    return Build(overlay, option, list(yaml.load_all(built.stdout, yaml.CSafeLoader)))


def clusters(build: Build) -> Iterator[Object]:
    """Specs of the RayCluster, and of those that jobs bring."""
    for one in build.objects:
        spec = one.get("spec", {})
        spec = spec.get("jobTemplate", spec)
        spec = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in spec:
            yield spec


def ray_pods(build: Build) -> Iterator[Pod]:
    for cluster in clusters(build):
        yield Pod("head", **cluster["headGroupSpec"]["template"])
        yield from (Pod(group["groupName"], **group["template"]) for group in cluster["workerGroupSpecs"])


def pods(build: Build) -> Iterator[Pod]:
    yield from ray_pods(build)
    yield from (Pod(name, **one["spec"]["template"]) for name, one in build.of("Deployment").items())
