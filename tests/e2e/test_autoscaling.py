"""Replicas follow the load of a real service: by the operator itself, and by a real HPA."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.e2e.clients import Load, engines
from tests.kube import Json, Kube, wait_for

NAME = "scaled"
SCALING: Json = {"min": 1, "max": 3, "objectives": {"concurrency": 4}}
UP_SECONDS = 480
"""For two more engines on two cores, which the first one keeps busy."""
DOWN_SECONDS = 900
"""Five quiet minutes, and one more for each step."""
HPA_SECONDS = 120
"""The controller looks every 15 s."""


@pytest.fixture(scope="module")
def scaled(kube: Kube, model: str) -> Iterator[Kube]:
    """A service of one replica that scales itself."""
    with kube.service(NAME, {"autoscaling": SCALING}):
        kube.wait_ready(NAME, replicas=1)
        wait_scaling(kube, "Scaling")
        yield kube


@pytest.fixture
def builtin(scaled: Kube) -> Iterator[Kube]:
    """The same, as it began, before and after a test that changes its spec."""
    yield scaled
    change(scaled, SCALING)
    wait_for("driver builtin", lambda: status(scaled).get("driver") == "builtin", 60)
    scaled.kubectl("scale", f"infsvc/{NAME}", f"--replicas={status(scaled)['specReplicas']}")


def change(kube: Kube, scaling: Json) -> None:
    """Another spec.autoscaling, whole."""
    whole = {"driver": "builtin", **scaling}
    patch = [{"op": "replace", "path": "/spec/autoscaling", "value": whole}]
    kube.kubectl("patch", "infsvc", NAME, "--type=json", "-p", json.dumps(patch))


def status(kube: Kube) -> Json:
    """Of the decision."""
    found: Json = (kube.get("infsvc", NAME) or {})["status"].get("autoscaling") or {}
    return found


def wait_scaling(kube: Kube, reason: str, seconds: float = 120) -> Json:
    """The condition ScalingActive once it has this reason."""

    def look() -> Json | None:
        found = kube.condition(NAME, "ScalingActive")
        return found if found.get("reason") == reason else None

    return wait_for(f"ScalingActive {reason}", look, seconds)


def test_a_number_that_somebody_writes_is_told_and_has_no_effect(builtin: Kube) -> None:
    builtin.kubectl("scale", f"infsvc/{NAME}", "--replicas=3")
    told = wait_scaling(builtin, "OthersScale")
    assert told["status"] == "True"
    assert re.search(r"kubectl.* set the replicas of InferenceService/scaled to 3", told["message"])
    assert len(engines(builtin, NAME)) == 1


def test_one_who_scales_the_deployment_is_told_and_put_right(builtin: Kube) -> None:
    builtin.kubectl("scale", f"deployment/{NAME}-engine", "--replicas=2")
    told = wait_scaling(builtin, "OthersScale")
    assert "Deployment/scaled-engine" in told["message"]
    deployment = builtin.get("deployment", f"{NAME}-engine") or {}
    assert deployment["spec"]["replicas"] == 1


def test_an_objective_below_the_floor_is_told_with_the_floor(builtin: Kube) -> None:
    change(builtin, {**SCALING, "max": 1, "objectives": {"ttftMs": 1}})
    with Load(builtin, NAME, threads=2, pause=0.2) as load:

        def unreachable() -> Json | None:
            found = builtin.condition(NAME, "ObjectiveUnreachable")
            return found if found.get("status") == "True" else None

        told = wait_for("ObjectiveUnreachable", unreachable, 240)
        load.wait_for_answers(1)
    assert re.search(r"within [0-9.]+ ms at best, and the objective is 1 ms", told["message"])
    assert load.failures() == []


def test_replicas_follow_the_load_up_and_down_without_a_failed_request(builtin: Kube) -> None:
    with Load(builtin, NAME, threads=12, tokens=200) as load:
        builtin.wait_ready(NAME, UP_SECONDS, replicas=3)
        load.wait_for_answers(50)
    assert load.failures() == []
    told = status(builtin)
    assert (told["replicas"], told["driver"]) == (3, "builtin")
    assert told["inputs"]["arrivalsPerSecond"] > 0 and told["formula"] and told["changes"]
    with Load(builtin, NAME, threads=1, pause=0.5) as load:
        wait_for("one replica wanted", lambda: status(builtin)["replicas"] == 1, DOWN_SECONDS, 5)
        wait_for("one engine", lambda: len(engines(builtin, NAME)) == 1, 120)
        builtin.wait_ready(NAME, replicas=1)
        load.wait_for_answers(20)
    assert load.failures() == []
    said = {event["reason"] for event in builtin.events(NAME)}
    assert {"ScaledUp", "ScaledDown"} <= said


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


def test_a_steady_service_is_not_written_at(scaled: Kube) -> None:
    """Without load nothing that a reader would see changes, so nothing is written."""

    def version() -> str:
        found = scaled.get("infsvc", NAME) or {}
        return str(found["metadata"]["resourceVersion"])

    def still() -> bool:
        before = version()
        try:
            wait_for("another version", lambda: version() != before, 90, 5)
        except AssertionError:
            return True
        return False

    wait_for("a quiet minute and a half", still, 600, 1)


def test_a_real_horizontal_pod_autoscaler_follows_what_the_objectives_require(
    builtin: Kube,
) -> None:
    change(builtin, {**SCALING, "max": 2, "driver": "hpa"})
    wait_scaling(builtin, "DriverScales", HPA_SECONDS)
    with Load(builtin, NAME, threads=8, tokens=200) as load:

        def scaled_up() -> bool:
            return (builtin.get("infsvc", NAME) or {})["spec"]["replicas"] == 2

        wait_for("spec.replicas of 2, by the HPA", scaled_up, UP_SECONDS, 2)
        builtin.wait_ready(NAME, UP_SECONDS, replicas=2)
    assert load.failures() == []
    hpa = builtin.get("hpa", NAME) or {}
    [metric] = hpa["status"]["currentMetrics"]
    assert metric["external"]["metric"]["name"] == "assay_required_replicas"
    change(builtin, SCALING)
    wait_for("no HPA", lambda: not builtin.get("hpa", NAME), 60)


def test_what_a_horizontal_pod_autoscaler_reads_is_the_services_own_number(scaled: Kube) -> None:
    path = (
        f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{scaled.namespace}/"
        f"assay_required_replicas?labelSelector=service%3D{NAME}"
    )
    [item] = json.loads(scaled.kubectl("get", "--raw", path))["items"]
    assert int(item["value"]) == status(scaled)["required"]


def test_a_driver_that_the_cluster_does_not_know_is_told_and_nobody_suffers(
    builtin: Kube,
) -> None:
    if "scaledobjects" in builtin.kubectl("api-resources", "--api-group=keda.sh", check=False):
        pytest.fail("this cluster has KEDA: the test is about one without")
    change(builtin, {**SCALING, "driver": "keda"})
    told = wait_scaling(builtin, "DriverMissing")
    assert told["status"] == "False" and "install KEDA" in told["message"]
    assert builtin.condition(NAME)["status"] == "True"
    assert builtin.condition(NAME, "Applied")["status"] == "True"
