"""From a Checkpoint and what is seen of it to what shall be done: one pure function.

One that a job made was weighed in training. One that somebody brings is inspected, and weighed
where its spec says how, by a Job; what came of it stands in the status for good, for neither the
spec nor the bytes that a digest names can change.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from pydantic import ValidationError

from assay_operator.api.checkpoint import CheckpointSpec
from assay_operator.checkpoints import results
from assay_operator.checkpoints.observation import Observation, claim_of
from assay_operator.checkpoints.results import Finding
from assay_operator.checkpoints.weighing import Names, objects
from assay_operator.conditions import by_type, conditions, refusal
from assay_operator.config import OperatorConfig
from assay_operator.inference.jobs import JobResult, job_result, waits
from assay_operator.inference.observation import condition_of, has_key, parse_time
from assay_operator.inference.profiles import UnsupportedProfile
from assay_operator.plan import Event, Json, Plan, Ref

SETTLED_SECONDS = 300.0
WORKING_SECONDS = 15.0
"""How often while a Job runs: that it is stuck is told by the time alone."""
WAITING_SECONDS = 3.0
"""How often while an object of the user's is missing, which no watch announces."""
AGAIN_SECONDS = 300.0
"""After which a Job that came to no verdict is done again."""
_NO_NEWS = frozenset(
    {
        *(*results.UNDER_WAY, "NotWeighed", "NotEvaluated"),
        *("WrittenByTraining", results.INTACT),
    }
)
_VERDICTS = frozenset({"ScoreTooLow", "Undecided"})


@dataclass(frozen=True)
class _Work:
    """What is to be done about a Checkpoint that somebody brings, beside what is told of it."""

    finding: Finding
    objects: tuple[Json, ...] = ()
    next_look: float = SETTLED_SECONDS


def plan(observation: Observation, config: OperatorConfig, now: datetime) -> Plan:
    """What shall be done about one Checkpoint.

    Args:
        observation: what is seen of it.
        config: the administrator's defaults.
        now: the time, with a zone.
    """
    try:
        spec = CheckpointSpec.model_validate(observation.checkpoint["spec"])
    except ValidationError as error:
        wrong = refusal(error)
        return _told(observation, _Work(Finding(None, wrong, wrong)), now, prune=False)
    if spec.job:
        return _told(observation, _Work(results.of_training(observation.checkpoint, spec)), now)
    return _told(observation, _brought(observation, spec, config, now), now)


def _brought(
    observation: Observation, spec: CheckpointSpec, config: OperatorConfig, now: datetime
) -> _Work:
    settled = results.settled(observation.checkpoint, spec)
    if settled:
        return _Work(settled)
    metadata = observation.checkpoint["metadata"]
    names = Names(metadata["name"], metadata["namespace"])
    job, missing = observation.children.get(names.job), _missing(observation, spec)
    result = job_result(job, observation.pods, now) if job else None
    ended = result is not None and result.finished
    if missing and not ended and (job is None or waits(job, observation.pods)):
        # A Job whose pod hangs for it goes, for the kubelet looks again but every two minutes.
        return _Work(missing, next_look=WAITING_SECONDS)
    try:
        wanted = objects(names, spec, config)
    except UnsupportedProfile as error:
        return _Work(results.impossible(spec, "UnsupportedProfile", str(error)))
    if job is None or result is None:
        told = _refused(observation, spec) or results.under_way(spec)
        return _Work(told, wanted, WORKING_SECONDS)
    finding = results.of_job(spec, result, now)
    if not finding.open:
        # The Job stays until the status says what it found: whoever dies in between reads it again.
        return _Work(finding, wanted, next_look=1.0)
    return _Work(finding, () if _again(job, result, now) else wanted, WORKING_SECONDS)


def _refused(observation: Observation, spec: CheckpointSpec) -> Finding | None:
    """What is told where the API server takes a child not."""
    said = "; ".join(
        f"{kind} {name}: {message}"
        for (kind, name), message in sorted(observation.rejections.items())
    )
    if not said:
        return None
    return results.impossible(spec, "Rejected", f"The API server refuses a child: {said}")


def _again(job: Json, result: JobResult, now: datetime) -> bool:
    """Whether a Job without a verdict goes, so that the next pass makes another."""
    if not result.finished:
        return False
    ends = (condition_of(job, kind) for kind in ("Failed", "Complete"))
    times = (parse_time(end.get("lastTransitionTime")) for end in ends if end)
    since = max((time for time in times if time), default=None)
    return since is not None and now - since >= timedelta(seconds=AGAIN_SECONDS)


def _missing(observation: Observation, spec: CheckpointSpec) -> Finding | None:
    """What is told where something that the Job needs is known not to be there."""
    found = observation.found
    claim = claim_of(spec.source)
    if found.get(Ref("PersistentVolumeClaim", claim), {}) is None:
        return results.impossible(
            spec,
            "ClaimMissing",
            f"PersistentVolumeClaim {claim} does not exist in this namespace: create it, or delete "
            "this Checkpoint and make one with another source.",
        )
    if spec.evaluation is None:
        return None
    suite = spec.evaluation.suite
    name = Ref("ConfigMap", suite.configMap)
    config_map = found.get(name)
    if name not in found or (config_map and has_key(config_map, suite.key)):
        return None
    if config_map is None:
        what = f"ConfigMap {suite.configMap} does not exist in this namespace"
    else:
        what = f"ConfigMap {suite.configMap} has no key {suite.key}"
    return results.impossible(
        spec, "SuiteMissing", f"{what}: it holds the items to weigh by. Create it."
    )


def _told(observation: Observation, work: _Work, now: datetime, *, prune: bool = True) -> Plan:
    """The plan that tells of a finding."""
    metadata = observation.checkpoint["metadata"]
    old = observation.checkpoint.get("status") or {}
    finding, generation = work.finding, metadata.get("generation", 0)
    latest = finding.evaluations[0] if finding.evaluations else {}
    low, high = latest.get("low"), latest.get("high")
    status: Json = {
        "observedGeneration": generation,
        "digest": finding.digest,
        "shortDigest": finding.digest and finding.digest.removeprefix("sha256:")[:12],
        "score": latest.get("score"),
        "interval": None if low is None or high is None else [low, high],
        "evaluations": list(finding.evaluations) or None,
        "servedBy": _names(observation) or None,
        "conditions": conditions(
            {"Intact": finding.intact, "Verified": finding.verified}, old, generation, now
        ),
    }
    told = {name: value for name, value in status.items() if value is not None}
    return Plan(
        objects=work.objects,
        status=told,
        events=_events(old, told),
        next_look=work.next_look,
        prune=prune,
    )


def _names(observation: Observation) -> list[str]:
    places = (service["metadata"] for service in observation.serving)
    return sorted(f"{place['namespace']}/{place['name']}" for place in places)


def _events(old: Json, new: Json) -> tuple[Event, ...]:
    """What happened between two statuses, for `kubectl describe`."""
    before = by_type(old)
    told: list[Event] = []
    for kind, condition in by_type(new).items():
        reason, holds = condition["reason"], condition["status"] == "True"
        if reason == before.get(kind, {}).get("reason") or reason in _NO_NEWS:
            continue
        if holds:
            event = Event("Verified", condition["message"])
        else:
            type_: Literal["Normal", "Warning"] = "Normal" if reason in _VERDICTS else "Warning"
            event = Event(reason, condition["message"], type_)
        # What is wrong with the files stands in both conditions.
        if event not in told:
            told.append(event)
    return tuple(told)
