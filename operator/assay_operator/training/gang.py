"""The life of a job's trainer pods, a gang: a pure state machine. Its state is all in the status.

    Pending -> Waiting -> Running -> Complete
       ^          ^          |
       |          +- Ending <+       (nothing of a generation is left before the next one begins)
       +-------------+    anything that fails too often -> Failed

Pending: it may not begin (suspended, or something that it needs is missing). Waiting: for an
engine, and after a failure for some time. Running: one generation of pods is wanted. Ending: their
Job is being deleted. An operator that is killed anywhere decides the same again, from the status
(`memory`) and from what it finds in the cluster (`look`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Literal

from assay_operator.training.progress import Marker

State = Literal["Pending", "Waiting", "Running", "Ending", "Complete", "Failed"]
JobState = Literal["absent", "active", "complete", "failed"]

SETTLE_SECONDS = 3.0
"""From the deletion of a Job to the next one at least: in it pods that its controller made at the
last moment are seen."""
FIRST_BACKOFF = 5.0
LAST_BACKOFF = 300.0
CLOSING_SECONDS = 120.0
"""How long trainers may take to end once all is done and safe."""
DISRUPTED = "Disrupted"
"""The reason of what ends for causes that are not its own: it does not count."""
_MARK_SECONDS = 60.0
"""Progress within a step is noted at most as often as this: each note writes the status."""


@dataclass(frozen=True)
class Trouble:
    """Why a generation ended, or has to end, or none could begin.

    Attributes:
        reason: one word.
        message: what happened, and what to do.
        counts: whether it is a failure, of which there may be `Policy.limit` in a row.
        hopeless: whether another try cannot help.
    """

    reason: str
    message: str
    counts: bool = True
    hopeless: bool = False


@dataclass(frozen=True)
class Policy:
    """What the spec says about it.

    Attributes:
        steps: to be done.
        limit: failures in a row, without a newly finished step in between, that are forgiven.
        deadline: seconds without progress that are a failure.
        suspend: whether the gang shall not run.
        blocked: whether no generation may begin now; one that runs goes on.
        mark: of the spec: a job that failed for good is tried again when it changes.
    """

    steps: int
    limit: int
    deadline: float
    suspend: bool = False
    blocked: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Seen:
    """What is there of the gang.

    Attributes:
        newest: the highest generation of which a Job or a pod is there; 0 for none.
        left: whether a Job or a pod of any generation is there.
        job: the state of the Job of the generation that is the last known or newest.
        pods: whether pods of that generation are there.
        running: whether its first pod's process runs.
        answered: whether that one answered; None where it was not asked.
        mark: of its progress.
        step: the last finished one that anything tells of.
        end: the marker of the final checkpoint.
        trouble: what is wrong with its pods.
        queued: whether it only waits for a place in the cluster.
        placed: when its last pod found one.
        current: False where the Job was made for something else than what is wanted now.
        engines: how many are ready.
        engine_trouble: what is wrong with them.
        engines_queued: whether they only wait for a place in the cluster.
    """

    newest: int = 0
    left: bool = False
    job: JobState = "absent"
    pods: bool = False
    running: bool = False
    answered: bool | None = None
    mark: str = ""
    step: int = 0
    end: Marker | None = None
    trouble: Trouble | None = None
    queued: bool = False
    placed: datetime | None = None
    current: bool = True
    engines: int = 0
    engine_trouble: Trouble | None = None
    engines_queued: bool = False


@dataclass(frozen=True)
class Gang:
    """All that has to be remembered.

    Attributes:
        state: see the module.
        generation: how often pods were started together.
        restarts: failures since a step was finished that had not been finished before.
        step: the highest step that was ever finished.
        failed_step: that of the last failure: a later one is progress.
        since: when progress was seen last, or waiting began.
        mark: what the progress was then.
        silent: since when the trainer does not answer.
        seen: whether the generation's Job was ever seen: then its absence is a loss.
        trouble: why the last generation ended, until the next one begins; for good, when Failed.
        ended: when that was.
        marker: of the final checkpoint.
        began: when the first generation did.
        finished: when the job was complete or failed for good.
        spec: the mark of the spec that it finished with.
    """

    state: State = "Pending"
    generation: int = 0
    restarts: int = 0
    step: int = 0
    failed_step: int = 0
    since: datetime | None = None
    mark: str = ""
    silent: datetime | None = None
    seen: bool = False
    trouble: Trouble | None = None
    ended: datetime | None = None
    marker: Marker | None = None
    began: datetime | None = None
    finished: datetime | None = None
    spec: str = ""

    @property
    def over(self) -> bool:
        """Whether the job came to its end."""
        return self.state in ("Complete", "Failed")

    def not_before(self) -> datetime | None:
        """When the next generation may begin at the earliest; None for at once."""
        if self.ended is None:
            return None
        counts = self.trouble is not None and self.trouble.counts and self.restarts > 0
        pause = FIRST_BACKOFF * 2 ** min(self.restarts - 1, 16) if counts else 0.0
        return self.ended + timedelta(seconds=max(SETTLE_SECONDS, min(LAST_BACKOFF, pause)))


def decide(gang: Gang, seen: Seen, policy: Policy, now: datetime) -> Gang:
    """The state after one look."""
    gang = _noted(_adopted(gang, seen, now), seen, policy, now)
    if gang.over:
        return _reopened(gang, policy, now)
    if gang.marker and gang.marker.step >= policy.steps:
        return replace(gang, state="Complete", trouble=None, finished=now, spec=policy.mark)
    if gang.state == "Running":
        gang = _running(gang, seen, policy, now)
    if gang.state == "Ending" and not seen.left:
        gang = replace(gang, state="Pending", since=now)
    if gang.state in ("Pending", "Waiting"):
        gang = _idle(gang, seen, policy, now)
    return gang


def _adopted(gang: Gang, seen: Seen, now: datetime) -> Gang:
    """A generation that began, and whose beginner died before it could write that down."""
    if seen.newest <= gang.generation:
        return gang
    return _begun(gang, seen.newest, now)


def _begun(gang: Gang, generation: int, now: datetime) -> Gang:
    return replace(
        gang,
        state="Running",
        generation=generation,
        since=now,
        mark="",
        silent=None,
        seen=False,
        trouble=None,
        ended=None,
        began=gang.began or now,
        finished=None,
    )


def _noted(gang: Gang, seen: Seen, policy: Policy, now: datetime) -> Gang:
    """Takes note of progress, of silence, and of the final checkpoint's marker."""
    if seen.job != "absent" or seen.pods:
        gang = replace(gang, seen=True)
    if seen.step > gang.step:
        gang = replace(gang, step=seen.step)
    if gang.step > gang.failed_step and gang.restarts and gang.state != "Failed":
        gang = replace(gang, restarts=0)
    if seen.end and seen.end != gang.marker:
        gang = replace(gang, marker=seen.end)
    if seen.answered is False:
        return gang if gang.silent else replace(gang, silent=now)
    if seen.answered is None:
        return gang
    if gang.silent:
        gang = replace(gang, silent=None)
    a_while = timedelta(seconds=min(_MARK_SECONDS, policy.deadline / 4))
    stepped = seen.mark.split(" ")[0] != gang.mark.split(" ")[0]
    if seen.mark != gang.mark and (stepped or not gang.since or now - gang.since >= a_while):
        gang = replace(gang, mark=seen.mark, since=now)
    return gang


def _reopened(gang: Gang, policy: Policy, now: datetime) -> Gang:
    """A job that is over begins again only where its owner changed what is to be done."""
    if gang.state == "Complete":
        if gang.marker and gang.marker.step >= policy.steps:
            return gang
        why = Trouble("MoreSteps", "spec.trainer.steps was raised: the run goes on.", counts=False)
    elif gang.spec == policy.mark:
        return gang
    else:
        why = Trouble("SpecChanged", "The spec was changed: the run is tried again.", counts=False)
    return replace(_ending(gang, why, now), restarts=0, failed_step=gang.step, finished=None)


def _running(gang: Gang, seen: Seen, policy: Policy, now: datetime) -> Gang:
    if policy.suspend:
        return _ending(gang, Trouble("Suspended", "spec.suspend is true.", counts=False), now)
    if seen.job == "complete":
        return _failed(gang, MARKER_MISSING, policy, now)
    if seen.job == "failed":
        return _failed(gang, seen.trouble or _UNKNOWN, policy, now)
    if seen.job == "absent" and gang.seen:
        return _failed(gang, _JOB_GONE, policy, now)
    if not seen.current and not policy.blocked:
        why = Trouble(
            "SpecChanged",
            "The job, or the operator's configuration, was changed: the trainer writes a "
            "checkpoint and starts again from there.",
            counts=False,
        )
        return _ending(gang, why, now)
    late = _overdue(gang, seen, policy, now)
    return _failed(gang, late, policy, now) if late else gang


def _overdue(gang: Gang, seen: Seen, policy: Policy, now: datetime) -> Trouble | None:
    """The failure to make progress in time, with what is known of its cause."""
    if seen.queued or (seen.running and seen.answered is None):
        return None
    since = [gang.since, seen.placed]
    if seen.answered is False:
        # The operator may have been away for long: only the silence that it heard itself counts.
        since.append(gang.silent)
    if not _is_over(since, policy, now):
        return None
    if seen.trouble:
        return replace(seen.trouble, message=f"{seen.trouble.message} {_no_progress(policy)}")
    if seen.answered is False:
        text = "The trainer's pod runs, and its /status does not answer."
        return Trouble("TrainerSilent", f"{text} {_no_progress(policy)}")
    if not seen.pods:
        text = "The trainer's Job has no pods: `kubectl describe job` says why."
        return Trouble("NoPods", f"{text} {_no_progress(policy)}")
    return Trouble("NoProgress", f"The trainer hangs or is too slow. {_no_progress(policy)}")


def _is_over(since: list[datetime | None], policy: Policy, now: datetime) -> bool:
    latest = max((each for each in since if each), default=now)
    return (now - latest).total_seconds() > policy.deadline


def _no_progress(policy: Policy) -> str:
    return (
        f"No progress was seen for {policy.deadline:g} s (spec.progressDeadline), so the pods "
        "start again from the last checkpoint."
    )


def _idle(gang: Gang, seen: Seen, policy: Policy, now: datetime) -> Gang:
    if policy.suspend or policy.blocked:
        return gang if gang.state == "Pending" else replace(gang, state="Pending")
    if gang.state == "Pending":
        gang = replace(gang, state="Waiting", since=now)
    earliest = gang.not_before()
    if earliest and now < earliest:
        return gang
    if seen.engines and not seen.left:
        return _begun(gang, gang.generation + 1, now)
    if seen.engines or seen.engines_queued or not _is_over([gang.since], policy, now):
        return gang
    why = seen.engine_trouble or Trouble("EnginesNotReady", "No engine became ready.")
    text = f"{why.message} None was ready for {policy.deadline:g} s (spec.progressDeadline)."
    gang = _failed(gang, replace(why, message=text, hopeless=False), policy, now)
    # There are no trainer pods to end; engines are started again by their kubelet.
    return gang if gang.over else replace(gang, state="Waiting", since=now)


def _failed(gang: Gang, why: Trouble, policy: Policy, now: datetime) -> Gang:
    """One more failure: another try, or the end."""
    if not why.counts:
        return _ending(gang, why, now)
    if not why.hopeless and gang.restarts < policy.limit:
        counted = replace(gang, restarts=gang.restarts + 1, failed_step=gang.step)
        return _ending(counted, why, now)
    if not why.hopeless:
        often = f" in a row, without a new step since step {gang.step}"
        count = f"This is failure {gang.restarts + 1}{often}: spec.backoffLimit is {policy.limit}."
        why = replace(why, message=f"{why.message} {count}")
    ended = _ending(gang, why, now)
    return replace(ended, state="Failed", finished=now, spec=policy.mark)


def _ending(gang: Gang, why: Trouble, now: datetime) -> Gang:
    return replace(gang, state="Ending", trouble=why, ended=now)


MARKER_MISSING = Trouble(
    "MarkerMissing",
    "The trainer's pods ended with exit code 0, but nobody was told of the final checkpoint, so it "
    "is not known to be whole. Another start finds it, or does the last steps again. If this "
    "comes again, the trainer's image is none of this operator's release, or its last words were "
    "lost: `assay-train checkpoints` on the job's folder lists what is there.",
)
_UNKNOWN = Trouble(
    "GangFailed",
    "The trainer's Job failed and its pods are gone: a node was lost, or somebody deleted them.",
)
_JOB_GONE = Trouble("JobDeleted", "Somebody deleted the trainer's Job.")
