"""The Jobs that inspect, gate and weigh: what their pods run, see, reach and may do."""

from __future__ import annotations

from typing import Any

import pytest

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.jobs import (
    GATE,
    INSPECT,
    OWN_ENGINE,
    WEIGH,
    Mount,
    Named,
    OwnEngine,
    Questions,
    gate_job,
    inspection_job,
    network_policy,
    weighing_job,
)
from assay_operator.inference.objects import engine_template
from assay_operator.inference.profiles import profile_of
from assay_operator.plan import OWNER_LABEL
from assay_verifiers.config import GateLimits
from tests.unit.worlds import IDENTITY, SOURCE

Json = dict[str, Any]
CONFIG = OperatorConfig()
NAMED = Named("solver-gate-1a2b3c4d", "default", IDENTITY.labels("engine"))
DIGEST = f"sha256:{'a' * 64}"
MODELS = Mount("model", {"persistentVolumeClaim": {"claimName": "models"}}, "/models")
CHECKPOINTS = Mount("checkpoints", {"persistentVolumeClaim": {"claimName": "ckpt"}}, "/checkpoints")
QUESTIONS = Questions(
    "heldout", "math.jsonl", GateLimits(minScore=0.6, looks=3), items=100, max_tokens=64,
    timeout_seconds=1800,
)  # fmt: skip


def template(spec: Json | None = None, config: OperatorConfig = CONFIG) -> Json:
    model = InferenceServiceSpec.model_validate(
        {"model": {"source": SOURCE}, "engine": {"accelerator": "cpu"}, **(spec or {})}
    )
    return engine_template(IDENTITY, model, profile_of(model.engine), config)


def own_engine(spec: Json | None = None) -> OwnEngine:
    return OwnEngine(template(spec), "/checkpoints/step-20", DIGEST, 300)


def inspection(**more: Any) -> Json:
    given: Json = {
        "candidate": "/checkpoints/step-20",
        "incumbent": "/models/tiny",
        "mounts": [MODELS, CHECKPOINTS],
        "engine_template": template(),
        "digest": DIGEST,
        **more,
    }
    return inspection_job(NAMED, given.pop("config", CONFIG), **given)


def gate(engine: OwnEngine | None = None, config: OperatorConfig = CONFIG) -> Json:
    candidate = OWN_ENGINE if engine else "http://10.0.0.1:30000"
    return gate_job(
        NAMED,
        config,
        QUESTIONS,
        candidate=candidate,
        incumbent="http://10.0.0.2:30000",
        engine=engine,
    )


def weighing(engine: OwnEngine | None = None) -> Json:
    return weighing_job(
        NAMED,
        CONFIG,
        QUESTIONS,
        digest=DIGEST,
        mounts=[MODELS, CHECKPOINTS],
        engine=engine or own_engine(),
    )


def pod(job: Json) -> Json:
    found: Json = job["spec"]["template"]["spec"]
    return found


def containers(job: Json) -> dict[str, Json]:
    spec = pod(job)
    return {item["name"]: item for item in (*spec.get("initContainers", []), *spec["containers"])}


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


EVERY = pytest.mark.parametrize(
    "job", [inspection(), gate(), gate(own_engine()), weighing()],
    ids=["inspection", "gate", "gate with an engine", "weighing"],
)  # fmt: skip


@EVERY
def test_the_pods_satisfy_the_level_restricted_and_hold_no_token(job: Json) -> None:
    spec = pod(job)
    assert spec["automountServiceAccountToken"] is False
    security = spec["securityContext"]
    assert security["runAsNonRoot"] is True and security["runAsUser"] == 65532
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(job).values():
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}
    kinds = {kind for volume in spec["volumes"] for kind in volume} - {"name"}
    assert kinds <= {"persistentVolumeClaim", "configMap", "emptyDir", "downwardAPI"}


@EVERY
def test_every_mount_has_its_volume_and_models_are_read_only(job: Json) -> None:
    names = [volume["name"] for volume in pod(job)["volumes"]]
    assert len(names) == len(set(names))
    for container in containers(job).values():
        for mount in container["volumeMounts"]:
            assert mount["name"] in names
            if mount["mountPath"] in ("/models", "/checkpoints"):
                assert mount["readOnly"] is True


@EVERY
def test_the_labels_say_whose_it_is_and_never_that_it_is_an_engine(job: Json) -> None:
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert labels[OWNER_LABEL] == "inferenceservice.solver"
        assert labels["app.kubernetes.io/managed-by"] == "assay"
        assert labels["app.kubernetes.io/component"] in (INSPECT, GATE, WEIGH)


@EVERY
def test_a_job_stays_until_it_is_pruned_and_a_lost_pod_is_no_verdict(job: Json) -> None:
    spec = job["spec"]
    assert "ttlSecondsAfterFinished" not in spec
    assert pod(job)["restartPolicy"] == "Never"
    assert spec["podFailurePolicy"]["rules"][-1]["action"] == "Ignore"


def test_an_inspection_compares_the_candidate_with_the_incumbent() -> None:
    job = inspection()
    command = containers(job)["verifier"]["command"]
    assert command[:5] == ["python3", "-m", "assay_trainer", "inspect", "/checkpoints/step-20"]
    assert option(command, "--digest") == DIGEST
    assert option(command, "--like") == "/models/tiny"
    assert option(command, "--summary") == "/dev/termination-log"
    assert "--code" not in command
    assert job["spec"]["backoffLimit"] == 2
    assert "--code" in containers(inspection(code=True))["verifier"]["command"]
    alone = containers(inspection(digest=None, incumbent=None))["verifier"]["command"]
    assert not {"--digest", "--like"} & set(alone)


def test_an_inspection_can_read_what_engines_can_and_comes_near_them() -> None:
    overrides = {
        "spec": {
            "securityContext": {"fsGroup": 1000},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "imagePullSecrets": [{"name": "registry"}],
        }
    }
    spec = pod(inspection(engine_template=template({"template": overrides})))
    assert spec["securityContext"]["fsGroup"] == 1000
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    (term,) = spec["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    assert term["podAffinityTerm"]["labelSelector"]["matchLabels"] == {
        OWNER_LABEL: "inferenceservice.solver",
        "app.kubernetes.io/component": "engine",
    }


def test_an_inspection_without_engines_goes_anywhere() -> None:
    assert "affinity" not in pod(inspection(engine_template={}))


def test_one_claim_seen_at_two_places_is_one_volume() -> None:
    both = [MODELS, Mount("model", MODELS.source, "/checkpoints")]
    job = inspection(mounts=both)
    assert [volume["name"] for volume in pod(job)["volumes"]] == ["model", "scratch"]
    with pytest.raises(ValueError, match="two volumes are called model"):
        inspection(mounts=[MODELS, Mount("model", CHECKPOINTS.source, "/checkpoints")])


def test_a_gate_asks_both_sides_what_the_suite_and_the_limits_say() -> None:
    job = gate()
    (container,) = pod(job)["containers"]
    command = container["command"]
    assert command[:4] == ["python3", "-m", "assay_verifiers", "gate"]
    assert {name: option(command, name) for name in command if name.startswith("--")} == {
        "--suite": "/etc/assay/suite/suite.jsonl",
        "--candidate": "http://10.0.0.1:30000",
        "--incumbent": "http://10.0.0.2:30000",
        "--min-score": "0.6",
        "--max-regression": "0.02",
        "--confidence": "0.95",
        "--max-masked": "0.05",
        "--min-items": "1",
        "--looks": "3",
        "--items": "100",
        "--max-tokens": "64",
        "--workers": "4",
        "--out": "/tmp/answers",
        "--summary": "/dev/termination-log",
    }
    assert "initContainers" not in pod(job)
    assert job["spec"]["backoffLimit"] == 1
    assert job["spec"]["activeDeadlineSeconds"] == 1800
    (suite,) = [volume for volume in pod(job)["volumes"] if volume["name"] == "suite"]
    assert suite["configMap"] == {
        "name": "heldout",
        "items": [{"key": "math.jsonl", "path": "suite.jsonl"}],
    }


def test_what_the_gate_is_not_told_stays_at_its_defaults() -> None:
    asked = Questions("heldout", "suite.jsonl", GateLimits(), None, 2048, 1800)
    job = gate_job(NAMED, CONFIG, asked, candidate="http://a:1", incumbent="http://b:1")
    command = containers(job)["verifier"]["command"]
    assert not {"--min-score", "--items"} & set(command)
    alone = gate_job(NAMED, CONFIG, QUESTIONS, candidate="http://a:1", incumbent=None)
    assert "--incumbent" not in containers(alone)["verifier"]["command"]


def test_the_commands_options_are_those_that_the_commands_have() -> None:
    from assay_trainer.cli import _parser as trainer  # noqa: PLC0415
    from assay_verifiers.cli import _parser as verifiers  # noqa: PLC0415

    for job in (gate(), weighing()):
        verifiers().parse_args(containers(job)["verifier"]["command"][3:])
    for container in (
        containers(inspection(code=True))["verifier"],
        containers(weighing())[INSPECT],
    ):
        trainer().parse_args(container["command"][3:])


def test_an_engine_of_the_gates_own_runs_until_the_asking_is_done() -> None:
    job = gate(own_engine())
    (engine,) = pod(job)["initContainers"]
    assert engine["name"] == "engine" and engine["restartPolicy"] == "Always"
    assert "startupProbe" in engine
    assert not {"lifecycle", "livenessProbe", "readinessProbe"} & engine.keys()
    theirs = template()["spec"]["containers"][0]
    for kept in ("image", "command", "args", "env", "resources", "ports", "volumeMounts"):
        assert engine[kept] == theirs[kept]
    assert option(containers(job)["verifier"]["command"], "--candidate") == OWN_ENGINE
    assert job["spec"]["activeDeadlineSeconds"] == 1800 + 300


def test_an_own_engine_that_shall_run_fused_kernels_is_asked_for_them() -> None:
    """A score that SGLang's own kernels had would say nothing of what is served with ours."""
    fused = own_engine({"engine": {"accelerator": "cpu", "kernels": "fused"}})
    for job in (gate(fused), weighing(engine=fused)):
        command = containers(job)["verifier"]["command"]
        assert option(command, "--candidate-kernels") == "fused"
    for job in (gate(own_engine()), weighing(), gate()):
        assert "--candidate-kernels" not in containers(job)["verifier"]["command"]


def test_the_own_engine_serves_the_candidate_not_what_the_services_pointer_names() -> None:
    job = gate(own_engine())
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "assay.dev/pointer": f'{{"path": "/checkpoints/step-20", "version": "{DIGEST}"}}'
    }
    (pointer,) = [volume for volume in pod(job)["volumes"] if volume["name"] == "pointer"]
    (item,) = pointer["downwardAPI"]["items"]
    assert item["path"] == "pointer.json"
    assert item["fieldRef"]["fieldPath"] == "metadata.annotations['assay.dev/pointer']"


def test_the_own_engine_keeps_the_users_overrides_of_engines() -> None:
    overrides = {
        "metadata": {"annotations": {"mesh": "off"}, "labels": {"app": "engine"}},
        "spec": {
            "nodeSelector": {"pool": "gpu"},
            "initContainers": [{"name": "prepare", "image": "tools"}],
            "containers": [
                {"name": "engine", "env": [{"name": "A", "value": "1"}]},
                {"name": "logs", "image": "logs"},
            ],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}],
        },
    }
    job = gate(own_engine({"template": overrides}))
    spec = pod(job)
    assert spec["nodeSelector"] == {"pool": "gpu"}
    assert list(containers(job)) == ["prepare", "engine", "verifier"]
    assert {"name": "A", "value": "1"} in containers(job)["engine"]["env"]
    assert {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}} in spec["volumes"]
    metadata = job["spec"]["template"]["metadata"]
    assert metadata["annotations"]["mesh"] == "off" and "app" not in metadata["labels"]
    assert "shareProcessNamespace" not in spec


def test_an_engine_cannot_touch_what_the_gate_notes() -> None:
    job = gate(own_engine())

    def of(container: str) -> str:
        mounts = containers(job)[container]["volumeMounts"]
        return next(str(mount["name"]) for mount in mounts if mount["mountPath"] == "/tmp")

    assert of("engine") != of("verifier")


def test_a_weighing_inspects_first_then_serves_then_asks_for_the_score_alone() -> None:
    job = weighing()
    assert list(containers(job)) == [INSPECT, "engine", "verifier"]
    inspect = containers(job)[INSPECT]["command"]
    assert inspect[4] == "/checkpoints/step-20"
    assert option(inspect, "--digest") == DIGEST and "--like" not in inspect
    asks = containers(job)["verifier"]["command"]
    assert option(asks, "--candidate") == OWN_ENGINE and "--incumbent" not in asks
    final = {
        rule["onExitCodes"]["containerName"]: rule["onExitCodes"]["values"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if rule["action"] == "FailJob"
    }
    assert final == {INSPECT: [1, 2], "verifier": [1, 2, 3]}


def test_the_administrators_overrides_reach_every_container_of_the_image() -> None:
    config = OperatorConfig.model_validate(
        {
            "verifier": {
                "image": "registry/verifier:1",
                "template": {
                    "metadata": {"annotations": {"team": "ml"}},
                    "spec": {
                        "nodeSelector": {"pool": "small"},
                        "containers": [
                            {
                                "name": "verifier",
                                "volumeMounts": [{"name": "environment", "mountPath": "/opt/x"}],
                            }
                        ],
                        "volumes": [{"name": "environment", "hostPath": {"path": "/x"}}],
                    },
                },
            },
            "imagePullPolicy": "Always",
        }
    )
    weighed = weighing_job(
        NAMED, config, QUESTIONS, digest=None, mounts=[CHECKPOINTS], engine=own_engine()
    )
    for job in (inspection(config=config), gate(config=config), weighed):
        assert pod(job)["nodeSelector"] == {"pool": "small"}
        assert job["spec"]["template"]["metadata"]["annotations"]["team"] == "ml"
        for name, container in containers(job).items():
            seen = {"name": "environment", "mountPath": "/opt/x"} in container["volumeMounts"]
            assert seen == (name in (INSPECT, "verifier")), name
            if seen:
                assert container["image"] == "registry/verifier:1"
                assert container["imagePullPolicy"] == "Always"
    assert list(containers(weighed)) == [INSPECT, "engine", "verifier"]


def test_a_job_is_the_same_each_time_it_is_planned() -> None:
    assert gate(own_engine()) == gate(own_engine())
    assert inspection() == inspection()


def test_an_inspection_and_a_weighing_reach_nothing() -> None:
    for component in (INSPECT, WEIGH):
        spec = network_policy(NAMED, component)["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["egress"] == [] and "ingress" not in spec
        assert spec["podSelector"]["matchLabels"] == {
            OWNER_LABEL: "inferenceservice.solver",
            "app.kubernetes.io/component": component,
        }


def test_a_gate_reaches_names_and_engines_alone() -> None:
    policy = network_policy(NAMED, GATE, engines=IDENTITY.selector("engine"))
    names, engines = policy["spec"]["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    assert engines["to"] == [{"podSelector": {"matchLabels": IDENTITY.selector("engine")}}]
    assert engines["ports"] == [{"port": 30000, "protocol": "TCP"}]
    labels = gate()["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
