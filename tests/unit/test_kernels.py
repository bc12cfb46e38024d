"""Fused kernels that a service asks for: what it gets, and what is told where they do not run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.config import OperatorConfig
from assay_operator.inference.kernels import Kernels, asks_for_fused
from assay_operator.inference.observation import Observation, Probe, engine_url
from assay_operator.inference.planner import plan
from assay_operator.inference.profiles import profile_of
from assay_operator.inference.scaling import policy_of, standing
from assay_operator.inference.templates import TEMPLATE_ANNOTATION
from assay_operator.plan import Json, Plan, Ref, ref
from tests.unit.worlds import GOOD, NOW, VERSION, ago, pod, service, serving

FUSED: Json = {"engine": {"accelerator": "cpu", "kernels": "fused"}}
RUNS = Kernels(
    active=True,
    ops=("rms_norm", "sampler"),
    hardened=True,
    release="plugin 0.1.0, SGLang 0.5.23",
)
LACKS = Kernels(active=False, why_not="sampler is not installed in process 7: another signature")


def decide(observation: Observation) -> Plan:
    return plan(observation, OperatorConfig(), NOW)


def engine(name: str, ip: str = "10.0.0.1", *, kernels: str = "fused", mark: str = "") -> Json:
    """An engine pod that was asked for kernels."""
    made = pod(name, ip)
    variable = {"name": "ASSAY_KERNELS", "value": kernels}
    made["spec"] = {"containers": [{"name": "engine", "env": [variable]}]}
    made["metadata"]["annotations"][TEMPLATE_ANNOTATION] = mark
    return made


def told(kernels: Kernels | None) -> Probe:
    """What the client makes of an engine that says this."""
    return Probe(VERSION, generated=kernels is None or kernels.active, kernels=kernels)


def world(*engines: Json, says: Mapping[str, Kernels | None], spec: Json = FUSED) -> Observation:
    probes = {f"uid-{name}": told(kernels) for name, kernels in says.items()}
    return serving(*engines, spec=spec, probes=probes)


def condition(made: Plan, kind: str) -> Json:
    found: dict[str, Json] = {item["type"]: item for item in made.status["conditions"]}
    return found[kind]


def deployment(made: Plan) -> Json:
    found = next(o for o in made.objects if ref(o) == Ref("Deployment", "solver-engine"))
    spec: Json = found["spec"]
    return spec


def mark_of(made: Plan) -> str:
    """The mark of the template that pods are made from."""
    mark: str = deployment(made)["template"]["metadata"]["annotations"][TEMPLATE_ANNOTATION]
    return mark


def environment(spec: Json) -> dict[str, str]:
    pods = deployment(decide(Observation(service(spec))))["template"]["spec"]
    return {item["name"]: item["value"] for item in pods["containers"][0]["env"]}


# --- What is asked for ------------------------------------------------------------------------


def test_an_engine_is_told_what_the_spec_asks_for() -> None:
    gpu = environment({"engine": {"accelerator": "nvidia-h200"}})
    assert (gpu["ASSAY_KERNELS"], gpu["SGLANG_PLUGINS"]) == ("fused", "assay")
    assert environment(FUSED)["ASSAY_KERNELS"] == "fused"
    assert environment({})["ASSAY_KERNELS"] == "stock"


def test_whoever_overrides_the_environment_has_the_last_word() -> None:
    variable = {"name": "SGLANG_PLUGINS", "value": "assay,theirs"}
    override = {"spec": {"containers": [{"name": "engine", "env": [variable]}]}}
    assert environment({**FUSED, "template": override})["SGLANG_PLUGINS"] == "assay,theirs"


@pytest.mark.parametrize(
    ("containers", "asked"),
    [
        ([{"name": "engine", "env": [{"name": "ASSAY_KERNELS", "value": "fused"}]}], True),
        ([{"name": "engine", "env": [{"name": "ASSAY_KERNELS", "value": "stock"}]}], False),
        ([{"name": "engine", "env": [{"name": "ASSAY_KERNELS", "valueFrom": {}}]}], False),
        ([{"name": "engine"}], False),
        ([{"name": "beside", "env": [{"name": "ASSAY_KERNELS", "value": "fused"}]}], False),
        ([], False),
    ],
)
def test_a_pod_tells_what_it_was_asked_for(containers: list[Any], asked: bool) -> None:
    assert asks_for_fused({"spec": {"containers": containers}}) is asked


# --- What is told -----------------------------------------------------------------------------


def test_a_service_whose_engines_run_them_says_which() -> None:
    made = decide(world(engine("a"), says={"a": RUNS}))
    assert condition(made, "Ready")["reason"] == "Serving"
    active = condition(made, "KernelsActive")
    assert (active["status"], active["reason"]) == ("True", "Fused")
    assert "1 of 1 engines run rms_norm, sampler" in active["message"]
    assert "plugin 0.1.0, SGLang 0.5.23" in active["message"]
    assert "not refused" not in active["message"]


def test_an_engine_that_is_not_hardened_serves_and_that_is_told() -> None:
    made = decide(world(engine("a"), says={"a": replace(RUNS, hardened=False)}))
    assert condition(made, "Ready")["status"] == "True"
    assert "would end an engine are not refused" in condition(made, "KernelsActive")["message"]


def test_a_service_without_them_is_not_ready_and_says_why_and_what_to_do() -> None:
    made = decide(world(engine("a"), says={"a": LACKS}))
    assert made.status["readyReplicas"] == 0
    for kind in ("Ready", "EnginesReady"):
        found = condition(made, kind)
        assert (found["status"], found["reason"]) == ("False", "KernelsInactive")
        assert LACKS.why_not in found["message"] and "pod/a" in found["message"]
        assert "image" in found["message"] and "stock" in found["message"]
    assert condition(made, "KernelsActive")["reason"] == "KernelsInactive"
    assert made.status["lastFailure"]["fatal"]
    assert [(event.reason, event.type) for event in made.events] == [("KernelsInactive", "Warning")]


def test_one_replica_of_two_without_them_gets_no_requests() -> None:
    both = (engine("a"), engine("b", "10.0.0.2"))
    made = decide(world(*both, says={"a": RUNS, "b": LACKS}))
    workers = next(o for o in made.objects if ref(o) == Ref("ConfigMap", "solver-workers"))
    assert "10.0.0.1" in workers["data"]["workers.json"]
    assert "10.0.0.2" not in workers["data"]["workers.json"]
    ready = condition(made, "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Degraded")
    assert "1 of 2" in ready["message"] and LACKS.why_not in ready["message"]


def test_nothing_is_said_of_kernels_before_an_engine_has() -> None:
    for says in ({}, {"a": None}):
        active = condition(decide(world(engine("a"), says=says)), "KernelsActive")
        assert (active["status"], active["reason"]) == ("Unknown", "Starting")
    active = condition(decide(world(says={})), "KernelsActive")
    assert (active["status"], active["reason"]) == ("Unknown", "NoEngine")


def test_that_all_run_them_is_said_once_all_have_told() -> None:
    three = [engine(name, f"10.0.0.{at}") for at, name in enumerate("abc")]
    active = condition(decide(world(*three, says={"a": RUNS, "b": None})), "KernelsActive")
    assert (active["status"], active["reason"]) == ("Unknown", "Starting")
    assert "1 of 3" in active["message"]
    active = condition(decide(world(*three, says=dict.fromkeys("abc", RUNS))), "KernelsActive")
    assert (active["status"], active["reason"]) == ("True", "Fused")
    one_lacks = world(*three, says={"a": RUNS, "b": LACKS})
    assert condition(decide(one_lacks), "KernelsActive")["status"] == "False", "one is enough"


def test_a_service_with_stock_kernels_is_not_told_of_kernels() -> None:
    made = decide(serving(engine("a", kernels="stock"), probes={"uid-a": GOOD}))
    assert condition(made, "Ready")["reason"] == "Serving"
    assert "KernelsActive" not in {item["type"] for item in made.status["conditions"]}


# --- A changed spec ---------------------------------------------------------------------------


def test_engines_of_before_serve_until_those_with_fused_kernels_do() -> None:
    old = engine("old", kernels="stock")
    made = decide(world(old, says={"old": None}))
    assert made.status["readyReplicas"] == 1 and "paused" not in deployment(made)


def test_a_template_whose_pods_lack_them_replaces_no_more_of_those_that_serve() -> None:
    """The kubelet finds such a pod ready, and a Deployment asks nobody else."""
    old = engine("old", kernels="stock")
    mark = mark_of(decide(world(old, says={"old": None})))
    new = engine("new", "10.0.0.2", mark=mark)
    made = decide(world(old, new, says={"old": None, "new": LACKS}))
    held = deployment(made)
    assert held["paused"] is True
    # A paused Deployment ends its old pods all the same once enough new ones are available.
    assert held["minReadySeconds"] > 60 * 365 * 24 * 3600 < held["progressDeadlineSeconds"]
    assert held["minReadySeconds"] < held["progressDeadlineSeconds"] < 2**31
    assert made.status["readyReplicas"] == 1, "what served goes on serving"
    assert condition(made, "EnginesReady")["reason"] == "KernelsInactive"

    stock = {"engine": {"accelerator": "cpu", "kernels": "stock"}}
    mended = decide(world(old, new, says={"old": None, "new": LACKS}, spec=stock))
    assert "paused" not in deployment(mended), "another template may be the remedy"
    assert deployment(mended)["minReadySeconds"] == 10
    late = decide(world(old, new, says={"old": None, "new": RUNS}))
    assert "paused" not in deployment(late)


@pytest.mark.parametrize("silence", [{}, {"new": Probe(error="/assay/kernels: no answer")}])
@pytest.mark.parametrize("paused", [True, False])
def test_an_operator_that_comes_back_leaves_the_pause_as_it_is_until_new_pods_have_told(
    silence: Mapping[str, Probe], paused: bool
) -> None:
    """What they told the operator before is lost with it."""
    old = engine("old", kernels="stock")
    mark = mark_of(decide(world(old, says={"old": None})))
    new = engine("new", "10.0.0.2", mark=mark)
    stands = {"replicas": 1, **({"paused": True} if paused else {})}
    there = {Ref("Deployment", "solver-engine"): {"spec": stands}}

    def after(seen: Observation) -> Plan:
        return decide(replace(seen, children={**seen.children, **there}))

    quiet = world(old, new, says={"old": None})
    quiet = replace(
        quiet, probes={**quiet.probes, **{f"uid-{name}": said for name, said in silence.items()}}
    )
    assert deployment(after(quiet)).get("paused", False) is paused
    assert deployment(after(world(old, new, says={"old": None, "new": LACKS})))["paused"] is True
    assert "paused" not in deployment(after(world(old, new, says={"old": None, "new": RUNS})))

    stock = {"engine": {"accelerator": "cpu", "kernels": "stock"}}
    mended = replace(quiet, service=service({**stock, "replicas": 2}))
    assert "paused" not in deployment(after(mended)), "another template may be the remedy"


# --- Replicas that follow the load ------------------------------------------------------------

SCALED: Json = {
    **FUSED,
    "autoscaling": {"min": 0, "max": 5, "objectives": {"concurrency": 8}},
}


def scaled(
    *engines: Json, says: Mapping[str, Kernels | None], replicas: int, phase: str = "Serving"
) -> Observation:
    """A service that has that many replicas by now; its router lists whoever runs the kernels."""
    found = world(*engines, says=says, spec=SCALED)
    status = {
        "autoscaling": {"driver": "builtin", "replicas": replicas, "specReplicas": 1},
        "activation": {"phase": phase, "since": ago(60)},
    }
    listed = frozenset(
        str(engine_url(each)) for each in engines if says[each["metadata"]["name"]] != LACKS
    )
    return replace(
        found,
        service={**found.service, "spec": {**found.service["spec"], "replicas": 1}}
        | {"status": status},
        activators=(pod("activator", "10.8.0.1", container="activator"),),
        listings=dict.fromkeys(found.listings, listed),
    )


def starting(observation: Observation) -> int:
    spec = InferenceServiceSpec.model_validate(observation.service["spec"])
    return standing(observation, spec, policy_of(spec, profile_of(spec.engine)), NOW).starting


def test_a_replica_without_them_is_none_that_serves_to_who_decides_about_replicas() -> None:
    alone = scaled(engine("a"), says={"a": LACKS}, replicas=1)
    assert starting(alone) == 1, "it was asked for, and is not there"
    both = (engine("a"), engine("b", "10.0.0.2"))
    beside = scaled(*both, says={"a": RUNS, "b": LACKS}, replicas=1)
    assert starting(beside) == 0, "what a paused Deployment has too many holds nothing up"
    assert starting(scaled(*both, says={"a": RUNS, "b": RUNS}, replicas=2)) == 0
    assert starting(scaled(*both, says={"a": RUNS, "b": LACKS}, replicas=3)) == 2


def test_a_deployment_that_is_paused_for_them_is_scaled_all_the_same() -> None:
    mark = mark_of(decide(scaled(says={}, replicas=1)))
    pods = (engine("old"), engine("new", "10.0.0.2", mark=mark))
    for replicas in (1, 4):
        made = decide(scaled(*pods, says={"old": RUNS, "new": LACKS}, replicas=replicas))
        assert (deployment(made)["paused"], deployment(made)["replicas"]) == (True, replicas)


def test_requests_wait_for_a_replica_that_runs_them_and_it_is_told_why() -> None:
    made = decide(scaled(engine("a"), says={"a": LACKS}, replicas=1, phase="Waking"))
    assert made.status["activation"]["phase"] == "Waking", "nobody gets its requests"
    assert condition(made, "Ready")["reason"] == "KernelsInactive"


def test_replicas_without_them_may_leave_and_nothing_is_paused_where_none_is_left() -> None:
    """They are up, so none of them counts as loading, which would not be broken off."""
    mark = mark_of(decide(scaled(says={}, replicas=1)))
    lost = engine("a", mark=mark)
    made = decide(scaled(lost, says={"a": LACKS}, replicas=0))
    assert made.status["activation"]["phase"] == "Leaving"
    away = decide(scaled(says={}, replicas=0, phase="Away"))
    assert deployment(away)["replicas"] == 0 and "paused" not in deployment(away)
    assert condition(away, "Ready")["reason"] == "ScaledToZero"
    assert condition(away, "KernelsActive")["reason"] == "NoEngine"
