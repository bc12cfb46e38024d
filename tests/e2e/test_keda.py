"""A service of driver keda follows its load by a real KEDA: `make test-keda`.

Not part of `make test`, since KEDA is compiled first (docs/development.md). It is put onto the
cluster for these tests and taken off again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import yaml

from tests.assay import CHART, RELEASE, SYSTEM, Assay
from tests.cluster.keda import Keda
from tests.cluster.processes import Processes
from tests.cluster.steps import StepRun
from tests.e2e.clients import Load, engines
from tests.e2e.scaling import (
    NAME,
    SCALING,
    WAKE_SECONDS,
    change,
    decision,
    wait_phase,
    wait_same_number,
    wait_scaling,
    written,
)
from tests.kube import Json, Kube, wait_for

BY_KEDA: Json = {**SCALING, "max": 2, "driver": "keda"}
METRIC = "s0-metric-api-required"
"""As KEDA calls the first trigger of a ScaledObject, which reads `required` from an API."""
SCALE_SECONDS = 240.0
"""The load is taken over a minute, and the HorizontalPodAutoscaler looks every 15 s."""


@pytest.fixture(scope="module")
def keda(assay: Assay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """KEDA on the cluster, which serves the external metrics meanwhile."""
    run = StepRun("chart", tmp_path_factory.mktemp("chart") / "log", Processes())
    installed = Keda.on(assay.cluster, assay.cache)
    with ExitStack() as after:
        after.callback(assay.install, run)
        assay.install(run, metrics_api=False)
        after.callback(installed.remove)
        installed.install()
        yield


@pytest.fixture(scope="module")
def scaled(keda: None, kube: Kube, model: str) -> Iterator[Kube]:
    """A service of one replica that KEDA scales."""
    with kube.service(NAME, {"autoscaling": BY_KEDA}):
        kube.wait_ready(NAME, replicas=1)
        wait_scaling(kube, "DriverScales")
        yield kube


def test_replicas_follow_a_rising_load_by_keda_without_a_failed_request(scaled: Kube) -> None:
    with Load(scaled, NAME, threads=8, tokens=200) as load:
        wait_for("spec.replicas of 2, by KEDA", lambda: written(scaled) == 2, SCALE_SECONDS, 1)
        scaled.wait_ready(NAME, WAKE_SECONDS, replicas=2)
        load.wait_for_answers(20)
    assert load.failures() == []
    assert decision(scaled)["driver"] == "keda"


def test_keda_scales_by_a_horizontal_pod_autoscaler_that_is_its_own(scaled: Kube) -> None:
    """Nothing on it says that it is ours."""
    [there] = scaled.list("hpa")
    assert there["metadata"]["name"] == f"keda-hpa-{NAME}"
    assert there["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "keda-operator"
    [metric] = there["status"]["currentMetrics"]
    assert metric["external"]["metric"]["name"] == METRIC


def test_what_keda_hands_on_is_the_services_own_number(scaled: Kube) -> None:
    wait_same_number(scaled, METRIC, "scaledobject.keda.sh/name")


def test_replicas_follow_a_falling_load_by_keda_without_a_failed_request(scaled: Kube) -> None:
    with Load(scaled, NAME, threads=1, pause=0.5) as load:
        wait_for("spec.replicas of 1, by KEDA", lambda: written(scaled) == 1, SCALE_SECONDS, 1)
        wait_for("one engine", lambda: len(engines(scaled, NAME)) == 1, 60)
        scaled.wait_ready(NAME, replicas=1)
        load.wait_for_answers(10)
    assert load.failures() == []


def test_keda_takes_the_last_replica_and_requests_that_wait_bring_it_back(scaled: Kube) -> None:
    change(scaled, {**BY_KEDA, "min": 0, "max": 1, "scaleToZeroAfter": "10s"})
    wait_for("spec.replicas of 0, by KEDA", lambda: written(scaled) == 0, SCALE_SECONDS, 1)
    wait_phase(scaled, "Away")
    with Load(scaled, NAME, threads=4, patience=WAKE_SECONDS) as load:
        wait_for("spec.replicas of 1, by KEDA", lambda: written(scaled) == 1, SCALE_SECONDS, 1)
        load.wait_for_answers(16, WAKE_SECONDS)
    assert load.failures() == []
    change(scaled, BY_KEDA)
    wait_scaling(scaled, "DriverScales")


def test_the_chart_does_not_take_the_external_metrics_away_from_keda(
    scaled: Kube, assay: Assay
) -> None:
    done = assay.cluster.helm(
        *("upgrade", RELEASE, CHART, "--namespace", SYSTEM, "--dry-run=server", "--values", "-"),
        input=yaml.safe_dump(assay.values(metrics_api=True)),
        check=False,
    )
    assert done.returncode != 0
    assert "external.metrics.k8s.io is served by keda/keda-metrics-apiserver" in done.stderr


def test_who_takes_driver_hpa_beside_keda_is_told_to_take_another(scaled: Kube) -> None:
    change(scaled, {**BY_KEDA, "driver": "hpa"})
    wait_for("no ScaledObject", lambda: not scaled.get("scaledobject", NAME), 60)

    def told() -> bool:
        return "use driver keda" in scaled.condition(NAME, "ScalingActive").get("message", "")

    wait_for("what to do", told, 120)
    assert scaled.condition(NAME, "ScalingActive")["reason"] == "DriverFails"
    assert scaled.condition(NAME)["status"] == "True"
