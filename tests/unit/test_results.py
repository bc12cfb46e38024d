"""What a Job found: a verdict only where command and exit code say the same, else never one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from assay_operator.inference.results import (
    SETTLE_SECONDS,
    STUCK_SECONDS,
    JobResult,
    job_result,
    waits,
)
from tests.unit.worlds import NOW, ago

Json = dict[str, Any]
NAME = "solver-gate-1a2b3c4d"
PASSED = {"verdict": "pass", "reason": "score 0.8 on 200 items, at least 0.75, limit 0.6"}
INTACT = {
    "intact": True,
    "digest": f"sha256:{'a' * 64}",
    "files": 4,
    "bytes": 120,
    "inPlace": True,
    "reasons": [],
    "problems": [],
}


def job(component: str = "gate", ended: str = "", reason: str = "", since: float = 60) -> Json:
    condition = {
        "type": ended,
        "status": "True",
        "reason": reason,
        "lastTransitionTime": ago(since),
    }
    return {
        "kind": "Job",
        "metadata": {
            "name": NAME,
            "uid": "job-1",
            "labels": {"app.kubernetes.io/component": component},
        },
        "spec": {"activeDeadlineSeconds": 1800},
        "status": {"startTime": ago(since), "conditions": [condition] if ended else []},
    }


def pod(name: str = "pod-a", *, created: float = 50, owner: str = "job-1", **status: Any) -> Json:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(created)}
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": {"batch.kubernetes.io/job-name": NAME},
            "creationTimestamp": ago(created),
            "ownerReferences": [{"uid": owner}],
        },
        "spec": {
            "volumes": [
                {
                    "name": "suite",
                    "configMap": {
                        "name": "heldout",
                        "items": [{"key": "suite.jsonl", "path": "suite.jsonl"}],
                    },
                },
                {"name": "model", "persistentVolumeClaim": {"claimName": "models"}},
            ]
        },
        "status": {"phase": "Running", "conditions": [scheduled], **status},
    }


def ended(code: int, message: Json | str = "", *, name: str = "verifier", **more: Any) -> Json:
    text = message if isinstance(message, str) else json.dumps(message)
    return {"name": name, "state": {"terminated": {"exitCode": code, "message": text, **more}}}


def waiting(reason: str, message: str = "", *, name: str = "verifier") -> Json:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"name": name, "image": "assay/verifier:0.1.0", "state": state}


def found(status: Json, component: str = "gate") -> JobResult | None:
    """Of a Job that runs and has one pod, whose container has that status."""
    return job_result(job(component), [pod(containerStatuses=[status])], NOW)


def test_nothing_is_known_while_the_command_runs() -> None:
    assert job_result(job(), [], NOW) is None
    assert found({"name": "verifier", "state": {"running": {"startedAt": ago(5)}}}) is None


@pytest.mark.parametrize(
    ("code", "said", "verdict"),
    [(0, "pass", "pass"), (1, "fail", "fail"), (3, "undecided", "undecided"), (2, None, "broken")],
)
def test_a_gates_verdict_is_its_own_word(code: int, said: str | None, verdict: str) -> None:
    result = found(ended(code, {"verdict": said, "reason": "for this"}))
    assert result == JobResult(
        True, verdict == "pass", verdict, {"verdict": said, "reason": "for this"}, "for this"  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stopped", "verdict"),
    [
        (["incumbent"], "broken"),
        (["candidate", "incumbent"], "broken"),
        (["candidate"], "undecided"),
        ([], "undecided"),
    ],
)
def test_an_incumbent_that_went_away_while_it_was_asked_says_nothing_about_the_candidate(
    stopped: list[str], verdict: str
) -> None:
    said = {"verdict": "undecided", "reason": "24 failures in a row", "stopped": stopped}
    result = found(ended(3, said))
    assert result is not None and (result.verdict, result.message) == (verdict, said["reason"])


@pytest.mark.parametrize(("code", "intact", "verdict"), [(0, True, "pass"), (1, False, "fail")])
def test_an_inspections_verdict_is_whether_the_folder_is_intact(
    code: int, intact: bool, verdict: str
) -> None:
    problems = [] if intact else ["pytorch_model.bin is a pickle", "config.json is missing"]
    result = found(ended(code, {**INTACT, "intact": intact, "problems": problems}), "inspect")
    assert result is not None and result.verdict == verdict
    assert result.message == (
        "4 files, 120 bytes: all as they shall be" if intact else "; ".join(problems)
    )


def test_a_folder_that_running_engines_cannot_load_passes_and_says_why_they_cannot() -> None:
    summary = {**INTACT, "inPlace": False, "reasons": ["config.json: hidden_size is 64, not 32"]}
    result = found(ended(0, summary), "inspect")
    assert result is not None and result.passed
    assert result.summary["inPlace"] is False
    assert "hidden_size is 64, not 32" in result.message


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (1, {"verdict": "pass", "reason": "x"}),
        (0, {"verdict": "fail", "reason": "x"}),
        (0, {"verdict": None, "reason": "x"}),
        (0, {**INTACT, "intact": False}),
        (1, INTACT),
        (0, {**INTACT, "intact": 1}),
    ],
)
def test_a_word_that_contradicts_the_exit_code_is_no_verdict(code: int, message: Json) -> None:
    result = found(ended(code, message))
    assert result is not None and result.verdict == "broken"


@pytest.mark.parametrize("message", ["", "Traceback: KeyError", "[1]", '"pass"', "{"])
@pytest.mark.parametrize("code", [0, 1, 3])
def test_an_exit_code_alone_is_no_verdict(code: int, message: str) -> None:
    """A Python that dies of a defect ends with 1, which must not look like a bad candidate."""
    status = ended(code, message)
    assert found(status) is None
    over = job_result(job(ended="Failed"), [pod(containerStatuses=[status])], NOW)
    assert over is not None and over.verdict == "broken"
    if code:
        assert f"ended with exit code {code} and gave no verdict" in over.message


@pytest.mark.parametrize("code", [137, 143])
def test_a_pod_that_was_killed_is_waited_for_to_be_made_again(code: int) -> None:
    assert found(ended(code, {"verdict": None, "reason": "SIGTERM"})) is None


def test_storage_that_fails_is_tried_again_and_says_nothing_about_the_checkpoint() -> None:
    summary = {**INTACT, "intact": None, "problems": ["a.safetensors: Input/output error"]}
    pods = [pod(containerStatuses=[ended(3, summary)])]
    assert job_result(job("inspect"), pods, NOW) is None
    result = job_result(job("inspect", "Failed", "BackoffLimitExceeded"), pods, NOW)
    assert result is not None and result.verdict == "broken"
    assert "Input/output error" in result.message


def test_the_newest_pods_word_counts() -> None:
    pods = [
        pod("old", created=500, containerStatuses=[ended(137)]),
        pod("new", created=50, containerStatuses=[ended(0, PASSED)]),
    ]
    result = job_result(job(), pods, NOW)
    assert result is not None and result.passed and result.message == PASSED["reason"]


def test_pods_of_others_do_not_count() -> None:
    before = pod(owner="job-0", containerStatuses=[ended(0, PASSED)])
    other = pod(containerStatuses=[ended(0, PASSED)])
    other["metadata"]["labels"]["batch.kubernetes.io/job-name"] = "another"
    assert job_result(job(), [before, other], NOW) is None


def test_a_gate_that_takes_too_long_is_undecided_and_an_inspection_is_broken() -> None:
    gate = job_result(job(ended="Failed", reason="DeadlineExceeded"), [], NOW)
    assert gate is not None and gate.verdict == "undecided" and "1800 s" in gate.message
    inspection = job_result(job("inspect", "Failed", "DeadlineExceeded"), [], NOW)
    assert inspection is not None and inspection.verdict == "broken"


def test_a_pods_last_state_may_come_after_the_jobs_end() -> None:
    assert job_result(job(ended="Complete", since=SETTLE_SECONDS - 1), [pod()], NOW) is None
    result = job_result(job(ended="Complete", since=SETTLE_SECONDS), [], NOW)
    assert result is not None and result.verdict == "broken" and "Delete the Job" in result.message


def test_a_verifier_without_enough_memory_is_named() -> None:
    pods = [pod(containerStatuses=[ended(137, reason="OOMKilled")])]
    result = job_result(job(ended="Failed", reason="BackoffLimitExceeded"), pods, NOW)
    assert result is not None and "config.verifier.template" in result.message


# What never begins


def stuck(status: Json | None = None, seconds: float = STUCK_SECONDS, **more: Any) -> str | None:
    fields: Json = {"phase": "Pending", **more}
    if status:
        fields["containerStatuses"] = [status]
    result = job_result(job(since=seconds), [pod(created=seconds, **fields)], NOW)
    if result is None:
        return None
    assert (result.finished, result.verdict) == (False, "broken")
    return result.message


def test_a_suite_that_is_gone_is_told_of_by_its_name_and_key() -> None:
    creating = waiting("ContainerCreating")
    assert stuck(creating, STUCK_SECONDS - 1) is None
    message = stuck(creating)
    assert message is not None and "ConfigMap heldout with the key suite.jsonl" in message
    assert "PersistentVolumeClaim models" in message


def test_an_image_that_takes_long_to_pull_is_waited_for() -> None:
    conditions = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(900)},
        {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": ago(890)},
    ]
    assert stuck(waiting("ContainerCreating"), 900, conditions=conditions) is None


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("ImagePullBackOff", "config.verifier.image"),
        ("CreateContainerConfigError", "cannot be created: no such thing"),
    ],
)
def test_a_container_that_cannot_be_made_is_told_of(reason: str, words: str) -> None:
    status = waiting(reason, "no such thing")
    assert stuck(status, STUCK_SECONDS - 1) is None
    message = stuck(status)
    assert message is not None and words in message


def test_a_claim_that_does_not_exist_is_told_of_and_a_full_cluster_is_waited_for() -> None:
    def unscheduled(message: str) -> str | None:
        condition = {
            "type": "PodScheduled",
            "status": "False",
            "message": message,
            "lastTransitionTime": ago(900),
        }
        return stuck(None, 900, conditions=[condition])

    assert unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu") is None
    message = unscheduled('persistentvolumeclaim "models" not found')
    assert message is not None and "PersistentVolumeClaim models does not exist" in message


def test_a_job_whose_pods_are_refused_is_told_of() -> None:
    assert job_result(job(since=STUCK_SECONDS - 1), [], NOW) is None
    result = job_result(job(since=STUCK_SECONDS), [], NOW)
    assert result is not None and result.verdict == "broken" and "quota" in result.message


def test_a_pod_that_is_being_deleted_is_not_stuck() -> None:
    gone = pod(created=900, phase="Pending", containerStatuses=[waiting("ContainerCreating")])
    gone["metadata"]["deletionTimestamp"] = ago(1)
    assert job_result(job(since=900), [gone], NOW) is None


# Whether what it mounts may still be missing


def sandbox(status: str) -> Json:
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": ago(5)}
    made = {"type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": ago(5)}
    creating = [waiting("ContainerCreating")]
    return {
        "phase": "Pending",
        "conditions": [scheduled, made],
        "containerStatuses": creating,
    }


@pytest.mark.parametrize(
    "pods",
    [
        [],
        [pod(**sandbox("False"))],
        [pod("new", **sandbox("False")), pod("old", created=90, phase="Failed")],
    ],
    ids=["no pod yet", "a pod whose volumes are not there", "such a pod after one that was killed"],
)
def test_a_job_waits_until_a_pod_has_its_volumes(pods: list[Json]) -> None:
    assert waits(job(), pods)


@pytest.mark.parametrize(
    "status",
    [sandbox("True"), {"phase": "Running"}, {"phase": "Succeeded"}],
    ids=["it pulls its image", "it runs", "it is over"],
)
def test_a_pod_that_has_begun_has_all_that_it_mounts(status: Json) -> None:
    assert not waits(job(), [pod(**status)])


@pytest.mark.parametrize("end", ["Failed", "Complete"])
def test_a_job_that_ended_waits_for_nothing_even_where_its_pods_are_not_seen(end: str) -> None:
    assert not waits(job(ended=end, since=1), [])


def test_a_pod_of_an_earlier_job_of_the_same_name_has_not_begun_for_this_one() -> None:
    assert waits(job(), [pod(owner="job-0", phase="Running")])


# Weighing: an inspection before, an engine beside


def weighed(inspection: Json, gate: Json | None = None) -> JobResult | None:
    statuses = {"containerStatuses": [gate] if gate else []}
    return job_result(job("weigh"), [pod(initContainerStatuses=[inspection], **statuses)], NOW)


def test_a_weighing_passes_where_both_do_and_keeps_both_summaries() -> None:
    result = weighed(ended(0, INTACT, name="inspect"), ended(0, PASSED))
    assert result is not None and result.passed
    assert result.summary == {**PASSED, "inspection": INTACT}


def test_a_damaged_folder_is_not_weighed() -> None:
    damaged = {**INTACT, "intact": False, "problems": ["config.json is missing"]}
    result = weighed(ended(1, damaged, name="inspect"))
    assert result is not None and (result.verdict, result.message) == (
        "fail",
        "config.json is missing",
    )


@pytest.mark.parametrize("message", ["", {**INTACT, "intact": False}])
def test_no_gate_outvotes_an_inspection(message: Json | str) -> None:
    result = weighed(ended(0, message, name="inspect"), ended(0, PASSED))
    assert result is None or result.verdict == "broken"


def test_an_engine_that_refuses_the_model_ends_the_waiting() -> None:
    engine = {
        "name": "engine",
        "restartCount": 2,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 67, "message": "no usable config.json"}},
    }
    pods = [pod(initContainerStatuses=[engine], containerStatuses=[waiting("PodInitializing")])]
    result = job_result(job(), pods, NOW)
    assert result is not None and (result.finished, result.verdict) == (False, "broken")
    assert "no usable config.json" in result.message


def test_an_engine_that_still_starts_is_waited_for() -> None:
    engine = {
        "name": "engine",
        "restartCount": 0,
        "started": False,
        "state": {"running": {"startedAt": ago(40)}},
    }
    pods = [pod(initContainerStatuses=[engine], containerStatuses=[waiting("PodInitializing")])]
    assert job_result(job(), pods, NOW) is None


def test_a_result_cannot_contradict_itself() -> None:
    with pytest.raises(ValueError, match="fail cannot be passed=True"):
        JobResult(True, True, "fail", {}, "")
