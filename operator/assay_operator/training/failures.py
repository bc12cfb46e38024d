"""What is wrong with a job's pods, and whether it helps to start them again. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from assay_operator.inference.failures import (
    Failure,
    container_status,
    first_failure,
    kernels_failure,
    place_of,
    pod_failure,
    short,
)
from assay_operator.inference.kernels import Kernels
from assay_operator.inference.observation import condition_of, parse_time
from assay_operator.plan import Json
from assay_operator.training.gang import DISRUPTED, Trouble
from assay_operator.training.progress import Farewell, farewell

TRAINER = "trainer"
JOB_FILE_WRONG = 2
STOPPED = 3
_TERMINATED = 128 + 15

# Remedies are told by a service's fields; a job has the same things under other names.
_OF_ENGINES = {
    "spec.replicas": "spec.rollout.engines",
    "spec.engine": "spec.rollout.engine",
    "spec.template": "spec.rollout.template",
}
_OF_TRAINERS = {
    "spec.engine.parallelism or spec.replicas": "spec.trainer.gpusPerNode or spec.trainer.nodes",
    "spec.engine.parallelism": "spec.trainer.gpusPerNode",
    "spec.engine": "spec.trainer",
    "spec.template": "spec.trainer.template",
    "correct spec.model.source": "correct the claim that the spec names",
    "of spec.model.source": "that the spec names",
}

_REMEDIES: tuple[tuple[re.Pattern[str], str, str, bool], ...] = (
    (
        re.compile(r"CUDA out of memory|OutOfMemoryError|not enough memory", re.I),
        "OutOfMemory",
        "The trainer ran out of memory: lower spec.trainer.tokensPerMicroBatch or "
        "spec.trainer.logProbChunk, leave spec.trainer.activationCheckpointing on, or use more "
        "GPUs (spec.trainer.gpusPerNode, spec.trainer.nodes).",
        False,
    ),
    (
        re.compile(r"no checkpoint under .* is whole", re.I | re.S),
        "CheckpointsDamaged",
        "The run has checkpoints and none of them is whole; it never begins again from the base "
        "model by itself.",
        True,
    ),
    (
        re.compile(r"No space left|Disk quota|GB are free in", re.I),
        "StorageFull",
        "The claim of spec.checkpoint.storage is too small for a checkpoint: enlarge it, or lower "
        "spec.checkpoint.keep.",
        False,
    ),
    (
        re.compile(r"Read-only file system|Permission denied|cannot be written to", re.I),
        "StorageNotWritable",
        "The trainer cannot write to the claim of spec.checkpoint.storage: it must allow writing "
        "by user 65532.",
        False,
    ),
    (
        re.compile(r"another trainer", re.I),
        "FolderInUse",
        "Another trainer works in this job's folder.",
        False,
    ),
)

_DISRUPTIONS = frozenset(
    {
        "PreemptionByScheduler",
        "DeletionByTaintManager",
        "EvictionByEvictionAPI",
        "DeletionByPodGC",
    }
)
"""Why a pod had to go for reasons that are not its own. The kubelet's evictions are not among them:
a trainer that eats a node's memory would be started again for ever."""


@dataclass(frozen=True)
class PodFailure:
    """What is wrong with one trainer pod.

    Attributes:
        failure: for people.
        hopeless: whether to start it again cannot help.
        disrupted: whether the cluster took it away.
        time: when it ended; None where it did not.
    """

    failure: Failure
    hopeless: bool = False
    disrupted: bool = False
    time: datetime | None = None

    @property
    def trouble(self) -> Trouble:
        """As the gang's state machine takes it."""
        failure = self.failure
        return Trouble(
            DISRUPTED if self.disrupted else failure.reason,
            f"{failure.where}: {failure.message}",
            counts=not self.disrupted,
            hopeless=self.hopeless,
        )


def engine_failure(
    pods: Iterable[Json], kernels: Mapping[str, Kernels], now: datetime
) -> Failure | None:
    """The most telling of what is wrong with the job's engines.

    Args:
        pods: of the engines.
        kernels: by uid of the pod, what it says of them.
        now: the time.
    """
    found = first_failure(
        pod_failure(pod, "engine", now) or kernels_failure(pod, kernels.get(pod["metadata"]["uid"]))
        for pod in pods
    )
    return _in_words_of(found, _OF_ENGINES) if found else None


def gang_failure(pods: Iterable[Json], now: datetime) -> PodFailure | None:
    """What is wrong with a generation: of several pods that ended, what ended first.

    The others mostly end because that one did.
    """
    found = [each for pod in pods if (each := trainer_failure(pod, now))]
    never = datetime.max.replace(tzinfo=UTC)
    return min(
        found,
        key=lambda each: (each.time or never, not each.failure.fatal, each.failure.where),
        default=None,
    )


def trainer_failure(pod: Json, now: datetime) -> PodFailure | None:
    """What is wrong with one trainer pod; None while nothing is."""
    ended = container_status(pod, TRAINER).get("state", {}).get("terminated")
    if ended and ended.get("exitCode"):
        return _exited(pod, ended)
    status = pod.get("status", {})
    if status.get("phase") == "Failed" and not ended:
        text = short(status.get("message") or "nobody said why")
        reason = status.get("reason") or "PodFailed"
        failure = Failure(place_of(pod), reason, f"The pod was ended: {text}.", fatal=False)
        return PodFailure(failure, disrupted=_is_disrupted(pod))
    # The kubelet shows an ended container as the last one too, of which that would speak.
    waiting = None if ended else pod_failure(pod, TRAINER, now)
    return PodFailure(_in_words_of(waiting, _OF_TRAINERS)) if waiting else None


def last_words(pod: Json | None) -> Farewell | None:
    """What the trainer in a pod that ended said last; None where it said nothing, or runs."""
    if pod is None:
        return None
    ended = container_status(pod, TRAINER).get("state", {}).get("terminated") or {}
    return farewell(ended.get("message") or "")


def _exited(pod: Json, ended: Json) -> PodFailure:
    text = ended.get("message") or ""
    words = farewell(text)
    code = words.code if words and words.code is not None else ended["exitCode"]
    said = short(words.message if words else text) or "it left no message, see `kubectl logs`"
    reason, message, hopeless = _of_exit(code, ended.get("reason"), said)
    failure = Failure(place_of(pod), reason, message, fatal=hopeless, exit_code=code)
    return PodFailure(failure, hopeless, _is_disrupted(pod), parse_time(ended.get("finishedAt")))


def _of_exit(code: int, reason: str | None, said: str) -> tuple[str, str, bool]:
    """Reason, message and whether it is hopeless."""
    if reason == "OOMKilled":
        text = "The kernel killed the trainer for its memory: raise "
        return "OutOfMemory", f"{text}spec.trainer.resources.limits.memory.", False
    if code == JOB_FILE_WRONG:
        text = "The trainer refuses the job file, so its image is of another release than the "
        return "JobFileWrong", f"{text}operator: set trainer.images. {said}", True
    if code == STOPPED:
        text = "The trainer stopped, since to go on would harm the model or teach it nothing"
        return "TrainingStopped", f"{text}: {said}. Change the spec to try again.", True
    for pattern, name, remedy, hopeless in _REMEDIES:
        if pattern.search(said):
            return name, f"{remedy} {said}", hopeless
    if code == _TERMINATED:
        return "Terminated", f"Somebody ended the trainer's pod with SIGTERM: {said}", False
    how = f"was killed by signal {code - 128}" if code > 128 else f"exited with code {code}"
    return "TrainerExited", f"The trainer {how}: {said}", False


def _is_disrupted(pod: Json) -> bool:
    condition = condition_of(pod, "DisruptionTarget")
    return bool(
        condition and condition["status"] == "True" and condition.get("reason") in _DISRUPTIONS
    )


def _in_words_of(failure: Failure, names: dict[str, str]) -> Failure:
    """The failure with its remedy's fields named as a job has them."""
    message = failure.message
    for theirs, ours in names.items():
        message = message.replace(theirs, ours)
    return replace(failure, message=message)
