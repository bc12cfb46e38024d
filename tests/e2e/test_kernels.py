"""A service whose spec asks for fused kernels is told whether its engines run them.

On the CPU they are plain PyTorch: that they are in their places is what can be seen here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.e2e.clients import Load, engines, told_within
from tests.e2e.rollouts import patch
from tests.kube import Json, Kube, infsvc, wait_for

FUSED: Json = {"engine": {"kernels": "fused"}}
# Empty would let SGLang load every plugin.
NO_PLUGIN: Json = {"name": "SGLANG_PLUGINS", "value": "none"}
WITHOUT: Json = {"template": {"spec": {"containers": [{"name": "engine", "env": [NO_PLUGIN]}]}}}
PAST_MIN_READY = 15
"""Seconds after which a Deployment takes a new pod that is ready for a good one."""


@pytest.fixture(scope="module")
def services(kube: Kube, model: str) -> Iterator[Kube]:
    """One with the plugin and one without, which start together."""
    kube.apply(infsvc("fused", FUSED), infsvc("lacking", {**FUSED, **WITHOUT}))
    yield kube
    for name in ("fused", "lacking"):
        kube.delete("infsvc", name)
    for name in ("fused", "lacking"):
        kube.wait_gone(name)


def test_engines_that_run_them_serve_and_it_is_told_which(services: Kube) -> None:
    services.wait_ready("fused")
    [engine] = engines(services, "fused")
    answer = told_within(services, engine["metadata"]["name"], "'/assay/kernels'")
    assert answer["active"] and answer["kernels"] == "fused" and answer["hardened"]
    told = services.condition("fused", "KernelsActive")
    assert (told["status"], told["reason"]) == ("True", "Fused")
    installed = {
        name
        for process in answer["processes"]
        for name, state in process["ops"].items()
        if state["installed"]
    }
    assert installed and all(name in told["message"] for name in installed)


def test_an_engine_without_the_plugin_gets_no_requests_and_the_remedy_is_told(
    services: Kube,
) -> None:
    def told() -> bool:
        return services.condition("lacking").get("reason") == "KernelsInactive"

    wait_for("lacking: KernelsInactive", told, 240, every=1)
    ready = services.condition("lacking")
    assert ready["status"] == "False" and "spec.engine.kernels to stock" in ready["message"]
    status = (services.get("infsvc", "lacking") or {})["status"]
    assert status["readyReplicas"] == 0 and status["lastFailure"]["reason"] == "KernelsInactive"
    events = {event["reason"]: event["type"] for event in services.events("lacking")}
    assert events["KernelsInactive"] == "Warning"
    [engine] = engines(services, "lacking")
    assert engine["status"]["containerStatuses"][0]["restartCount"] == 0, "it is left alone"


def test_a_service_goes_on_serving_where_its_next_pods_lack_them(services: Kube) -> None:
    [serving] = engines(services, "fused")
    with Load(services, "fused", threads=1, pause=0.2) as load:
        patch(services, "fused", {"spec": WITHOUT})

        def told() -> bool:
            return services.condition("fused", "KernelsActive").get("status") == "False"

        wait_for("fused: KernelsInactive", told, 240, every=1)
        time.sleep(PAST_MIN_READY)
        load.wait_for_answers(10)
    assert load.failures() == []
    assert serving["metadata"]["name"] in {
        pod["metadata"]["name"] for pod in engines(services, "fused")
    }
