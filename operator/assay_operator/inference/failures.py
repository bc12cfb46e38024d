"""What is wrong with a pod, read from its status: where, why, what to do, and whether to wait.

Pure functions of a pod as the API server has it. The kubelet says what happened in several places
(conditions, waiting reasons, the last termination); a user wants one sentence and a remedy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from assay_operator.inference.kernels import Kernels
from assay_operator.inference.observation import condition_of, is_terminating, parse_time
from assay_operator.plan import Json

CREATING_SECONDS = 120
"""A container that is not created after this long waits for something that may never come."""
_CRASH_LOOP = 3
_MESSAGE_LIMIT = 400


@dataclass(frozen=True)
class Failure:
    """One failure of one pod or child.

    Attributes:
        where: `pod/NAME`, or kind and name of another child.
        reason: one word for programs.
        message: what happened and what to do.
        fatal: True where waiting cannot help.
        exit_code: the container's, where it exited.
    """

    where: str
    reason: str
    message: str
    fatal: bool
    exit_code: int | None = None


# The launcher's exit codes (images/engine/README.md). Its message, which the kubelet keeps as the
# termination message, already says what to do.
LAUNCHER_EXITS: dict[int, str] = {
    64: "PointerMissing",
    65: "PointerMalformed",
    66: "ModelNotFound",
    67: "ModelConfigMissing",
    68: "WeightsMissing",
    69: "WeightsUnsafe",
    70: "WeightsIncomplete",
    71: "EngineMissing",
}

_REMEDIES: tuple[tuple[re.Pattern[str], str, str], ...] = (
    (
        re.compile(r"unrecognized arguments|error: argument|invalid choice", re.I),
        "UnknownArgument",
        "SGLang refuses an argument: correct spec.engine.extraArgs.",
    ),
    (
        re.compile(r"supported for deterministic inference", re.I),
        "NotDeterministic",
        "SGLang has no deterministic mode with the attention that this engine was given or that "
        "its model needs: take --attention-backend out of spec.engine.extraArgs, or set "
        "spec.engine.deterministic to false.",
    ),
    (
        re.compile(
            r"out of memory|not enough memory|cannot allocate memory|no GPU memory for the KV", re.I
        ),
        "OutOfMemory",
        "The engine ran out of memory: use more GPUs (spec.engine.parallelism.tensor), less KV "
        "cache (--mem-fraction-static, --context-length or --max-total-tokens in "
        "spec.engine.extraArgs), or more memory (spec.engine.resources).",
    ),
)


def pod_failure(pod: Json, container: str, now: datetime) -> Failure | None:
    """The failure that keeps `pod` from serving, or None while nothing is wrong with it.

    Args:
        pod: the pod as the API server has it.
        container: the container that serves, `engine` or `router`.
        now: the time, with a zone, to tell slow from stuck.
    """
    if is_terminating(pod):
        return None
    for look in _LOOKS:
        failure = look(pod, container, now)
        if failure:
            return failure
    return None


def first_failure(failures: Iterable[Failure | None]) -> Failure | None:
    """The failure to show: one that waiting cannot heal before one that it may."""
    found = [failure for failure in failures if failure]
    return min(found, key=lambda failure: (not failure.fatal, failure.where), default=None)


def deployment_failure(deployment: Json) -> Failure | None:
    """Why a Deployment cannot even create pods: quota, admission, an invalid template."""
    condition = condition_of(deployment, "ReplicaFailure")
    if not condition or condition["status"] != "True":
        return None
    return Failure(
        f"deployment/{deployment['metadata']['name']}",
        "PodsRejected",
        f"The API server refuses the pods: {short(condition.get('message', ''))}. "
        "Raise the namespace's quota or Pod Security level, or change spec.template.",
        fatal=True,
    )


def kernels_failure(pod: Json, kernels: Kernels | None) -> Failure | None:
    """Why an engine that was asked for fused kernels gets no requests, None where it may.

    Args:
        pod: the engine's.
        kernels: what it says of them, None where it says nothing.
    """
    if kernels is None or kernels.active:
        return None
    return Failure(
        place_of(pod),
        "KernelsInactive",
        f"The engine does not run the fused kernels that spec.engine.kernels asks for: "
        f"{kernels.why_not}. Use an engine image with Assay's plugin and let SGLANG_PLUGINS name "
        "it, or set spec.engine.kernels to stock.",
        fatal=True,
    )


def place_of(pod: Json) -> str:
    """Where a failure of this pod is."""
    return f"pod/{pod['metadata']['name']}"


def short(text: str) -> str:
    """The end of a long message, on one line: an error stands at the end of a log."""
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= _MESSAGE_LIMIT else "... " + line[-_MESSAGE_LIMIT:]


def container_status(pod: Json, container: str) -> Json:
    """What the kubelet says of one container; empty as long as it says nothing."""
    statuses: list[Json] = pod.get("status", {}).get("containerStatuses") or []
    return next((item for item in statuses if item["name"] == container), {})


def _unschedulable(pod: Json, _container: str, _now: datetime) -> Failure | None:
    condition = condition_of(pod, "PodScheduled")
    if not condition or condition["status"] == "True":
        return None
    if condition.get("reason") != "Unschedulable":
        return None
    text = condition.get("message", "")
    missing = re.search(r'persistentvolumeclaim "([^"]+)" not found', text)
    if missing:
        return Failure(
            place_of(pod),
            "ClaimNotFound",
            f"PersistentVolumeClaim {missing[1]} does not exist in this namespace: create it, or "
            "correct spec.model.source.",
            fatal=True,
        )
    if "unbound immediate PersistentVolumeClaims" in text:
        return Failure(
            place_of(pod),
            "ClaimNotBound",
            "The PersistentVolumeClaim of spec.model.source has no volume yet: see "
            "`kubectl describe pvc`.",
            fatal=False,
        )
    return Failure(place_of(pod), "Unschedulable", _no_node(text), fatal=False)


def _no_node(text: str) -> str:
    resources = sorted(set(re.findall(r"Insufficient ([\w./-]+)", text)))
    remedies = []
    if any("gpu" in resource for resource in resources):
        remedies.append(
            "add nodes with free GPUs, lower spec.engine.parallelism or spec.replicas, or choose "
            "another spec.engine.accelerator"
        )
    elif resources:
        remedies.append("add nodes, or lower spec.engine.resources.requests")
    if "affinity" in text or "node selector" in text:
        remedies.append(
            "see that nodes carry the label nvidia.com/gpu.product of the accelerator (GPU feature "
            "discovery sets it), or change spec.engine.accelerator"
        )
    # The taint of control planes stands in every such message: it is no news beside a shortage.
    if "untolerated taint" in text and not remedies:
        remedies.append("tolerate the taint in spec.template")
    advice = "; ".join(remedies) or "see `kubectl describe pod`"
    return f"No node takes the pod: {short(text)}. To mend it: {advice}."


_PULL_REASONS = {"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}
_PULL_FATAL = re.compile(
    r"not found|manifest unknown|denied|unauthori[sz]ed|invalid|not present|no match", re.I
)


def _image(pod: Json, container: str, _now: datetime) -> Failure | None:
    waiting = container_status(pod, container).get("state", {}).get("waiting", {})
    if waiting.get("reason") not in _PULL_REASONS:
        return None
    text = waiting.get("message", "")
    image = container_status(pod, container).get("image", "")
    return Failure(
        place_of(pod),
        "ImagePullFailed",
        f"Image {image} cannot be pulled: {short(text)}. Correct the image's name, make the "
        "registry reachable, or give a pull secret (spec.template.spec.imagePullSecrets).",
        fatal=waiting["reason"] in {"InvalidImageName", "ErrImageNeverPull"}
        or bool(_PULL_FATAL.search(text)),
    )


def _not_created(pod: Json, container: str, now: datetime) -> Failure | None:
    waiting = container_status(pod, container).get("state", {}).get("waiting", {})
    reason = waiting.get("reason")
    if reason in {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}:
        return Failure(
            place_of(pod),
            "ContainerNotCreated",
            f"The container cannot be created: {short(waiting.get('message', ''))}. Correct the "
            "image or spec.template.",
            fatal=True,
        )
    scheduled = condition_of(pod, "PodScheduled")
    since = parse_time(scheduled.get("lastTransitionTime")) if scheduled else None
    if reason != "ContainerCreating" or not since:
        return None
    if (now - since).total_seconds() < CREATING_SECONDS:
        return None
    return Failure(
        place_of(pod),
        "ContainerNotCreated",
        f"The container waits for more than {CREATING_SECONDS} s for its image or its volumes: "
        "`kubectl describe pod` says for which.",
        fatal=False,
    )


def _exited(pod: Json, container: str, _now: datetime) -> Failure | None:
    status = container_status(pod, container)
    running = status.get("state", {}).get("running")
    ended = status.get("state", {}).get("terminated") or status.get("lastState", {}).get(
        "terminated"
    )
    if not ended or (running and status.get("ready")):
        return None
    code = ended.get("exitCode", 0)
    text = ended.get("message", "")
    where, restarts = place_of(pod), status.get("restartCount", 0)
    if ended.get("reason") == "OOMKilled":
        return Failure(
            where,
            "OutOfMemory",
            "The kernel killed the container for its memory: raise "
            "spec.engine.resources.limits.memory.",
            fatal=True,
            exit_code=code,
        )
    if code in LAUNCHER_EXITS:
        return Failure(where, LAUNCHER_EXITS[code], short(text), fatal=True, exit_code=code)
    for pattern, reason, remedy in _REMEDIES:
        if pattern.search(text):
            return Failure(where, reason, f"{remedy} {short(text)}", fatal=True, exit_code=code)
    said = short(text) or "it left no message, see `kubectl logs --previous`"
    how = f"was killed by signal {code - 128}" if code > 128 else f"exited with code {code}"
    if restarts >= _CRASH_LOOP:
        return Failure(
            where,
            "CrashLoop",
            f"The container ends again and again; it {how}: {said}",
            fatal=False,
            exit_code=code,
        )
    return Failure(
        where,
        "ContainerExited",
        f"The container {how} and is started again: {said}",
        fatal=False,
        exit_code=code,
    )


def _unresponsive(pod: Json, container: str, _now: datetime) -> Failure | None:
    """A container that was ready since it started, and is not any more, has stopped answering."""
    status = container_status(pod, container)
    running = status.get("state", {}).get("running")
    ready = condition_of(pod, "Ready")
    # A router is not ready while it has no engine: that says nothing about itself.
    if container != "engine" or not running or not ready:
        return None
    if not status.get("started") or status.get("ready"):
        return None
    started = parse_time(running.get("startedAt"))
    unready = parse_time(ready.get("lastTransitionTime"))
    if ready["status"] == "True" or not started or not unready or unready <= started:
        return None
    return Failure(
        place_of(pod),
        "Unresponsive",
        "The container runs and has stopped answering: it gets no requests, and the kubelet "
        "restarts it unless it comes back. See `kubectl logs`.",
        fatal=False,
    )


_LOOKS: tuple[Callable[[Json, str, datetime], Failure | None], ...] = (
    _unschedulable,
    _image,
    _not_created,
    _unresponsive,
    _exited,
)
