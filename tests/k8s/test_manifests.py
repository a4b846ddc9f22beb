"""Objects fit their schemas, each other, jobs/ and configs/. Pods have a file of their own, and so has watching."""

from collections.abc import Iterator
from functools import cache
import json
import re
import shlex
from typing import Any

import jsonschema
from kuberay_schema import SCHEMA
import kubernetes_validate
from manifests import ROOT, Build, Object, Pod, clusters, pods
import yaml

from dualview.config.evaluate import EvaluateConfig
from dualview.config.generate import GenerateConfig
from dualview.config.loading import load
from dualview.config.study import StudyConfig
from dualview.config.train import TrainConfig
from dualview.studies.plans import plan_study

KUBERNETES = "1.32"
CONFIGS = {"generate": GenerateConfig, "train": TrainConfig, "evaluate": EvaluateConfig, "study": StudyConfig}
GROUPS = {"generate": "generation", "train": "training", "evaluate": "evaluation", "study": "training"}


# --- each object ----------------------------------------------------------------------------------

CRON = json.loads(SCHEMA.read_text())
JOB = CRON["properties"]["jobTemplate"]
KUBERAY = {"RayCronJob": CRON, "RayJob": JOB, "RayCluster": JOB["properties"]["rayClusterSpec"]}


@cache  # by text, as most of one overlay is in the next
def validate(text: str) -> None:
    one = json.loads(text)
    if one["kind"] in KUBERAY:
        assert one.keys() == {"apiVersion", "kind", "metadata", "spec"}
        assert one["apiVersion"] == "ray.io/v1"
        jsonschema.Draft202012Validator(KUBERAY[one["kind"]]).validate(one["spec"])
    else:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_objects_fit_their_schemas(build: Build) -> None:
    for one in build.objects:
        if one["apiVersion"] != "monitoring.coreos.com/v1":  # for those see test_watching.py
            validate(json.dumps(one))
    for pod in pods(build):
        one = {"apiVersion": "v1", "kind": "Pod", "metadata": pod.metadata, "spec": pod.spec}
        validate(json.dumps(one))


def test_nothing_is_listed_twice(build: Build) -> None:
    """Of mounts, variables and ports of one name Kubernetes takes one or the other."""

    def lists(value: Any) -> Iterator[list[Any]]:
        if isinstance(value, dict):
            value = list(value.values())
        elif isinstance(value, list):
            yield value
        for part in value if isinstance(value, list) else ():
            yield from lists(part)

    for items in lists(build.objects):
        assert all(items.count(item) == 1 for item in items)


# --- the platform ---------------------------------------------------------------------------------

OPTION_LABELS = {
    "kueue": {"kueue.x-k8s.io/queue-name": "dualview"},
    "volcano": {
        "volcano.sh/queue-name": "dualview",
        "ray.io/gang-scheduling-enabled": "true",
        "ray.io/priority-class-name": "dualview-batch",
    },
}


def test_objects_are_labelled_as_the_commands_of_readme_pick_them(build: Build) -> None:
    for one in build.objects:
        kind, metadata, labels = one["kind"], one["metadata"], dict(one["metadata"]["labels"])
        assert metadata.keys() <= {"name", "namespace", "labels", "annotations"}
        assert metadata.get("namespace") == (None if kind in ("Namespace", "PriorityClass") else "dualview")
        assert labels.pop("app.kubernetes.io/name") == "dualview"
        component = {"RayCluster": "interactive", "RayJob": metadata["name"], "RayCronJob": "nightly"}
        assert labels.pop("app.kubernetes.io/component") == component.get(kind, "platform")
        if kind in component:
            assert labels == OPTION_LABELS.get(build.option or "", {})
        elif kind not in ("Namespace", "ConfigMap"):
            assert not labels


def test_the_namespace_takes_hardened_pods_only(build: Build) -> None:
    labels = build.of("Namespace")["dualview"]["metadata"]["labels"]
    modes = ("enforce", "warn", "audit")
    assert [labels[f"pod-security.kubernetes.io/{mode}"] for mode in modes] == ["restricted"] * 3
    assert labels["pod-security.kubernetes.io/enforce-version"] == f"v{KUBERNETES}"


def test_users_have_neither_secrets_nor_exec_and_pods_no_rights_at_all(build: Build) -> None:
    rules = build.of("Role")["dualview-user"]["rules"]
    assert {" ".join(rule["resources"]): " ".join(rule["verbs"]) for rule in rules} == {
        "rayjobs rayclusters raycronjobs": "get list watch create patch delete",
        "pods pods/log events services": "get list watch",
        "pods/portforward": "create",
    }
    assert [rule["apiGroups"] for rule in rules] == [["ray.io"], [""], [""]]
    account = build.of("ServiceAccount")["dualview"]
    assert account["automountServiceAccountToken"] is False
    if build.overlay == "aws":
        role = account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        assert re.fullmatch(r"arn:aws:iam::\d{12}:role/[\w-]+", role)


def test_batch_work_gives_way(build: Build) -> None:
    priority = build.of("PriorityClass")["dualview-batch"]
    assert priority["value"] < 0
    assert priority["preemptionPolicy"] == "Never"


# --- who may talk to whom -------------------------------------------------------------------------

PEERS = {
    "ray nodes": {"podSelector": {"matchLabels": {"ray.io/is-ray-node": "yes"}}},
    "ray heads": {"podSelector": {"matchLabels": {"ray.io/node-type": "head"}}},
    "s3": {"podSelector": {"matchLabels": {"app.kubernetes.io/component": "s3"}}},
    # Never the cloud's metadata service, whose credentials are the machine's.
    "outside": {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
} | {
    name: {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": labels},
    }
    for name, namespace, labels in (
        ("DNS", "kube-system", {"k8s-app": "kube-dns"}),
        ("KubeRay", "kuberay-system", {"app.kubernetes.io/name": "kuberay-operator"}),
        ("Prometheus", "monitoring", {"app.kubernetes.io/name": "prometheus"}),
    )
}
FLOWS = {
    "ray nodes from ray nodes: all",
    "ray nodes to ray nodes: all",
    "ray nodes to DNS: TCP 53, UDP 53",
    "ray heads from KubeRay: TCP 8265",
    "ray heads to outside: TCP 6443",
}
PROMETHEUS = "ray nodes from Prometheus: TCP 44217, TCP 44227, TCP 8080"
FLOWS_OF = {
    "kind": {"ray nodes to s3: TCP 9000", "s3 from ray nodes: TCP 9000"},
    "aws": {"ray nodes to outside: TCP 443", PROMETHEUS},
    "onprem": {"ray nodes to outside: TCP 443", PROMETHEUS},
}


def flows(policy: Object) -> Iterator[str]:
    def name_of(peer: Object) -> str:
        return next((name for name, known in PEERS.items() if known == peer), str(peer))

    pods = name_of({"podSelector": policy["podSelector"]})
    for direction, word in (("ingress", "from"), ("egress", "to")):
        for rule in policy.get(direction, ()):
            ports = sorted(f"{port['protocol']} {port['port']}" for port in rule.get("ports", ()))
            for peer in rule[word]:
                yield f"{pods} {word} {name_of(peer)}: {', '.join(ports) or 'all'}"


def test_nothing_talks_but_what_must(build: Build) -> None:
    policies = {name: one["spec"] for name, one in build.of("NetworkPolicy").items()}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    opened = {flow for policy in policies.values() for flow in flows(policy)}
    assert opened == FLOWS | FLOWS_OF[build.overlay]
    for policy in policies.values():  # rules of a type that is not listed hold back nothing
        types = {name.lower() for name in policy["policyTypes"]}
        assert policy.keys() & {"ingress", "egress"} <= types <= {"ingress", "egress"}


# --- clusters -------------------------------------------------------------------------------------


def test_a_cluster_has_the_images_ray_asks_for_a_token_and_computes_on_workers(build: Build) -> None:
    [version] = re.findall(r'"ray\[[\w,]+\]==([\d.]+)"', (ROOT / "pyproject.toml").read_text())
    for cluster in clusters(build):
        assert cluster["rayVersion"] == version
        assert cluster["authOptions"] == {"mode": "token"}
        start = {"num-cpus": "0", "dashboard-host": "0.0.0.0"}
        assert cluster["headGroupSpec"]["rayStartParams"] == start


def test_a_cluster_grows_by_itself_unless_kueue_gives_it_room(build: Build) -> None:
    grows = build.option != "kueue"
    waiting = [one["spec"].get("suspend", False) for one in build.objects if one["kind"] in KUBERAY]
    assert waiting == [not grows] * len(waiting)
    for cluster in clusters(build):
        assert cluster["enableInTreeAutoscaling"] is grows
        assert ("autoscalerOptions" in cluster) is grows
        if grows:
            options = cluster["autoscalerOptions"]
            assert (options["version"], options["upscalingMode"]) == ("v2", "Default")
            assert 60 <= options["idleTimeoutSeconds"] <= 3600


def test_the_interactive_cluster_has_a_group_for_every_job(build: Build) -> None:
    groups = build.of("RayCluster")["interactive"]["spec"]["workerGroupSpecs"]
    assert {group["groupName"] for group in groups} == set(GROUPS.values())
    for group in groups:
        assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]


def test_jobs_clusters_are_made_of_the_interactive_one(build: Build) -> None:
    def settings(cluster: Object) -> Object:
        return {key: value for key, value in cluster.items() if key not in ("workerGroupSpecs", "suspend")}

    interactive = build.of("RayCluster")["interactive"]["spec"]
    templates = {group["groupName"]: group["template"] for group in interactive["workerGroupSpecs"]}
    for verb in CONFIGS:
        cluster = build.of("RayJob")[verb]["spec"]["rayClusterSpec"]
        assert settings(cluster) == settings(interactive)
        [group] = cluster["workerGroupSpecs"]
        assert (group["groupName"], group["template"]) == (GROUPS[verb], templates[GROUPS[verb]])


# --- jobs -----------------------------------------------------------------------------------------


def test_jobs_end_and_their_gpus_with_them(build: Build) -> None:
    as_submitted = yaml.safe_load((ROOT / "cluster/runtime-env.yaml").read_text())
    for job in build.of("RayJob").values():
        spec = job["spec"]
        assert yaml.safe_load(spec["runtimeEnvYAML"]) == as_submitted
        assert spec["submissionMode"] == "HTTPMode"  # other modes add a pod that is not hardened here
        assert 0 <= spec["backoffLimit"] <= 5
        assert 600 <= spec["preRunningDeadlineSeconds"] <= spec["activeDeadlineSeconds"] <= 30 * 86400
        assert spec["shutdownAfterJobFinishes"] is True  # a cluster whose job was stopped would stay
        assert 60 <= spec["ttlSecondsAfterFinished"] <= 3600


def test_the_nights_evaluation_is_the_days(build: Build) -> None:
    for night in build.of("RayCronJob").values():
        assert night["spec"]["jobTemplate"] == build.of("RayJob")["evaluate"]["spec"]
        assert re.fullmatch(r"[0-5]?\d (1?\d|2[0-3]) \* \* \*", night["spec"]["schedule"])
        assert night["spec"]["timeZone"] == "Etc/UTC"


def config_of(build: Build, verb: str) -> Any:
    """As the job's entrypoint loads it. Raises ValueError or InputError where the job would end at once.

    The overlay `kind` makes the demo's data before the job, and the config reads them.
    """
    *made_before, job = build.of("RayJob")[verb]["spec"]["entrypoint"].split(" && ")
    python, script, flag, path, *settings = shlex.split(job)
    assert (python, script, flag) == ("python", f"jobs/{verb}.py", "--config")
    assert settings[::2] == ["--set"] * (len(settings) // 2)
    config = load(CONFIGS[verb], str(ROOT / path), settings[1::2])
    for command in made_before:
        python, script, *_, flag, folder = shlex.split(command)
        assert (python, script, flag) == ("python", "jobs/demo/factbook.py", "--out")
        assert folder in read_by(config)
    return config


def read_by(config: Any) -> list[str]:
    """The folders of a config's examples or of its benchmarks; of a study those of its evaluations."""
    if isinstance(config, StudyConfig):
        config = load(EvaluateConfig, str(ROOT / config.evaluate))
    if isinstance(config, EvaluateConfig):
        return [getattr(benchmark, "path", "") for benchmark in config.benchmarks]
    return list(config.source.paths)


@cache
def trainings(study: str) -> list[TrainConfig]:
    """Of a study's config as JSON."""
    return [run.train for run in plan_study(StudyConfig.model_validate_json(study))]


def test_a_job_reads_what_the_one_before_it_wrote(build: Build) -> None:
    generate, train, evaluate, study = configs = [config_of(build, verb) for verb in CONFIGS]
    for training in (train, *trainings(study.model_dump_json())):
        assert {part.data for part in training.mixture.parts} == {generate.output}
    assert evaluate.encoders["dual"].model == f"{train.output}/encoder"
    assert evaluate.encoders["untouched"].model == train.encoder.model
    # Null: each benchmark's own, which is how the paper trains too.
    assert evaluate.query_template in (None, train.encoder.query_template)
    bucket = "s3://dualview/" if build.overlay == "kind" else "s3://my-bucket/"
    assert all(config.output.startswith(bucket) for config in configs)
    assert len({config.output for config in configs}) == len(configs)


def test_a_jobs_cluster_has_room_for_its_actors(build: Build) -> None:
    """From the start for as many as the config needs, later for as many as it may have, and for no more."""
    for verb in CONFIGS:
        config = config_of(build, verb)
        if verb == "study":
            config = trainings(config.model_dump_json())[0]
        actors = config.actors if verb in ("generate", "evaluate") else config.workers
        [group] = build.of("RayJob")[verb]["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        requests = Pod(verb, **group["template"]).requests
        gpus = int(requests.get("nvidia.com/gpu", 0))
        assert bool(gpus) == bool(actors.gpus)
        per_pod = int(requests["cpu"]) // actors.cpus
        per_pod = int(min(per_pod, gpus // actors.gpus) if gpus else per_pod)
        assert group["minReplicas"] == group["replicas"] >= actors.num / per_pod
        assert group["maxReplicas"] == -(-(getattr(actors, "max_num", None) or actors.num) // per_pod)


# --- the S3 server of the overlay `kind` ----------------------------------------------------------


def test_the_s3_server_is_where_readmes_secret_says(build: Build) -> None:
    for server in (pod for pod in pods(build) if pod.group == "s3"):
        service, deployment = build.of("Service")["s3"]["spec"], build.of("Deployment")["s3"]["spec"]
        labels = PEERS["s3"]["podSelector"]["matchLabels"]
        assert service["selector"] == deployment["selector"]["matchLabels"] == labels
        assert labels.items() <= server.metadata["labels"].items()
        assert service["ports"] == [{"port": 9000, "targetPort": "s3"}]
        assert server.container["ports"] == [{"name": "s3", "containerPort": 9000}]
        assert server.container["readinessProbe"] == {"httpGet": {"path": "/dualview", "port": "s3"}}
        # Two would hold two different buckets.
        assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
        mounts = {mount["mountPath"]: mount["name"] for mount in server.container["volumeMounts"]}
        folder, script = server.container["command"][-1].rsplit("/", 1)
        files = server.volumes[mounts[folder]]["configMap"]
        assert script in build.of("ConfigMap")[files["name"]]["data"]
