"""What the user is told of a job: phase, progress, conditions and Events. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.api.verifiers import weak
from assay_operator.conditions import Verdict, by_type, conditions, last_failure, with_verdicts
from assay_operator.inference.failures import Failure
from assay_operator.plan import Event, Json
from assay_operator.training.checkpoints import Kept
from assay_operator.training.gang import DISRUPTED, Gang
from assay_operator.training.memory import written
from assay_operator.training.observation import Observation
from assay_operator.training.progress import DOUBT, ENDED, Progress, in_words

SILENCE_SECONDS = 60.0
"""A trainer that does not answer for so long is not said to train any more."""
_MISSING = {
    "checkpoint": ("StorageMissing", "spec.checkpoint.storage.claim"),
    "model": ("ModelMissing", "spec.model.source"),
    "data": ("DataMissing", "spec.data"),
    "suite": ("SuiteMissing", "spec.evaluation.suite"),
}


@dataclass(frozen=True)
class Facts:
    """What the planner has worked out before the status is written.

    Attributes:
        spec: what the user wants.
        gang: the pods' state.
        left: whether trainer pods are there.
        engines: how many of the job's engines are ready.
        engine_failure: what is wrong with engines.
        trainer_failure: what is wrong with trainer pods.
        missing: what the spec names and is not there: what for, and what, in words.
        progress: what the trainer said now; None where it said nothing.
        kept: the job's Checkpoints.
        swept: whether what the job had has been cleared away.
    """

    spec: VerifiedRLJobSpec
    gang: Gang
    left: bool
    engines: int
    engine_failure: Failure | None
    trainer_failure: Failure | None
    missing: tuple[tuple[str, str], ...]
    progress: Progress | None
    kept: Kept
    swept: bool


def status(observation: Observation, facts: Facts, now: datetime) -> Json:
    """The complete status of a job whose spec can be carried out."""
    old = observation.job.get("status") or {}
    verdicts = _verdicts(observation, facts, now)
    generation = observation.job["metadata"].get("generation", 0)
    complete = {
        "observedGeneration": generation,
        "phase": _phase(facts, verdicts),
        **_progress(facts, old),
        **written(facts.gang),
        "conditions": conditions(verdicts, old, generation, now),
        "lastFailure": last_failure(_failure(observation, facts), old.get("lastFailure"), now),
    }
    return {key: value for key, value in complete.items() if value is not None}


def refused_status(observation: Observation, refused: Verdict, now: datetime) -> Json:
    """The status of a job whose spec cannot be carried out: what runs goes on.

    Args:
        observation: what is seen of it.
        refused: why not, and what to do.
        now: the time, with a zone.
    """
    old = observation.job.get("status") or {}
    generation = observation.job["metadata"].get("generation", 0)
    name = observation.job["metadata"]["name"]
    failure = Failure(f"verifiedrljob/{name}", refused.reason, refused.message, fatal=True)
    return {
        **with_verdicts(old, {"Admitted": refused}, generation, now),
        "observedGeneration": generation,
        "phase": old.get("phase", "Pending"),
        "lastFailure": last_failure(failure, old.get("lastFailure"), now),
    }


def _progress(facts: Facts, old: Json) -> Json:
    """Numbers of the run; what was known stays while the trainer says nothing."""
    best, said, of = facts.kept.best, facts.progress, facts.spec.trainer.steps
    step = said.step if said else old.get("step")
    if facts.gang.state == "Complete" and facts.gang.marker:
        step = facts.gang.marker.step
    runs = said is not None and said.phase not in ENDED and not facts.gang.over
    eta = said.eta_seconds if said and runs else None
    shown: Json = {
        "step": step,
        "of": of,
        "progress": None if step is None else f"{step}/{of}",
        "reward": old.get("reward") if not said or said.reward is None else _rounded(said.reward),
        "score": old.get("score") if not said or said.score is None else _rounded(said.score),
        "best": best.name if best else None,
        "bestScore": _rounded(best.score) if best else None,
        "eta": None if eta is None else in_words(eta),
        "message": (said.message or None) if said else None,
        "alarms": said.warnings if said else old.get("alarms"),
    }
    return {key: value for key, value in shown.items() if value not in (None, [])}


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, 4)


def _phase(facts: Facts, verdicts: dict[str, Verdict]) -> str:
    gang = facts.gang
    if gang.over:
        return gang.state
    if facts.spec.suspend:
        return "Suspended" if verdicts["Suspended"].holds else "Suspending"
    if verdicts["Training"].holds:
        return "Training"
    if gang.state == "Ending":
        return "Restarting"
    if gang.state == "Waiting" and gang.trouble and gang.trouble.reason != "Suspended":
        return "Restarting"
    return "Pending" if gang.state == "Pending" else "Starting"


def _verdicts(observation: Observation, facts: Facts, now: datetime) -> dict[str, Verdict]:
    found = {
        "Admitted": _admitted(observation, facts),
        "EnginesReady": _engines_ready(facts),
        "Training": _training(facts, now),
        "CheckpointReady": _checkpoint_ready(facts),
        "Verified": _verified(facts),
        "Complete": _complete(facts),
        "Failed": _failed(facts),
        "Suspended": _suspended(facts),
    }
    if weak(facts.spec.verifiers):
        found["VerificationWeak"] = Verdict(
            True,
            "OnlySoftVerifiers",
            "All verifiers are opinions (http, reward-model, human): nothing proves what they "
            "reward, so the model may learn to please them. Add one that checks, if there can be "
            "one, and look at completions yourself.",
        )
    return found


def _admitted(observation: Observation, facts: Facts) -> Verdict:
    if observation.rejections:
        said = "; ".join(
            f"{kind} {name}: {message}"
            for (kind, name), message in sorted(observation.rejections.items())
        )
        return Verdict(
            False,
            "Rejected",
            "The API server refuses a child; correct the spec, its templates or its resources: "
            f"{said}",
        )
    if facts.missing:
        use, what = facts.missing[0]
        reason, field = _MISSING[use]
        return Verdict(
            False,
            reason,
            f"{what}, which {field} names, is not in this namespace: create it, and the job goes "
            "on by itself.",
        )
    return Verdict(True, "Admitted", "All that the spec names is there.")


def _engines_ready(facts: Facts) -> Verdict:
    wanted = facts.spec.rollout.engines
    if facts.gang.over:
        return Verdict(False, "Finished", "The job is over: its engines are gone.")
    if facts.spec.suspend:
        return Verdict(False, "Suspended", "spec.suspend is true: no engine runs.")
    if facts.engines >= wanted:
        return Verdict(True, "AllReady", f"All {wanted} engines are ready.")
    count = f"{facts.engines} of {wanted} engines are ready."
    failure = facts.engine_failure
    if failure:
        return Verdict(False, failure.reason, f"{count} {failure.where}: {failure.message}")
    if facts.gang.state == "Pending":
        return Verdict(False, "NotAdmitted", f"{count} They are started once the job is admitted.")
    return Verdict(
        False,
        "Starting",
        f"{count} They load their weights; `kubectl logs` of the engine pods shows how far.",
    )


def _training(facts: Facts, now: datetime) -> Verdict:
    gang, failure = facts.gang, facts.trainer_failure
    if gang.state != "Running":
        reason, message = {
            "Pending": ("Pending", "No trainer runs."),
            "Waiting": ("WaitingForEngines", "The trainer starts as soon as an engine is ready."),
            "Ending": ("Ending", "The trainer's pods end; the next ones start after the last."),
            "Complete": ("Complete", "All steps are done."),
            "Failed": ("Failed", "The job failed for good."),
        }[gang.state]
        earliest = gang.not_before()
        if gang.state == "Waiting" and earliest and now < earliest:
            reason, message = "BackOff", "The trainer starts again after a pause."
        why = f" {gang.trouble.message}" if gang.trouble and not gang.over else ""
        return Verdict(False, reason, message + why)
    if failure:
        return Verdict(False, failure.reason, f"{failure.where}: {failure.message}")
    if not gang.mark:
        return Verdict(
            False,
            "Starting",
            f"The pods of generation {gang.generation} start; `kubectl logs` of the trainer pods "
            "shows how far.",
        )
    if gang.silent and (now - gang.silent).total_seconds() >= SILENCE_SECONDS:
        return Verdict(
            False,
            "TrainerSilent",
            "The trainer's /status does not answer; after spec.progressDeadline it is started "
            "again.",
        )
    return Verdict(True, "Training", f"Generation {gang.generation} trains.")


def _checkpoint_ready(facts: Facts) -> Verdict:
    kept = facts.kept
    if kept.problems:
        return Verdict(kept.newest is not None, "Conflict", "; ".join(kept.problems))
    if kept.newest is None:
        every = facts.spec.checkpoint.every
        return Verdict(False, "NoneYet", f"The first one comes after step {every}.")
    return Verdict(True, "Saved", f"The newest is Checkpoint {kept.newest}.")


def _verified(facts: Facts) -> Verdict:
    best, evaluation = facts.kept.best, facts.spec.evaluation
    if best:
        return Verdict(
            True,
            "EvaluatedInTraining",
            f"Checkpoint {best.name} is the best: it scored {best.score:.4f}.",
        )
    if evaluation is None:
        return Verdict(
            False, "NoEvaluation", "Without spec.evaluation no checkpoint is ever verified."
        )
    if evaluation.minScore is None:
        return Verdict(
            False, "NoMinScore", "Without spec.evaluation.minScore none is ever verified."
        )
    if facts.kept.newest is None:
        return Verdict(False, "NoneYet", "There is no checkpoint yet.")
    return Verdict(
        False,
        "ScoreTooLow",
        f"No checkpoint reached spec.evaluation.minScore, {evaluation.minScore:g}.",
    )


def _complete(facts: Facts) -> Verdict:
    gang = facts.gang
    if gang.state == "Complete" and gang.marker:
        swept = " What it ran on is cleared away (spec.ttlAfterFinished)." if facts.swept else ""
        return Verdict(
            True,
            "AllStepsDone",
            f"All {gang.marker.step} steps are done, and the final checkpoint "
            f"sha256:{gang.marker.digest[:12]} is whole.{swept}",
        )
    if gang.state == "Failed":
        return Verdict(False, "Failed", "The job failed.")
    return Verdict(False, "NotYet", "There are steps to be done.")


def _failed(facts: Facts) -> Verdict:
    gang = facts.gang
    if gang.state == "Failed" and gang.trouble:
        again = (
            "To go on from the last checkpoint: mend it, then change the spec or set the "
            "annotation assay.dev/retry to a new value."
        )
        return Verdict(True, gang.trouble.reason, f"{gang.trouble.message} {again}")
    return Verdict(False, "NotFailed", "Nothing has failed for good.")


def _suspended(facts: Facts) -> Verdict:
    if not facts.spec.suspend:
        return Verdict(False, "NotSuspended", "spec.suspend is false.")
    if facts.gang.over:
        return Verdict(False, "Finished", "The job is over: there is nothing to suspend.")
    if facts.left:
        return Verdict(False, "Suspending", "The trainer writes a checkpoint and ends.")
    return Verdict(
        True, "Suspended", "No pod runs. With spec.suspend false it goes on where it was."
    )


def _failure(observation: Observation, facts: Facts) -> Failure | None:
    """The failure to be shown: why the gang ended, else what is wrong now.

    None leaves the one that is shown: the pod that it was in may be gone by now.
    """
    for (kind, child), message in observation.rejections.items():
        return Failure(f"{kind.lower()}/{child}", "Rejected", message, fatal=True)
    trouble, pod = facts.gang.trouble, facts.trainer_failure
    if not trouble or not (trouble.counts or trouble.reason == DISRUPTED):
        return pod or facts.engine_failure
    if pod and pod.exit_code is not None:
        return pod
    shown = (observation.job.get("status") or {}).get("lastFailure") or {}
    if shown.get("reason") == trouble.reason:
        return None
    where = f"verifiedrljob/{observation.job['metadata']['name']}"
    return Failure(where, trouble.reason, trouble.message, fatal=trouble.hopeless)


_TOLD: dict[str, tuple[str, str | None]] = {
    "Admitted": ("Admitted", "NotAdmitted"),
    "Complete": ("Complete", None),
    "Failed": ("Failed", None),
    "Suspended": ("Suspended", "Resumed"),
}
"""Conditions whose change is an Event: its reason where it begins and where it ceases to hold."""
_BAD = frozenset({"NotAdmitted", "Failed"})


def events(old: Json, new: Json) -> tuple[Event, ...]:
    """What happened between two statuses, for `kubectl describe`."""
    before, after = by_type(old), by_type(new)
    told = [*_of_failure(old, new), *_of_gang(old, new)]
    if "VerificationWeak" in after and "VerificationWeak" not in before:
        weakness = after["VerificationWeak"]
        told.append(Event("VerificationWeak", weakness["message"], "Warning"))
    if new.get("best") and new.get("best") != old.get("best"):
        told.append(Event("CheckpointVerified", after["Verified"]["message"]))
    ready, was_ready = after.get("CheckpointReady", {}), before.get("CheckpointReady", {})
    if ready.get("reason") == "Conflict" and ready["message"] != was_ready.get("message"):
        told.append(Event("CheckpointConflict", ready["message"], "Warning"))
    known = {_kind(alarm) for alarm in old.get("alarms") or []}
    for alarm in new.get("alarms") or []:
        if _kind(alarm) not in known:
            told.append(Event("TrainingAlarm", alarm, "Warning"))
    return (*told, *_of_conditions(before, after))


def _kind(alarm: str) -> str:
    """What makes an alarm another one: not the numbers in it. A doubt's words never change."""
    kind = alarm.partition(":")[0]
    return alarm if kind == DOUBT else kind


def _of_conditions(before: dict[str, Json], after: dict[str, Json]) -> list[Event]:
    told = []
    for kind, (begins, ceases) in _TOLD.items():
        item = after.get(kind)
        if item is None:
            continue
        # What never held has not ceased; but to be refused is news from the start.
        was = before.get(kind, {"status": "True" if kind == "Admitted" else "False"})["status"]
        name = begins if item["status"] == "True" else ceases
        if item["status"] != was and name:
            told.append(Event(name, item["message"], "Warning" if name in _BAD else "Normal"))
    return told


def _of_failure(old: Json, new: Json) -> list[Event]:
    failure, known = new.get("lastFailure"), old.get("lastFailure") or {}
    if not failure:
        return []
    same = all(failure[key] == known.get(key) for key in ("where", "reason", "time"))
    if same and _counted(new) <= _counted(old):
        return []
    return [Event(failure["reason"], f"{failure['where']}: {failure['message']}", "Warning")]


def _counted(status_: Json) -> int:
    restarts: int = status_.get("restarts") or 0
    return restarts


def _of_gang(old: Json, new: Json) -> list[Event]:
    generation, before = new.get("generation") or 0, old.get("generation") or 0
    told = []
    trouble = (new.get("gang") or {}).get("trouble") or {}
    was = (old.get("gang") or {}).get("trouble") or {}
    if trouble and not trouble["counts"] and trouble != was and trouble["reason"] != "Suspended":
        told.append(Event(trouble["reason"], trouble["message"]))
    if generation > before:
        step = new.get("step")
        where = f", after step {step} or from the checkpoint before it" if step else ""
        told.append(Event("GangStarted", f"Generation {generation} of the trainer starts{where}."))
    return told
