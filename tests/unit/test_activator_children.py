"""What a service that may have no replica has beside the others' children."""

from __future__ import annotations

from typing import Any

import pytest

from assay_operator.activator.__main__ import main
from assay_operator.activator.settings import Settings
from assay_operator.config import OperatorConfig
from assay_operator.inference.activator import ACTIVATOR
from assay_operator.inference.objects import DRAIN_SECONDS, FINISH_SECONDS
from assay_operator.inference.observation import (
    ACTIVATOR_PORT,
    ACTIVATOR_STATUS_PORT,
    ENGINE_PORT,
    ROUTER_PORT,
    Observation,
)
from assay_operator.inference.planner import plan
from assay_operator.inference.profiles import resolve
from assay_operator.plan import Json, Plan, Ref, ref
from tests.unit.test_policies import (
    CONFIG,
    DATABASE,
    OPERATORS,
    PROMETHEUS,
    STRANGER,
    WATCHED,
    network_policies,
    pod_of,
    reaches,
)
from tests.unit.worlds import NOW, service

SCALING: Json = {"min": 0, "max": 2, "objectives": {"concurrency": 8}}


def planned(
    config: OperatorConfig = CONFIG, status: Json | None = None, **autoscaling: Any
) -> Plan:
    """A service's children; one that may have no replica unless it is said otherwise."""
    spec = {"autoscaling": {**SCALING, **autoscaling}}
    return plan(Observation(service(spec, status)), config, NOW)


def found(made: Plan, kind: str, name: str) -> Json:
    return next(item for item in made.objects if ref(item) == Ref(kind, name))


def container(made: Plan) -> Json:
    template = found(made, "Deployment", "solver-activator")["spec"]["template"]
    (only,) = template["spec"]["containers"]
    return dict(only)


AWAY: Json = {
    "autoscaling": {"replicas": 0, "driver": "builtin"},
    "activation": {"phase": "Away", "since": "2026-11-24T11:00:00Z"},
}


def test_a_service_that_always_has_a_replica_has_none_of_it() -> None:
    names = {item["metadata"]["name"] for item in planned(min=1).objects}
    assert not {"solver-activator", "solver-routers"} & names


def test_at_zero_the_service_points_to_the_activator_and_nothing_else_runs() -> None:
    made = planned(status=AWAY)
    wanted = {
        item["metadata"]["name"]: item["spec"]["replicas"]
        for item in made.objects
        if item["kind"] == "Deployment"
    }
    assert wanted == {"solver-engine": 0, "solver-router": 0, "solver-activator": 1}
    selector = found(made, "Service", "solver")["spec"]["selector"]
    assert selector["app.kubernetes.io/component"] == ACTIVATOR
    assert pod_of(made, "Deployment", "solver-activator").matches({"matchLabels": selector})


@pytest.mark.parametrize("status", [None, AWAY])
def test_the_activator_finds_the_routers_wherever_the_service_points(status: Json | None) -> None:
    made = planned(status=status)
    selector = found(made, "Service", "solver-routers")["spec"]["selector"]
    assert pod_of(made, "Deployment", "solver-router").matches({"matchLabels": selector})
    arguments = container(made)["args"]
    assert arguments[arguments.index("--upstream") + 1] == "http://solver-routers.default.svc"


def test_the_service_finds_either_by_the_name_of_the_port() -> None:
    made = planned()
    (port,) = found(made, "Service", "solver")["spec"]["ports"]
    for name in ("solver-router", "solver-activator"):
        pod = found(made, "Deployment", name)["spec"]["template"]["spec"]
        ports = [each["name"] for item in pod["containers"] for each in item["ports"]]
        assert port["targetPort"] in ports


def test_the_program_understands_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    async def run(*told: Any) -> None:
        given.extend(told)

    monkeypatch.setattr("assay_operator.activator.server.run", run)
    assert main(container(planned())["args"]) == 0
    limits = CONFIG.activator
    assert given == [
        Settings(
            upstream="http://solver-routers.default.svc",
            model="solver",
            hold_seconds=limits.holdSeconds,
            start_seconds=resolve("auto", "cpu", "throughput", None).expected.startup_s,
            finish_seconds=FINISH_SECONDS,
            requests=limits.requests,
            size=limits.megabytes << 20,
        ),
        ACTIVATOR_PORT,
        ACTIVATOR_STATUS_PORT,
    ]


def test_its_pod_is_small_and_may_nothing() -> None:
    template = found(planned(), "Deployment", "solver-activator")["spec"]["template"]["spec"]
    assert template["automountServiceAccountToken"] is False
    assert template["securityContext"]["runAsNonRoot"] is True
    security = container(planned())["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert container(planned())["resources"]["requests"] == {"cpu": "10m", "memory": "48Mi"}
    assert "volumes" not in template


def test_it_may_finish_before_it_is_killed() -> None:
    template = found(planned(), "Deployment", "solver-activator")["spec"]["template"]["spec"]
    sleep = container(planned())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert template["terminationGracePeriodSeconds"] > sleep + FINISH_SECONDS
    assert sleep < DRAIN_SECONDS


def test_its_image_is_the_operators_unless_the_administrator_says_otherwise() -> None:
    assert container(planned())["image"].startswith("assay/operator:")
    mine = OperatorConfig.model_validate(
        {
            "activator": {
                "image": "mine:1",
                "template": {"spec": {"nodeSelector": {"pool": "small"}}},
            }
        }
    )
    made = planned(mine)
    assert container(made)["image"] == "mine:1"
    template = found(made, "Deployment", "solver-activator")["spec"]["template"]
    assert template["spec"]["nodeSelector"] == {"pool": "small"}


def test_everybody_asks_the_activator_and_only_the_operator_how_it_is() -> None:
    made = planned()
    policies, activator = network_policies(made), pod_of(made, "Deployment", "solver-activator")
    for pod in (STRANGER, OPERATORS):
        assert reaches(policies, pod, activator, ACTIVATOR_PORT)
    assert reaches(policies, OPERATORS, activator, ACTIVATOR_STATUS_PORT)
    for pod in (STRANGER, PROMETHEUS):
        assert not reaches(policies, pod, activator, ACTIVATOR_STATUS_PORT)
    watched = planned(WATCHED)
    assert reaches(network_policies(watched), PROMETHEUS, activator, ACTIVATOR_STATUS_PORT)


def test_the_activator_reaches_its_routers_and_nothing_else() -> None:
    made = planned()
    policies, activator = network_policies(made), pod_of(made, "Deployment", "solver-activator")
    assert reaches(policies, activator, pod_of(made, "Deployment", "solver-router"), ROUTER_PORT)
    engine = pod_of(made, "Deployment", "solver-engine")
    assert not reaches(policies, activator, engine, ENGINE_PORT)
    assert not reaches(policies, activator, DATABASE, 443)
