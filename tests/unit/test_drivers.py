"""Autoscaling by others: what the operator makes for them, what they read, and what is told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from assay_operator.cluster.client import ApiError
from assay_operator.config import OperatorConfig
from assay_operator.health import application
from assay_operator.inference.observation import Observation
from assay_operator.inference.planner import plan
from assay_operator.metrics_api import GROUP_VERSION, MetricsApi
from assay_operator.plan import MANAGED_BY_LABEL, OWNER_LABEL, Json, Plan, Ref, ref
from tests.unit.worlds import NOW, pod, service, serving

CONFIG = OperatorConfig(metricsUrl="http://assay-operator.assay-system.svc:8080")
HPA, KEDA = Ref("HorizontalPodAutoscaler", "solver"), Ref("ScaledObject", "solver")
TARGET = {"apiVersion": "assay.dev/v1alpha1", "kind": "InferenceService", "name": "solver"}
MISSING = ("the server could not find the requested resource", "404 page not found")


def world(driver: str, scaling: Json | None = None, **more: Any) -> Observation:
    """A service of one replica that serves, scaled by somebody."""
    basis = {"min": 1, "max": 4, "objectives": {"ttftMs": 500}, "driver": driver}
    scaling = {**basis, **(scaling or {})}
    return serving(pod("a", "10.0.0.1"), spec={"autoscaling": scaling}, **more)


def decide(observation: Observation, config: OperatorConfig = CONFIG) -> Plan:
    return plan(observation, config, NOW)


def child(made: Plan, name: Ref) -> Json:
    return next(item for item in made.objects if ref(item) == name)


def active(made: Plan) -> Json:
    conditions: list[Json] = made.status["conditions"]
    return next(item for item in conditions if item["type"] == "ScalingActive")


class TestObjects:
    def test_an_hpa_scales_the_service_by_what_the_objectives_require(self) -> None:
        spec = child(decide(world("hpa")), HPA)["spec"]
        assert spec["scaleTargetRef"] == TARGET
        assert (spec["minReplicas"], spec["maxReplicas"]) == (1, 4)
        [metric] = spec["metrics"]
        assert metric["external"] == {
            "metric": {
                "name": "assay_required_replicas",
                "selector": {"matchLabels": {"service": "solver"}},
            },
            "target": {"type": "AverageValue", "averageValue": "1"},
        }

    def test_a_scaled_object_asks_the_operator(self) -> None:
        spec = child(decide(world("keda")), KEDA)["spec"]
        assert spec["scaleTargetRef"] == TARGET
        [trigger] = spec["triggers"]
        assert trigger["type"] == "metrics-api"
        assert trigger["metadata"] == {
            "url": "http://assay-operator.assay-system.svc:8080/autoscaling/default/solver",
            "valueLocation": "required",
            "targetValue": "1",
        }

    def test_kedas_own_autoscaler_is_not_taken_for_ours(self) -> None:
        """KEDA copies a ScaledObject's labels, but for those that it is told to leave."""
        marks = child(decide(world("keda")), KEDA)["metadata"]["annotations"]
        left = marks["scaledobject.keda.sh/hpa-excluded-labels"].split(",")
        assert set(left) == {MANAGED_BY_LABEL, OWNER_LABEL}

    def test_either_takes_replicas_away_as_hesitantly_as_the_spec_says(self) -> None:
        said = {"scaleDownAfter": "2m"}
        behavior = {"scaleDown": {"stabilizationWindowSeconds": 120}}
        assert child(decide(world("hpa", said)), HPA)["spec"]["behavior"] == behavior
        scaled = child(decide(world("keda", said)), KEDA)["spec"]
        assert scaled["advanced"]["horizontalPodAutoscalerConfig"] == {"behavior": behavior}

    def test_where_it_says_nothing_they_do_as_they_do_by_themselves(self) -> None:
        assert "behavior" not in child(decide(world("hpa")), HPA)["spec"]
        assert "advanced" not in child(decide(world("keda")), KEDA)["spec"]

    @pytest.mark.parametrize(("driver", "name"), [("hpa", HPA), ("keda", KEDA)])
    def test_there_is_one_autoscaler_at_a_time(self, driver: str, name: Ref) -> None:
        """What the plan does not name any more is deleted, so none is left to fight with."""
        kinds = {"HorizontalPodAutoscaler", "ScaledObject"}
        made = [ref(item) for item in decide(world(driver)).objects if item["kind"] in kinds]
        assert made == [name]
        assert not [item for item in decide(world("builtin")).objects if item["kind"] in kinds]

    def test_the_number_that_they_write_counts_and_ours_stands_still(self) -> None:
        told = {"driver": "hpa", "replicas": 4, "required": 4}
        seen = replace(world("hpa"), service=scaled("hpa", replicas=2, autoscaling=told))
        engines = child(decide(seen), Ref("Deployment", "solver-engine"))
        assert engines["spec"]["replicas"] == 2
        assert not [event for event in decide(seen).events if event.reason.startswith("Scaled")]


def scaled(driver: str, replicas: int = 1, **status: Any) -> Json:
    scaling = {"min": 1, "max": 4, "objectives": {"ttftMs": 500}, "driver": driver}
    return service({"replicas": replicas, "autoscaling": scaling}, status)


class TestConditions:
    def test_an_autoscaler_that_is_there_and_says_nothing_wrong_scales(self) -> None:
        seen = world("hpa", children={**world("hpa").children, HPA: {"status": {}}})
        found = active(decide(seen))
        assert (found["status"], found["reason"]) == ("True", "DriverScales")
        assert active(decide(world("hpa")))["reason"] == "DriverStarting"

    def test_a_keda_that_does_not_run_scales_nothing(self) -> None:
        seen = world("keda", children={**world("keda").children, KEDA: {"spec": {}}})
        found = active(decide(seen))
        assert (found["status"], found["reason"]) == ("Unknown", "DriverStarting")
        ready = {"conditions": [{"type": "Ready", "status": "True"}]}
        seen = world("keda", children={**world("keda").children, KEDA: {"status": ready}})
        assert active(decide(seen))["reason"] == "DriverScales"

    def test_an_hpa_without_its_metric_is_told_who_serves_it(self) -> None:
        said = {"type": "ScalingActive", "status": "False", "reason": "FailedGetExternalMetric"}
        children = {**world("hpa").children, HPA: {"status": {"conditions": [said]}}}
        message = active(decide(world("hpa", children=children)))["message"]
        assert "metricsApi.enabled" in message and "use driver keda or builtin" in message

    @pytest.mark.parametrize(
        ("name", "kind", "reason"),
        [
            (HPA, "ScalingActive", "FailedGetExternalMetric"),
            (HPA, "AbleToScale", "FailedGetScale"),
            (KEDA, "Ready", "ScaledObjectCheckFailed"),
        ],
    )
    def test_what_it_says_is_wrong_stands_in_the_services_own_condition(
        self, name: Ref, kind: str, reason: str
    ) -> None:
        said = {"type": kind, "status": "False", "reason": reason, "message": "no such metric"}
        driver = "hpa" if name == HPA else "keda"
        children = {**world(driver).children, name: {"status": {"conditions": [said]}}}
        made = decide(world(driver, children=children))
        found = active(made)
        assert (found["status"], found["reason"]) == ("False", "DriverFails")
        assert f"says {reason}: no such metric" in found["message"]
        assert "DriverFails" in {event.reason for event in made.events}

    @pytest.mark.parametrize("told", MISSING)
    def test_a_cluster_without_keda_is_told_and_nothing_else_suffers(self, told: str) -> None:
        made = decide(world("keda", rejections={KEDA: told}))
        found = active(made)
        assert (found["status"], found["reason"]) == ("False", "DriverMissing")
        assert "install KEDA" in found["message"]
        conditions = {item["type"]: item["status"] for item in made.status["conditions"]}
        assert conditions["Applied"] == conditions["Ready"] == "True"

    def test_a_refusal_is_told_in_its_words(self) -> None:
        found = active(decide(world("hpa", rejections={HPA: "it was not made for this object"})))
        assert found["reason"] == "DriverRejected"
        assert "it was not made for this object" in found["message"]

    def test_an_operator_that_keda_cannot_reach_makes_no_scaled_object(self) -> None:
        made = decide(world("keda"), OperatorConfig())
        assert active(made)["reason"] == "DriverNotConfigured"
        assert KEDA not in {ref(item) for item in made.objects}

    def test_a_load_that_is_not_known_is_told_here_too(self) -> None:
        told = {"driver": "hpa", "unknownSince": "2026-11-24T11:00:00Z", "replicas": 1}
        there = {**world("hpa").children, HPA: {"status": {}}}
        seen = replace(world("hpa", children=there), service=scaled("hpa", autoscaling=told))
        found = active(decide(seen))
        assert (found["status"], found["reason"]) == ("False", "MetricsUnknown")


class Services:
    """Looks services up as an API server would."""

    def __init__(self) -> None:
        self.told: Json = {"required": 3, "time": "2026-11-24T12:00:00Z"}

    async def __call__(self, namespace: str, name: str) -> Json:
        if (namespace, name) != ("team", "solver"):
            raise ApiError(404, "NotFound", f'inferenceservices "{name}" not found')
        return service(status={"autoscaling": self.told})


@pytest.fixture
def services() -> Services:
    return Services()


class TestForKeda:
    @pytest.fixture
    async def client(self, services: Services) -> AsyncIterator[TestClient[Any, Any]]:
        made = application(list, list, lambda: None, MetricsApi(services).plain())
        async with TestClient(TestServer(made)) as client:
            yield client

    async def test_it_reads_one_number(self, client: TestClient[Any, Any]) -> None:
        answer = await client.get("/autoscaling/team/solver")
        assert (answer.status, await answer.json()) == (200, {"required": 3})

    @pytest.mark.parametrize("told", [{}, {"required": 3, "unknownSince": "2026-11-24T12:00:00Z"}])
    async def test_what_is_not_known_is_an_error_and_no_zero(
        self, client: TestClient[Any, Any], services: Services, told: Json
    ) -> None:
        services.told = told
        assert (await client.get("/autoscaling/team/solver")).status == 503

    async def test_one_that_is_not_there(self, client: TestClient[Any, Any]) -> None:
        assert (await client.get("/autoscaling/team/other")).status == 404


class TestForHorizontalPodAutoscalers:
    @pytest.fixture
    async def client(self, services: Services) -> AsyncIterator[TestClient[Any, Any]]:
        async with TestClient(TestServer(MetricsApi(services).aggregated())) as client:
            yield client

    async def asked(self, client: TestClient[Any, Any], path: str) -> tuple[int, Json]:
        answer = await client.get(f"/apis/{GROUP_VERSION}{path}")
        return answer.status, await answer.json()

    async def test_the_api_server_finds_out_what_there_is(
        self, client: TestClient[Any, Any]
    ) -> None:
        status, told = await self.asked(client, "")
        assert status == 200 and told["groupVersion"] == GROUP_VERSION
        assert [item["name"] for item in told["resources"]] == ["assay_required_replicas"]

    async def test_the_metric_of_a_service(self, client: TestClient[Any, Any]) -> None:
        path = "/namespaces/team/assay_required_replicas?labelSelector=service%3Dsolver"
        status, told = await self.asked(client, path)
        assert status == 200 and told["kind"] == "ExternalMetricValueList"
        assert told["items"] == [
            {
                "metricName": "assay_required_replicas",
                "metricLabels": {"service": "solver"},
                "timestamp": "2026-11-24T12:00:00Z",
                "value": "3",
            }
        ]

    async def test_what_is_not_known_is_no_item_and_no_zero(
        self, client: TestClient[Any, Any], services: Services
    ) -> None:
        services.told = {}
        path = "/namespaces/team/assay_required_replicas?labelSelector=service%3Dsolver"
        assert (await self.asked(client, path))[1]["items"] == []

    @pytest.mark.parametrize(
        ("path", "status", "says"),
        [
            ("/namespaces/team/queue_length?labelSelector=service%3Dsolver", 404, "only metric"),
            ("/namespaces/team/assay_required_replicas", 400, "service=NAME"),
            (
                "/namespaces/team/assay_required_replicas?labelSelector=service%3Da,x%3Db",
                400,
                "service=NAME",
            ),
            (
                "/namespaces/team/assay_required_replicas?labelSelector=service%3Dother",
                404,
                "not found",
            ),
        ],
    )
    async def test_whatever_else_is_refused_in_the_api_servers_own_form(
        self, client: TestClient[Any, Any], path: str, status: int, says: str
    ) -> None:
        answered, told = await self.asked(client, path)
        assert (answered, told["kind"], told["code"]) == (status, "Status", status)
        assert says in told["message"]
