"""What is seen of one VerifiedRLJob: plain data, gathered by the shell, read by the planner."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from assay_operator.inference.kernels import Kernels
from assay_operator.inference.observation import is_terminating, labels_of
from assay_operator.plan import Json, Ref
from assay_operator.training.jobfile import STATUS_PORT

GENERATION_LABEL = "assay.dev/generation"
"""On a trainer's Job and on its pods: how many times the pods were started together, as a number.
A new generation begins when nothing is left of the one before."""
_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class TrainerAnswer:
    """What one trainer said at /status.

    Attributes:
        status: the JSON object, None where there was none.
        error: why there was none, in one line.
    """

    status: Json | None = None
    error: str | None = None


@dataclass(frozen=True)
class Observation:
    """The world as far as one VerifiedRLJob is concerned.

    Attributes:
        job: the VerifiedRLJob itself, as the API server has it.
        children: its live children but pods and Checkpoints, by kind and name.
        trainers: its trainer pods of every generation, raw, terminating ones included.
        engines: its engine pods, raw, terminating ones included.
        answers: by uid of the pod, for those of `to_ask`; one that was not asked is absent.
        kernels: by uid of the engine pod, what it says of the fused kernels that it was asked to
            run; one that is not ready, says nothing or was not asked to is absent.
        found: the objects of the user's that the spec names (`planner.looked_up`), None where there
            is none; what could not be looked up is absent.
        checkpoints: the Checkpoints of its namespace, of whichever origin.
        pinned: digests of the weights that services serve, or are brought at this moment.
        rejections: the API server's words about children that it refused in the last pass.
    """

    job: Json
    children: Mapping[Ref, Json] = field(default_factory=dict)
    trainers: tuple[Json, ...] = ()
    engines: tuple[Json, ...] = ()
    answers: Mapping[str, TrainerAnswer] = field(default_factory=dict)
    kernels: Mapping[str, Kernels] = field(default_factory=dict)
    found: Mapping[Ref, Json | None] = field(default_factory=dict)
    checkpoints: tuple[Json, ...] = ()
    pinned: frozenset[str] = frozenset()
    rejections: Mapping[Ref, str] = field(default_factory=dict)


def generation_of(item: Json) -> int:
    """The generation that a trainer's Job or pod belongs to; 0 where its label is no number."""
    label = labels_of(item).get(GENERATION_LABEL, "")
    return int(label) if label.isdecimal() else 0


def trainer_jobs(children: Mapping[Ref, Json]) -> dict[int, Json]:
    """The trainers' Jobs that are there, on their way out or not, by generation."""
    jobs = (item for name, item in children.items() if name.kind == "Job")
    return {generation_of(job): job for job in jobs if generation_of(job)}


def leader(trainers: Iterable[Json], generation: int) -> Json | None:
    """The pod of a generation whose trainer writes checkpoints and answers: that of index 0."""
    pods = [pod for pod in trainers if generation_of(pod) == generation and _index(pod) == "0"]
    return min(pods, key=is_terminating, default=None)


def is_running(pod: Json) -> bool:
    """Whether the pod's process runs, so that it can be asked."""
    status = pod.get("status", {})
    return status.get("phase") == "Running" and bool(status.get("podIP"))


def to_ask(trainers: Iterable[Json]) -> list[Json]:
    """The pods to be asked for /status, at `status_url`."""
    return [pod for pod in trainers if _index(pod) == "0" and is_running(pod)]


def status_url(pod: Json) -> str:
    """Where the trainer in a running pod tells how it is doing."""
    address = pod["status"]["podIP"]
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{STATUS_PORT}/status"


def _index(pod: Json) -> str | None:
    notes = pod["metadata"].get("annotations") or {}
    return labels_of(pod).get(_INDEX) or notes.get(_INDEX)
