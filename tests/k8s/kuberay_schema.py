"""kuberay-1.7.0.json from KubeRay's CRDs (Apache-2.0): python tests/k8s/kuberay_schema.py FOLDER_OF_CRDS

As JSON Schema, so that any clone can check manifests: unknown fields refused, fields with a default not required, equal
parts shared (4 MB become 35 KB, because every pod template is the same one).
"""

from collections import Counter
import json
from pathlib import Path
import sys
from typing import Any

import yaml

SCHEMA = Path(__file__).with_name("kuberay-1.7.0.json")
CRDS = ("ray.io_rayclusters.yaml", "ray.io_rayjobs.yaml", "ray.io_raycronjobs.yaml")
COPIED = {"type", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems"}
NESTED = {"items", "additionalProperties", "anyOf", "allOf", "oneOf", "not"}


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
        schema["properties"] = {name: json_schema(value) for name, value in properties.items()}
        if "additionalProperties" not in crd and not crd.get("x-kubernetes-preserve-unknown-fields"):
            schema["additionalProperties"] = False
        if required := [name for name in crd.get("required", ()) if "default" not in properties[name]]:
            schema["required"] = required
    return schema


def _text(schema: Any) -> str:
    return json.dumps(schema, sort_keys=True, separators=(",", ":"))


def _is_schema(value: Any) -> bool:
    # A map of properties may have one that is called `type`: its value is a schema, and no name of a type.
    return isinstance(value, dict) and isinstance(value.get("type"), str | list)


def shared(kinds: dict[str, Any]) -> dict[str, Any]:
    """Equal parts once, under $defs."""
    counts: Counter[str] = Counter()

    def count(value: Any) -> None:
        if _is_schema(value) and len(text := _text(value)) > 60:
            counts[text] += 1
            if counts[text] > 1:
                return
        if isinstance(value, dict | list):
            for part in value.values() if isinstance(value, dict) else value:
                count(part)

    count(kinds)
    definitions: dict[str, Any] = {}
    names: dict[str, str] = {}

    def share(value: Any) -> Any:
        if isinstance(value, list):
            return [share(part) for part in value]
        if not isinstance(value, dict):
            return value
        if _is_schema(value) and counts[text := _text(value)] > 1:
            if text not in names:
                names[text] = f"d{len(names)}"
                definitions[names[text]] = {key: share(part) for key, part in value.items()}
            return {"$ref": f"#/$defs/{names[text]}"}
        return {key: share(part) for key, part in value.items()}

    shared_kinds = {kind: share(schema) for kind, schema in kinds.items()}
    return {
        "$comment": "From the CRDs of KubeRay 1.7.0, Apache-2.0, by kuberay_schema.py",
        "$defs": definitions,
        "kinds": shared_kinds,
    }


def from_crds(folder: Path) -> dict[str, Any]:
    kinds = {}
    for name in CRDS:
        spec = yaml.load((folder / name).read_text(), yaml.CSafeLoader)["spec"]
        [version] = [version for version in spec["versions"] if version["name"] == "v1"]
        schema = json_schema(version["schema"]["openAPIV3Schema"])
        del schema["properties"]["status"]  # KubeRay's to write
        schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own; the CRD does not say more
        kinds[spec["names"]["kind"]] = schema
    return shared(kinds)


if __name__ == "__main__":
    SCHEMA.write_text(_text(from_crds(Path(sys.argv[1]))) + "\n")
