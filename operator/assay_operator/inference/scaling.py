"""How many replicas a service is to have, and what a decision about that is made from. Pure.

The decision itself is `autoscaling.decision.decide`; here a service becomes its policy, and what is
seen of its pods how it stands. A decision counts once it stands in `status.autoscaling`: so whoever
leads next goes on from it, and never takes away what was only just asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from assay_operator.api.inference_service import InferenceServiceSpec
from assay_operator.api.meta import seconds
from assay_operator.autoscaling.model import Policy, Prior
from assay_operator.autoscaling.signals import Standing
from assay_operator.inference import activation
from assay_operator.inference.failures import pod_failure
from assay_operator.inference.memory import recall
from assay_operator.inference.objects import Identity, fingerprint
from assay_operator.inference.observation import (
    Observation,
    engine_url,
    is_over,
    is_ready,
    parse_time,
    ready_since,
)
from assay_operator.inference.profiles import EngineProfile
from assay_operator.inference.replicas import lacks_kernels, routed
from assay_operator.inference.results import ENGINE
from assay_operator.plan import Json, Ref

SCRAPE_SECONDS = 5.0
"""How often pods are asked what they are at."""
CHANGING_SECONDS = 1.0
"""How often while somebody waits for the answer: while replicas leave, or a request is held."""
AWAY_SECONDS = 30.0
"""How often while there is no replica: the first request is told of at once."""
_CHANGING = frozenset({"Leaving", "Closing", "Waking"})
_LEAVING = frozenset({"Leaving", "Closing"})
_MOST_RUNNING = "--max-running-requests"


def policy_of(spec: InferenceServiceSpec, profile: EngineProfile) -> Policy:
    """What the spec asks for, with what is assumed of its kind of engine.

    Raises:
        ValueError: the spec has no autoscaling.
    """
    scaling = spec.autoscaling
    if scaling is None:
        raise ValueError("there is no autoscaling in the spec")
    goals = scaling.objectives
    return Policy(
        min=scaling.min,
        max=scaling.max,
        ttft_s=None if goals.ttftMs is None else goals.ttftMs / 1000,
        itl_s=None if goals.itlMs is None else goals.itlMs / 1000,
        concurrency=goals.concurrency,
        attainment=Policy.attainment if goals.attainment is None else goals.attainment,
        scale_to_zero_after=_span(scaling.scaleToZeroAfter, Policy.scale_to_zero_after),
        down_window_s=_span(scaling.scaleDownAfter, Policy.down_window_s),
        profile=_kind(spec, profile),
        prior=_prior(spec, profile),
        acts=decides(spec),
    )


def _span(duration: str | None, default: float) -> float:
    return default if duration is None else float(seconds(duration))


def _kind(spec: InferenceServiceSpec, profile: EngineProfile) -> str:
    """The name under which it is kept what such an engine can do: another model, accelerator,
    argument or kernels make another engine. A followed job's checkpoints are all of one size."""
    made_of = " ".join((spec.model.source, profile.kernels, *profile.args, *spec.engine.extraArgs))
    return f"{spec.engine.accelerator}-{fingerprint(made_of)[:8]}"


def _prior(spec: InferenceServiceSpec, profile: EngineProfile) -> Prior:
    expected = profile.expected
    slots = _most_running((*profile.args, *spec.engine.extraArgs))
    return Prior(
        itl_s=expected.itl_s,
        itl_per_running_s=expected.itl_per_running_s,
        first_token_s=expected.first_token_s,
        prompt_token_s=expected.prompt_token_s,
        startup_s=expected.startup_s,
        slots=slots * profile.parallelism.data if slots else None,
    )


def _most_running(arguments: Sequence[str]) -> float | None:
    """Requests that an engine runs at once at most, as its arguments say; the last word counts."""
    found = None
    for argument, following in zip(arguments, (*arguments[1:], ""), strict=True):
        name, equals, value = argument.partition("=")
        if name == _MOST_RUNNING and (number := value if equals else following).isdigit():
            found = float(number) or None
    return found


def decides(spec: InferenceServiceSpec) -> bool:
    """Whether the operator itself sets the number of replicas."""
    return spec.autoscaling is not None and spec.autoscaling.driver == "builtin"


def is_stopped(spec: InferenceServiceSpec, status: Json) -> bool:
    """Whether spec.replicas of 0 stops a service that scales itself.

    KEDA means rest by it. That it wrote the 0 is still known after a change to the builtin driver:
    from its status at first, then from `specReplicas`, which is 0 only where that driver found one.
    """
    scaling = spec.autoscaling
    if spec.replicas or scaling is None or scaling.min:
        return spec.replicas == 0
    told = status.get("autoscaling") or {}
    by_keda = "keda" in (scaling.driver, told.get("driver"))
    return not by_keda and told.get("specReplicas") != 0


def may_rest(spec: InferenceServiceSpec, status: Json) -> bool:
    """Whether there may be no replica, and the next request brings one."""
    scaling = spec.autoscaling
    return scaling is not None and scaling.min == 0 and not is_stopped(spec, status)


def wanted(spec: InferenceServiceSpec, status: Json) -> int:
    """Engine replicas that are to be there, as a status that was read has it.

    Without a decision yet, spec.replicas is where it begins.
    """
    scaling = spec.autoscaling
    if scaling is None or not decides(spec) or is_stopped(spec, status):
        return spec.replicas
    told = status.get("autoscaling") or {}
    number = told.get("replicas") if told.get("driver") == scaling.driver else None
    if number is None:
        number = spec.replicas
    return int(min(scaling.max, max(scaling.min, number)))


def fleet_size(spec: InferenceServiceSpec, observation: Observation) -> int:
    """Engine replicas as a rollout has to reckon with them.

    While the last ones leave, none is wanted and yet they are there: a rollout that is under way
    goes on with them, and they stay until it is over.
    """
    status = observation.service.get("status") or {}
    number = wanted(spec, status)
    phase = (status.get("activation") or {}).get("phase")
    if number or not may_rest(spec, status) or phase == "Away":
        return number
    return _deployed(observation)


def _deployed(observation: Observation) -> int:
    """Engines that were last asked for, a rollout's surge left out."""
    metadata, status = observation.service["metadata"], observation.service.get("status") or {}
    identity = Identity(metadata["name"], metadata["namespace"])
    deployment = observation.children.get(Ref("Deployment", identity.engine))
    if deployment is None:
        return sum(not is_over(pod) for pod in observation.engines)
    rollout = recall(status).rollout
    surge = int(rollout is not None and rollout.surge)
    return max(0, int(deployment["spec"]["replicas"]) - surge)


def interval(spec: InferenceServiceSpec, status: Json) -> float:
    """Seconds from one look at the pods to the next."""
    phase = (status.get("activation") or {}).get("phase")
    if phase in _CHANGING:
        return CHANGING_SECONDS
    return SCRAPE_SECONDS if wanted(spec, status) else AWAY_SECONDS


def rests(spec: InferenceServiceSpec, status: Json) -> bool:
    """Whether there is no replica, and a request is what is waited for."""
    return may_rest(spec, status) and not wanted(spec, status)


def standing(
    observation: Observation, spec: InferenceServiceSpec, policy: Policy, now: datetime
) -> Standing:
    """How a service stands.

    Args:
        observation: the service, its pods, what each router lists, and of its engines' probes what
            they say of their kernels.
        spec: of the service.
        policy: says from when on a replica is warm.
        now: the time, with a zone.
    """
    status = observation.service.get("status") or {}
    memory = recall(status)
    rollout = memory.rollout
    pods = {pod["metadata"]["uid"]: pod for pod in observation.engines if not is_over(pod)}
    listed = routed(observation, now) or frozenset()
    # What a rollout has in its hands a router may still list: it drains it.
    in_hand = rollout.excluded & pods.keys() if rollout else frozenset()
    ready = {
        uid
        for uid, pod in pods.items()
        if is_ready(pod) and engine_url(pod) in listed and uid not in in_hand
    }
    ages = {uid: _age(pods[uid], memory.history, now) for uid in ready}
    oldest = [_seconds(ready_since(pods[uid]), now) for uid in ready]
    # While the last replicas leave, no router lists them any more: they start nothing.
    leaving = (status.get("activation") or {}).get("phase") in _LEAVING
    # Nor does what lacks its kernels: it is up, and its Deployment waits for another spec.
    there = [
        uid
        for uid, pod in pods.items()
        if not (leaving and is_ready(pod)) and not lacks_kernels(observation, pod)
    ]
    failed = sum(uid not in in_hand and _has_failed(pods[uid], now) for uid in there)
    existing = max(wanted(spec, status), len(there))
    return Standing(
        ready=frozenset(ready),
        warm=frozenset(uid for uid, age in ages.items() if age >= policy.warmup_s),
        starting=max(0, existing - len(ready) - len(in_hand) - failed),
        failed=failed,
        away=len(in_hand),
        oldest_ready_s=max(oldest, default=None),
        rollout=rollout is not None and not rollout.over,
    )


def _has_failed(pod: Json, now: datetime) -> bool:
    """Whether something is wrong with an engine, so that nobody waits for it to load."""
    return pod_failure(pod, ENGINE, now) is not None


def _age(pod: Json, history: Sequence[Json], now: datetime) -> float:
    """For how long an engine has served with the weights that it has."""
    changed = parse_time(history[0].get("finished")) if history else None
    return min(_seconds(ready_since(pod), now), _seconds(changed, now) if changed else 1e9)


def _seconds(since: datetime | None, now: datetime) -> float:
    return max(0.0, (now - since).total_seconds()) if since else 0.0


def scene(
    observation: Observation,
    spec: InferenceServiceSpec,
    *,
    routable: int,
    now: datetime,
) -> activation.Scene:
    """What decides where the requests of a service go.

    Args:
        observation: what is seen of it.
        spec: what the user wants.
        routable: replicas that are routable.
        now: the time, with a zone.
    """
    status = observation.service.get("status") or {}
    rollout = recall(status).rollout
    pods = [pod for pod in observation.engines if not is_over(pod)]
    return activation.Scene(
        now=now,
        enabled=may_rest(spec, status),
        wanted=wanted(spec, status),
        engines=_deployed(observation),
        loading=sum(not is_ready(pod) and not _has_failed(pod, now) for pod in pods),
        rollout=rollout is not None and not rollout.over,
        routable=routable,
        routers=len(observation.routers),
        activators=sum(is_ready(pod) for pod in observation.activators),
        quiet=observation.seen.quiet if observation.seen else None,
        wait_s=activation.last_wake(observation.seen.answers) if observation.seen else None,
        before=activation.read(status.get("activation")),
    )
