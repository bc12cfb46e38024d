"""How long nobody acts when the leading operator is killed."""

from __future__ import annotations

import statistics
import time

from assay_operator.cluster.lease import LEASE_SECONDS, RENEW_SECONDS
from benchmarks.common import Row, say, spread, versions, write
from benchmarks.operator_scale import scale_operator
from tests.assay import SYSTEM, Assay
from tests.e2e.clients import kill_process
from tests.e2e.operators import leader
from tests.kube import PLANNED, Kube, infsvc

NAMESPACE = "bench-failover"
GOAL = 15


def one_round(kube: Kube, system: Kube, number: int) -> float:
    """Seconds from the leader's SIGKILL until a service applied right after has its children."""
    old, name = leader(kube), f"after-{number}"
    began = time.monotonic()
    kill_process(system, old, "operator", "KILL")
    kube.apply(infsvc(name, {"replicas": 0}))
    kube.wait_planned(name)
    took = time.monotonic() - began
    assert leader(kube) != old
    # A fresh pod: the killed one's container would be started later each time.
    system.kubectl("delete", "pod", old, "--wait=true")
    scale_operator(kube, 2)
    return took


def run(assay: Assay, rounds: int = 5) -> None:
    """Measures and writes the table."""
    kubectl = assay.cluster.kubectl
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--timeout=300s")
    kubectl("create", "namespace", NAMESPACE)
    kube, system = Kube(assay.cluster, NAMESPACE), Kube(assay.cluster, SYSTEM)
    seconds: list[float] = []
    try:
        scale_operator(kube, 2)
        for number in range(rounds):
            time.sleep(5)
            seconds.append(one_round(kube, system, number))
            say(f"round {number + 1} of {rounds}: {seconds[-1]:.1f} s")
        worst = max(seconds)
        rows = [
            Row("leader killed: until the other has acted", spread(seconds, "s")),
            Row("the longest", f"{worst:.1f} s", f"below {GOAL} s", worst < GOAL),
        ]
        notes = [
            f"Lease of {LEASE_SECONDS} s, renewed every {RENEW_SECONDS:g} s. Acted: a service "
            f"applied right after the SIGKILL has all its {PLANNED} children.",
            f"Median {statistics.median(seconds):.1f} s.",
        ]
        about = versions(assay.cluster, assay.environment)
        write(
            "failover",
            "The leader is killed",
            rows,
            notes=notes,
            about=about,
            raw={"seconds": seconds},
        )
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--timeout=300s")
