"""What is wrong with a set of manifests, as sentences. No cluster is asked.

Four layers: schemas (KubeRay's CRDs, Kubernetes' own, Prometheus operator's in part); rules that KubeRay's controller
applies after the schema; references between objects, to jobs/ and configs/ and to metrics; and the rules of this house.
"""

from collections.abc import Iterator
from functools import cache
import json
from pathlib import Path
import re
import shlex
import subprocess
from typing import Any

import jsonschema
import kubernetes_validate
from manifests import ROOT, S3, Object, Problems
from pod_checks import (
    HEAD_PORTS,
    HEAD_VOLUMES,
    VOLUMES,
    deployment_problems,
    hardening_problems,
    placement_problems,
    ray_pod_problems,
    requests_of,
    resource_problems,
    selector_problems,
)
from watching_checks import SCRAPED, dashboard_problems, expression_problems
import yaml

from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.loading import load
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig
from dualview.errors import InputError
from dualview.studies.plans import plan_study

KUBERNETES = "1.32"

SCHEMAS = json.loads(Path(__file__).with_name("kuberay-1.7.0.json").read_text())
VALIDATORS = {
    kind: jsonschema.Draft202012Validator({**schema, "$defs": SCHEMAS["$defs"]})
    for kind, schema in SCHEMAS["kinds"].items()
}
DEMO_DATA = "jobs/demo/factbook.py"
CONFIG_OF = {
    "generate": GenerateConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "study": StudyConfig,
}
GROUP_OF = {"generate": "generation", "train": "training", "evaluate": "evaluation", "study": "training"}
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGT]i?)?")
SECRETS_OF_README = {"dualview-s3"}  # made by a command that README gives


def built(overlay: Path) -> list[Object]:
    """The objects of an overlay. Raises CalledProcessError where kustomize refuses it."""
    command = ["kubectl", "kustomize", str(overlay)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return list(yaml.load_all(text, yaml.CSafeLoader))


def problems(objects: list[Object]) -> list[str]:
    """One sentence for each, with the object's name before it; none where all is right."""
    found = []
    for one in objects:
        if not isinstance(one, dict) or not isinstance(one.get("metadata"), dict):
            return ["an object has no metadata"]
        found += [f"{_title(one)}: {problem}" for problem in _schema_problems(_text(one))]
    if found:  # the rest relies on the shape of objects
        return found
    for one in objects:
        found += [f"{_title(one)}: {problem}" for problem in _object_problems(one)]
    return found + [problem for check in ACROSS for problem in check(objects)]


def _text(one: Object) -> str:
    return json.dumps(one, sort_keys=True)


def _title(one: Object) -> str:
    return f"{one.get('kind')} {one['metadata'].get('name')}"


# --- schemas --------------------------------------------------------------------------------------

# Of the Prometheus operator's own kinds, as much as we use; its CRDs would be a megabyte more.
STRING, STRINGS = (
    {"type": "string", "minLength": 1},
    {"type": "object", "additionalProperties": {"type": "string"}},
)
DURATION = {"type": "string", "pattern": r"^\d+(s|m|h)$"}


def _strict(required: dict[str, Any], **optional: Any) -> Object:
    return {
        "type": "object",
        "properties": {**required, **optional},
        "required": list(required),
        "additionalProperties": False,
    }


def _many(item: Object) -> Object:
    return {"type": "array", "items": item, "minItems": 1}


MONITORING = {
    "PodMonitor": _strict(
        {
            "selector": _strict({"matchLabels": STRINGS}),
            "podTargetLabels": _many(STRING),
            "podMetricsEndpoints": _many(_strict({"port": STRING, "interval": DURATION})),
        }
    ),
    "PrometheusRule": _strict(
        {
            "groups": _many(
                _strict(
                    {
                        "name": {"const": "dualview"},
                        "rules": _many(
                            _strict(
                                {
                                    "alert": {"type": "string", "pattern": "^Dualview[A-Za-z]+$"},
                                    "expr": STRING,
                                    "labels": _strict({"severity": {"enum": ["warning", "critical"]}}),
                                    "annotations": _strict({"summary": STRING, "action": STRING}),
                                },
                                **{"for": DURATION},
                            )
                        ),
                    }
                )
            )
        }
    ),
}


@cache
def _schema_problems(text: str) -> tuple[str, ...]:
    one = json.loads(text)
    version, kind = one.get("apiVersion"), one.get("kind")
    if version == "ray.io/v1" and kind in VALIDATORS:
        return _errors(VALIDATORS[kind], one)
    if version == "monitoring.coreos.com/v1" and kind in MONITORING:
        known = _strict({"apiVersion": {}, "kind": {}, "metadata": {}, "spec": MONITORING[kind]})
        return _errors(jsonschema.Draft202012Validator(known), one)
    try:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return (f"{'.'.join(str(part) for part in error.path)}: {error.message[:200]}",)
    except (kubernetes_validate.SchemaNotFoundError, kubernetes_validate.InvalidSchemaError, KeyError):
        return (f"no such kind: {version} {kind}",)
    return ()


def _errors(validator: jsonschema.Draft202012Validator, one: Object) -> tuple[str, ...]:
    return tuple(f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(one))


# --- one object -----------------------------------------------------------------------------------


def _object_problems(one: Object) -> Problems:
    yield from _metadata_problems(one)
    yield from _quantity_problems(one)
    yield from _repetition_problems(one)
    match one["kind"]:
        case "RayCluster":
            yield from _cluster_problems(one["spec"])
        case "RayJob":
            yield from _job_problems(one["spec"])
        case "RayCronJob":
            yield from _cron_problems(one["spec"])
        case "NetworkPolicy":
            yield from _policy_problems(one["spec"])
        case "Role":
            yield from _role_problems(one)
        case "Namespace":
            labels = one["metadata"]["labels"]
            for mode in ("enforce", "warn", "audit"):
                if labels.get(f"pod-security.kubernetes.io/{mode}") != "restricted":
                    yield f"Pod Security is not restricted ({mode})"
            if labels.get("pod-security.kubernetes.io/enforce-version") != f"v{KUBERNETES}":
                yield "Pod Security's version is not pinned"
        case "PriorityClass":
            if one["value"] >= 0 or one.get("preemptionPolicy") != "Never" or one.get("globalDefault"):
                yield "batch work must give way: a value below zero, preemptionPolicy Never, not the default"
        case "ServiceAccount":
            if one.get("automountServiceAccountToken") is not False:
                yield "its token is mounted into every pod"
            role = (
                one["metadata"]
                .get("annotations", {})
                .get("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/r")
            )
            if not re.fullmatch(r"arn:aws:iam::\d+:role/[\w-]+", role):
                yield f"no role: {role}"
        case "Deployment":
            yield from deployment_problems(one["spec"])
        case "PersistentVolumeClaim":
            if one["spec"]["accessModes"] != ["ReadWriteMany"]:
                yield "pods of several nodes share it: ReadWriteMany"
            if "storage" not in one["spec"].get("resources", {}).get("requests", {}):
                yield "asks for no storage"
        case "ConfigMap" if "grafana_dashboard" in one["metadata"]["labels"]:
            if one["metadata"]["labels"]["grafana_dashboard"] != "1":
                yield "Grafana's sidecar looks for grafana_dashboard: 1"
            for name, text in one["data"].items():
                if not name.endswith(".json"):
                    yield f"{name} is no name of a dashboard"
                yield from dashboard_problems(text)
        case "PodMonitor" if one["spec"]["selector"]["matchLabels"] != RAY_NODES:
            yield "selects other pods than Ray's"
        case "Secret":
            yield "a secret in a manifest"


COMPONENTS = {"platform", "interactive", "generate", "train", "evaluate", "study", "nightly"}
CLUSTER_WIDE = {"Namespace", "PriorityClass"}
# KubeRay makes longer names from them, of services and pods, which Kubernetes limits to 63.
LONGEST_NAME = {"RayJob": 47, "RayCluster": 53, "RayCronJob": 36}
LABELS = {
    "app.kubernetes.io/name": "dualview",
    "kueue.x-k8s.io/queue-name": "dualview",
    "volcano.sh/queue-name": "dualview",
    "ray.io/gang-scheduling-enabled": "true",
    "ray.io/priority-class-name": "dualview-batch",
}


def _metadata_problems(one: Object) -> Problems:
    metadata, kind = one["metadata"], one["kind"]
    name, labels = metadata.get("name", ""), metadata.get("labels", {})
    longest = LONGEST_NAME.get(kind, 63)
    if len(name) > longest or not re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name):
        yield f"name: at most {longest} lower-case letters, digits and dashes, the first a letter"
    if unknown := metadata.keys() - {"name", "namespace", "labels", "annotations"}:
        yield f"unknown metadata {sorted(unknown)}"
    if metadata.get("namespace") != (None if kind in CLUSTER_WIDE else "dualview"):
        yield "in the wrong namespace"
    if labels.get("app.kubernetes.io/name") != "dualview":
        yield "not labelled as dualview's"
    if labels.get("app.kubernetes.io/component") not in COMPONENTS:
        yield "no app.kubernetes.io/component, by which commands of README pick it"
    for key, value in labels.items():
        if key in LABELS and value != LABELS[key]:
            yield f"label {key} must be {LABELS[key]}"
        if key not in LABELS and not key.startswith(
            ("app.kubernetes.io/component", "pod-security.", "grafana_")
        ):
            yield f"unknown label {key}"


def _quantity_problems(value: Any, key: str = "") -> Problems:
    if isinstance(value, dict):
        for name, part in value.items():
            if key in ("requests", "limits") or name == "sizeLimit":
                if not QUANTITY.fullmatch(str(part)) or str(part).startswith("0"):
                    yield f"{name}: {part} is no quantity above zero"
            else:
                yield from _quantity_problems(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _quantity_problems(part)


def _repetition_problems(value: Any, key: str = "") -> Problems:
    """Nothing that we list may stand there twice but the words of a command."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _repetition_problems(part, name)
    elif isinstance(value, list) and key not in ("command", "args"):
        texts = [_text(part) for part in value]
        yield from (f"{key}: {text[:100]} twice" for text in sorted({t for t in texts if texts.count(t) > 1}))
        for part in value:
            yield from _repetition_problems(part, key)


def _cluster_problems(spec: Object) -> Problems:
    """KubeRay's ValidateRayClusterSpec, and ours."""
    if spec.get("authOptions") != {"mode": "token"}:
        yield "no token authentication"
    if spec.get("rayVersion") != _ray_version():
        yield f"rayVersion is not the {_ray_version()} of pyproject.toml"
    scaling = spec.get("enableInTreeAutoscaling", False)
    options = spec.get("autoscalerOptions")
    if scaling != (options is not None):
        yield "autoscalerOptions and enableInTreeAutoscaling go together"
    if options:
        yield from _autoscaler_problems(options)
    if unknown := spec.keys() - {
        *("authOptions", "rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec"),
        *("workerGroupSpecs", "suspend"),
    }:
        yield f"unexpected {sorted(unknown)}"
    head = spec["headGroupSpec"]
    if head.get("rayStartParams") != {"num-cpus": "0", "dashboard-host": "0.0.0.0"}:
        yield "head: num-cpus must be 0, dashboard-host 0.0.0.0"
    yield from (
        f"head: {problem}" for problem in ray_pod_problems(head["template"], HEAD_PORTS, HEAD_VOLUMES)
    )
    if not scaling and "RAY_enable_autoscaler_v2" in json.dumps(head):
        yield "autoscaler v2 is asked for and autoscaling is off"
    groups = spec.get("workerGroupSpecs") or []
    names = [group["groupName"] for group in groups]
    if not groups or len(set(names)) < len(names) or not set(names) <= set(GROUP_OF.values()):
        yield f"worker groups {names}: expected each of {sorted(GROUP_OF.values())} at most once"
    for group in groups:
        name = group["groupName"]
        if not 0 <= group["minReplicas"] <= group.get("replicas", -1) <= group["maxReplicas"] > 0:
            yield f"{name}: minReplicas <= replicas <= maxReplicas does not hold"
        if unknown := group.keys() - {"groupName", "minReplicas", "replicas", "maxReplicas", "template"}:
            yield f"{name}: unexpected {sorted(unknown)}"
        for problem in ray_pod_problems(group["template"], {"metrics": 8080}, VOLUMES):
            yield f"{name}: {problem}"
        yield from (f"{name}: {problem}" for problem in placement_problems(name, group["template"]["spec"]))


def _autoscaler_problems(options: Object) -> Problems:
    if options.get("version") != "v2":
        yield "autoscaler: not v2"
    if options.get("upscalingMode") != "Default" or not 60 <= options.get("idleTimeoutSeconds", 0) <= 3600:
        yield "autoscaler: upscalingMode Default and a minute to an hour of idleTimeoutSeconds"
    mounts = {mount["name"]: mount for mount in options.get("volumeMounts", ())}
    token = mounts.get("api-token", {})
    if token.get("mountPath") != "/var/run/secrets/kubernetes.io/serviceaccount" or not token.get("readOnly"):
        yield "autoscaler: has no token for the API server, where it looks for one"
    if mounts.get("tmp", {}).get("mountPath") != "/tmp" or len(mounts) != 2:
        yield "autoscaler: mounts tmp and api-token, and nothing else"
    yield from (f"autoscaler: {problem}" for problem in hardening_problems(options))
    yield from (f"autoscaler: {problem}" for problem in resource_problems(options))


# --- jobs -----------------------------------------------------------------------------------------


def _job_problems(spec: Object) -> Problems:
    """KubeRay's ValidateRayJobSpec, and ours."""
    if spec.get("submissionMode") != "HTTPMode":
        yield "submissionMode: other modes add a pod that is not hardened here"
    if not 0 <= spec.get("backoffLimit", -1) <= 5:
        yield "backoffLimit: 0 to 5"
    for key, most in {"activeDeadlineSeconds": 30 * 86400, "preRunningDeadlineSeconds": 86400}.items():
        if not 600 <= spec.get(key, 0) <= most:
            yield f"{key}: ten minutes to {most} s"
    yield from _deletion_problems(spec)
    yield from _runtime_problems(spec.get("runtimeEnvYAML", ""))
    if unknown := spec.keys() - JOB_KEYS:
        yield f"unexpected {sorted(unknown)}"
    if "rayClusterSpec" not in spec:
        yield "has no cluster"
    else:
        yield from _cluster_problems(spec["rayClusterSpec"])


JOB_KEYS = {
    *("submissionMode", "entrypoint", "runtimeEnvYAML", "backoffLimit", "preRunningDeadlineSeconds"),
    *("activeDeadlineSeconds", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
    *("suspend", "rayClusterSpec"),
}


def _deletion_problems(spec: Object) -> Problems:
    if not spec.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes: a cluster whose job was stopped would stay"
    if not 60 <= spec.get("ttlSecondsAfterFinished", 0) <= 3600:
        yield "ttlSecondsAfterFinished: a minute to an hour, in which GPUs are paid for"


def _runtime_problems(text: str) -> Problems:
    try:
        environment = yaml.safe_load(text)
    except yaml.YAMLError:
        environment = None
    variables = environment.get("env_vars") if isinstance(environment, dict) else None
    if not isinstance(variables, dict) or environment.keys() != {"env_vars"}:
        yield "runtimeEnvYAML: expected env_vars"
        return
    wait = variables.get("RAY_JOB_STOP_WAIT_TIME_S")
    if not isinstance(wait, str) or not wait.isdigit() or not 30 <= int(wait) <= 120:
        yield "a stopped driver must have half a minute to two minutes to end"
    if variables.get("RAY_JOB_STOP_SIGNAL") not in ("SIGTERM", "SIGINT") or len(variables) != 2:
        yield "runtimeEnvYAML: the stop signal, the wait, and nothing else"


def _cron_problems(spec: Object) -> Problems:
    fields = spec["schedule"].split()
    limits = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)]
    if len(fields) != 5 or not all(
        field == "*" or (field.isdigit() and low <= int(field) <= high)
        for field, (low, high) in zip(fields, limits, strict=False)
    ):
        yield f"schedule {spec['schedule']!r}"
    if spec.get("timeZone") != "Etc/UTC" or spec.keys() - {"schedule", "timeZone", "jobTemplate"}:
        yield "expected schedule, timeZone Etc/UTC and jobTemplate"
    if "jobTemplate" not in spec:
        yield "has no jobTemplate"
    else:
        yield from _job_problems(spec["jobTemplate"])


# --- network and rights ---------------------------------------------------------------------------

RAY_NODES = {"ray.io/is-ray-node": "yes"}
RAY_HEADS = {"ray.io/node-type": "head"}
ANYWHERE = "anywhere but link-local"
# Every flow that any overlay may open: (pods, direction, the other side, ports). Any other is a mistake.
FLOWS = {
    ("ray nodes", "in", "ray nodes", "all"),
    ("ray nodes", "out", "ray nodes", "all"),
    ("ray nodes", "out", "DNS", "TCP 53, UDP 53"),
    ("ray nodes", "out", ANYWHERE, "TCP 443"),
    ("ray nodes", "out", "s3", "TCP 9000"),
    ("ray nodes", "in", "prometheus", "TCP 44217, TCP 44227, TCP 8080"),
    ("ray heads", "in", "kuberay operator", "TCP 8265"),
    ("ray heads", "out", ANYWHERE, "TCP 6443"),
    ("s3", "in", "ray nodes", "TCP 9000"),
}
EVERYWHERE_NEEDED = {
    flow for flow in FLOWS if "s3" not in flow and flow[2] not in (ANYWHERE, "prometheus")
} | {("ray heads", "out", ANYWHERE, "TCP 6443")}
PODS = {_text(RAY_NODES): "ray nodes", _text(RAY_HEADS): "ray heads", _text(S3): "s3"}


def _peer(peer: Object) -> str:
    def labels(selector: str) -> Object:
        found: Object = peer[selector].get("matchLabels", {}) if selector in peer else {}
        return found

    if "ipBlock" in peer:
        right = peer == {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}
        return ANYWHERE if right else f"addresses {peer['ipBlock']}"
    if peer.keys() == {"podSelector"}:
        return PODS.get(_text(labels("podSelector")), "unknown pods")
    both = (
        labels("namespaceSelector").get("kubernetes.io/metadata.name"),
        *labels("podSelector").items(),
    )
    return {
        ("kube-system", ("k8s-app", "kube-dns")): "DNS",
        ("kuberay-system", ("app.kubernetes.io/name", "kuberay-operator")): "kuberay operator",
        ("monitoring", ("app.kubernetes.io/name", "prometheus")): "prometheus",
    }.get(both, "unknown pods")


def flows(policy: Object) -> set[tuple[str, str, str, str]]:
    """(pods, in or out, the other side, ports) that a NetworkPolicy's spec opens."""
    found = set()
    pods = PODS.get(_text(policy["podSelector"].get("matchLabels", {})), "unknown pods")
    for direction, key, side in (("in", "ingress", "from"), ("out", "egress", "to")):
        for rule in policy.get(key, ()):
            ports = sorted(f"{port.get('protocol')} {port.get('port')}" for port in rule.get("ports", ()))
            for peer in rule.get(side) or [{"podSelector": {}}]:
                found.add((pods, direction, _peer(peer), ", ".join(ports) or "all"))
    return found


def _policy_problems(spec: Object) -> Problems:
    types = set(spec.get("policyTypes", ()))
    needed = {kind for kind, key in (("Ingress", "ingress"), ("Egress", "egress")) if key in spec}
    if not needed <= types:
        yield f"policyTypes lacks {sorted(needed - types)}, so these rules hold back nothing"
    for flow in flows(spec) - FLOWS:
        yield f"opens {flow}"


def _role_problems(one: Object) -> Problems:
    granted = {
        f"{group}/{resource}": sorted(rule["verbs"])
        for rule in one["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    read = ["get", "list", "watch"]
    write = sorted([*read, "create", "patch", "delete"])
    if granted != {
        **dict.fromkeys(("ray.io/rayjobs", "ray.io/rayclusters", "ray.io/raycronjobs"), write),
        **dict.fromkeys(("/pods", "/pods/log", "/events", "/services"), read),
        "/pods/portforward": ["create"],
    }:
        yield f"grants {granted}"


# --- across objects -------------------------------------------------------------------------------


def _of(objects: list[Object], kind: str) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def _all_there(objects: list[Object]) -> Problems:
    present = {(one["kind"], one["metadata"]["name"]) for one in objects}
    expected = {
        ("Namespace", "dualview"),
        ("ServiceAccount", "dualview"),
        ("Role", "dualview-user"),
        ("PriorityClass", "dualview-batch"),
        ("NetworkPolicy", "default-deny"),
        ("NetworkPolicy", "ray-nodes"),
        ("NetworkPolicy", "ray-heads"),
        ("RayCluster", "interactive"),
        *(("RayJob", job) for job in CONFIG_OF),
    }
    yield from (f"there is no {kind} {name}" for kind, name in expected - present)
    if len(present) != len(objects):
        yield "two objects of one name"
    watching = {
        ("PodMonitor", "dualview"),
        ("PrometheusRule", "dualview"),
        ("NetworkPolicy", "prometheus"),
        ("ConfigMap", "dualview-dashboard"),
    }
    if watching & present and not watching <= present:
        yield f"watching is there in part only, without {sorted(watching - present)}"
    if (
        any(kind == "Deployment" for kind, _ in present)
        and not {("Service", "s3"), ("NetworkPolicy", "s3")} <= present
    ):
        yield "the S3 server lacks its service or its policy"


def _policies_deny_and_allow(objects: list[Object]) -> Problems:
    policies = {name: one["spec"] for name, one in _of(objects, "NetworkPolicy").items()}
    for name in ("default-deny", *(["s3"] if "s3" in policies else [])):
        if set(policies.get(name, {}).get("policyTypes", ())) != {"Ingress", "Egress"}:
            yield f"{name} does not deny both ways"
    deny = policies.get("default-deny", {})
    if deny.get("podSelector") != {} or deny.keys() - {"podSelector", "policyTypes"}:
        yield "default-deny is not of every pod"
    opened = set().union(*(flows(policy) for policy in policies.values()))
    needed = set(EVERYWHERE_NEEDED)
    if _of(objects, "Deployment"):
        needed |= {flow for flow in FLOWS if "s3" in flow}
    else:
        needed.add(("ray nodes", "out", ANYWHERE, "TCP 443"))
    if _of(objects, "PodMonitor"):
        needed |= {flow for flow in FLOWS if "prometheus" in flow}
    for flow in needed - opened:
        yield f"no NetworkPolicy opens {flow}"
    if _of(objects, "Deployment") and ("ray nodes", "out", ANYWHERE, "TCP 443") in opened:
        yield "nothing outside is needed here"


def _service_reaches_its_pods(objects: list[Object]) -> Problems:
    for name, one in _of(objects, "Service").items():
        if one["spec"] != {"selector": S3, "ports": [{"port": 9000, "targetPort": "s3"}]} or name != "s3":
            yield f"Service {name}: s3:9000, as the README's Secret says"


def _references_exist(objects: list[Object]) -> Problems:
    maps, claims = _of(objects, "ConfigMap"), _of(objects, "PersistentVolumeClaim")
    mounted = set()
    for one in objects:
        for spec in _pod_specs(one):
            for volume in spec.get("volumes", ()):
                if (reference := volume.get("configMap")) and not reference.get("optional"):
                    mounted.add(reference["name"])
                    if reference["name"] not in maps:
                        yield f"{_title(one)}: there is no ConfigMap {reference['name']}"
                if claim := volume.get("persistentVolumeClaim"):
                    mounted.add(claim["claimName"])
                    if claim["claimName"] not in claims or claim.keys() != {"claimName"}:
                        yield f"{_title(one)}: there is no PersistentVolumeClaim {claim}"
            for container in spec["containers"]:
                for source in container.get("envFrom", ()):
                    if source.keys() != {"secretRef"} or source["secretRef"] not in [
                        {"name": name} for name in SECRETS_OF_README
                    ]:
                        yield f"{_title(one)}: envFrom {source}: README makes only {SECRETS_OF_README}"
    for name in {*maps, *claims} - mounted - {"dualview-dashboard"}:
        yield f"nothing uses {name}"
    if "s3-server" in {name.rpartition("-")[0] for name in maps} and not any(
        one["data"].keys() == {"s3.py"} for one in maps.values()
    ):
        yield "s3-server is s3.py"


def _pod_specs(one: Object) -> Iterator[Object]:
    if one["kind"] == "Deployment":
        yield one["spec"]["template"]["spec"]
    cluster = _cluster_of(one)
    if cluster is not None:
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", ())):
            yield group["template"]["spec"]


def _cluster_of(one: Object) -> Object | None:
    match one["kind"]:
        case "RayCluster":
            return one["spec"]  # type: ignore[no-any-return]
        case "RayJob":
            return one["spec"].get("rayClusterSpec")
        case "RayCronJob":
            return one["spec"].get("jobTemplate", {}).get("rayClusterSpec")
    return None


def _same_everywhere(objects: list[Object]) -> Problems:
    """One image; credentials, caches and nodes the same way for head and workers; jobs' clusters are cluster.yaml's."""
    images, sources, models, selected = set(), set(), set(), set()
    for one in objects:
        for spec in _pod_specs(one):
            images |= {container["image"] for container in spec["containers"]}
            if one["kind"] == "Deployment":
                continue
            container = spec["containers"][0]
            sources.add(_text({"from": container.get("envFrom", []), "env": container.get("env", [])}))
            models |= {_text(volume) for volume in spec["volumes"] if volume["name"] == "models"}
            selected.add("nodeSelector" in spec)
    for what, found in (("image", images), ("environment", sources), ("models volume", models)):
        if len(found) != 1:
            yield f"more than one {what}: {sorted(found)}"
    if len(selected) != 1:
        yield "some pods choose their nodes, others do not"
    has_gpu = any("nvidia.com/gpu" in requests_of(spec) for one in objects for spec in _pod_specs(one))
    if not all(image.endswith("-gpu" if has_gpu else "-cpu") for image in images):
        yield f"{images} is not the image of pods {'with' if has_gpu else 'without'} GPUs"
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    if version is None or not all(f":{version[1]}-" in image for image in images):
        yield f"{images}: not the version of pyproject.toml"
    [cluster, *_] = [one["spec"] for one in objects if one["kind"] == "RayCluster"] or [None]
    if cluster is None:
        return
    head = cluster["headGroupSpec"]["template"]["spec"]
    yield from (f"head: {problem}" for problem in selector_problems("head", head))
    if "nvidia.com/gpu" in requests_of(head):
        yield "the head has a GPU"
    pods = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    for one in objects:
        if one["kind"] in ("RayJob", "RayCronJob"):
            own = _cluster_of(one) or {}
            same = all(
                own.get(key) == cluster.get(key) for key in cluster.keys() - {"workerGroupSpecs", "suspend"}
            )
            if not same or any(
                group["template"] != pods.get(group["groupName"]) for group in own["workerGroupSpecs"]
            ):
                yield f"{_title(one)}: its cluster is not cluster.yaml's"


def _entrypoints_hold(objects: list[Object]) -> Problems:
    """Script and config are there, the config is right, the cluster holds what it asks for, outputs lead to inputs."""
    configs = {}
    for name, one in _of(objects, "RayJob").items():
        if name not in CONFIG_OF:
            yield f"RayJob {name}: no such verb"
            continue
        try:
            configs[name] = read_entrypoint(name, one["spec"].get("entrypoint", ""))
        except (InputError, ValueError) as error:
            yield f"RayJob {name}: {error}"
            continue
        groups = one["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        yield from (f"RayJob {name}: {problem}" for problem in _room_problems(name, configs[name], groups))
    for one in _of(objects, "RayCronJob").values():
        if one["spec"]["jobTemplate"] != _of(objects, "RayJob").get("evaluate", {}).get("spec"):
            yield "the night's evaluation is not the day's"
    if configs.keys() != CONFIG_OF.keys():
        return
    generate, train, evaluate, study = (configs[name] for name in CONFIG_OF)
    if {part.data for part in train.mixture.parts} != {generate.output}:
        yield f"train reads {[part.data for part in train.mixture.parts]}, generate writes {generate.output}"
    models = {name: getattr(encoder, "model", None) for name, encoder in evaluate.encoders.items()}
    if models.get("dual") != f"{train.output}/encoder":
        yield f"evaluate reads {models}, train writes {train.output}/encoder"
    if models.get("untouched") != train.encoder.model:
        yield f"untouched is {models.get('untouched')}, but training starts from {train.encoder.model}"
    # Null: each benchmark's own, which is how the paper trains too.
    if evaluate.query_template not in (None, train.encoder.query_template):
        yield "evaluation and training say an instruction in other ways"
    bucket = "s3://dualview/" if _of(objects, "Deployment") else "s3://my-bucket/"
    for config in configs.values():
        if not config.output.startswith(bucket):
            yield f"{config.output} is not in {bucket}"
    read = {part.data for train in _trainings(study.model_dump_json()) for part in train.mixture.parts}
    if read != {generate.output}:
        yield f"study reads {sorted(read)}, generate writes {generate.output}"
    if len({config.output for config in configs.values()}) < len(configs):
        yield "two jobs write to one output"


def read_entrypoint(verb: str, entrypoint: str) -> Any:
    """The config of `python jobs/VERB.py --config FILE --set ...`. Raises InputError or ValueError.

    `python jobs/demo/factbook.py ... --out FOLDER && ` may stand before it, where the config reads the folder.
    """
    *made_before, job = entrypoint.split(" && ")
    words = shlex.split(job)
    if words[:3] != ["python", f"jobs/{verb}.py", "--config"] or not (ROOT / words[1]).is_file():
        raise ValueError(f"entrypoint: expected python jobs/{verb}.py --config FILE, found {entrypoint}")
    options, values = words[4::2], words[5::2]
    if set(options) - {"--set"} or len(options) != len(values) or not words[3].startswith("configs/"):
        raise ValueError(f"entrypoint: only --set KEY=VALUE after a config of configs/, found {entrypoint}")
    config = load(CONFIG_OF[verb], str(ROOT / words[3]), values)
    for command in made_before:
        python, script, *arguments = shlex.split(command)
        if (python, script) != ("python", DEMO_DATA) or not (ROOT / script).is_file():
            raise ValueError(f"entrypoint: expected python {DEMO_DATA} before the job, found {command}")
        if arguments[-2:-1] != ["--out"] or arguments[-1] not in _read_by(config):
            raise ValueError(f"entrypoint: the config reads {_read_by(config)}, and not what {command} makes")
    return config


def _read_by(config: Any) -> list[str]:
    """The folders of a config's seeds or of its benchmarks; of a study those of its evaluations."""
    if isinstance(config, StudyConfig):
        config = load(EvaluateConfig, str(ROOT / config.evaluate))
    if isinstance(config, EvaluateConfig):
        return [getattr(benchmark, "path", "") for benchmark in config.benchmarks]
    return list(config.source.paths)


@cache
def _trainings(study: str) -> list[TrainConfig]:
    """Of a study's config as JSON."""
    return [run.train for run in plan_study(StudyConfig.model_validate_json(study))]


def _room_problems(verb: str, config: Any, groups: list[Object]) -> Problems:
    if [group["groupName"] for group in groups] != [GROUP_OF[verb]]:
        yield f"its worker group must be {GROUP_OF[verb]}"
        return
    [group] = groups
    if verb == "study":
        config = _trainings(config.model_dump_json())[0]
    actors = config.actors if verb in ("generate", "evaluate") else config.workers
    requests = requests_of(group["template"]["spec"])
    per_pod = int(int(requests["cpu"]) // actors.cpus)
    gpus = int(requests.get("nvidia.com/gpu", 0))
    if actors.gpus:
        per_pod = min(per_pod, int(gpus // actors.gpus))
    elif gpus:
        yield "GPUs are paid for, and no actor asks for one"
    if per_pod * group["minReplicas"] < actors.num or group["replicas"] != group["minReplicas"]:
        yield f"{actors.num} actors must fit from the start, {group['minReplicas']} pods hold {per_pod} each"
    most = getattr(actors, "max_num", None) or actors.num
    if not per_pod or group["maxReplicas"] != -(-most // per_pod):
        yield f"there may be {most} actors, {group['maxReplicas']} pods hold {per_pod} each"


def _targets_are_scraped(objects: list[Object]) -> Problems:
    for one in _of(objects, "PodMonitor").values():
        ports = [endpoint["port"] for endpoint in one["spec"]["podMetricsEndpoints"]]
        if sorted(ports) != ["as-metrics", "dash-metrics", "metrics"]:
            yield f"PodMonitor: scrapes {ports}, heads have metrics, as-metrics and dash-metrics"
        if sorted(re.sub(r"\W", "_", label) for label in one["spec"]["podTargetLabels"]) != sorted(SCRAPED):
            yield "PodMonitor: dashboards and alerts need ray.io's labels of cluster, node type and group"
    for one in _of(objects, "PrometheusRule").values():
        rules = [rule for group in one["spec"]["groups"] for rule in group["rules"]]
        if len({rule["alert"] for rule in rules}) != len(rules) or len(rules) != 6:
            yield "PrometheusRule: six alerts, each with a name of its own, were expected"
        for rule in rules:
            yield from expression_problems(rule["expr"])
            if "for" not in rule and rule["alert"] not in ("DualviewPoisonRows",):
                yield f"{rule['alert']}: fires at the first bad moment"
            if "$labels.ray_io_cluster" not in rule["annotations"]["summary"]:
                yield f"{rule['alert']}: does not say which cluster"


def _kueue_gets_what_it_asks_for(objects: list[Object]) -> Problems:
    for one in objects:
        if "kueue.x-k8s.io/queue-name" not in one["metadata"]["labels"]:
            continue
        if one["spec"].get("suspend") is not True:
            yield f"{_title(one)}: starts before Kueue has room"
        if (_cluster_of(one) or {}).get("enableInTreeAutoscaling"):
            yield f"{_title(one)}: Kueue refuses a cluster that grows by itself"


ACROSS = (
    _kueue_gets_what_it_asks_for,
    _all_there,
    _policies_deny_and_allow,
    _service_reaches_its_pods,
    _references_exist,
    _same_everywhere,
    _entrypoints_hold,
    _targets_are_scraped,
)


@cache
def _ray_version() -> str:
    found = re.search(r'"ray\[[\w,]+\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    assert found is not None
    return found[1]
