"""Each way to fail is named in status, in a condition, in an Event, and with what to do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.kube import Json, Kube, infsvc, wait_for


@dataclass(frozen=True)
class Case:
    """A service that fails, and how that is to be told."""

    reason: str
    says: str
    fatal: bool
    spec: Json = field(default_factory=dict)


def container(**fields: object) -> Json:
    return {"template": {"spec": {"containers": [{"name": "engine", **fields}]}}}


CASES = {
    "no-image": Case(
        "ImagePullFailed",
        "no-such-image",
        True,
        container(image="no-such-image:1", imagePullPolicy="Never"),
    ),
    "no-model": Case(
        "ModelNotFound", "tiny", True, {"model": {"source": "pvc://models/not-there"}}
    ),
    "no-claim": Case(
        "ClaimNotFound", "not-there", True, {"model": {"source": "pvc://not-there/tiny"}}
    ),
    "bad-argument": Case(
        "UnknownArgument", "--bogus", True, {"engine": {"extraArgs": ["--bogus"]}}
    ),
    "no-memory": Case(
        "OutOfMemory",
        "limits.memory",
        True,
        {"engine": {"resources": {"limits": {"memory": "300Mi"}, "requests": {"cpu": "50m"}}}},
    ),
    "no-gpu": Case(
        "Unschedulable",
        "spec.engine.parallelism",
        False,
        {"engine": {"accelerator": "nvidia", "parallelism": {"tensor": 8}, "extraArgs": []}},
    ),
    "crashes": Case(
        "CrashLoop",
        "the disk is on fire",
        False,
        container(command=["sh", "-c", "echo the disk is on fire >&2; exit 3"]),
    ),
    "bad-template": Case(
        "Rejected",
        "spec.template",
        True,
        {"template": {"spec": {"restartPolicy": "Sometimes"}}},
    ),
    "no-such-row": Case(
        "UnsupportedProfile", "cpu", True, {"engine": {"profile": "deepseek-v4-pro"}}
    ),
}


@pytest.fixture(scope="module")
def failing(kube: Kube, model: str) -> Iterator[Kube]:
    """All failing services at once: none may delay another."""
    kube.apply(*(infsvc(name, case.spec) for name, case in CASES.items()))
    yield kube
    for name in CASES:
        kube.delete("infsvc", name)
    for name in CASES:
        kube.wait_gone(name)


@pytest.mark.parametrize("name", CASES)
def test_a_failure_is_named_with_a_remedy(failing: Kube, name: str) -> None:
    case = CASES[name]

    def told() -> Json | None:
        service = failing.get("infsvc", name) or {}
        failure = service.get("status", {}).get("lastFailure") or {}
        return failure if failure.get("reason") == case.reason else None

    failure = wait_for(f"{name}: {case.reason}", told, 240, every=1)
    assert case.says in failure["message"]
    assert failure["fatal"] is case.fatal
    assert failure["where"] and failure["time"]

    ready = failing.condition(name)
    assert ready["status"] == "False"
    assert ready["reason"] == case.reason
    assert case.says in ready["message"]

    events = {event["reason"]: event for event in failing.events(name)}
    assert events[case.reason]["type"] == "Warning"
    assert case.says in events[case.reason]["message"]


def test_a_failing_neighbour_delays_nobody(failing: Kube) -> None:
    began = time.monotonic()
    failing.apply(infsvc("neighbour", {"replicas": 0}))
    wait_for("children", lambda: "Service/neighbour" in failing.children("neighbour"), 10, 0.1)
    assert time.monotonic() - began < 10
    failing.delete("infsvc", "neighbour")


def test_a_mended_spec_heals_the_service(failing: Kube) -> None:
    """The failure stays on record; the service serves."""
    failing.apply(infsvc("no-model", {}))
    service = failing.wait_ready("no-model")
    assert service["status"]["lastFailure"]["reason"] == "ModelNotFound"


def test_gpus_that_appear_are_used(failing: Kube) -> None:
    """The pod is bound once a node has eight GPUs; that no GPU answers is another matter."""
    failing.cluster.pretend_gpus(8)
    try:
        wait_for(
            "no-gpu scheduled",
            lambda: any(
                pod["spec"].get("nodeName")
                for pod in failing.list(
                    "pods",
                    "app.kubernetes.io/instance=no-gpu,app.kubernetes.io/component=engine",
                )
            ),
            60,
        )
    finally:
        failing.cluster.pretend_gpus(0)
