"""From a VerifiedRLJob and what is seen of it to what shall be done: one pure function."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from assay_operator.api.meta import seconds
from assay_operator.api.verified_rl_job import VerifiedRLJobSpec
from assay_operator.conditions import Verdict, refusal
from assay_operator.config import OperatorConfig
from assay_operator.inference.objects import fingerprint, parse_source
from assay_operator.inference.observation import has_key, is_terminating
from assay_operator.inference.profiles import EngineProfile, UnsupportedProfile, resolve
from assay_operator.plan import Annotate, Json, Plan, Ref
from assay_operator.training import status as report
from assay_operator.training.checkpoints import Kept, checkpoints, pins
from assay_operator.training.gang import CLOSING_SECONDS, Gang, Policy, decide
from assay_operator.training.jobfile import data_key, suite_key
from assay_operator.training.look import Look, job_state, look, seen
from assay_operator.training.memory import read
from assay_operator.training.names import JobIdentity
from assay_operator.training.objects import (
    MADE_OF_ANNOTATION,
    PINS_ANNOTATION,
    as_it_stands,
    children,
    claim,
    trainer_job,
)
from assay_operator.training.observation import Observation, is_running
from assay_operator.training.pods import trainer_profile

SETTLED_SECONDS = 300.0
IDLE_SECONDS = 10.0
SOON_SECONDS = 0.5
BUSY_SECONDS = (2.0, 10.0)
"""How often a trainer is asked: with every step, but within these bounds."""
RETRY_ANNOTATION = "assay.dev/retry"
"""On a job that failed for good: another value has it tried again."""
_INERT: dict[str, Any] = {
    "suspend": True,
    "ttlAfterFinished": True,
    "checkpoint": {"onDelete": True},
}
"""Fields of the spec by whose change nothing is tried again."""
_CLAIM = "PersistentVolumeClaim"


@dataclass(frozen=True)
class _Wanted:
    """What a spec that can be carried out says, worked out.

    Attributes:
        identity: the names.
        spec: it.
        engine: the engines' profile.
        trainer: the trainers'.
        config: the administrator's defaults.
    """

    identity: JobIdentity
    spec: VerifiedRLJobSpec
    engine: EngineProfile
    trainer: EngineProfile
    config: OperatorConfig

    def job(self, generation: int) -> Json:
        """The trainer's Job."""
        return trainer_job(self.identity, self.spec, self.trainer, self.config, generation)


def looked_up(job: Json) -> tuple[Ref, ...]:
    """The objects of the user's that a job's spec names, which the planner wants to know of."""
    try:
        spec = VerifiedRLJobSpec.model_validate(job["spec"])
    except ValidationError:
        return ()
    return tuple(dict.fromkeys(name for _, name, _ in _named(spec)))


def _named(spec: VerifiedRLJobSpec) -> list[tuple[str, Ref, str]]:
    """What the spec names: what for, which object, and the key that a ConfigMap must have."""
    model = parse_source(spec.model.source).volume["persistentVolumeClaim"]["claimName"]
    weighed = spec.evaluation
    named = [
        ("checkpoint", _CLAIM, spec.checkpoint.storage.claim, ""),
        ("model", _CLAIM, model, ""),
        ("data", _CLAIM, spec.data.claim, ""),
        ("data", "ConfigMap", spec.data.configMap, data_key(spec.data)),
    ]
    if weighed:
        named.append(("suite", "ConfigMap", weighed.suite.configMap, suite_key(weighed)))
    return [(use, Ref(kind, name), key) for use, kind, name, key in named if name]


def _missing(observation: Observation, spec: VerifiedRLJobSpec) -> Iterator[tuple[str, str]]:
    """What the spec names and is known not to be there: what for, and what, in words."""
    for use, name, key in _named(spec):
        if name not in observation.found:
            continue
        found, told = observation.found[name], f"{name.kind} {name.name}"
        if found is None:
            yield use, told
        elif key and not has_key(found, key):
            yield use, f"{told} with the key {key}"


def plan(observation: Observation, config: OperatorConfig, now: datetime) -> Plan:
    """What shall be done about one VerifiedRLJob.

    Args:
        observation: what is seen of it.
        config: the administrator's defaults.
        now: the time, with a zone.

    Returns:
        the complete children, status, Events and actions. A spec that cannot be carried out gives
        a plan that says so in status and touches no child.
    """
    metadata = observation.job["metadata"]
    try:
        spec = VerifiedRLJobSpec.model_validate(observation.job["spec"])
        engine = spec.rollout.engine
        wanted = _Wanted(
            JobIdentity(metadata["name"], metadata["namespace"]),
            spec,
            resolve(engine.profile, engine.accelerator, engine.tuning, engine.parallelism),
            trainer_profile(spec),
            config,
        )
    except (ValidationError, UnsupportedProfile) as error:
        return _refused(observation, refusal(error, "spec.rollout.engine"), now)
    return _planned(observation, wanted, now)


def _refused(observation: Observation, verdict: Verdict, now: datetime) -> Plan:
    status = report.refused_status(observation, verdict, now)
    return Plan(
        status=status,
        events=report.events(observation.job.get("status") or {}, status),
        next_look=SETTLED_SECONDS,
        prune=False,
    )


def _planned(observation: Observation, wanted: _Wanted, now: datetime) -> Plan:
    spec, old = wanted.spec, observation.job.get("status") or {}
    known = read(old)
    found = look(observation, known.generation, now)
    kept = checkpoints(
        observation.job,
        spec,
        found.reported,
        observation.checkpoints,
        observation.pinned,
        complete=found.progress is not None,
    )
    missing = tuple(_missing(observation, spec))
    made_of = wanted.job(0)["metadata"]["annotations"][MADE_OF_ANNOTATION]
    gang = decide(
        known,
        seen(found, _digests(kept), spec.trainer.steps, made_of),
        _policy(observation.job, spec, blocked=bool(missing)),
        now,
    )
    sweep = _time_to_sweep(gang, spec)
    swept = sweep is not None and now >= sweep
    status = report.status(
        observation,
        report.Facts(
            spec=spec,
            gang=gang,
            left=found.left,
            engines=found.engines,
            engine_failure=found.engine_failure,
            trainer_failure=found.failure.failure if found.failure else None,
            missing=missing,
            progress=found.progress,
            kept=kept,
            swept=swept,
        ),
        now,
    )
    pinned = pins(kept, observation.pinned)
    lasting = (*claim(wanted.identity, spec), *kept.apply)
    job = _trainer(wanted, known, gang, found, now)
    return Plan(
        objects=lasting if swept else (*lasting, *_running(wanted, gang, job, pinned)),
        status=status,
        events=report.events(old, status),
        actions=_nudges(found, pinned),
        next_look=_next_look(known, gang, found, sweep, now),
        delete=kept.delete,
    )


def _digests(kept: Kept) -> list[str]:
    return [item["spec"]["digest"].removeprefix("sha256:") for item in kept.apply]


def _policy(job: Json, spec: VerifiedRLJobSpec, *, blocked: bool) -> Policy:
    said = spec.model_dump(mode="json", exclude_defaults=True, exclude=_INERT)
    again = (job["metadata"].get("annotations") or {}).get(RETRY_ANNOTATION)
    return Policy(
        steps=spec.trainer.steps,
        limit=spec.backoffLimit,
        deadline=seconds(spec.progressDeadline),
        suspend=spec.suspend,
        blocked=blocked,
        mark=fingerprint(json.dumps([said, again], sort_keys=True)),
    )


def _time_to_sweep(gang: Gang, spec: VerifiedRLJobSpec) -> datetime | None:
    """When what is left of a finished job is cleared away; None for never."""
    if not gang.over or gang.finished is None or spec.ttlAfterFinished is None:
        return None
    return gang.finished + timedelta(seconds=seconds(spec.ttlAfterFinished))


def _running(
    wanted: _Wanted, gang: Gang, job: Json | None, pinned: frozenset[str]
) -> tuple[Json, ...]:
    """What the job runs on."""
    spec, config = wanted.spec, wanted.config
    engines = spec.rollout.engines if gang.state in ("Waiting", "Running", "Ending") else 0
    return (
        *children(wanted.identity, spec, wanted.engine, config, engines=engines, pins=pinned),
        *([job] if job else []),
    )


def _trainer(wanted: _Wanted, known: Gang, gang: Gang, found: Look, now: datetime) -> Json | None:
    """The trainer's Job that is to be there; None for none."""
    there = found.job if found.generation == gang.generation else None
    if gang.state == "Running":
        if there:
            return as_it_stands(there)
        # Nothing is made beside what is left of others, even if only a late view shows it.
        return None if found.left else wanted.job(gang.generation)
    if there is None:
        return None
    if known.state == "Running" and gang.state in ("Ending", "Failed"):
        # Why it ends has to stand in the status first: whoever comes after must not have to guess.
        return as_it_stands(there)
    ended = job_state(there) in ("complete", "failed")
    closing = gang.state == "Complete" and not _is_past(gang.finished, CLOSING_SECONDS, now)
    return as_it_stands(there) if gang.over and (ended or closing) else None


def _is_past(since: datetime | None, length: float, now: datetime) -> bool:
    return since is not None and (now - since).total_seconds() >= length


def _nudges(found: Look, pinned: Iterable[str]) -> tuple[Annotate, ...]:
    """A changed annotation makes the kubelet refresh the trainer's pins at once."""
    pod = found.first
    if pod is None or is_terminating(pod) or not is_running(pod):
        return ()
    wanted = fingerprint(" ".join(sorted(pinned)))
    value = (pod["metadata"].get("annotations") or {}).get(PINS_ANNOTATION)
    if value == wanted or (value is None and not pinned):
        return ()
    return (Annotate(pod["metadata"]["name"], PINS_ANNOTATION, wanted),)


def _next_look(
    known: Gang, gang: Gang, found: Look, sweep: datetime | None, now: datetime
) -> float:
    if known.state == "Running" and gang.state != "Running":
        return SOON_SECONDS
    if gang.over:
        closing = gang.state == "Complete" and job_state(found.job) == "active"
        left = (sweep - now).total_seconds() if sweep and sweep > now else SETTLED_SECONDS
        return max(SOON_SECONDS, min(left, IDLE_SECONDS if closing else SETTLED_SECONDS))
    if gang.state == "Running":
        pace = found.progress.seconds_per_step if found.progress else None
        return min(max(pace or BUSY_SECONDS[0], BUSY_SECONDS[0]), BUSY_SECONDS[1])
    earliest = gang.not_before()
    if gang.state == "Waiting" and earliest and earliest > now:
        return min(IDLE_SECONDS, max(SOON_SECONDS, (earliest - now).total_seconds()))
    return IDLE_SECONDS
