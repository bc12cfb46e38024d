"""What came of an inspection, a gate or a weighing: read from its Job and the Job's pods. Pure.

The command's word is its termination message, and it counts only where the exit code says the same.
All else (no message, a killed pod, a volume that never comes) is no verdict on the candidate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from assay_operator.inference.failures import pod_failure
from assay_operator.inference.observation import (
    condition_of,
    is_terminating,
    labels_of,
    parse_time,
)
from assay_operator.plan import Json

Verdict = Literal["pass", "fail", "undecided", "broken"]

VERIFIER = "verifier"
"""The container that inspects or asks; its word is the Job's."""
INSPECT = "inspect"
"""The init container that inspects before a weighing."""
ENGINE = "engine"
INCUMBENT = "incumbent"
"""The side of a gate that a candidate is compared with."""
COMPONENT_LABEL = "app.kubernetes.io/component"
JOB_LABEL = "batch.kubernetes.io/job-name"

STUCK_SECONDS = 180
"""A pod that has not begun after this long waits for something that may never come."""
SETTLE_SECONDS = 15
"""How long after a Job its pods' last states may arrive: they come by another watch."""
_MESSAGE_LIMIT = 600

# By exit code, what the summary must say. What is not listed here may come out otherwise next time.
_INSPECTION_EXITS: Mapping[int, tuple[bool | None, Verdict]] = {
    0: (True, "pass"),
    1: (False, "fail"),
}
_GATE_EXITS: Mapping[int, tuple[str | None, Verdict]] = {
    0: ("pass", "pass"),
    1: ("fail", "fail"),
    2: (None, "broken"),
    3: ("undecided", "undecided"),
}


@dataclass(frozen=True)
class JobResult:
    """The end of a Job, or that it will have none.

    Attributes:
        finished: whether its command came to an end; False where it is stuck.
        passed: whether the candidate may be served, as far as this Job can say. Only then.
        verdict: `fail` speaks against the candidate; `broken` says nothing about it.
        summary: what the command left, as JSON data; empty where it left none. A weighing has the
            inspection's under `inspection`.
        message: why, in a sentence, and what to do about it.
    """

    finished: bool
    passed: bool
    verdict: Verdict
    summary: Json
    message: str

    def __post_init__(self) -> None:
        if self.passed != (self.verdict == "pass"):
            raise ValueError(f"{self.verdict} cannot be passed={self.passed}")


def result(verdict: Verdict, summary: Json, message: str, *, finished: bool = True) -> JobResult:
    """A result whose parts agree."""
    short = message if len(message) <= _MESSAGE_LIMIT else f"{message[: _MESSAGE_LIMIT - 3]}..."
    return JobResult(finished, verdict == "pass", verdict, summary, short)


def job_result(job: Json, pods: Iterable[Json], now: datetime) -> JobResult | None:
    """What a Job of `jobs.py` found; None while that is not known.

    Args:
        job: as the API server has it.
        pods: any pods of its namespace; those of other Jobs do not matter.
        now: with a zone.
    """
    mine = _pods_of(job, pods)
    failed, complete = (_true_condition(job, kind) for kind in ("Failed", "Complete"))
    if failed and failed.get("reason") == "DeadlineExceeded":
        return _late(job)
    for pod in mine:
        if found := _verdict(pod):
            return found
    if ended := failed or complete:
        since = parse_time(ended.get("lastTransitionTime"))
        if since and (now - since).total_seconds() < SETTLE_SECONDS:
            return None
        return result("broken", {}, _without_verdict(job, mine))
    why = _never_begins(job, mine, now)
    return result("broken", {}, why, finished=False) if why else None


def waits(job: Json, pods: Iterable[Json]) -> bool:
    """Whether a Job goes on and none of its pods has begun or is over well.

    One that has begun has all that it mounts, whatever is deleted since. A failed one counts for
    nothing: the pod that is made in its place needs it all again.

    Args:
        job: as the API server has it.
        pods: as for `job_result`.
    """
    if _true_condition(job, "Failed") or _true_condition(job, "Complete"):
        return False
    return not any(_has_begun(pod) for pod in _pods_of(job, pods))


def _has_begun(pod: Json) -> bool:
    phase = pod.get("status", {}).get("phase", "Pending")
    return phase != "Failed" and (phase != "Pending" or _has_sandbox(pod))


def _has_sandbox(pod: Json) -> bool:
    """Whether its containers can be made: with its volumes in place it may still pull an image."""
    sandbox = condition_of(pod, "PodReadyToStartContainers")
    return sandbox is not None and sandbox["status"] == "True"


def _never_begins(job: Json, pods: Sequence[Json], now: datetime) -> str | None:
    """Why a Job that runs will say nothing, and what to do; None where it may."""
    for pod in pods:
        if why := _stuck(pod, now):
            return why
    if not pods and _older(job.get("status", {}).get("startTime"), now):
        return (
            f"No pod of job/{_name(job)} could be created: `kubectl describe job {_name(job)}` "
            "says why. Raise the namespace's quota, or see to what admission refuses."
        )
    return None


def _name(item: Json) -> str:
    return str(item["metadata"]["name"])


def _pods_of(job: Json, pods: Iterable[Json]) -> list[Json]:
    """A Job's pods, the newest first. Those of an earlier Job of the same name are none of them."""
    uid = job["metadata"].get("uid")

    def is_mine(pod: Json) -> bool:
        owners = pod["metadata"].get("ownerReferences") or []
        return labels_of(pod).get(JOB_LABEL) == _name(job) and (
            not owners or uid is None or any(owner.get("uid") == uid for owner in owners)
        )

    found = [pod for pod in pods if is_mine(pod)]
    return sorted(
        found,
        key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", _name(pod)),
        reverse=True,
    )


def _true_condition(job: Json, kind: str) -> Json | None:
    found = condition_of(job, kind)
    return found if found and found["status"] == "True" else None


def _older(time: str | None, now: datetime) -> bool:
    since = parse_time(time)
    return since is not None and (now - since).total_seconds() >= STUCK_SECONDS


def _statuses(pod: Json, kind: str) -> list[Json]:
    found: list[Json] = pod.get("status", {}).get(kind) or []
    return found


def _ended(statuses: Sequence[Json], container: str) -> Json | None:
    """How a container ended, None while it has not."""
    for status in statuses:
        if status["name"] == container:
            ended: Json | None = status.get("state", {}).get("terminated")
            return ended
    return None


def _summary(ended: Json | None) -> Json:
    """A termination message as JSON data. It may be the end of a log, or nothing."""
    try:
        data = json.loads((ended or {}).get("message") or "")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}


def _verdict(pod: Json) -> JobResult | None:
    """What a pod's command said for good; None where it said nothing, or another try may help."""
    before = _ended(_statuses(pod, "initContainerStatuses"), INSPECT)
    inspection = _summary(before)
    if before:
        inspected = _read(before, inspection)
        if inspected is None or not inspected.passed:
            return inspected
    ended = _ended(_statuses(pod, "containerStatuses"), VERIFIER)
    if not ended:
        return None
    summary = _summary(ended)
    if inspection and summary:
        summary = {**summary, "inspection": inspection}
    return _read(ended, summary)


def _read(ended: Json, summary: Json) -> JobResult | None:
    """The verdict of a command that ended; None where its exit code is not one of a verdict."""
    code = ended.get("exitCode", -1)
    said: bool | str | None
    expected: tuple[bool | str | None, Verdict] | None = None
    if "intact" in summary:
        said, expected = summary["intact"], _INSPECTION_EXITS.get(code)
        message = _inspection_message(summary)
    elif "verdict" in summary:
        said, expected = summary["verdict"], _GATE_EXITS.get(code)
        message = str(summary.get("reason") or "it gave no reason")
    if expected is None:
        return None
    if type(said) is not type(expected[0]) or said != expected[0]:
        told = f"It says {said!r} and ended with exit code {code}: {message}"
        return result("broken", summary, told)
    if INCUMBENT in (summary.get("stopped") or ()):
        # Who was to be compared with went away: that says nothing about the candidate.
        return result("broken", summary, message)
    return result(expected[1], summary, message)


def _inspection_message(summary: Json) -> str:
    problems = summary.get("problems") or []
    if problems:
        return "; ".join(map(str, problems))
    told = f"{summary.get('files')} files, {summary.get('bytes')} bytes: all as they shall be"
    reasons = summary.get("reasons") or []
    if summary.get("inPlace") is False:
        return f"{told}; not for engines that run: {'; '.join(map(str, reasons))}"
    return told


def _late(job: Json) -> JobResult:
    seconds = job.get("spec", {}).get("activeDeadlineSeconds")
    told = f"job/{_name(job)} did not end within {seconds} s"
    if labels_of(job).get(COMPONENT_LABEL) == INSPECT:
        return result("broken", {}, f"{told}: see to the storage that the checkpoint is on.")
    return result(
        "undecided",
        {},
        f"{told}: give it longer, or fewer items or tokens. If its pod never ran, no node had room "
        "for it.",
    )


def _without_verdict(job: Json, pods: Sequence[Json]) -> str:
    """Why a Job ended and said nothing."""
    for pod in pods:
        for kind, container in (
            ("initContainerStatuses", INSPECT),
            ("containerStatuses", VERIFIER),
        ):
            ended = _ended(_statuses(pod, kind), container)
            if ended and ended.get("exitCode") != 0:
                return f"pod/{_name(pod)} {_end(ended)}"
    for pod in pods:
        if reason := pod.get("status", {}).get("message"):
            return f"pod/{_name(pod)}: {reason}"
    return (
        f"job/{_name(job)} has ended and no pod of it is left to say with what result. Delete the "
        "Job, and it is done again."
    )


def _end(ended: Json) -> str:
    code = ended.get("exitCode", 0)
    if ended.get("reason") == "OOMKilled":
        return "was killed for its memory: raise its limit in config.verifier.template."
    how = f"was killed by signal {code - 128}" if code > 128 else f"ended with exit code {code}"
    summary = _summary(ended)
    said = summary.get("reason") or "; ".join(map(str, summary.get("problems") or []))
    text = said or " ".join((ended.get("message") or "").split())[-_MESSAGE_LIMIT // 2 :]
    return f"{how} and gave no verdict: {text or 'it left no message, see `kubectl logs`'}"


def _stuck(pod: Json, now: datetime) -> str | None:
    if is_terminating(pod):
        return None
    if why := _engine_fails(pod, now):
        return why
    where = f"pod/{_name(pod)}"
    scheduled = condition_of(pod, "PodScheduled")
    if not scheduled or not _older(scheduled.get("lastTransitionTime"), now):
        return None
    if scheduled["status"] != "True":
        missing = re.search(
            r'persistentvolumeclaim "([^"]+)" not found', scheduled.get("message", "")
        )
        # Else there is no room now, and there may be some later.
        return missing and (
            f"{where}: PersistentVolumeClaim {missing[1]} does not exist in this namespace: create "
            "it, or correct the source."
        )
    return _not_created(pod, where) or _waits_for_volumes(pod, where)


def _not_created(pod: Json, where: str) -> str | None:
    for status in (
        *_statuses(pod, "initContainerStatuses"),
        *_statuses(pod, "containerStatuses"),
    ):
        waiting = status.get("state", {}).get("waiting") or {}
        reason, said = waiting.get("reason", ""), waiting.get("message", "")
        if "Image" in reason:
            return (
                f"{where}: image {status.get('image', '')} cannot be pulled: {said}. Correct "
                "config.verifier.image or config.engine.images of the operator, or give a pull "
                "secret in their templates."
            )
        if reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
            return f"{where}: container {status['name']} cannot be created: {said}."
    return None


def _engine_fails(pod: Json, now: datetime) -> str | None:
    """Why the pod's own engine does not start: it would be started again for ever."""
    view = {
        **pod,
        "status": {
            **pod.get("status", {}),
            "containerStatuses": _statuses(pod, "initContainerStatuses"),
        },
    }
    if not any(status["name"] == ENGINE for status in _statuses(view, "containerStatuses")):
        return None
    failure = pod_failure(view, ENGINE, now)
    if failure and failure.exit_code is not None and (failure.fatal or "Loop" in failure.reason):
        return f"{failure.where}: the engine does not start with this model: {failure.message}"
    return None


def _waits_for_volumes(pod: Json, where: str) -> str | None:
    if _has_sandbox(pod) or pod.get("status", {}).get("phase") != "Pending":
        return None
    needs = "; ".join(_volumes(pod)) or "its volumes"
    return (
        f"{where} waits for more than {STUCK_SECONDS} s for what it mounts: see that there is "
        f"{needs}. `kubectl describe {where}` says what is missing."
    )


def _volumes(pod: Json) -> Iterator[str]:
    for volume in pod.get("spec", {}).get("volumes") or []:
        if config := volume.get("configMap"):
            keys = ", ".join(item["key"] for item in config.get("items") or [])
            yield f"ConfigMap {config['name']}" + (f" with the key {keys}" if keys else "")
        elif claim := volume.get("persistentVolumeClaim"):
            yield f"PersistentVolumeClaim {claim['claimName']}"
