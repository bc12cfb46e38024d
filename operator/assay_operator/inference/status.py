"""What the user is told: status, conditions and Events, worked out from an observation."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from assay_operator.api.engine import Kernels
from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.conditions import Verdict, by_type, conditions, last_failure
from assay_operator.inference.activation import Move
from assay_operator.inference.drivers import KINDS as DRIVER_KINDS
from assay_operator.inference.failures import (
    Failure,
    deployment_failure,
    first_failure,
    place_of,
    pod_failure,
)
from assay_operator.inference.kernels import asks_for_fused
from assay_operator.inference.memory import as_status
from assay_operator.inference.objects import Identity
from assay_operator.inference.observation import Observation, is_ready, is_terminating
from assay_operator.inference.replicas import probe_failure
from assay_operator.inference.rollout_state import Rollout
from assay_operator.inference.rollout_words import who
from assay_operator.inference.rollout_world import Step, Target
from assay_operator.inference.scaling_status import Told
from assay_operator.plan import Event, Json, Ref

_COMING = frozenset({"Creating", "Starting", "NoRouter"})
"""What says no more than that something is on its way."""


@dataclass(frozen=True)
class Facts:
    """What the planner has worked out before the status is written.

    Attributes:
        identity: names of the service.
        spec: what the user wants, with the replicas that there are to be.
        number: of replicas that are wanted: while the last ones leave, none.
        wanted: the weights that shall be served, and
        target: whether they are what the spec asks for.
        step: of the rollout.
        rollout: what the step leaves, None while nothing was ever served.
        state: the same as the status keeps it, with the planner's notes.
        served: the versions that routable replicas serve.
        routable: how many replicas are routable.
        score: of the weights that are served, as far as one is known.
        kernels: that engines shall run.
        told: what is told of the number of replicas.
        move: where requests go.
    """

    identity: Identity
    spec: InferenceServiceSpec
    number: int
    wanted: Target
    target: Verdict
    step: Step
    rollout: Rollout | None
    state: Json | None
    served: tuple[str, ...]
    routable: int
    score: float | None
    kernels: Kernels
    told: Told
    move: Move

    @property
    def version(self) -> str:
        """Of the weights that engines start with."""
        return self.step.pointer.version


def status(observation: Observation, facts: Facts, now: datetime) -> Json:
    """The complete status of a service whose spec can be carried out."""
    engines = [pod for pod in observation.engines if not is_terminating(pod)]
    failure = current_failure(observation, facts.identity, now)
    applied = _applied(observation)
    engines_ready = _engines_ready(facts, len(engines), failure)
    router_ready = _router_ready(observation, facts)
    verdicts = {
        "Applied": applied,
        "EnginesReady": engines_ready,
        "RouterReady": router_ready,
        "Ready": _ready(observation, facts, applied, engines_ready, router_ready),
        "Target": facts.target,
        "RolledOut": _rolled_out(facts),
        **facts.told.verdicts,
    }
    if facts.kernels == "fused":
        verdicts["KernelsActive"] = _kernels_active(observation)
    checkpoint = facts.version if facts.version in facts.served else ", ".join(facts.served)
    served = facts.step.served
    selector = facts.identity.selector("engine")
    return _assemble(
        observation,
        verdicts,
        failure,
        now,
        {
            "replicas": len(engines),
            "readyReplicas": facts.routable,
            "routable": f"{facts.routable}/{facts.number}",
            "selector": ",".join(f"{key}={value}" for key, value in sorted(selector.items())),
            "checkpoint": checkpoint or None,
            "score": facts.score,
            "url": facts.identity.url,
            "served": as_status(served) if served else None,
            "rollout": facts.state,
            "history": list(facts.step.history) or None,
            "refused": list(facts.step.refused) or None,
            "autoscaling": facts.told.status,
            "activation": facts.move.as_status(),
        },
    )


def refused_status(
    observation: Observation, refused: Verdict, now: datetime, kinds: tuple[str, ...]
) -> Json:
    """The status of a service whose spec cannot be carried out: what serves goes on serving.

    Args:
        observation: what is seen of it.
        refused: why not, and what to do.
        now: the time, with a zone.
        kinds: the conditions that say so.
    """
    old = observation.service.get("status") or {}
    kept = {
        key: value
        for key, value in old.items()
        if key not in {"conditions", "observedGeneration", "lastFailure"}
    }
    name = observation.service["metadata"]["name"]
    failure = Failure(f"inferenceservice/{name}", refused.reason, refused.message, fatal=True)
    return _assemble(observation, dict.fromkeys(kinds, refused), failure, now, kept)


def _assemble(
    observation: Observation,
    verdicts: dict[str, Verdict],
    failure: Failure | None,
    now: datetime,
    fields: Json,
) -> Json:
    old = observation.service.get("status") or {}
    generation = observation.service["metadata"].get("generation", 0)
    complete = {
        "observedGeneration": generation,
        **fields,
        "conditions": conditions(verdicts, old, generation, now),
        "lastFailure": last_failure(failure, old.get("lastFailure"), now),
    }
    return {key: value for key, value in complete.items() if value is not None}


def current_failure(observation: Observation, identity: Identity, now: datetime) -> Failure | None:
    """The most telling of what is wrong at this moment."""
    deployments = (
        observation.children.get(Ref("Deployment", name))
        for name in (identity.engine, identity.router)
    )
    refused = (
        Failure(f"{kind.lower()}/{name}", "Rejected", message, fatal=True)
        for (kind, name), message in _refused(observation)
    )
    return first_failure(
        [
            *refused,
            *(deployment_failure(item) for item in deployments if item),
            *(pod_failure(pod, "engine", now) for pod in observation.engines),
            *(
                probe_failure(pod, observation.probes.get(pod["metadata"]["uid"]))
                for pod in observation.engines
            ),
            *(pod_failure(pod, "router", now) for pod in observation.routers),
        ]
    )


def _refused(observation: Observation) -> list[tuple[Ref, str]]:
    """What the API server says against children; of autoscalers ScalingActive tells."""
    return [
        (child, message)
        for child, message in sorted(observation.rejections.items())
        if child.kind not in DRIVER_KINDS.values()
    ]


def _applied(observation: Observation) -> Verdict:
    refused = _refused(observation)
    if not refused:
        return Verdict(True, "Applied", "Every child stands as planned.")
    said = "; ".join(f"{kind} {name}: {message}" for (kind, name), message in refused)
    return Verdict(
        False,
        "Rejected",
        f"The API server refuses a child, correct spec.template or spec.engine.resources: {said}",
    )


def _engines_ready(facts: Facts, existing: int, failure: Failure | None) -> Verdict:
    wanted = facts.number
    if wanted == 0:
        return _none_wanted(facts, "spec.replicas is 0: nothing is to be served.")
    if facts.routable >= wanted:
        return Verdict(True, "AllRoutable", f"All {wanted} engine replicas are routable.")
    count = f"{facts.routable} of {wanted} engine replicas are routable"
    if failure:
        return Verdict(False, failure.reason, f"{count}. {failure.where}: {failure.message}")
    if existing == 0:
        return Verdict(False, "Creating", f"{count}. Pods are being created.")
    if facts.rollout and facts.step.excluded:
        told = "The others get back the weights that are served."
        if not facts.rollout.over:
            told = facts.rollout.message
        return Verdict(False, "RollingOut", f"{count}. {told}")
    return Verdict(
        False,
        "Starting",
        f"{count}. Engines load their weights; `kubectl logs` of the engine pods shows how far.",
    )


def _router_ready(observation: Observation, facts: Facts) -> Verdict:
    if facts.number == 0:
        return _none_wanted(facts, "spec.replicas is 0: no router runs.")
    ready = sum(is_ready(pod) for pod in observation.routers)
    wanted = facts.spec.router.replicas
    if ready >= wanted:
        return Verdict(True, "Routing", f"All {wanted} router replicas route.")
    if ready:
        return Verdict(False, "Degraded", f"{ready} of {wanted} router replicas route.")
    return Verdict(
        False,
        "NoRouter",
        "No router replica is ready: a router is ready once it has a healthy engine.",
    )


def _none_wanted(facts: Facts, stopped: str) -> Verdict:
    if facts.move.activator:
        return Verdict(False, "ScaledToZero", facts.move.message)
    return Verdict(False, "NoReplicas", stopped)


def _ready(
    observation: Observation, facts: Facts, applied: Verdict, engines: Verdict, router: Verdict
) -> Verdict:
    if facts.number == 0 and facts.move.activator:
        if facts.routable or any(map(is_ready, observation.activators)):
            return Verdict(True, "ScaledToZero", facts.move.message)
        told = "No replica runs, and no activator is ready to hold the next request."
        return Verdict(False, "NoActivator", told)
    if facts.routable:
        for part in (applied, engines, router):
            if not part.holds:
                return Verdict(True, "Degraded", part.message)
        return Verdict(True, "Serving", f"Serves {facts.version} at {facts.identity.url}.")
    for part in (applied, engines, router):
        if not part.holds:
            wakes = facts.move.phase == "Waking" and part.reason in _COMING
            reason = "Waking" if wakes else part.reason
            return Verdict(False, reason, part.message)
    return Verdict(False, "NotRoutable", "No router lists a healthy engine.")


def _rolled_out(facts: Facts) -> Verdict:
    """Whether what the spec asks for is served; unknown while that is on its way."""
    rollout, wanted = facts.rollout, facts.wanted
    if rollout is None:
        told = f"Nothing was served yet: engines start with {who(wanted)}."
        return Verdict(None, "Starting", told)
    if not rollout.over:
        reason = "Paused" if rollout.paused else rollout.phase
        return Verdict(None, reason, rollout.message)
    if not facts.target.holds:
        return Verdict(False, facts.target.reason, facts.target.message)
    if rollout.serves.version == wanted.version:
        told = rollout.message
        if rollout.phase != "Done":
            told = f"{who(rollout.serves)} is served. The latest change: {told}"
        return Verdict(True, "Served", told)
    return Verdict(False, rollout.reason or "NotTried", rollout.message)


def _kernels_active(observation: Observation) -> Verdict:
    """Whether the engines that were asked for fused kernels run them."""
    asked = [pod for pod in observation.engines if not is_terminating(pod) and asks_for_fused(pod)]
    told = [
        (pod, probe.kernels)
        for pod in asked
        if (probe := observation.probes.get(pod["metadata"]["uid"])) and probe.kernels
    ]
    for pod, kernels in told:
        if not kernels.active:
            return Verdict(False, "KernelsInactive", f"{place_of(pod)}: {kernels.why_not}.")
    if not asked:
        return Verdict(None, "NoEngine", "There is no engine that was asked to run them.")
    if len(told) < len(asked):
        message = f"{len(told)} of {len(asked)} engines have told that they run them."
        return Verdict(None, "Starting", message)
    ops = sorted({op for _, kernels in told for op in kernels.ops})
    releases = sorted({kernels.release for _, kernels in told})
    message = f"{len(told)} of {len(asked)} engines run {', '.join(ops)} ({'; '.join(releases)})."
    if not all(kernels.hardened for _, kernels in told):
        message += " Requests that would end an engine are not refused."
    return Verdict(True, "Fused", message)


def events(old: Json, new: Json) -> tuple[Event, ...]:
    """What happened between two statuses, for `kubectl describe`."""
    before, after = by_type(old), by_type(new)
    told: list[Event] = []
    failure, known = new.get("lastFailure"), old.get("lastFailure") or {}
    if failure and (failure["where"], failure["reason"]) != (
        known.get("where"),
        known.get("reason"),
    ):
        told.append(
            Event(failure["reason"], f"{failure['where']}: {failure['message']}", "Warning")
        )
    was = before.get("Ready", {}).get("status", "False")
    ready = after["Ready"]
    if ready["status"] != was and ready["status"] == "True":
        told.append(Event("Ready", ready["message"]))
    elif ready["status"] != was:
        expected = ready["reason"] == "Waking"
        told.append(Event("NotReady", ready["message"], "Normal" if expected else "Warning"))
    target, known = after.get("Target"), before.get("Target", {})
    if target and target["status"] == "False" and target["reason"] != known.get("reason"):
        told.append(Event(target["reason"], target["message"], "Warning"))
    if new.get("checkpoint") and new.get("checkpoint") != old.get("checkpoint"):
        told.append(Event("CheckpointServed", f"Serves {new['checkpoint']}."))
    return tuple(told)
