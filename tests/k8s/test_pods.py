"""Every pod: what it may do, what it gets, where it runs, how it goes."""

import json
import re

from manifests import ROOT, Build, Object, Pod, clusters, pods, ray_pods

NOBODY = {"runAsNonRoot": True, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
SECCOMP = {"seccompProfile": {"type": "RuntimeDefault"}}
HARDENED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    **SECCOMP,
}
ENVIRONMENT = {
    "HF_HOME": "/models/hub",
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DUALVIEW_WAIT_FOR_NODES_S": "3600",
}
MOUNTS = ["tmp /tmp", "home /home/ray", "shared-memory /dev/shm", "models /models", "configs /etc/dualview"]
METRICS = ["metrics 8080", "as-metrics 44217", "dash-metrics 44227"]
HEAD_PORTS = ["gcs-server 6379", "dashboard 8265", "client 10001", *METRICS]
GPU_OF = {"generation": "h100", "training": "h100", "evaluation": "l40s"}
DRAIN_SECONDS = 30  # Ray's, after SIGTERM


def autoscalers(build: Build) -> list[Object]:
    return [cluster["autoscalerOptions"] for cluster in clusters(build) if "autoscalerOptions" in cluster]


def containers(build: Build) -> list[Object]:
    return [*(pod.container for pod in pods(build)), *autoscalers(build)]


def gibibytes(quantity: str) -> int:
    assert re.fullmatch(r"[1-9]\d*Gi", quantity)
    return int(quantity.removesuffix("Gi"))


def test_nobody_runs_it_without_privileges_on_a_root_that_is_only_read(build: Build) -> None:
    assert all(container["securityContext"] == HARDENED for container in containers(build))
    for pod in pods(build):
        assert (NOBODY | SECCOMP).items() <= pod.spec["securityContext"].items()
        assert pod.spec["serviceAccountName"] in build.of("ServiceAccount")
        assert pod.spec["enableServiceLinks"] is False


def test_the_autoscaler_alone_has_a_token_of_the_api_server(build: Build) -> None:
    assert not any(pod.spec["automountServiceAccountToken"] for pod in pods(build))
    for autoscaler in autoscalers(build):
        mounts = [f"{mount['name']} {mount['mountPath']}" for mount in autoscaler["volumeMounts"]]
        assert mounts == ["tmp /tmp", "api-token /var/run/secrets/kubernetes.io/serviceaccount"]
    for pod in ray_pods(build):
        assert ("api-token" in pod.volumes) == (pod.group == "head")
        if pod.group == "head":
            files = re.findall(r'"path": "(.*?)"', json.dumps(pod.volumes["api-token"]["projected"]))
            assert files == ["token", "ca.crt", "namespace"]


def test_limits_are_what_is_requested(build: Build) -> None:
    for container in containers(build):
        requests = container["resources"]["requests"]
        assert container["resources"]["limits"] == requests
        assert requests.keys() - {"nvidia.com/gpu"} == {"cpu", "memory"}
        assert gibibytes(requests["memory"])
        assert re.fullmatch(r"[1-9]\d*m?", requests["cpu"])


def test_the_image_is_of_this_version_with_cuda_where_there_are_gpus(build: Build) -> None:
    [version] = re.findall(
        r'^fallback_version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    on_gpus = build.overlay != "kind"
    image = f"my-registry/dualview:{version}-gpu" if on_gpus else f"dualview:{version}-cpu"
    for pod in pods(build):
        assert (pod.container["image"], pod.container["imagePullPolicy"]) == (image, "IfNotPresent")
        assert ("nvidia.com/gpu" in pod.requests) == (on_gpus and pod.group != "head")


def test_rays_pods_differ_in_size_ports_and_place_only(build: Build) -> None:
    def shared(pod: Pod) -> Object:
        places = {"nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"}
        own = {*places, "containers", "volumes", "name", "ports", "resources"}
        same = {name: pod.volumes[name] for name in ("tmp", "home", "models", "configs")}
        return {key: value for key, value in (pod.spec | pod.container).items() if key not in own} | same

    first, *others = ray_pods(build)
    assert all(shared(other) == shared(first) for other in others)


def test_rays_pods_have_the_environment_and_the_credentials_of_the_overlay(build: Build) -> None:
    for pod in ray_pods(build):
        variables = {variable["name"]: variable["value"] for variable in pod.container["env"]}
        if build.overlay == "aws":
            assert re.fullmatch(r"[a-z]{2}-[a-z]+-\d", variables.pop("AWS_REGION"))
        else:  # README has the command that makes it
            assert pod.container["envFrom"] == [{"secretRef": {"name": "dualview-s3"}}]
        assert variables == ENVIRONMENT


def test_containers_and_ports_are_called_what_kuberay_expects(build: Build) -> None:
    for pod in ray_pods(build):
        ports = [f"{port['name']} {port['containerPort']}" for port in pod.container["ports"]]
        assert ports == (HEAD_PORTS if pod.group == "head" else METRICS[:1])
        assert pod.container["name"] == ("ray-head" if pod.group == "head" else "ray-worker")


def test_what_is_written_to_is_mounted_and_bounded(build: Build) -> None:
    for pod in ray_pods(build):
        mounts = pod.container["volumeMounts"]
        assert [f"{mount['name']} {mount['mountPath']}" for mount in mounts] == MOUNTS
        assert [mount["name"] for mount in mounts if mount.get("readOnly")] == ["configs"]
        assert pod.volumes.keys() - {"api-token"} == {mount["name"] for mount in mounts}
        # Configs of one's own, which need not be there.
        assert pod.volumes["configs"]["configMap"] == {"name": "dualview-configs", "optional": True}
        if build.overlay == "onprem":
            name = pod.volumes["models"]["persistentVolumeClaim"]["claimName"]
            claim = build.of("PersistentVolumeClaim")[name]["spec"]
            assert claim["accessModes"] == ["ReadWriteMany"]
            assert gibibytes(claim["resources"]["requests"]["storage"])
    for pod in pods(build):
        disks = [volume["emptyDir"] for volume in pod.volumes.values() if "emptyDir" in volume]
        assert all(gibibytes(disk["sizeLimit"]) for disk in disks)


def test_shared_memory_holds_rays_objects_and_leaves_half_of_the_pod(build: Build) -> None:
    for pod in ray_pods(build):
        disk = pod.volumes["shared-memory"]["emptyDir"]
        size, memory = gibibytes(disk["sizeLimit"]), gibibytes(pod.requests["memory"])
        assert disk["medium"] == "Memory"
        # Ray takes three tenths of the memory, at most ten gigabytes; where there is less, it takes a disk.
        assert min(0.3 * memory, 9.4) <= size <= memory / 2


def test_rays_pods_are_ours_give_way_and_are_never_moved(build: Build) -> None:
    for pod in ray_pods(build):
        assert pod.metadata["labels"] == {"app.kubernetes.io/name": "dualview"}
        assert pod.metadata["annotations"] == {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
        assert pod.spec["priorityClassName"] in build.of("PriorityClass")
        assert pod.spec["restartPolicy"] == "Never"  # autoscaler v2: a pod is one Ray node, and never another
        # Else every start walks through the model cache.
        assert pod.spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"


def test_a_worker_has_time_to_hand_back_its_objects(build: Build) -> None:
    for pod in ray_pods(build):
        command = " ".join(pod.container["lifecycle"]["preStop"]["exec"]["command"])
        [grace] = re.findall(r"^/bin/sh -c ray stop --grace-period (\d+)$", command)
        assert DRAIN_SECONDS < int(grace) < pod.spec["terminationGracePeriodSeconds"] <= 600


def test_ranks_are_near_each_other_and_actors_spread_over_zones(build: Build) -> None:
    for pod in ray_pods(build):
        selector = {"matchLabels": {"ray.io/group": pod.group}}
        own = {"topologyKey": "topology.kubernetes.io/zone", "labelSelector": selector}
        if pod.group == "training":
            rules = pod.spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
            assert rules == [{"weight": 100, "podAffinityTerm": own}]
        elif pod.group != "head":
            spread = {**own, "maxSkew": 1, "whenUnsatisfiable": "ScheduleAnyway"}
            assert pod.spec["topologySpreadConstraints"] == [spread]


def test_the_taint_of_gpus_is_tolerated_by_those_who_need_them(build: Build) -> None:
    taint = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    for pod in ray_pods(build):
        assert pod.spec.get("tolerations", []) == (taint if "nvidia.com/gpu" in pod.requests else [])


def test_on_aws_what_may_be_lost_is_on_spot(build: Build) -> None:
    for pod in ray_pods(build) if build.overlay == "aws" else ():
        capacity = "on-demand" if pod.group in ("head", "training") else "spot"
        gpu = {} if pod.group == "head" else {"karpenter.k8s.aws/instance-gpu-name": GPU_OF[pod.group]}
        assert pod.spec["nodeSelector"] == {"karpenter.sh/capacity-type": capacity, **gpu}
