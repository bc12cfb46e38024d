"""Who may reach the pods of services and jobs, where a cluster enforces NetworkPolicies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pytest

from assay_operator.config import OperatorConfig
from assay_operator.inference.observation import (
    ENGINE_PORT,
    METRICS_PORT,
    ROUTER_PORT,
    Observation,
)
from assay_operator.inference.planner import plan
from assay_operator.plan import Json, Plan, Ref, ref
from assay_operator.training.jobfile import STATUS_PORT
from assay_operator.training.pods import MASTER_PORT
from tests.unit.plan_fleet import GATED
from tests.unit.plan_fleet import Cluster as Fleet
from tests.unit.test_training_objects import running
from tests.unit.worlds import NOW, service

OPERATOR = {"app.kubernetes.io/name": "assay", "app.kubernetes.io/component": "operator"}
MONITORING = {"kubernetes.io/metadata.name": "monitoring"}
CONFIG = OperatorConfig.model_validate(
    {"networkPolicy": {"operator": {"namespace": "assay-system", "podLabels": OPERATOR}}}
)
WATCHED = OperatorConfig.model_validate(
    {
        "networkPolicy": {
            "operator": {"namespace": "assay-system", "podLabels": OPERATOR},
            "metricsFrom": [{"namespaceSelector": {"matchLabels": MONITORING}}],
        }
    }
)


@dataclass(frozen=True)
class Pod:
    """What a policy sees of a pod."""

    labels: Json
    namespace: str = "default"

    def matches(self, selector: Json | None) -> bool:
        wanted = (selector or {}).get("matchLabels", {})
        return bool(wanted.items() <= self.labels.items())


STRANGER = Pod({"app": "chat"})
OPERATORS = Pod(OPERATOR, "assay-system")
PROMETHEUS = Pod({"app": "prometheus"}, "monitoring")
DATABASE = Pod({"app": "database"}, "monitoring")


def is_peer(peer: Json, pod: Pod, namespace: str) -> bool:
    places = peer.get("namespaceSelector")
    if places is None:
        return pod.namespace == namespace and pod.matches(peer["podSelector"])
    named = Pod({"kubernetes.io/metadata.name": pod.namespace}).matches(places)
    return named and pod.matches(peer.get("podSelector"))


def lets(rules: Iterable[Json], side: str, other: Pod, port: int, namespace: str) -> bool:
    def fits(rule: Json) -> bool:
        ports = [each["port"] for each in rule.get("ports", ()) if each["protocol"] == "TCP"]
        peers = rule.get(side)
        named = peers is None or any(is_peer(peer, other, namespace) for peer in peers)
        return named and (not rule.get("ports") or port in ports)

    return any(fits(rule) for rule in rules)


def reaches(policies: list[Json], source: Pod, target: Pod, port: int) -> bool:
    """Whether a cluster that enforces the policies lets `source` connect to a port of `target`."""

    def allowed(kind: str, side: str, mine: Pod, other: Pod) -> bool:
        found = [
            item
            for item in policies
            if kind in item["spec"]["policyTypes"]
            and item["metadata"]["namespace"] == mine.namespace
            and mine.matches(item["spec"]["podSelector"])
        ]
        rules = [rule for item in found for rule in item["spec"].get(kind.lower(), ())]
        return not found or lets(rules, side, other, port, mine.namespace)

    return allowed("Ingress", "from", target, source) and allowed("Egress", "to", source, target)


def network_policies(made: Plan | Iterable[Json]) -> list[Json]:
    objects = made.objects if isinstance(made, Plan) else made
    return [item for item in objects if item["kind"] == "NetworkPolicy"]


def pod_of(made: Plan, kind: str, name: str) -> Pod:
    """A pod as its template makes it."""
    item = next(item for item in made.objects if ref(item) == Ref(kind, name))
    return Pod(item["spec"]["template"]["metadata"]["labels"])


# --- a service --------------------------------------------------------------------------------


def served(config: OperatorConfig = CONFIG, name: str = "solver") -> Plan:
    item = service()
    item["metadata"] = {**item["metadata"], "name": name}
    return plan(Observation(item), config, NOW)


def gated() -> tuple[Pod, list[Json]]:
    """The pod of a service's gate, and all policies that the service has meanwhile."""
    fleet = Fleet({"rollout": GATED})
    fleet.config = CONFIG
    fleet.settle()
    fleet.disk["models", "next"] = "good"
    fleet.serve("pvc://models/next")
    fleet.run("Gating")
    fleet.reconcile()
    (job,) = [item for (kind, _), item in fleet.children.items() if kind == "Job"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    return Pod(labels), network_policies(fleet.children.values())


def test_an_engine_is_reached_by_its_routers_and_the_operator_and_by_nobody_else() -> None:
    made, other = served(), served(name="other")
    policies = network_policies(made) + network_policies(other)
    engine = pod_of(made, "Deployment", "solver-engine")
    for pod in (pod_of(made, "Deployment", "solver-router"), OPERATORS):
        assert reaches(policies, pod, engine, ENGINE_PORT)
        assert not reaches(policies, pod, engine, 22)
    elsewhere = Pod(pod_of(made, "Deployment", "solver-router").labels, "team-b")
    pretended = Pod(OPERATOR, "team-b")
    theirs = pod_of(other, "Deployment", "other-router")
    for pod in (STRANGER, PROMETHEUS, engine, elsewhere, pretended, theirs):
        assert not reaches(policies, pod, engine, ENGINE_PORT)


def test_a_gate_asks_the_engines_of_its_service_alone() -> None:
    made, other = served(), served(name="other")
    asker, own = gated()
    policies = own + network_policies(other)
    engine = pod_of(made, "Deployment", "solver-engine")
    assert reaches(policies, asker, engine, ENGINE_PORT)
    assert not reaches(policies, STRANGER, asker, ENGINE_PORT)
    for pod in (pod_of(other, "Deployment", "other-engine"), DATABASE):
        assert not reaches(policies, asker, pod, ENGINE_PORT)


def test_everybody_may_ask_a_router_which_asks_its_engines_alone() -> None:
    made, other = served(), served(name="other")
    policies = network_policies(made) + network_policies(other)
    router = pod_of(made, "Deployment", "solver-router")
    for pod in (STRANGER, PROMETHEUS, OPERATORS):
        assert reaches(policies, pod, router, ROUTER_PORT)
    assert reaches(policies, OPERATORS, router, METRICS_PORT)
    assert not reaches(policies, STRANGER, router, METRICS_PORT)
    assert reaches(policies, router, pod_of(made, "Deployment", "solver-engine"), ENGINE_PORT)
    for pod in (pod_of(other, "Deployment", "other-engine"), DATABASE):
        assert not reaches(policies, router, pod, ENGINE_PORT)


@pytest.mark.parametrize("component", ["engine", "router"])
def test_what_serves_looks_up_names_and_reaches_nothing_else(component: str) -> None:
    made = served()
    pod = pod_of(made, "Deployment", f"solver-{component}")
    assert reaches(network_policies(made), pod, Pod({"k8s-app": "kube-dns"}, "kube-system"), 53)
    for port in (80, 443, ENGINE_PORT, STATUS_PORT):
        assert not reaches(network_policies(made), pod, DATABASE, port)


# --- a job ------------------------------------------------------------------------------------


def trained(config: OperatorConfig = CONFIG) -> tuple[list[Json], Pod, Pod]:
    """A job's policies, one of its engines and one of its trainers."""
    made = running({"trainer": {"nodes": 2}}, config)
    return (
        network_policies(made),
        pod_of(made, "StatefulSet", "solver-rl-engine"),
        pod_of(made, "Job", "solver-rl-trainer-1"),
    )


def test_a_jobs_engine_is_reached_by_its_trainers_alone() -> None:
    policies, engine, trainer = trained()
    assert reaches(policies, trainer, engine, ENGINE_PORT)
    for pod in (STRANGER, OPERATORS, PROMETHEUS, engine):
        assert not reaches(policies, pod, engine, ENGINE_PORT)
    assert not reaches(policies, engine, DATABASE, 443)


def test_a_service_of_the_same_name_reaches_no_engine_of_a_job() -> None:
    policies, engine, trainer = trained()
    made = served(name="solver-rl")
    both = policies + network_policies(made)
    assert len({ref(item) for item in both}) == 4, "no policy is taken for another's"
    assert not reaches(both, pod_of(made, "Deployment", "solver-rl-router"), engine, ENGINE_PORT)
    theirs = pod_of(made, "Deployment", "solver-rl-engine")
    assert not reaches(both, trainer, theirs, ENGINE_PORT)


def test_trainers_reach_each_other_by_every_port_and_others_by_none() -> None:
    policies, engine, trainer = trained()
    for port in (MASTER_PORT, STATUS_PORT, 41_234):
        assert reaches(policies, trainer, trainer, port)
        for pod in (STRANGER, engine, PROMETHEUS):
            assert not reaches(policies, pod, trainer, port)
    assert reaches(policies, OPERATORS, trainer, STATUS_PORT)
    assert not reaches(policies, OPERATORS, trainer, MASTER_PORT)


def test_a_trainer_reaches_judges_wherever_they_are() -> None:
    policies, _, trainer = trained()
    assert reaches(policies, trainer, DATABASE, 443)


# --- what the administrator says ----------------------------------------------------------------


def test_prometheus_reads_metrics_where_the_administrator_lets_it() -> None:
    made = served(WATCHED)
    job, engine, trainer = trained(WATCHED)
    for policies, pod, port in (
        (network_policies(made), pod_of(made, "Deployment", "solver-engine"), ENGINE_PORT),
        (network_policies(made), pod_of(made, "Deployment", "solver-router"), METRICS_PORT),
        (job, engine, ENGINE_PORT),
        (job, trainer, STATUS_PORT),
    ):
        assert reaches(policies, PROMETHEUS, pod, port)
        assert not reaches(policies, STRANGER, pod, port)
    assert not reaches(job, PROMETHEUS, trainer, MASTER_PORT)


def test_without_a_word_where_the_operator_is_nobody_is_locked_out() -> None:
    plain = OperatorConfig()
    assert network_policies(served(plain)) == []
    assert network_policies(running(None, plain)) == []


@pytest.mark.parametrize(
    "operator",
    [
        {"namespace": "assay-system", "podLabels": {}},
        {"namespace": "", "podLabels": OPERATOR},
        {"podLabels": OPERATOR},
    ],
)
def test_labels_that_everybody_has_are_refused(operator: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"networkPolicy\.operator"):
        OperatorConfig.model_validate({"networkPolicy": {"operator": operator}})
