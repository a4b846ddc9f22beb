"""What is wrong with pods: hardening, resources, volumes, places. See manifest_checks.py."""

import re
from typing import Any

from manifests import S3, Object, Problems

HEAD_PORTS = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "client": 10001,
    "metrics": 8080,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}
VOLUMES = {
    "tmp": "/tmp",
    "home": "/home/ray",
    "shared-memory": "/dev/shm",
    "models": "/models",
    "configs": "/etc/dualview",
}
HEAD_VOLUMES = {**VOLUMES, "api-token": None}
DRAIN_SECONDS = 30  # Ray's, after SIGTERM
ENVIRONMENT = {
    "HF_HOME": "/models/hub",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DUALVIEW_WAIT_FOR_NODES_S": "3600",
}
NOBODY = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
SECCOMP = {"seccompProfile": {"type": "RuntimeDefault"}}
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    **SECCOMP,
}
ACCOUNT = {
    "serviceAccountName": "dualview",
    "automountServiceAccountToken": False,
    "enableServiceLinks": False,
}


def _pod_problems(spec: Object) -> Problems:
    for key, value in ACCOUNT.items():
        if spec.get(key) != value:
            yield f"{key} is not {value}"
    context = spec.get("securityContext", {})
    if {key: context.get(key) for key in NOBODY | SECCOMP} != NOBODY | SECCOMP:
        yield "pod runs as somebody, or without seccomp"
    if context.keys() - NOBODY.keys() - SECCOMP.keys() - {"fsGroupChangePolicy"}:
        yield "unexpected keys in the pod's securityContext"
    if spec.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers", "ephemeralContainers"}:
        yield "shares the host, or has containers that nobody checked"
    if len(spec["containers"]) != 1:
        yield "one container was expected: others are not known here"
    volumes = [volume["name"] for volume in spec.get("volumes", ())]
    for volume in spec.get("volumes", ()):
        if len(volume) != 2 or volume.keys() & {"hostPath"}:
            yield f"volume {volume['name']}: expected one source, and not the host's disk"
        if volume.get("emptyDir") is not None and "sizeLimit" not in volume["emptyDir"]:
            yield f"volume {volume['name']} may fill the node's disk"
    for container in spec["containers"]:
        yield from hardening_problems(container)
        yield from resource_problems(container)
        mounts = [mount["name"] for mount in container.get("volumeMounts", ())]
        if set(mounts) | {"api-token"} != set(volumes) | {"api-token"} or len(mounts) != len(set(mounts)):
            yield f"mounts {mounts} are not the volumes {volumes}"
        if container.get("imagePullPolicy") != "IfNotPresent":
            yield "imagePullPolicy: a pinned tag needs no look at the registry at every start"
        if not re.fullmatch(
            r"(my-registry/dualview:[\d.]+-gpu|dualview:[\d.]+-cpu)", container.get("image", "")
        ):
            yield f"image {container.get('image')}: expected a pinned tag, and for the gpu image a registry"
        for variable in container.get("env", ()):
            if re.search("SECRET|TOKEN|PASSWORD|KEY", variable["name"]):
                yield f"{variable['name']}: secrets come by envFrom"


def hardening_problems(container: Object) -> Problems:
    if container.get("securityContext") != HARDENED:
        yield "a container is not hardened"


def resource_problems(container: Object) -> Problems:
    resources = container.get("resources", {})
    requests, limits = resources.get("requests"), resources.get("limits")
    if not requests or requests != limits or not {"cpu", "memory"} <= requests.keys():
        yield "requests and limits of CPU and memory must be there and equal"
    elif requests.keys() - {"cpu", "memory", "nvidia.com/gpu"}:
        yield f"unknown resources {sorted(requests)}"
    elif not re.fullmatch(r"\d+Gi", requests["memory"]) or not re.fullmatch(r"\d+m?", str(requests["cpu"])):
        yield "memory in Gi, CPUs whole or in thousandths"


def ray_pod_problems(template: Object, ports: dict[str, int], volumes: dict[str, Any]) -> Problems:
    metadata, spec = template.get("metadata", {}), template["spec"]
    if metadata.get("labels") != {"app.kubernetes.io/name": "dualview"}:
        yield "pods are not labelled as dualview's"
    if metadata.get("annotations") != {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}:
        yield "the cluster's autoscaler may evict it"
    yield from _pod_problems(spec)
    if spec.get("restartPolicy") != "Never":
        yield "restartPolicy: autoscaler v2 needs Never"
    if spec.get("priorityClassName") != "dualview-batch":
        yield "no priority class of ours"
    if spec["securityContext"].get("fsGroupChangePolicy") != "OnRootMismatch":
        yield "every start changes the owner of every file of the model cache"
    container = spec["containers"][0]
    if container.get("name") != ("ray-head" if len(ports) > 1 else "ray-worker"):
        yield "the container's name"
    if {port.get("name"): port["containerPort"] for port in container.get("ports", ())} != ports:
        yield f"ports: expected {ports}"
    environment = {variable["name"]: variable.get("value") for variable in container.get("env", ())}
    if len(environment) != len(container.get("env", ())):
        yield "one variable twice"
    region = environment.pop("AWS_REGION", "us-east-1")
    if environment != ENVIRONMENT or not re.fullmatch(r"[a-z]{2}-[a-z]+-\d", region):
        yield f"environment: expected {ENVIRONMENT} and perhaps AWS_REGION"
    mounts = {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", ())}
    if mounts != VOLUMES or {volume["name"] for volume in spec.get("volumes", ())} != volumes.keys():
        yield f"volumes and mounts: expected {VOLUMES}"
    if any(
        mount.get("readOnly", False) != (mount["name"] == "configs") for mount in container["volumeMounts"]
    ):
        yield "configs is read only, and nothing else"
    yield from _volume_problems(spec)
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    stop = re.fullmatch(r"ray stop --grace-period (\d+)", hook[-1] if hook[:-1] == ["/bin/sh", "-c"] else "")
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if not stop or not DRAIN_SECONDS < int(stop[1]) < grace <= 600:
        yield f"preStop: Ray's drain takes {DRAIN_SECONDS} s, `ray stop` must wait longer, the pod's grace longer still"
    if unknown := container.keys() - CONTAINER_KEYS:
        yield f"unexpected {sorted(unknown)}"
    if unknown := spec.keys() - POD_KEYS:
        yield f"unexpected {sorted(unknown)}"


CONTAINER_KEYS = {
    *("name", "image", "imagePullPolicy", "securityContext", "env", "envFrom", "ports", "resources"),
    *("lifecycle", "volumeMounts"),
}
POD_KEYS = {
    *ACCOUNT,
    *("priorityClassName", "restartPolicy", "terminationGracePeriodSeconds", "securityContext", "containers"),
    *("volumes", "tolerations", "nodeSelector", "topologySpreadConstraints", "affinity"),
}


def _volume_problems(spec: Object) -> Problems:
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    memory = volumes.get("shared-memory", {}).get("emptyDir", {})
    if memory.get("medium") != "Memory":
        yield "shared memory on a disk"
    else:
        size, pod = _bytes(memory.get("sizeLimit", "0")), _bytes(requests_of(spec)["memory"])
        if size * 2 > pod:
            yield "shared memory leaves less than half of the pod's memory"
        # What Ray takes for objects by default; where shared memory is smaller, it takes a disk.
        if size < min(0.3 * pod, max(10**10, 0.95 * size)):
            yield "shared memory is too small for Ray's objects"
    for name in ("tmp", "home"):
        if volumes.get(name, {}).get("emptyDir", {}).keys() != {"sizeLimit"}:
            yield f"{name} must be an empty folder on the disk"
    if volumes.get("configs", {}).get("configMap") != {"name": "dualview-configs", "optional": True}:
        yield "configs of one's own must be optional"
    if token := volumes.get("api-token"):
        sources = {kind: value for source in token["projected"]["sources"] for kind, value in source.items()}
        if sources != {
            "serviceAccountToken": {"path": "token", "expirationSeconds": 3600},
            "configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]},
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]
            },
        }:
            yield "api-token is not what a client in a pod looks for"


def placement_problems(group: str, spec: Object) -> Problems:
    own = {"matchLabels": {"ray.io/group": group}}
    zone = "topology.kubernetes.io/zone"
    if group == "training":
        term = {"weight": 100, "podAffinityTerm": {"topologyKey": zone, "labelSelector": own}}
        if spec.get("affinity") != {
            "podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}
        }:
            yield "ranks should be near each other"
    elif spec.get("topologySpreadConstraints") != [
        {"maxSkew": 1, "topologyKey": zone, "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": own}
    ]:
        yield "actors should be spread over zones"
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    if spec.get("tolerations", []) != (tolerations if "nvidia.com/gpu" in requests_of(spec) else []):
        yield "a pod with GPUs tolerates their nodes' taint, and no other does"
    yield from selector_problems(group, spec)


def selector_problems(group: str, spec: Object) -> Problems:
    """On AWS: what may be lost is on spot."""
    if selector := spec.get("nodeSelector"):
        kind = "on-demand" if group in ("head", "training") else "spot"
        gpu = {} if group == "head" else {"karpenter.k8s.aws/instance-gpu-name": GPU_OF[group]}
        if selector != {"karpenter.sh/capacity-type": kind, **gpu}:
            yield f"nodeSelector: expected {kind}, {gpu}"


GPU_OF = {"generation": "h100", "training": "h100", "evaluation": "l40s"}


def requests_of(spec: Object) -> Object:
    requests: Object = spec["containers"][0]["resources"]["requests"]
    return requests


def _bytes(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)([MGT]i)", quantity)
    return int(match[1]) * 1024 ** {"Mi": 2, "Gi": 3, "Ti": 4}[match[2]] if match else 0


def deployment_problems(spec: Object) -> Problems:
    """The S3 server of the overlay `kind`."""
    template = spec["template"]
    if spec.get("replicas") != 1 or spec.get("strategy") != {"type": "Recreate"}:
        yield "one server, and never two: each has a bucket of its own"
    labels = template["metadata"].get("labels", {})
    if labels != {"app.kubernetes.io/name": "dualview", "app.kubernetes.io/component": "s3"}:
        yield "its pods are not labelled as s3"
    if spec["selector"] != {"matchLabels": S3}:
        yield "selects other pods than its own"
    yield from _pod_problems(template["spec"])
    for container in template["spec"]["containers"]:
        probe = container.get("readinessProbe", {})
        if probe != {"httpGet": {"path": "/dualview", "port": "s3"}}:
            yield "is ready when its bucket is"
        if container.get("ports") != [{"name": "s3", "containerPort": 9000}]:
            yield "port s3 is 9000"
        if container.get("command") != ["python", "/etc/s3/s3.py"]:
            yield "does not start s3.py"
        if container.get("env") != [{"name": "HOME", "value": "/tmp"}]:
            yield "its home must be writable"
        if {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]} != {
            "server": "/etc/s3",
            "tmp": "/tmp",
        }:
            yield "mounts: /etc/s3 and /tmp"
