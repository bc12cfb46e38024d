"""What the planner decides about one InferenceService."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from assay_operator.config import OperatorConfig
from assay_operator.inference.objects import (
    WORKERS_ANNOTATION,
    fingerprint,
    parse_source,
    workers_document,
)
from assay_operator.inference.observation import Observation, Probe
from assay_operator.inference.planner import SETTLED_SECONDS, UNSETTLED_SECONDS, plan
from assay_operator.plan import Json, Plan, Ref, ref
from tests.unit.worlds import NOW, VERSION, ago, pod, router, service, serving, set_container

CONFIG = OperatorConfig()


def decide(observation: Observation, config: OperatorConfig = CONFIG) -> Plan:
    return plan(observation, config, NOW)


def child(made: Plan, kind: str, name: str) -> Json:
    return next(item for item in made.objects if ref(item) == Ref(kind, name))


def condition(made: Plan, kind: str) -> Json:
    return next(item for item in made.status["conditions"] if item["type"] == kind)


def engine_pod(made: Plan) -> Json:
    template: Json = child(made, "Deployment", "solver-engine")["spec"]["template"]
    return template


def workers(made: Plan) -> set[str]:
    document = child(made, "ConfigMap", "solver-workers")["data"]["workers.json"]
    return {worker["url"] for worker in json.loads(document)["workers"]}


# --- children ---------------------------------------------------------------------------------


def test_a_new_service_gets_all_its_children_at_once() -> None:
    made = decide(Observation(service()))
    assert {ref(item) for item in made.objects} == {
        Ref("ConfigMap", "solver-pointer"),
        Ref("ConfigMap", "solver-workers"),
        Ref("Deployment", "solver-engine"),
        Ref("Deployment", "solver-router"),
        Ref("Service", "solver"),
        Ref("PodDisruptionBudget", "solver-engine"),
        Ref("PodDisruptionBudget", "solver-router"),
    }
    assert all(item["metadata"]["namespace"] == "default" for item in made.objects)


def test_planning_twice_gives_the_same() -> None:
    world = serving(pod("a", "10.0.0.1"))
    assert decide(world) == decide(world)


def test_the_engine_reads_its_model_through_the_pointer_and_never_from_its_arguments() -> None:
    made = decide(Observation(service()))
    pointer = json.loads(child(made, "ConfigMap", "solver-pointer")["data"]["pointer.json"])
    assert pointer == {"path": "/models/tiny", "version": VERSION}
    assert "--model-path" not in engine_pod(made)["spec"]["containers"][0]["args"]


def test_the_users_arguments_come_last() -> None:
    made = decide(Observation(service({"engine": {"accelerator": "cpu", "extraArgs": ["--x"]}})))
    assert engine_pod(made)["spec"]["containers"][0]["args"][-1] == "--x"


def test_a_served_name_defaults_to_the_objects_name() -> None:
    args = engine_pod(decide(Observation(service())))["spec"]["containers"][0]["args"]
    assert args[args.index("--served-model-name") + 1] == "solver"
    named = service({"model": {"source": "pvc://models/tiny", "servedName": "org/x"}})
    args = engine_pod(decide(Observation(named)))["spec"]["containers"][0]["args"]
    assert args[args.index("--served-model-name") + 1] == "org/x"


def test_remote_code_is_trusted_only_when_the_spec_says_so() -> None:
    plain = engine_pod(decide(Observation(service())))
    assert "--trust-remote-code" not in plain["spec"]["containers"][0]["args"]
    trusting = service({"model": {"source": "pvc://m/t", "trustRemoteCode": True}})
    args = engine_pod(decide(Observation(trusting)))["spec"]["containers"][0]["args"]
    assert "--trust-remote-code" in args


def test_an_engine_pod_holds_no_token_no_privilege_and_no_writable_root() -> None:
    spec = engine_pod(decide(Observation(service())))["spec"]
    security = spec["containers"][0]["securityContext"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_gpus_follow_from_parallelism_and_the_pod_goes_to_the_right_nodes() -> None:
    engine = {"accelerator": "nvidia-h200", "parallelism": {"tensor": 8}}
    spec = engine_pod(decide(Observation(service({"engine": engine}))))["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_a_limit_below_the_profiles_request_lowers_the_request() -> None:
    engine = {"accelerator": "cpu", "resources": {"limits": {"memory": "1Gi"}}}
    resources = engine_pod(decide(Observation(service({"engine": engine}))))["spec"]["containers"][
        0
    ]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"] == "1Gi"


def test_an_oci_source_becomes_an_image_volume() -> None:
    made = decide(Observation(service({"model": {"source": "oci://registry.example/m/x:v1"}})))
    volumes = engine_pod(made)["spec"]["volumes"]
    assert volumes[0] == {"name": "model", "image": {"reference": "registry.example/m/x:v1"}}


def test_a_source_given_by_digest_is_known_by_its_digest() -> None:
    digest = "ab12" * 16
    assert parse_source(f"oci://r.example/m@sha256:{digest}").version == f"sha256:{digest[:12]}"


def test_two_places_never_share_a_version() -> None:
    assert parse_source("pvc://a/m").version != parse_source("pvc://b/m").version


def test_a_new_source_rolls_the_engines() -> None:
    old = engine_pod(decide(Observation(service())))
    new = engine_pod(decide(Observation(service({"model": {"source": "pvc://models/other"}}))))
    assert old["metadata"]["annotations"] != new["metadata"]["annotations"]


def test_the_administrators_template_comes_before_the_users() -> None:
    config = OperatorConfig.model_validate(
        {"engine": {"templates": {"cpu": {"spec": {"priorityClassName": "low", "hostname": "a"}}}}}
    )
    world = Observation(service({"template": {"spec": {"priorityClassName": "high"}}}))
    spec = engine_pod(decide(world, config))["spec"]
    assert (spec["priorityClassName"], spec["hostname"]) == ("high", "a")


def test_no_replicas_means_no_pods_and_everything_else_stays() -> None:
    made = decide(Observation(service({"replicas": 0})))
    assert child(made, "Deployment", "solver-engine")["spec"]["replicas"] == 0
    assert child(made, "Deployment", "solver-router")["spec"]["replicas"] == 0
    assert child(made, "Service", "solver")
    assert condition(made, "Ready")["reason"] == "NoReplicas"


def test_a_lone_replica_is_replaced_without_a_gap() -> None:
    def surge(replicas: int) -> tuple[int, int]:
        made = decide(Observation(service({"replicas": replicas})))
        rolling = child(made, "Deployment", "solver-engine")["spec"]["strategy"]["rollingUpdate"]
        return rolling["maxSurge"], rolling["maxUnavailable"]

    assert surge(1) == (1, 0)
    assert surge(4) == (1, 1)


# --- membership and readiness -----------------------------------------------------------------


def test_a_proven_engine_becomes_a_member_and_then_counts() -> None:
    world = serving(pod("a", "10.0.0.1"))
    made = decide(world)
    assert workers(made) == {"http://10.0.0.1:30000"}
    assert made.status["readyReplicas"] == 1
    assert made.status["routable"] == "1/1"
    assert made.status["checkpoint"] == VERSION
    assert condition(made, "Ready")["status"] == "True"
    assert made.next_look == SETTLED_SECONDS


def test_an_engine_that_has_not_generated_is_no_member() -> None:
    engine = pod("a", "10.0.0.1")
    silent = Probe(version=VERSION, generated=False, error="no token within 10 s")
    made = decide(serving(engine, probes={"uid-a": silent}))
    assert workers(made) == set()
    assert condition(made, "Ready")["status"] == "False"
    assert condition(made, "Ready")["reason"] == "ProbeFailed"
    assert made.next_look == UNSETTLED_SECONDS


def test_an_engine_with_the_wrong_weights_is_no_member() -> None:
    other = Probe(version="something-else", generated=True)
    assert workers(decide(serving(pod("a", "10.0.0.1"), probes={"uid-a": other}))) == set()


def test_a_member_that_the_router_does_not_list_is_not_routable() -> None:
    made = decide(serving(pod("a", "10.0.0.1"), listings={"uid-router-0": frozenset()}))
    assert workers(made) == {"http://10.0.0.1:30000"}
    assert made.status["readyReplicas"] == 0
    assert condition(made, "Ready")["status"] == "False"
    assert made.next_look == UNSETTLED_SECONDS


def test_an_engine_counts_only_when_every_router_that_answers_lists_it() -> None:
    url = frozenset({"http://10.0.0.1:30000"})
    world = serving(pod("a", "10.0.0.1"))
    two = replace(world, routers=(router("r1"), router("r2")))
    split = replace(two, listings={"uid-r1": url, "uid-r2": frozenset()})
    assert decide(split).status["readyReplicas"] == 0
    silent = replace(two, listings={"uid-r1": url, "uid-r2": None})
    assert decide(silent).status["readyReplicas"] == 1


def test_a_router_counts_once_the_nodes_can_know_of_it() -> None:
    """Ready is not said before a connection to the Service can be expected to be accepted."""
    fresh = router()
    fresh["status"]["conditions"][0]["lastTransitionTime"] = ago(1)
    made = decide(replace(serving(pod("a", "10.0.0.1")), routers=(fresh,)))
    assert made.status["readyReplicas"] == 0
    assert made.next_look == UNSETTLED_SECONDS


def test_a_deleted_engine_leaves_the_list_at_once() -> None:
    leaving, staying = pod("a", "10.0.0.1"), pod("b", "10.0.0.2")
    leaving["metadata"]["deletionTimestamp"] = ago(0)
    assert workers(decide(serving(leaving, staying))) == {"http://10.0.0.2:30000"}


def test_an_operator_that_comes_back_keeps_members_it_could_not_ask_yet() -> None:
    children = {
        Ref("ConfigMap", "solver-workers"): {
            "data": {"workers.json": workers_document(["http://10.0.0.1:30000"])}
        }
    }
    world = serving(pod("a", "10.0.0.1"), pod("new", "10.0.0.2"), probes={}, children=children)
    made = decide(world)
    assert workers(made) == {"http://10.0.0.1:30000"}
    assert made.next_look == UNSETTLED_SECONDS


def test_a_changed_list_nudges_every_router_once() -> None:
    world = serving(pod("a", "10.0.0.1"))
    made = decide(world)
    assert [action.pod for action in made.actions] == ["router-0"]
    nudged = router()
    document = child(made, "ConfigMap", "solver-workers")["data"]["workers.json"]
    nudged["metadata"]["annotations"][WORKERS_ANNOTATION] = fingerprint(document)
    assert decide(replace(world, routers=(nudged,))).actions == ()


def test_old_weights_go_on_serving_while_a_new_source_rolls_out() -> None:
    world = serving(pod("a", "10.0.0.1"), spec={"model": {"source": "pvc://models/next"}})
    made = decide(world)
    assert workers(made) == {"http://10.0.0.1:30000"}
    assert made.status["checkpoint"] == VERSION


# --- status -----------------------------------------------------------------------------------


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    world = serving(pod("a", "10.0.0.1"))
    first = decide(world).status
    for item in first["conditions"]:
        item["lastTransitionTime"] = ago(1000)
    again = decide(replace(world, service=service({"replicas": 1}, first)))
    assert again.status == first
    assert again.events == ()


def test_ready_with_fewer_replicas_says_what_is_missing() -> None:
    broken = set_container(
        pod("b", "10.0.0.2", ready=False),
        state={"waiting": {"reason": "ImagePullBackOff", "message": "no such host"}},
    )
    made = decide(serving(pod("a", "10.0.0.1"), broken))
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Degraded")
    assert "1 of 2" in ready["message"]
    assert made.status["lastFailure"]["reason"] == "ImagePullFailed"


def test_a_failure_that_is_over_is_kept_and_told_once() -> None:
    stuck = set_container(
        pod("a", "10.0.0.1", ready=False),
        state={"waiting": {"reason": "ImagePullBackOff", "message": "manifest unknown"}},
    )
    failing = decide(serving(stuck))
    assert [event.reason for event in failing.events] == ["ImagePullFailed"]
    again = decide(replace(serving(stuck), service=service({"replicas": 1}, failing.status)))
    assert again.events == ()
    healed = decide(
        replace(serving(pod("a", "10.0.0.1")), service=service({"replicas": 1}, failing.status))
    )
    assert healed.status["lastFailure"] == failing.status["lastFailure"]
    assert [event.reason for event in healed.events] == ["Ready", "CheckpointServed"]


def test_a_refused_child_is_said_with_the_api_servers_own_words() -> None:
    rejections = {Ref("Deployment", "solver-engine"): "spec.template: unknown field foo"}
    made = decide(Observation(service(), rejections=rejections))
    for kind in ("Applied", "Ready"):
        assert condition(made, kind)["reason"] == "Rejected"
        assert "unknown field foo" in condition(made, kind)["message"]


def spec_of(**engine: Any) -> Json:
    return {"engine": engine}


def test_an_impossible_combination_is_a_condition_and_touches_no_child() -> None:
    made = decide(Observation(service(spec_of(profile="deepseek-v4-pro", accelerator="cpu"))))
    assert made.objects == () and made.prune is False
    assert condition(made, "Applied")["reason"] == "UnsupportedProfile"
    assert "cpu" in condition(made, "Applied")["message"]
    assert made.events[0].type == "Warning"


def test_a_spec_that_an_older_crd_let_in_is_a_condition_with_the_fields_path() -> None:
    made = decide(Observation(service(spec_of(profile="gone"))))
    assert condition(made, "Applied")["reason"] == "InvalidSpec"
    assert "spec.engine.profile" in condition(made, "Applied")["message"]
