"""The operator's pods: who leads, how they are taken away, and one that runs in a shell."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.assay import SYSTEM
from tests.cluster.cluster import is_ready
from tests.e2e.clients import processes
from tests.kube import Json, Kube, wait_for

OPERATOR = "app.kubernetes.io/name=assay"


def system(kube: Kube) -> Kube:
    """The namespace that the operator runs in."""
    return Kube(kube.cluster, SYSTEM)


def lease(kube: Kube) -> Json:
    """The spec of the operators' Lease."""
    found: Any = system(kube).list("leases")
    assert len(found) == 1
    spec: Json = found[0]["spec"]
    return spec


def leader(kube: Kube) -> str:
    """The name of the operator pod that holds the Lease; empty where it is gone."""
    holder = lease(kube).get("holderIdentity") or ""
    pods = [pod["metadata"]["name"] for pod in system(kube).list("pods", OPERATOR)]
    return next((name for name in pods if name in holder), "")


def wait_operators(kube: Kube) -> None:
    """Until two replicas are ready, of which one leads."""

    def two() -> bool:
        ready = sum(map(is_ready, system(kube).list("pods", OPERATOR)))
        return ready == 2 and bool(leader(kube))

    wait_for("two operators", two, 180)


def aimed_at_leader(kube: Kube) -> Callable[[], None]:
    """What kills the operator that leads, with SIGKILL: all that takes time is done before.

    Its pod is deleted then, and another one comes at once. A container that is killed again and
    again would be kept waiting longer each time.
    """
    operators, name = system(kube), wait_for("a leader", lambda: leader(kube), 60)
    found = processes(operators, name, "operator")

    def kill() -> None:
        found.send("KILL")
        operators.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

    return kill


@contextmanager
def no_operators(kube: Kube) -> Iterator[None]:
    """Nobody operates for the time of a `with` block; two replicas come back after it."""
    operators = system(kube)
    operators.kubectl("scale", "deployment/assay-operator", "--replicas=0")
    try:
        wait_for("no operator", lambda: not operators.list("pods", OPERATOR), 60)
        yield
    finally:
        operators.kubectl("scale", "deployment/assay-operator", "--replicas=2")


@contextmanager
def own_operator(kube: Kube, config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m assay_operator run` from a shell, for the test's namespace only."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "assay_operator", "run", "--namespace", kube.namespace),
            *("--no-leader-election", "--port", "0", "--log-format", "text"),
            *("--config", str(config)),
        ],
        env={**os.environ, "KUBECONFIG": str(kube.cluster.kubeconfig)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
