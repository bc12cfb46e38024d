"""What an observation says about a job's gang: the facts that its state machine decides by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from assay_operator.inference.failures import Failure
from assay_operator.inference.kernels import asks_for_fused
from assay_operator.inference.observation import (
    condition_of,
    is_ready,
    is_terminating,
    parse_time,
)
from assay_operator.plan import Json
from assay_operator.training.failures import (
    PodFailure,
    engine_failure,
    gang_failure,
    last_words,
)
from assay_operator.training.gang import JobState, Seen, Trouble
from assay_operator.training.objects import MADE_OF_ANNOTATION
from assay_operator.training.observation import (
    Observation,
    generation_of,
    is_running,
    leader,
    trainer_jobs,
)
from assay_operator.training.progress import Farewell, Progress, Saved, end_of, heard

_UNSCHEDULABLE = "Unschedulable"


@dataclass(frozen=True)
class Look:
    """What is seen of a job's pods.

    Attributes:
        jobs: the trainers' Jobs by generation.
        newest: the highest generation of a Job or pod; 0 for none.
        generation: the one that this is about: the newest, or a later one that status knows of.
        pods: the trainer pods of that generation.
        left: whether anything of any generation is there.
        first: the pod of index 0.
        progress: what the trainer said now; None where it said nothing.
        answered: whether it answered; None where it was not asked.
        words: its last words.
        failure: what is wrong with trainer pods.
        engines: how many are ready and run the kernels that they were asked to run.
        engine_failure: what is wrong with engines.
    """

    jobs: Mapping[int, Json]
    newest: int
    generation: int
    pods: tuple[Json, ...]
    left: bool
    first: Json | None
    progress: Progress | None
    answered: bool | None
    words: Farewell | None
    failure: PodFailure | None
    engines: int
    engine_failure: Failure | None

    @property
    def job(self) -> Json | None:
        """The generation's Job, unless it is on its way out."""
        job = self.jobs.get(self.generation)
        return None if job is None or is_terminating(job) else job

    @property
    def reported(self) -> tuple[Saved, ...] | None:
        """The checkpoints that the trainer tells of; None where it does not."""
        if self.progress:
            return self.progress.checkpoints
        return (self.words.checkpoints or None) if self.words else None


def look(observation: Observation, known: int, now: datetime) -> Look:
    """Looks at the generation that is newest.

    Args:
        observation: what is seen.
        known: the generation that the status knows of.
        now: the time.
    """
    jobs, pods = trainer_jobs(observation.children), observation.trainers
    newest = max([0, *jobs, *map(generation_of, pods)])
    generation = max(known, newest)
    ours = tuple(pod for pod in pods if generation_of(pod) == generation)
    first = leader(ours, generation)
    answer = observation.answers.get(first["metadata"]["uid"]) if first else None
    said = heard(answer, observation.job["metadata"]["name"]) if answer else None
    return Look(
        jobs=jobs,
        newest=newest,
        generation=generation,
        pods=ours,
        left=bool(jobs or pods),
        first=first,
        progress=said if isinstance(said, Progress) else None,
        answered=None if said is None else isinstance(said, Progress),
        words=last_words(first),
        failure=gang_failure(ours, now),
        engines=sum(_is_up(pod, observation) for pod in observation.engines),
        engine_failure=engine_failure(observation.engines, observation.kernels, now),
    )


def _is_up(engine: Json, observation: Observation) -> bool:
    if not is_ready(engine):
        return False
    kernels = observation.kernels.get(engine["metadata"]["uid"])
    return not asks_for_fused(engine) or (kernels is not None and kernels.active)


def seen(found: Look, digests: Iterable[str], steps: int, made_of: str) -> Seen:
    """As the state machine takes it.

    Args:
        found: what is seen.
        digests: of the checkpoints that are known, in hexadecimal. Last words about another one are
            not believed: it would have no object, and nobody could serve it.
        steps: how many there are to do.
        made_of: the fingerprint of a Job as it is wanted now.
    """
    words = found.words if found.words and found.words.digest in set(digests) else None
    failure, progress, job = found.failure, found.progress, found.job
    engine = found.engine_failure
    return Seen(
        newest=found.newest,
        left=found.left,
        job=job_state(job),
        pods=bool(found.pods),
        running=found.first is not None and is_running(found.first),
        answered=found.answered,
        mark=progress.mark if progress else "",
        step=max(progress.step if progress else 0, found.words.step if found.words else 0),
        end=end_of(progress, words, steps),
        trouble=failure.trouble if failure else None,
        queued=failure is not None and failure.failure.reason == _UNSCHEDULABLE,
        placed=_placed(found.pods),
        current=job is None or _made_of(job) == made_of,
        engines=found.engines,
        engine_trouble=Trouble(engine.reason, f"{engine.where}: {engine.message}")
        if engine
        else None,
        engines_queued=engine is not None and engine.reason == _UNSCHEDULABLE,
    )


def job_state(job: Json | None) -> JobState:
    """How a trainer's Job stands.

    It has failed from the moment in which its controller decides so, not only when all pods are
    gone.
    """
    if job is None:
        return "absent"
    if _holds(job, "Complete"):
        return "complete"
    return "failed" if _holds(job, "Failed") or _holds(job, "FailureTarget") else "active"


def _holds(job: Json, kind: str) -> bool:
    condition = condition_of(job, kind)
    return condition is not None and condition["status"] == "True"


def _made_of(job: Json) -> str | None:
    value: str | None = (job["metadata"].get("annotations") or {}).get(MADE_OF_ANNOTATION)
    return value


def _placed(pods: Iterable[Json]) -> datetime | None:
    """When the last of the pods got its node."""
    found = (condition_of(pod, "PodScheduled") for pod in pods)
    times = (parse_time(each.get("lastTransitionTime")) for each in found if each)
    return max((time for time in times if time), default=None)
