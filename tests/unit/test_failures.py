"""What the user is told about a pod that does not serve."""

from __future__ import annotations

from typing import Any

import pytest

from assay_operator.inference.failures import (
    LAUNCHER_EXITS,
    deployment_failure,
    first_failure,
    pod_failure,
)
from tests.unit.worlds import NOW, ago, pod, set_container

Json = dict[str, Any]


def starting(**fields: Any) -> Json:
    return set_container(pod("a", "10.0.0.1", ready=False), **fields)


def waiting(reason: str, message: str = "") -> Json:
    return starting(state={"waiting": {"reason": reason, "message": message}})


def exited(code: int, message: str = "", reason: str = "Error", restarts: int = 1) -> Json:
    ended = {"exitCode": code, "message": message, "reason": reason}
    return starting(
        state={"waiting": {"reason": "CrashLoopBackOff"}},
        lastState={"terminated": ended},
        restartCount=restarts,
    )


def unschedulable(message: str) -> Json:
    item = pod("a", "")
    item["status"]["containerStatuses"] = []
    item["status"]["conditions"] = [
        {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastTransitionTime": ago(10),
        }
    ]
    return item


@pytest.mark.parametrize(
    ("item", "reason", "fatal", "says"),
    [
        (unschedulable("0/2 nodes: 2 Insufficient nvidia.com/gpu."), "Unschedulable", False, "GPU"),
        (
            unschedulable("2 node(s) didn't match Pod's node affinity/selector."),
            "Unschedulable",
            False,
            "nvidia.com/gpu.product",
        ),
        (
            unschedulable('persistentvolumeclaim "models" not found'),
            "ClaimNotFound",
            True,
            "models",
        ),
        (
            unschedulable("pod has unbound immediate PersistentVolumeClaims"),
            "ClaimNotBound",
            False,
            "kubectl describe pvc",
        ),
        (
            waiting("ErrImagePull", "failed to resolve: not found"),
            "ImagePullFailed",
            True,
            "assay/engine:test",
        ),
        (waiting("ImagePullBackOff", "i/o timeout"), "ImagePullFailed", False, "registry"),
        (
            waiting("CreateContainerConfigError", "secret x missing"),
            "ContainerNotCreated",
            True,
            "secret x",
        ),
        (exited(137, reason="OOMKilled"), "OutOfMemory", True, "limits.memory"),
        (
            exited(2, "launch_server.py: error: unrecognized arguments: --bogus"),
            "UnknownArgument",
            True,
            "--bogus",
        ),
        (
            exited(
                1,
                "ValueError: Currently only ['fa3', 'triton'] attention backends are supported for "
                "deterministic inference, but you explicitly specified 'dsv4'.",
            ),
            "NotDeterministic",
            True,
            "spec.engine.deterministic",
        ),
        (
            exited(1, "torch.OutOfMemoryError: CUDA out of memory. Tried 2 GiB"),
            "OutOfMemory",
            True,
            "--mem-fraction-static",
        ),
        (exited(1, "boom"), "ContainerExited", False, "boom"),
        (exited(1, "boom", restarts=5), "CrashLoop", False, "boom"),
    ],
)
def test_each_failure_has_a_reason_and_a_remedy(
    item: Json, reason: str, fatal: bool, says: str
) -> None:
    failure = pod_failure(item, "engine", NOW)
    assert failure is not None
    assert (failure.reason, failure.fatal) == (reason, fatal)
    assert says in failure.message
    assert failure.where == "pod/a"


@pytest.mark.parametrize(("code", "reason"), LAUNCHER_EXITS.items())
def test_what_the_launcher_refuses_is_told_in_the_launchers_words(code: int, reason: str) -> None:
    failure = pod_failure(exited(code, "the launcher's advice"), "engine", NOW)
    assert failure is not None
    assert (failure.reason, failure.exit_code, failure.fatal) == (reason, code, True)
    assert "the launcher's advice" in failure.message


def test_a_ready_pod_has_no_failure_however_often_it_crashed_before() -> None:
    item = set_container(
        pod("a", "10.0.0.1"),
        restartCount=9,
        lastState={"terminated": {"exitCode": 1, "message": "long ago"}},
    )
    assert pod_failure(item, "engine", NOW) is None


def test_a_pod_that_loads_its_weights_has_no_failure() -> None:
    assert pod_failure(starting(started=False), "engine", NOW) is None


def test_a_pod_on_its_way_out_has_no_failure() -> None:
    item = exited(1, "boom")
    item["metadata"]["deletionTimestamp"] = ago(1)
    assert pod_failure(item, "engine", NOW) is None


def test_a_pod_that_was_ready_and_stopped_answering_is_unresponsive() -> None:
    item = starting(started=True, state={"running": {"startedAt": ago(100)}})
    item["status"]["conditions"][0]["lastTransitionTime"] = ago(200)
    assert pod_failure(item, "engine", NOW) is None, "it has just started"
    item["status"]["conditions"][0]["lastTransitionTime"] = ago(20)
    failure = pod_failure(item, "engine", NOW)
    assert failure is not None and failure.reason == "Unresponsive"


def test_an_old_crash_does_not_hide_that_an_engine_hangs_now() -> None:
    item = starting(
        started=True,
        state={"running": {"startedAt": ago(100)}},
        lastState={"terminated": {"exitCode": 1, "message": "long ago"}},
        restartCount=1,
    )
    item["status"]["conditions"][0]["lastTransitionTime"] = ago(20)
    failure = pod_failure(item, "engine", NOW)
    assert failure is not None and failure.reason == "Unresponsive"


def test_a_router_without_an_engine_is_not_broken() -> None:
    item = set_container(
        pod("r", "10.0.0.9", ready=False, container="router"),
        started=True,
        state={"running": {"startedAt": ago(100)}},
    )
    item["status"]["conditions"][0]["lastTransitionTime"] = ago(20)
    assert pod_failure(item, "router", NOW) is None


def test_a_killed_container_is_said_to_be_killed() -> None:
    failure = pod_failure(exited(137, "last words"), "engine", NOW)
    assert failure is not None and "killed by signal 9" in failure.message
    assert failure.reason == "ContainerExited", "only the kernel's own word means out of memory"


def test_a_container_that_is_never_created_is_told_after_a_while() -> None:
    item = waiting("ContainerCreating")
    item["status"]["conditions"][1]["lastTransitionTime"] = ago(10)
    assert pod_failure(item, "engine", NOW) is None
    item["status"]["conditions"][1]["lastTransitionTime"] = ago(500)
    failure = pod_failure(item, "engine", NOW)
    assert failure is not None and failure.reason == "ContainerNotCreated"


def test_the_end_of_a_long_message_is_kept() -> None:
    failure = pod_failure(exited(1, "noise " * 500 + "the real error"), "engine", NOW)
    assert failure is not None
    assert failure.message.endswith("the real error") and len(failure.message) < 1000


def test_what_waiting_cannot_heal_is_shown_first() -> None:
    transient = pod_failure(exited(1, "boom"), "engine", NOW)
    fatal = pod_failure(unschedulable('persistentvolumeclaim "m" not found'), "engine", NOW)
    assert first_failure([None, transient, fatal]) == fatal
    assert first_failure([None]) is None


def test_a_deployment_that_may_not_create_pods_says_why() -> None:
    deployment = {
        "metadata": {"name": "x"},
        "status": {
            "conditions": [
                {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: gpus"}
            ]
        },
    }
    failure = deployment_failure(deployment)
    assert failure is not None and failure.reason == "PodsRejected"
    assert "exceeded quota" in failure.message
