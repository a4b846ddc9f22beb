"""kuberay-1.7.0.json from KubeRay's CRDs (Apache-2.0): python tests/k8s/kuberay_schema.py FOLDER_OF_CRDS

As JSON Schema, so that any clone can check manifests: unknown fields refused, fields with a default not required. The
schema of a RayCronJob's job is that of a RayJob, whose cluster's is that of a RayCluster, so one is enough. Pods are left
out: they are Kubernetes' own, and manifests.py checks them as such.
"""

import json
from pathlib import Path
import sys
from typing import Any

import yaml

SCHEMA = Path(__file__).with_name("kuberay-1.7.0.json")
CRD = "ray.io_raycronjobs.yaml"
COPIED = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}
NESTED = {"items", "additionalProperties", "anyOf", "allOf", "oneOf", "not"}
PODS = {"template", "submitterPodTemplate"}


def json_schema(crd: Any) -> Any:
    """The same as JSON Schema."""
    if isinstance(crd, list):
        return [json_schema(item) for item in crd]
    if not isinstance(crd, dict):
        return crd
    if crd.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    schema = {key: crd[key] for key in COPIED & crd.keys()}
    schema |= {key: json_schema(crd[key]) for key in NESTED & crd.keys()}
    if properties := crd.get("properties"):
        schema["properties"] = {
            name: {"type": "object"} if name in PODS else json_schema(value)
            for name, value in properties.items()
        }
        if "additionalProperties" not in crd and not crd.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
        if required := [name for name in crd.get("required", ()) if "default" not in properties[name]]:
            schema["required"] = required
    return schema


def from_crds(folder: Path) -> Any:
    spec = yaml.load((folder / CRD).read_text(), yaml.CSafeLoader)["spec"]
    [version] = [version for version in spec["versions"] if version["name"] == "v1"]
    return json_schema(version["schema"]["openAPIV3Schema"]["properties"]["spec"])


if __name__ == "__main__":
    schema = {"$comment": "From the CRDs of KubeRay 1.7.0, Apache-2.0, by kuberay_schema.py"}
    schema |= from_crds(Path(sys.argv[1]))
    SCHEMA.write_text(json.dumps(schema, sort_keys=True, separators=(",", ":")) + "\n")
