"""Every overlay, and every option on top of one, builds and has nothing wrong with it."""

import json
import os
from pathlib import Path
import shutil

from kuberay_schema import CRDS, SCHEMA, from_crds
from manifest_checks import built, problems, read_entrypoint
from manifests import ROOT
import pytest
import yaml

OVERLAYS = ("kind", "aws", "onprem")
OPTIONS = ("kueue", "volcano", "nightly")

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_has_nothing_wrong(overlay: str) -> None:
    assert problems(built(ROOT / "k8s/overlays" / overlay)) == []


def with_option(k8s: Path, overlay: str, option: str) -> Path:
    """The overlay as a user changes it: one more component, last."""
    file = k8s / "overlays" / overlay / "kustomization.yaml"
    kustomization = yaml.safe_load(file.read_text())
    kustomization["components"].append(f"../../components/{option}")
    file.write_text(yaml.safe_dump(kustomization))
    return file.parent


@needs_kubectl
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_option_fits_every_overlay(overlay: str, option: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    assert problems(built(with_option(tmp_path / "k8s", overlay, option))) == []


@needs_kubectl
def test_a_mistake_has_its_sentence() -> None:
    objects = built(ROOT / "k8s/overlays/aws")
    cluster = next(one for one in objects if one["kind"] == "RayCluster")
    cluster["spec"]["headGroupSpec"]["rayStartParam"] = cluster["spec"]["headGroupSpec"].pop("rayStartParams")
    [problem] = problems(objects)
    assert problem.startswith("RayCluster interactive: $.spec.headGroupSpec: Additional properties")
    assert "'rayStartParam' was unexpected" in problem


def test_an_entrypoint_with_a_wrong_key_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown key `colour`"):
        read_entrypoint(
            "train", "python jobs/train.py --config configs/demo/train-dual.yaml --set colour=red"
        )


def test_the_schema_is_that_of_the_crds() -> None:
    folder = Path(os.environ.get("KUBERAY_CRDS", ROOT.parent / "shared/kuberay-crds"))
    if not all((folder / name).is_file() for name in CRDS):
        pytest.skip(f"no CRDs of KubeRay in {folder}; name another folder by KUBERAY_CRDS")
    assert json.loads(SCHEMA.read_text()) == from_crds(folder)
