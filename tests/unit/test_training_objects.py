"""The children of a VerifiedRLJob."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.objects import Identity
from assay_operator.plan import KEEP_LABEL, Annotate, Json, Plan, Ref, ref
from assay_operator.training.names import JobIdentity
from assay_operator.training.observation import Observation, leader, status_url, to_ask
from assay_operator.training.planner import looked_up, plan
from tests.unit.training_worlds import CONFIG, START, Cluster, is_up, vrl


def running(spec: Json | None = None, config: OperatorConfig = CONFIG) -> Plan:
    """The plan of the pass in which the trainer's Job is made."""
    cluster = Cluster(spec)
    for _ in range(9):
        cluster.tick()
        if cluster.jobs:
            break
    observed = cluster.observe()
    status = dict(cluster.status)
    del observed.children[Ref("Job", "solver-rl-trainer-1")]  # type: ignore[attr-defined]
    status["gang"] = {**status["gang"], "seen": False}
    job = {**observed.job, "status": status}
    return plan(Observation(job, observed.children, engines=observed.engines), config, cluster.now)


def child(made: Plan, kind: str, name: str) -> Json:
    return next(item for item in made.objects if ref(item) == Ref(kind, name))


def trainer_job(spec: Json | None = None, config: OperatorConfig = CONFIG) -> Json:
    return child(running(spec, config), "Job", "solver-rl-trainer-1")


def pod_of(item: Json) -> Json:
    pod: Json = item["spec"]["template"]["spec"]
    return pod


def mounts(pod: Json) -> dict[str, tuple[str, bool]]:
    """By path: the volume's name, and whether it is read only."""
    return {
        mount["mountPath"]: (mount["name"], mount.get("readOnly", False))
        for mount in pod["containers"][0]["volumeMounts"]
    }


def volume(pod: Json, name: str) -> Json:
    (found,) = [each for each in pod["volumes"] if each["name"] == name]
    return found


def on_claim(pod: Json, path: str) -> str:
    name: str = volume(pod, mounts(pod)[path][0])["persistentVolumeClaim"]["claimName"]
    return name


def test_a_job_has_these_children() -> None:
    made = running({"checkpoint": {"storage": {"claim": None, "size": "50Gi"}}})
    assert {ref(item) for item in made.objects} == {
        Ref("PersistentVolumeClaim", "solver-rl-checkpoints"),
        Ref("ConfigMap", "solver-rl-job"),
        Ref("ConfigMap", "solver-rl-pins"),
        Ref("Service", "solver-rl-engines"),
        Ref("Service", "solver-rl-trainer"),
        Ref("StatefulSet", "solver-rl-engine"),
        Ref("Job", "solver-rl-trainer-1"),
    }
    assert all(item["metadata"]["namespace"] == "default" for item in made.objects)


def test_pods_are_found_by_labels_that_no_service_of_the_same_name_has() -> None:
    job, service = JobIdentity("solver", "default"), Identity("solver", "default")
    for component in ("engine", "trainer"):
        ours, theirs = job.selector(component), service.selector(component)
        assert not ours.items() <= service.labels(component).items()
        assert not theirs.items() <= job.labels(component).items()
    made = running()
    for name, component in (("solver-rl-engines", "engine"), ("solver-rl-trainer", "trainer")):
        selector = child(made, "Service", name)["spec"]["selector"]
        assert selector == JobIdentity("solver-rl", "default").selector(component)


def test_a_gang_is_one_job_that_any_pod_fails() -> None:
    job = trainer_job({"trainer": {"nodes": 4}})
    spec = job["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 4, 4)
    assert (spec["backoffLimit"], spec["podReplacementPolicy"]) == (0, "Failed")
    pod = pod_of(job)
    assert (pod["restartPolicy"], pod["subdomain"]) == ("Never", "solver-rl-trainer")
    assert pod["terminationGracePeriodSeconds"] == 120
    assert spec["template"]["metadata"]["labels"]["assay.dev/generation"] == "1"
    assert job["metadata"]["labels"]["assay.dev/generation"] == "1"


def test_one_process_is_started_as_such() -> None:
    (container,) = pod_of(trainer_job())["containers"]
    assert container["command"] == ["assay-train", "run", "/etc/assay/job/job.json"]
    told = {"name": "ASSAY_TERMINATION_LOG", "value": "/dev/termination-log"}
    assert told in container["env"]


def test_several_gpus_of_one_node_are_started_by_torchrun() -> None:
    (container,) = pod_of(
        trainer_job({"trainer": {"accelerator": "nvidia-h100", "gpusPerNode": 8}})
    )["containers"]
    command = container["command"]
    assert command[:4] == ["torchrun", "--nnodes=1", "--nproc-per-node=8", "--standalone"]
    assert command[4:8] == ["-m", "assay_trainer", "run", "/etc/assay/job/job.json"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_several_nodes_meet_at_the_first_pods_name() -> None:
    (container,) = pod_of(trainer_job({"trainer": {"nodes": 2}}))["containers"]
    command = container["command"]
    assert "--node-rank=$(JOB_COMPLETION_INDEX)" in command
    assert "--master-addr=solver-rl-trainer-1-0.solver-rl-trainer" in command
    service = child(running(), "Service", "solver-rl-trainer")["spec"]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"] is True


def test_a_trainer_reads_model_and_job_and_writes_checkpoints_only() -> None:
    pod = pod_of(trainer_job())
    found = mounts(pod)
    writable = {path for path, (_, read_only) in found.items() if not read_only}
    assert writable == {"/checkpoints", "/cache", "/tmp", "/dev/shm"}
    assert (on_claim(pod, "/models"), on_claim(pod, "/checkpoints")) == ("models", "ckpt")
    assert volume(pod, "suite")["configMap"] == {
        "name": "heldout",
        "items": [{"key": "suite.jsonl", "path": "suite.jsonl"}],
    }
    assert volume(pod, "job")["configMap"]["items"] == [{"key": "job.json", "path": "job.json"}]


@pytest.mark.parametrize("kind", ["trainer", "engine"])
def test_a_claim_is_one_volume_however_often_it_is_mounted(kind: str) -> None:
    same = {
        "model": {"source": "pvc://all/base"},
        "checkpoint": {"storage": {"claim": "all"}},
        "data": {"source": None, "claim": "all", "path": "data/train.jsonl"},
    }
    made = running(same)
    name = (
        ("Job", "solver-rl-trainer-1") if kind == "trainer" else ("StatefulSet", "solver-rl-engine")
    )
    pod = pod_of(child(made, *name))
    claims = [each for each in pod["volumes"] if "persistentVolumeClaim" in each]
    assert len(claims) == 1
    assert on_claim(pod, "/models") == on_claim(pod, "/checkpoints") == "all"
    if kind == "trainer":
        assert on_claim(pod, "/etc/assay/data") == "all"


@pytest.mark.parametrize(
    ("data", "source"),
    [
        ({"source": None, "configMap": "items"}, "/etc/assay/data/data.jsonl"),
        ({"source": None, "configMap": "items", "key": "a.jsonl"}, "/etc/assay/data/a.jsonl"),
        ({"source": None, "claim": "sets", "path": "x/y.jsonl"}, "/etc/assay/data/x/y.jsonl"),
    ],
)
def test_data_lies_where_the_job_file_says(data: Json, source: str) -> None:
    made = running({"data": data})
    document = child(made, "ConfigMap", "solver-rl-job")["data"]["job.json"]
    assert json.loads(document)["data"]["source"] == source
    pod = pod_of(child(made, "Job", "solver-rl-trainer-1"))
    name, read_only = mounts(pod)["/etc/assay/data"]
    assert read_only
    if "configMap" in data:
        key = data.get("key", "data.jsonl")
        assert volume(pod, name)["configMap"]["items"] == [{"key": key, "path": key}]


def test_engines_are_those_of_a_service_and_see_what_the_trainer_writes() -> None:
    made = running({"rollout": {"engines": 3, "engine": {"extraArgs": ["--context-length=512"]}}})
    engines = child(made, "StatefulSet", "solver-rl-engine")
    assert engines["spec"]["replicas"] == 3
    assert engines["spec"]["podManagementPolicy"] == "Parallel"
    assert engines["spec"]["serviceName"] == "solver-rl-engines"
    pod = pod_of(engines)
    (container,) = pod["containers"]
    assert container["command"] == ["assay-engine"]
    assert container["args"][-1] == "--context-length=512"
    assert mounts(pod)["/checkpoints"][1] is True, "read only"
    assert on_claim(pod, "/checkpoints") == "ckpt"
    assert volume(pod, "pointer")["configMap"] == {"name": "solver-rl-job"}
    pointer = json.loads(child(made, "ConfigMap", "solver-rl-job")["data"]["pointer.json"])
    assert pointer["path"] == "/models/base"
    urls = json.loads(child(made, "ConfigMap", "solver-rl-job")["data"]["job.json"])["rollout"][
        "engines"
    ]
    assert urls[2] == "http://solver-rl-engine-2.solver-rl-engines.default.svc:30000"


def test_pods_hold_no_token_no_privilege_and_no_writable_root() -> None:
    made = running()
    for name in (("Job", "solver-rl-trainer-1"), ("StatefulSet", "solver-rl-engine")):
        pod = pod_of(child(made, *name))
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_administrators_template_comes_before_the_users() -> None:
    config = OperatorConfig.model_validate(
        {
            "trainer": {
                "images": {"cpu": "r.example/trainer:1"},
                "templates": {"cpu": {"spec": {"priorityClassName": "low", "hostname": "a"}}},
            }
        }
    )
    pod = pod_of(
        trainer_job({"trainer": {"template": {"spec": {"priorityClassName": "high"}}}}, config)
    )
    assert (pod["priorityClassName"], pod["hostname"]) == ("high", "a")
    assert pod["containers"][0]["image"] == "r.example/trainer:1"


def test_the_users_resources_are_over_ours() -> None:
    spec = {"trainer": {"resources": {"limits": {"memory": "1Gi"}}}}
    (container,) = pod_of(trainer_job(spec))["containers"]
    assert container["resources"]["requests"]["memory"] == "1Gi"
    assert container["resources"]["limits"] == {"memory": "1Gi"}


@pytest.mark.parametrize(("policy", "kept"), [("Retain", True), ("Delete", False)])
def test_a_claim_is_made_where_the_spec_gives_a_size(policy: str, kept: bool) -> None:
    storage = {"claim": None, "size": "50Gi", "className": "fast", "accessMode": "ReadWriteOnce"}
    made = running({"checkpoint": {"storage": storage, "onDelete": policy}})
    claim = child(made, "PersistentVolumeClaim", "solver-rl-checkpoints")
    assert claim["spec"] == {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": "50Gi"}},
        "storageClassName": "fast",
    }
    assert (claim["metadata"]["labels"].get(KEEP_LABEL) == "true") is kept
    assert on_claim(pod_of(child(made, "Job", "solver-rl-trainer-1")), "/checkpoints") == (
        "solver-rl-checkpoints"
    )


def test_only_what_the_spec_names_is_looked_up() -> None:
    claims = {Ref("PersistentVolumeClaim", name) for name in ("ckpt", "models")}
    assert set(looked_up(vrl())) == claims | {Ref("ConfigMap", "heldout")}
    made = vrl({"checkpoint": {"storage": {"claim": None, "size": "1Gi"}}, "evaluation": None})
    assert looked_up(made) == (Ref("PersistentVolumeClaim", "models"),)
    assert looked_up(vrl({"trainer": {"steps": 0}})) == ()


def test_only_the_first_pod_is_asked_and_only_while_it_runs() -> None:
    cluster = Cluster({"trainer": {"nodes": 2}})
    cluster.until_pods()
    assert not to_ask(cluster.trainer_pods)
    cluster.tick()
    (asked,) = to_ask(cluster.trainer_pods)
    assert asked is leader(cluster.trainer_pods, 1) and is_up(asked)
    assert status_url(asked) == "http://10.0.0.9:8080/status"
    asked["status"]["podIP"] = "fd00::9"
    assert status_url(asked) == "http://[fd00::9]:8080/status"


def test_pins_are_a_config_map_and_the_kubelet_is_told_of_a_change() -> None:
    cluster = Cluster({"trainer": {"steps": 20}})
    cluster.until_step(4)
    assert not cluster.last.actions
    cluster.tick()
    digest = cluster.storage.saved[0]["digest"]
    cluster.pinned = frozenset([f"sha256:{digest}"])
    made = cluster.look()
    assert cluster.children[Ref("ConfigMap", "solver-rl-pins")]["data"] == {digest: ""}
    (nudge,) = made.actions
    assert isinstance(nudge, Annotate) and nudge.pod.startswith("solver-rl-trainer-1-0")
    (pod,) = cluster.trainer_pods
    pod["metadata"]["annotations"] = {nudge.key: nudge.value}
    assert not cluster.look().actions
    container = pod["spec"]["containers"][0]
    assert {"name": "ASSAY_PINS", "value": "/etc/assay/pins"} in container["env"]
    assert mounts(pod["spec"])["/etc/assay/pins"] == ("pins", True)


def test_planning_twice_gives_the_same_and_changes_nothing() -> None:
    cluster = Cluster()
    cluster.until("Training")
    observed = cluster.observe()
    before = json.dumps([observed.job, list(observed.children.values())], sort_keys=True)
    assert plan(observed, CONFIG, cluster.now) == plan(observed, CONFIG, cluster.now)
    after = json.dumps([observed.job, list(observed.children.values())], sort_keys=True)
    assert before == after


@pytest.mark.parametrize(
    ("rollout", "asked"),
    [
        ({"engine": {"kernels": "fused"}}, True),
        ({"engine": {"accelerator": "nvidia-h200"}}, True),
        ({"engine": {"kernels": "stock"}}, False),
        (
            {
                "engine": {"kernels": "fused"},
                "template": {
                    "spec": {
                        "containers": [
                            {
                                "name": "engine",
                                "env": [{"name": "ASSAY_KERNELS", "value": "stock"}],
                            }
                        ]
                    }
                },
            },
            False,
        ),
    ],
)
def test_a_trainer_asks_for_kernels_as_the_engines_pods_are_asked_to_run_them(
    rollout: Json, asked: bool
) -> None:
    made = plan(Observation(vrl({"rollout": rollout})), CONFIG, START)
    file = json.loads(child(made, "ConfigMap", "solver-rl-job")["data"]["job.json"])
    assert file["rollout"].get("kernels") == ("fused" if asked else None)


@pytest.mark.parametrize(
    ("engine", "field"),
    [
        ({"accelerator": "cpu", "parallelism": {"tensor": 2}}, "spec.rollout.engine.parallelism"),
        ({"accelerator": "cpu", "profile": "deepseek-v3"}, "spec.rollout.engine.profile"),
    ],
)
def test_an_engine_that_there_is_not_is_refused_in_the_jobs_words(engine: Json, field: str) -> None:
    made = plan(Observation(vrl({"rollout": {"engine": engine}})), CONFIG, START)
    (condition,) = made.status["conditions"]
    assert (condition["type"], condition["reason"]) == ("Admitted", "UnsupportedProfile")
    assert field in condition["message"]
    assert not made.objects and made.prune is False


def test_every_status_is_one_that_the_api_accepts() -> None:
    from assay_operator.api.verified_rl_job import VerifiedRLJobStatus  # noqa: PLC0415

    cluster = Cluster({"backoffLimit": 1})
    statuses: list[dict[str, Any]] = []
    for tick in range(60):
        if tick in (6, 20, 35):
            cluster.crash()
        cluster.tick()
        statuses.append(cluster.status)
    for status in statuses:
        VerifiedRLJobStatus.model_validate(status)
    assert VerifiedRLJobSpec.model_validate(cluster.job["spec"])
