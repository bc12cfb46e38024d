"""The Jobs of a rollout, which inspect and gate its candidate, and what came of them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.meta import seconds
from assay_operator.config import OperatorConfig
from assay_operator.inference.jobs import (
    GATE,
    INSPECT,
    OWN_ENGINE,
    JobResult,
    Mount,
    Named,
    OwnEngine,
    Questions,
    gate_job,
    inspection_job,
    job_result,
    network_policy,
    waits,
)
from assay_operator.inference.objects import Identity, engine_template, volume_of
from assay_operator.inference.observation import Observation, engine_url
from assay_operator.inference.places import layout_for, place_of
from assay_operator.inference.profiles import EngineProfile
from assay_operator.inference.results import result
from assay_operator.inference.rollout_state import Rollout
from assay_operator.inference.rollout_world import JobOrder, Replica, Step, Target
from assay_operator.plan import Json, Ref
from assay_verifiers.config import GateLimits

_CANDIDATE = "/candidate"
_INCUMBENT = "/incumbent"
_DIGEST_LENGTH = len("sha256:") + 64


@dataclass(frozen=True)
class Trial:
    """What a Job of a rollout is made from.

    Attributes:
        identity: the service's names.
        spec: what the user wants.
        config: the administrator's defaults.
        profile: of the engines.
        template: of the engines' pods.
    """

    identity: Identity
    spec: InferenceServiceSpec
    config: OperatorConfig
    profile: EngineProfile
    template: Json

    def engine(self, target: Target) -> OwnEngine:
        """One that serves a target to a gate alone."""
        template = engine_template(
            self.identity,
            self.spec,
            self.profile,
            self.config,
            version=target.version,
            layout=layout_for(target, {}),
        )
        return OwnEngine(template, target.path, target.version, self.profile.startup_seconds)


def job_name(identity: Identity, order: JobOrder) -> str:
    """The Job's name, and that of its NetworkPolicy."""
    return f"{identity.name}-{order.kind}-{order.id}"


def results(
    observation: Observation,
    identity: Identity,
    spec: InferenceServiceSpec,
    order: JobOrder | None,
    *,
    missing: str,
    now: datetime,
) -> dict[str, JobResult]:
    """What came of the Job that is ordered, or why it can come to nothing, by the order's id.

    Args:
        observation: what is seen of the service.
        identity: its names.
        spec: what the user wants.
        order: the one that stands in the status.
        missing: why the gate's suite cannot be asked, empty where it can.
        now: the time, with a zone.
    """
    if order is None:
        return {}
    job = observation.children.get(Ref("Job", job_name(identity, order)))
    found = job_result(job, observation.jobs, now) if job else None
    if order.kind == "gate" and not (found and found.finished):
        if job is None and spec.rollout.gate is None:
            found = result("pass", {}, "spec.rollout.gate was taken away, so nothing is asked.")
        elif missing and (job is None or waits(job, observation.jobs)):
            # Its pod would hang for as long as the suite is missing, and say nothing.
            found = result("broken", {}, missing, finished=False)
    return {order.id: found} if found else {}


def scores(rollout: Rollout | None, found: Mapping[str, JobResult]) -> dict[str, float]:
    """By version, what the gate found."""
    if rollout is None or rollout.job is None or rollout.job.kind != "gate":
        return {}
    outcome = found.get(rollout.job.id)
    told = (outcome.summary.get("score") if outcome else None) or {}
    sides = {"candidate": rollout.target.version, "incumbent": rollout.origin.version}
    means = {version: (told.get(side) or {}).get("mean") for side, version in sides.items()}
    return {version: mean for version, mean in means.items() if isinstance(mean, int | float)}


def trial_objects(
    trial: Trial,
    step: Step,
    rollout: Rollout | None,
    observation: Observation,
    found: Iterable[Replica],
    *,
    outcomes: Mapping[str, JobResult],
) -> tuple[Json, ...]:
    """The Jobs that shall be there, and what their pods may reach.

    One whose result is known without it is not made: a pass that changes a child is planned anew
    before its status is written, and that plan would find the Job and wait for it.

    Args:
        trial: what they are made from.
        step: orders them.
        rollout: as the step found it, with the Job that was ordered.
        observation: what is seen of the service.
        found: all its engines.
        outcomes: what is known of the Jobs, as `results` has it.
    """
    if rollout is None:
        return ()
    made: list[Json] = []
    for order in step.jobs:
        there = observation.children.get(Ref("Job", job_name(trial.identity, order)))
        if there is None and order.id in outcomes:
            continue
        if order.kind == "inspect":
            made += _inspection(trial, order, rollout)
        elif trial.spec.rollout.gate:
            asked = _asked(there) if there else _to_ask(order, step, rollout, observation, found)
            if asked:
                made += _gate(trial, order, rollout.target, asked)
    return tuple(made)


def _named(trial: Trial, order: JobOrder) -> Named:
    component = INSPECT if order.kind == "inspect" else GATE
    identity = trial.identity
    return Named(job_name(identity, order), identity.namespace, identity.labels(component))


def _inspection(trial: Trial, order: JobOrder, rollout: Rollout) -> tuple[Json, Json]:
    named = _named(trial, order)
    target, origin = rollout.target, rollout.origin
    # Engines see both in the same place where they lie on two volumes: here each has its own.
    same = target.volume == origin.volume
    mounts = (
        Mount("candidate", volume_of(target.volume), _CANDIDATE),
        Mount("candidate" if same else "incumbent", volume_of(origin.volume), _INCUMBENT),
    )
    job = inspection_job(
        named,
        trial.config,
        candidate=_below(_CANDIDATE, target),
        incumbent=_below(_INCUMBENT, origin),
        mounts=mounts,
        engine_template=trial.template,
        digest=target.version if _is_digest(target.version) else None,
        code=trial.spec.model.trustRemoteCode,
    )
    return network_policy(named, INSPECT), job


def _below(root: str, target: Target) -> str:
    """A target's folder in a pod that has its volume at `root`."""
    return f"{root}/{place_of(target).within}".rstrip("/")


def _is_digest(version: str) -> bool:
    """Whether a version names a model's files, as a Checkpoint's does; an image's is shorter."""
    return version.startswith("sha256:") and len(version) == _DIGEST_LENGTH


def _to_ask(
    order: JobOrder,
    step: Step,
    rollout: Rollout,
    observation: Observation,
    found: Iterable[Replica],
) -> tuple[str, str | None] | None:
    """The URLs of candidate and incumbent; None while one of them cannot be asked.

    The incumbent is an engine of its own: behind the router there could be others.
    """
    urls = {pod["metadata"]["uid"]: engine_url(pod) for pod in observation.engines}
    candidate = OWN_ENGINE if order.uid is None else urls.get(order.uid)
    others = (
        urls[each.uid]
        for each in sorted(found, key=lambda replica: replica.pod)
        if each.routable
        and each.version == rollout.origin.version
        and each.uid != order.uid
        and step.admits(each.uid, rollout.origin.version)
    )
    incumbent = next(others, None) if order.compare else None
    if candidate is None or (order.compare and incumbent is None):
        return None
    return candidate, incumbent


def _asked(job: Json) -> tuple[str, str | None] | None:
    """Whom a Job that is there asks: what it does cannot be changed any more."""
    for container in job["spec"]["template"]["spec"]["containers"]:
        command = container.get("command") or []
        if "--candidate" in command:
            return _option(command, "--candidate") or "", _option(command, "--incumbent")
    return None


def _option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def _gate(
    trial: Trial, order: JobOrder, target: Target, asked: tuple[str, str | None]
) -> tuple[Json, Json]:
    named, gate = _named(trial, order), trial.spec.rollout.gate
    assert gate is not None
    candidate, incumbent = asked
    questions = Questions(
        config_map=gate.suite.configMap,
        key=gate.suite.key,
        limits=GateLimits(**{name: getattr(gate, name) for name in GateLimits.model_fields}),
        items=gate.items,
        max_tokens=gate.maxTokens,
        timeout_seconds=seconds(gate.timeout),
    )
    own = candidate == OWN_ENGINE
    job = gate_job(
        named,
        trial.config,
        questions,
        candidate=candidate,
        incumbent=incumbent,
        engine=trial.engine(target) if own else None,
    )
    asks = not own or incumbent is not None
    engines = trial.identity.selector("engine") if asks else None
    return network_policy(named, GATE, engines=engines), job
