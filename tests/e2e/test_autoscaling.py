"""Replicas follow the load of a real service, by whichever driver, down to none and back.

One service goes through all of it, in this order: to start engines is what takes long here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.clients import Load, engines
from tests.e2e.scaling import (
    NAME,
    SCALING,
    SLEEP_SECONDS,
    WAKE_SECONDS,
    Kept,
    activation,
    change,
    decision,
    get,
    held,
    pods,
    points_to,
    wait_phase,
    wait_same_number,
    wait_scaling,
    written,
)
from tests.kube import Json, Kube, wait_for

TO_ZERO: Json = {
    "min": 0,
    "max": 1,
    "objectives": {"concurrency": 8},
    "scaleToZeroAfter": "10s",
}
DOWN_SECONDS = 400.0
HPA_SECONDS = 240.0
"""The controller looks every 15 s."""


@pytest.fixture(scope="module")
def scaled(kube: Kube, model: str) -> Iterator[Kube]:
    """A service of one replica that scales itself."""
    with kube.service(NAME, {"autoscaling": SCALING}):
        kube.wait_ready(NAME, replicas=1)
        wait_scaling(kube, "Scaling")
        yield kube


def test_a_number_that_somebody_writes_is_told_and_has_no_effect(scaled: Kube) -> None:
    scaled.kubectl("scale", f"infsvc/{NAME}", "--replicas=3")
    told = wait_scaling(scaled, "OthersScale")
    assert told["status"] == "True"
    assert re.search(r"kubectl.* set the replicas of InferenceService/scaled to 3", told["message"])
    assert len(engines(scaled, NAME)) == 1
    scaled.kubectl("scale", f"infsvc/{NAME}", f"--replicas={decision(scaled)['specReplicas']}")
    wait_scaling(scaled, "Scaling")


def test_one_who_scales_the_deployment_is_told_and_put_right(scaled: Kube) -> None:
    scaled.kubectl("scale", f"deployment/{NAME}-engine", "--replicas=2")
    told = wait_scaling(scaled, "OthersScale")
    assert f"Deployment/{NAME}-engine" in told["message"]
    deployment = scaled.get("deployment", f"{NAME}-engine") or {}
    assert deployment["spec"]["replicas"] == 1


def test_replicas_follow_a_rising_load_without_a_failed_request(scaled: Kube) -> None:
    with Load(scaled, NAME, threads=12, tokens=200) as load:
        scaled.wait_ready(NAME, WAKE_SECONDS, replicas=3)
        load.wait_for_answers(50)
    assert load.failures() == []
    told = decision(scaled)
    assert (told["replicas"], told["driver"]) == (3, "builtin")
    assert told["inputs"]["arrivalsPerSecond"] > 0 and told["formula"] and told["changes"]
    assert "ScaledUp" in {event["reason"] for event in scaled.events(NAME)}


def test_a_real_horizontal_pod_autoscaler_follows_what_the_objectives_require(
    scaled: Kube,
) -> None:
    """It takes over three replicas, and has a falling load brought down to its own bound."""
    scaled.kubectl("scale", f"infsvc/{NAME}", "--replicas=3")
    change(scaled, {**SCALING, "min": 2, "driver": "hpa"})
    wait_scaling(scaled, "DriverScales")
    with Load(scaled, NAME, threads=1, pause=0.5) as load:
        wait_for("spec.replicas of 2, by the HPA", lambda: written(scaled) == 2, HPA_SECONDS, 1)
        wait_for("two engines", lambda: len(engines(scaled, NAME)) == 2, 60)
        load.wait_for_answers(10)
    assert load.failures() == []
    [metric] = (scaled.get("hpa", NAME) or {})["status"]["currentMetrics"]
    assert metric["external"]["metric"]["name"] == "assay_required_replicas"


def test_what_a_horizontal_pod_autoscaler_reads_is_the_services_own_number(scaled: Kube) -> None:
    wait_same_number(scaled, "assay_required_replicas", "service")


def test_replicas_follow_a_falling_load_without_a_failed_request(scaled: Kube) -> None:
    """The builtin driver goes on from what another one left."""
    change(scaled, SCALING)
    wait_for("no HPA", lambda: not scaled.get("hpa", NAME), 60)
    with Load(scaled, NAME, threads=1, pause=0.5) as load:
        wait_for("one replica wanted", lambda: decision(scaled)["replicas"] == 1, DOWN_SECONDS, 2)
        wait_for("one engine", lambda: len(engines(scaled, NAME)) == 1, 60)
        scaled.wait_ready(NAME, replicas=1)
        load.wait_for_answers(20)
    assert load.failures() == []
    assert "ScaledDown" in {event["reason"] for event in scaled.events(NAME)}


def test_the_last_hour_is_drawn(scaled: Kube) -> None:
    """With the kubeconfig of a user, from a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "assay_operator", "explain", NAME, "-n", scaled.namespace],
        env=scaled.cluster.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    print(done.stdout)
    assert re.search(r"^wanted +[▁▂▃▄▅▆▇█ ]{60}  1 to 3, now 1$", done.stdout, re.M)
    assert "ScalingActive True" in done.stdout


def test_an_objective_below_the_floor_is_told_with_the_floor(scaled: Kube) -> None:
    """What a replica can do was learned while it was asked."""
    change(scaled, {**SCALING, "max": 1, "objectives": {"ttftMs": 1}})

    def unreachable() -> Json | None:
        found = scaled.condition(NAME, "ObjectiveUnreachable")
        return found if found.get("status") == "True" else None

    told = wait_for("ObjectiveUnreachable", unreachable, 60)
    assert re.search(r"within [0-9.]+ ms at best, and the objective is 1 ms", told["message"])


def test_a_driver_that_the_cluster_does_not_know_is_told_and_nobody_suffers(scaled: Kube) -> None:
    if "scaledobjects" in scaled.kubectl("api-resources", "--api-group=keda.sh", check=False):
        pytest.fail("this cluster has KEDA: the test is about one without")
    scaled.kubectl("scale", f"infsvc/{NAME}", "--replicas=1")
    change(scaled, {**SCALING, "driver": "keda"})
    told = wait_scaling(scaled, "DriverMissing")
    assert told["status"] == "False" and "install KEDA" in told["message"]
    assert scaled.condition(NAME)["status"] == "True"
    assert scaled.condition(NAME, "Applied")["status"] == "True"


def test_after_silence_nothing_runs_but_the_activator(scaled: Kube) -> None:
    change(scaled, TO_ZERO)
    wait_phase(scaled, "Away")
    wait_for("only the activator", lambda: pods(scaled).keys() == {"activator"}, SLEEP_SECONDS)
    assert points_to(scaled) == "activator"


def test_who_asks_only_whether_it_is_well_does_not_wake_it(scaled: Kube) -> None:
    assert get(scaled, "/health").strip() == "OK"
    assert [item["id"] for item in json.loads(get(scaled, "/v1/models"))["data"]] == [NAME]
    assert activation(scaled)["phase"] == "Away"


def test_from_zero_requests_wait_for_a_replica_and_none_fails(scaled: Kube) -> None:
    with Load(scaled, NAME, threads=16, patience=WAKE_SECONDS) as load:
        wait_for("requests that wait", lambda: held(scaled) == 16, 60)
        load.wait_for_answers(16, WAKE_SECONDS)
        wait_phase(scaled, "Serving")
        load.wait_for_answers(64)
    assert load.failures() == []
    assert points_to(scaled) == "router"
    waited = max(line["s"] for line in load.lines[:16])
    told = wait_for("the wait", lambda: activation(scaled).get("firstRequestWaitSeconds"), 60)
    assert 1 < told <= waited + 1, "what the clients felt is what the status says"
    assert {"ScaledToZero", "ScaledFromZero", "Woken"} <= {
        event["reason"] for event in scaled.events(NAME)
    }


def test_a_request_while_the_last_replica_goes_is_answered(scaled: Kube) -> None:
    """Over a connection that a router has from before, and over new ones."""
    scaled.wait_ready(NAME, WAKE_SECONDS, replicas=1)
    with Kept(scaled) as kept:
        kept.wait_answered()
        wait_phase(scaled, "Closing")
        kept.ask()
        with Load(scaled, NAME, threads=2, patience=WAKE_SECONDS) as load:
            load.wait_for_answers(4, WAKE_SECONDS)
        kept.wait_answered()
    assert load.failures() == []
