"""The operator may be killed, deleted or brought back at any time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import pytest

from tests.assay import SYSTEM
from tests.e2e.clients import chat, kill_process, kill_router
from tests.e2e.operators import (
    leader,
    no_operators,
    own_operator,
    system,
    wait_operators,
)
from tests.kube import Kube, infsvc


@contextmanager
def holders(kube: Kube) -> Iterator[list[str]]:
    """Fills with everyone who holds the Lease meanwhile, one after the other; "" is nobody."""
    name = system(kube).list("leases")[0]["metadata"]["name"]
    shown = "jsonpath={.spec.holderIdentity}{'\\n'}"
    command = [str(kube.cluster.bin / "kubectl"), "get", "lease", name, "-n", SYSTEM, "--watch"]
    environment = {**os.environ, **kube.cluster.environment}
    watch = subprocess.Popen(
        [*command, "-o", shown], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert watch.stdout
    told = [watch.stdout.readline()]  # from here on nothing is missed
    seen: list[str] = []
    try:
        yield seen
    finally:
        watch.terminate()
        told += watch.stdout.readlines()
        watch.wait()
        seen += [holder.strip() for holder, _ in groupby(told)]


@pytest.fixture
def operators(kube: Kube) -> Iterator[Kube]:
    """Two ready replicas before, and again after."""
    wait_operators(kube)
    yield system(kube)
    wait_operators(kube)


def test_one_of_two_replicas_leads(kube: Kube, operators: Kube) -> None:
    assert leader(kube)


def test_a_killed_leader_is_replaced(kube: Kube, operators: Kube) -> None:
    old = leader(kube)
    kill_process(operators, old, "operator", "KILL")
    with kube.service("after-kill", {"replicas": 0}):
        kube.wait_planned("after-kill")
        assert leader(kube) != old


def test_a_leader_that_is_asked_to_go_gives_the_lease_back(kube: Kube, operators: Kube) -> None:
    old = leader(kube)
    with holders(kube) as seen:
        operators.kubectl("delete", "pod", old, "--wait=false")
        with kube.service("after-stop", {"replicas": 0}):
            kube.wait_planned("after-stop")
    assert old in seen[0]
    assert seen[1] == "", "given back, rather than run out"
    assert seen[2] and old not in seen[2]


def test_in_a_quiet_time_nothing_is_written(kube: Kube, operators: Kube) -> None:
    with kube.service("quiet", {"replicas": 0}):
        kube.wait_planned("quiet", 30)
        time.sleep(3)
        before = versions(kube, "quiet")
        time.sleep(40)
        assert versions(kube, "quiet") == before


def versions(kube: Kube, name: str) -> dict[str, str]:
    found = kube.list(
        "infsvc,deployments,services,configmaps,pdb", f"app.kubernetes.io/instance={name}"
    )
    found.append(kube.get("infsvc", name) or {})
    return {
        item["kind"] + "/" + item["metadata"]["name"]: item["metadata"]["resourceVersion"]
        for item in found
    }


def test_without_an_operator_the_model_goes_on_serving(
    kube: Kube, model: str, operators: Kube
) -> None:
    with kube.service("steady", {}):
        kube.wait_ready("steady")
        with no_operators(kube):
            assert "time to first token" in chat(kube, "steady", "hello")
            kill_router(kube, "steady")


def test_an_operator_killed_at_any_moment_of_a_start_converges(
    kube: Kube, model: str, operators: Kube, operator_config: Path
) -> None:
    """Killed with SIGKILL at many moments, from before the first child to after the last step."""
    with no_operators(kube):
        kube.apply(infsvc("battered", {}))
        for seconds in (0.8, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.5, 3.0, 4.0, 6.0, 9.0, 14.0):
            with own_operator(kube, operator_config) as process:
                time.sleep(seconds)
                process.send_signal(signal.SIGKILL)
        with own_operator(kube, operator_config):
            service = kube.wait_ready("battered")
            kube.wait_planned("battered", 1)
            assert service["status"]["readyReplicas"] == 1
            assert "time to first token" in chat(kube, "battered", "hello")
            once = [event["reason"] for event in kube.events("battered")]
            assert once.count("Ready") == 1
        kube.delete("infsvc", "battered")


def test_metrics_are_served_for_prometheus(kube: Kube) -> None:
    text = system(kube).kubectl(
        "get", "--raw",
        f"/api/v1/namespaces/{SYSTEM}/services/assay-operator:http/proxy/metrics",
    )  # fmt: skip
    for metric in ("assay_reconcile_seconds", "assay_leader", "assay_watch_age_seconds"):
        assert metric in text, json.dumps(metric)
